"""Trains one model by one worker and by two, without dropout, which each of them would draw for itself.

    python tests/together.py STORE FOLDER MODEL OPTIONS (JSON)

Writes FOLDER/1 and FOLDER/2: history.json and the weights. The workers are forks of this process, so that torch is loaded once.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from labeler import workers
from labeler.fitting import Fit
from labeler.layers import FastDropout
from labeler.training_options import TrainOptions


def work(number: int, count: int, port: int) -> None:
    """Be worker `number` of `count`."""
    store, folder, model, options = sys.argv[1:]
    if count > 1:
        places = {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in places.items()})
        torch.distributed.init_process_group("gloo")
    fit = Fit(model, Path(store), TrainOptions(**json.loads(options)), 0, "cpu")
    out = Path(folder) / str(count)
    out.mkdir(exist_ok=True)
    history = fit.run(out, resume=False)
    if workers.is_first():
        fit.save(out, history)
    workers.wait()


if __name__ == "__main__":
    for kind in (nn.Dropout, FastDropout):
        kind.forward = lambda self, x: x
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for count in (1, 2):
        children = []
        for number in range(count):
            child = os.fork()
            if not child:
                code = 1
                try:
                    work(number, count, port)
                    code = 0
                except Exception:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
