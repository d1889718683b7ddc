"""Makes an artifact in a process that is killed at random moments and started again, until it has been killed so many times.

    python tests/killing.py train STORE FOLDER KILLS
    python tests/killing.py preprocess RECORDS FOLDER KILLS TEXT_TOWER IMAGE_TOWER

FOLDER/whole is made without a kill, FOLDER/run-0 and so on with them. The processes are forks of this one, so that what they
need is loaded once; this one never opens a store, since a process in which Lance works must not be forked.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path


def ended(make: Callable[[], object], seconds: float) -> bool:
    """Return whether `make`, in a process of its own that is killed after `seconds`, came to its end before."""
    child = os.fork()
    if not child:
        code = 1
        try:
            make()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"ended with status {status}"
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(make: Callable[[Path], object], folder: Path, kills: int) -> None:
    """Make FOLDER/whole; then one artifact after another, each in as many processes as it takes."""
    gc.collect()
    gc.freeze()  # a search for garbage in a fork would copy all that it looks at
    begun = time.monotonic()
    assert ended(partial(make, folder / "whole"), 200)
    seconds = time.monotonic() - begun
    rng, run = random.Random(0), 0
    while kills:
        if ended(partial(make, folder / f"run-{run}"), rng.uniform(0, seconds)):
            run += 1
        else:
            kills -= 1
    assert ended(partial(make, folder / f"run-{run}"), 200)


if __name__ == "__main__":
    stage, source, out, kills, *towers = sys.argv[1:]
    if stage == "train":
        import lance
        import torch.utils.tensorboard  # noqa: F401

        import labeler.fitting.fit
        from labeler.training import train
        from labeler.training_options import TrainOptions

        how = TrainOptions(
            epochs=2, batch_size=8, new_learning_rate=5e-3, precision="fp32", ema=0.8, modality_dropout=0.3
        )
        main(lambda run: train("late-fusion", Path(source), run, how, resume=True, device="cpu", save_minutes=0),
             Path(out), int(kills))  # fmt: skip
    else:
        import lance  # noqa: F401

        import labeler.encoders.image
        import labeler.encoders.text  # noqa: F401
        from labeler.preprocessing import preprocess

        main(lambda store: preprocess(Path(source), store, text_encoder=towers[0], image_encoder=towers[1]),
             Path(out), int(kills))  # fmt: skip
