"""Checkpoints of a training: whole or not counted, and with what the Trainer's own leave out.

A checkpoint is a folder `checkpoint-STEP`. The sha256 of its files is written last; one that lacks it, or whose files are others,
is never gone on from, nor is one whose best epoch, from which the weights that are kept will be read, is not whole.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from labeler.artifacts import MANIFEST, damage, file_hashes, read_json, remove, write_json
from labeler.errors import BadInputError, LabelerError

PROGRESS = "progress.json"
STATE = "trainer_state.json"  # the Trainer's
ENOUGH = 1 << 20  # bytes: a disk with less left is full

log = logging.getLogger("labeler")


@dataclass
class Progress:
    """Where a training stands within its epoch, and what it has cost.

    losses: of the epoch's steps; unlogged: the sum of those after step `logged_at`, the last with a line in the log; pairs,
    seconds: what all steps have trained on and taken; at_start: the validation metric of the head before training, where it was
    fitted; started: when it would have begun had it never been interrupted.
    """

    losses: list[Any] = field(default_factory=list)
    unlogged: float = 0.0
    logged_at: int = 0
    pairs: int = 0
    seconds: float = 0.0
    at_start: float | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Return the seconds since it began, without those in which nothing ran."""
        return time.perf_counter() - self.started

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        write_json(checkpoint / PROGRESS, asdict(self) | {"started": None, "elapsed": self.elapsed})

    @classmethod
    def load(cls, checkpoint: Path) -> Progress:
        """Return what `save` wrote into a checkpoint."""
        values = read_json(checkpoint / PROGRESS)
        elapsed = values.pop("elapsed")
        return cls(**values | {"started": time.perf_counter() - elapsed})


def seal(checkpoint: Path) -> None:
    """Write the sha256 of every file of a checkpoint; it counts from then on."""
    write_json(checkpoint / MANIFEST, {"files": file_hashes(checkpoint)})


def unseal(checkpoint: Path) -> None:
    """Let a checkpoint not count while it is written again."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in `folder`, None where none was ever whole: to start anew is to go on from there.

    Says what is wrong with newer ones, and removes them.

    Raises BadInputError when all that were whole once are damaged.
    """
    found = by_age(folder)
    for number, path in reversed(list(enumerate(found))):
        problem = what_is_wrong(path) or wrong_best(path)
        if problem is None:
            for damaged in found[number + 1 :]:
                remove(damaged)
            return path
        log.warning(
            "%s cannot be gone on from (%s)%s", path.name, problem, "; trying the one before it" if number else ""
        )
    if any((path / MANIFEST).exists() for path in found):
        raise BadInputError(f"{folder}: no whole checkpoint to resume from; leave out --resume to start again")
    for path in found:
        remove(path)
    return None


def by_age(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or not, the newest last."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def what_is_wrong(checkpoint: Path) -> str | None:
    """Return why a checkpoint is not whole, None if it is."""
    try:
        problem = damage(checkpoint, read_json(checkpoint / MANIFEST))
    except FileNotFoundError:
        return "cut off while it was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST}: {error}"
    return problem and problem.removeprefix(f"{checkpoint}/")


def wrong_best(checkpoint: Path) -> str | None:
    """Return why the best epoch's checkpoint, as a whole one knows it, is not whole; None if it is or there is none."""
    best = best_of(checkpoint)
    if best in (None, checkpoint):
        return None
    problem = what_is_wrong(best)
    return problem and f"its best epoch's {best.name}: {problem}"


def best_of(checkpoint: Path) -> Path | None:
    """Return the best epoch's checkpoint, as a whole one knows it."""
    step = read_json(checkpoint / STATE)["best_global_step"]
    return checkpoint.with_name(f"checkpoint-{step}") if step else None


def prune(folder: Path) -> None:
    """Remove all checkpoints but the newest two that are sealed, and those of their best epochs.

    Two, so that one may be damaged.
    """
    found = by_age(folder)
    kept = [path for path in found if (path / MANIFEST).is_file()][-2:]
    kept += [best for best in map(best_of, kept) if best]
    for path in found:
        if path not in kept:
            remove(path)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise as a LabelerError what the block says of a disk that takes no more; libraries have errors of their own for it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = shutil.disk_usage(folder).free < ENOUGH
        if not full and isinstance(error, RuntimeError):
            raise
        what = "no space left on its disk; free some" if full else str(error).splitlines()[0]
        raise LabelerError(
            f"{folder}: cannot be written ({what}); --resume goes on from the last checkpoint"
        ) from error
