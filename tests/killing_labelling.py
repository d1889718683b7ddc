"""Labels rows in processes that are killed at random moments, until one comes to its end.

    python killing_labelling.py ROWS OUT KILLS

The engine is a stand-in, so that no process loads a model; all else is what `labeler predict` does. Its scores hang on what other
items are in a window, so that one which is cut otherwise than in an uninterrupted run is seen.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from labeler import labeller, labelling
from labeler.decisions import Rule
from labeler.engines import Choice
from labeler.records import Label, LabelSet

labelling.WINDOW = 4
RULE = Rule(Path("m"), LabelSet(task="single", labels=tuple(Label(name=name, count=1) for name in "abc")), None, 3.0)


class Sociable:
    """An engine of three labels that reads texts' lengths, the first and the number of those beside them."""

    size = 32

    def logits(self, items, batch_size):
        """Return logits [N, 3]."""
        time.sleep(0.002)
        lengths = [len(item.record.text) for item in items]
        return np.array([[length, lengths[0], len(items)] for length in lengths], np.float32)


def attempt(rows: Path, out: Path, limit: float | None) -> float:
    """Label in a process of its own, which is killed after `limit` seconds; return how long it took."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            with (
                mock.patch.object(labeller, "open_engine", return_value=Sociable()),
                mock.patch.object(labelling, "choose_engine", return_value=Choice(Path("m"))),
                mock.patch.object(labelling, "read_rule", return_value=RULE),
                mock.patch.object(labelling, "read_manifest", return_value={"content_sha256": "m"}),
            ):
                labelling.predict([rows], Path("m"), out)
                code = 0
        finally:
            os._exit(code)
    if limit is not None:
        time.sleep(limit)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "an attempt failed"
    return time.monotonic() - started


if __name__ == "__main__":
    rows, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    whole = out.with_name("whole.jsonl")
    seconds = attempt(rows, whole, None)
    draw = random.Random(0)
    for _ in range(kills):
        attempt(rows, out, draw.uniform(0, seconds / 3))
        print(len(list(out.parent.glob(f".{out.name}.making/*.lines"))))
        if out.exists():  # nothing is left to do: begin again
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    attempt(rows, out, None)
