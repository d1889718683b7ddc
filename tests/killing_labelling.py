"""Labels rows in processes that are killed at random moments, until one comes to its end.

    python killing_labelling.py ROWS OUT KILLS

OUT is a file, or an object on S3; beside ROWS `whole.jsonl` is what an uninterrupted process writes.

The engine is a stand-in, so that no process loads a model; all else is what `labeler predict` does. Its scores hang on what other
items are in a window, so that one which is cut otherwise than in an uninterrupted run is seen.
"""

from __future__ import annotations

import os
import posixpath
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from labeler import labeller, predicting
from labeler.decisions import Rule
from labeler.engines import Choice
from labeler.output import cache_folder
from labeler.records import Label, LabelSet

predicting.WINDOW = 4
RULE = Rule(Path("m"), LabelSet(task="single", labels=tuple(Label(name=name, count=1) for name in "abc")), None, 3.0)


class Sociable:
    """An engine of three labels that reads texts' lengths, the first and the number of those beside them."""

    size = 32

    def logits(self, items, batch_size):
        """Return logits [N, 3]."""
        time.sleep(0.002)
        lengths = [len(item.record.text) for item in items]
        return np.array([[length, lengths[0], len(items)] for length in lengths], np.float32)


def there(out: str) -> bytes | None:
    """Return the output, None where there is none; without a library for S3, whose threads a fork would lose."""
    if not out.startswith("s3://"):
        return Path(out).read_bytes() if Path(out).exists() else None
    try:
        with urlopen(address(out)) as answer:
            return answer.read()
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def remove(out: str) -> None:
    """Remove the output."""
    if out.startswith("s3://"):
        urlopen(Request(address(out), method="DELETE")).close()
    else:
        Path(out).unlink()


def address(url: str) -> str:
    """Return where the S3 server answers for an object."""
    return f"{os.environ['AWS_ENDPOINT_URL']}/{url.removeprefix('s3://')}"


def attempt(rows: Path, out: str, limit: float | None) -> float:
    """Label in a process of its own, which is killed after `limit` seconds; return how long it took."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            with (
                mock.patch.object(labeller, "open_engine", return_value=Sociable()),
                mock.patch.object(predicting, "choose_engine", return_value=Choice(Path("m"))),
                mock.patch.object(predicting, "read_rule", return_value=RULE),
                mock.patch.object(predicting, "read_manifest", return_value={"content_sha256": "m"}),
            ):
                predicting.predict([rows], Path("m"), out if out.startswith("s3://") else Path(out))
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
    rows, out, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    place = cache_folder(out) if out.startswith("s3://") else Path(out).parent
    whole = rows.with_name("whole.jsonl")
    limit = attempt(rows, str(whole), None) / 3
    if out.startswith("s3://"):  # where it takes most of the time to get there
        limit = attempt(rows, out, None)
        remove(out)
    draw = random.Random(0)
    for _ in range(kills):
        attempt(rows, out, draw.uniform(0, limit))
        print(len(list(place.glob(f".{posixpath.basename(out)}.making/*.lines"))))
        if (written := there(out)) is not None:  # nothing is left to do: begin again
            assert written == whole.read_bytes()
            remove(out)
    attempt(rows, out, None)
    assert there(out) == whole.read_bytes()
