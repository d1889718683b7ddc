"""Trains one model by one worker and by several, without dropout, which each of them would draw for itself.

    python tests/together.py STORE FOLDER MODEL OPTIONS (JSON) RUN...

A RUN is the number of workers, with `shard` behind it where the model is divided among them, and with `<RUN` where it goes on
from the last checkpoint but one of an earlier one: `1`, `2shard`, `1<2shard`. It writes FOLDER/RUN: history.json, the weights,
and of each worker how many elements it held when it had taken a step. The workers are forks of this process, so that torch is
loaded once.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from labeler.fitting import workers
from labeler.fitting.checkpoints import by_age
from labeler.fitting.fit import Fit
from labeler.layers import FastDropout
from labeler.training_options import TrainOptions


def work(number: int, run: str, port: int) -> None:
    """Be worker `number` of a run."""
    store, folder, model, options = sys.argv[1:5]
    out, kind = Path(folder) / run, run.partition("<")[0]
    count = int(kind.removesuffix("shard"))
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
    held: dict[str, int] = {}
    register_optimizer_step_post_hook(lambda optimizer, *_: held.update(elements(optimizer)))
    fit = Fit(model, Path(store), TrainOptions(**json.loads(options)), 0, "cpu", shard=kind.endswith("shard"))
    history = fit.run(out, resume="<" in run)
    (out / f"held-{number}.json").write_text(json.dumps(held))
    if workers.is_first():
        fit.save(out, history)
    workers.wait()


def elements(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return how many elements of weights, gradients and state this worker has."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    parts = {
        "weights": weights,
        "gradients": [weight.grad for weight in weights if weight.grad is not None],
        "state": state,
    }
    return {name: sum(map(own_elements, tensors)) for name, tensors in parts.items()}


def own_elements(tensor: torch.Tensor) -> int:
    """Return how many of a tensor's elements this worker has."""
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


def prepare(folder: Path, run: str) -> None:
    """Make a run's folder, with the checkpoints to go on from."""
    earlier = run.partition("<")[2]
    (folder / run).mkdir()
    if earlier:
        copied = shutil.copytree(folder / earlier / "trainer", folder / run / "trainer")
        shutil.rmtree(by_age(copied)[-1])


if __name__ == "__main__":
    for kind in (nn.Dropout, FastDropout):
        kind.forward = lambda self, x: x
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for run in sys.argv[5:]:
        prepare(Path(sys.argv[2]), run)
        children = []
        for number in range(int(run[0])):
            child = os.fork()
            if not child:
                code = 1
                try:
                    work(number, run, port)
                    code = 0
                except Exception:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
