"""Labels a folder in processes that are killed at random moments, until one comes to its end.

    python killing_labelling.py FOLDER RUN OUT KILLS

The libraries are loaded once, and a process is forked for every attempt: nothing but what they load is older than it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401

import labeler.engines.native
import labeler.labelling

labeler.labelling.WINDOW = 4  # nine shards


def attempt(folder: Path, run: Path, out: Path, limit: float | None) -> float | None:
    """Label in a process of its own, and kill it after `limit` seconds; return how long it took, None where it was killed."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            labeler.labelling.predict([folder], run, out, device="cpu")
            code = 0
        finally:
            os._exit(code)
    if limit is not None:
        time.sleep(limit)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("an attempt failed")
    return time.monotonic() - started if os.WIFEXITED(status) else None


if __name__ == "__main__":
    folder, run, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    whole = attempt(folder, run, out.with_name("whole.jsonl"), None)
    draw = random.Random(0)
    for _ in range(kills):
        attempt(folder, run, out, draw.uniform(0, whole))
        shards = sorted(path.name for path in out.parent.glob(".out.jsonl.making/*.lines"))
        print(len(shards), out.exists())
        if out.exists():  # from here on there is nothing to do: begin again
            out.unlink()
    attempt(folder, run, out, None)
