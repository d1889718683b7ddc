"""Labelled lines on disk: shards, which appear whole, are found by the next run, and are joined in the order of the input.

A shard is a file of lines and a description of it: its sha256, the recipe by which it was labelled, and of every line a key
that says of what it is, where it ends, and a mark. Shards lie in `.NAME.making` beside the output NAME. The output is a shard
too: its description, `.NAME.state`, lets a later run keep the lines of what has not changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from xxhash import xxh3_64_intdigest

from labeler.artifacts import appearing, locked, make_parent, sha256_file, work_folder
from labeler.errors import BadInputError, LabelerError
from labeler.replacing import FOREIGN

SUFFIX = ".lines"
JOINED = "joined"
PLAIN, ERROR, REVIEW = range(3)  # marks

log = logging.getLogger("labeler")

Identify = Callable[[bytes], int]


class Line(NamedTuple):
    """One line of the output, its end included, and its mark: PLAIN, ERROR or REVIEW."""

    text: str
    mark: int


class Counts(NamedTuple):
    """What an output holds: items, those with an error and those for review; how many lines were kept, and how many
    items dropped that are gone.
    """

    items: int
    errors: int
    review: int = 0
    kept: int = 0
    dropped: int = 0


class Shard(NamedTuple):
    """N lines of a file: keys [N] uint64, bounds [N + 1] int64 (where each begins, and the last ends), marks [N] uint8."""

    path: Path
    keys: np.ndarray
    bounds: np.ndarray
    marks: np.ndarray


def state_of(out: Path) -> Path:
    """Return the file that describes the finished output `out`."""
    return out.with_name(f".{out.name}.state")


@contextmanager
def sharded(
    out: Path, recipe: dict[str, Any], header: str, force: bool = False, identify: Identify = xxh3_64_intdigest
) -> Iterator[Shards]:
    """Yield the shards of the output `out`, which no other process can write meanwhile; what is whole of them outlives errors.

    Raises LockedError where another process is writing it, BadInputError where nothing can be written there, or something is
    there that has not been written like this, unless `force`.
    """
    make_parent(out)
    work = work_folder(out)
    with locked(out):
        publish_joined(work, out)
        if not force:
            refuse_foreign(out)
        work.mkdir(exist_ok=True)
        try:
            yield Shards(out, recipe, header, force, identify)
        finally:
            with suppress(OSError):  # shards are in it
                work.rmdir()


def refuse_foreign(out: Path, url: str | None = None) -> None:
    """Raise BadInputError where `out`, or what it is a copy of, holds what `labeler predict` has not written, or has been changed
    since.
    """
    if not out.is_file() or not out.stat().st_size:
        return
    sha256 = written_sha256(out)
    if sha256 is None:
        raise BadInputError(FOREIGN.format(url or out, "predict", "out"))
    if sha256 != sha256_file(out):
        raise BadInputError(
            f"{url or out}: has been changed since `labeler predict` wrote it; --force replaces it, or name another --out"
        )


def written_sha256(out: Path) -> str | None:
    """Return the sha256 that `out` had when it was written; None where nothing describes it."""
    try:
        return str(orjson.loads(state_of(out).read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Shards:
    """What has been labelled of an output, by this run and those before it, and the order in which it is to be joined.

    Every row of the input is asked for by its key, once and in order (`known`). Lines of those that are not known are handed
    over in the same order (`publish`). Some 50 bytes a row are held in memory, and no line.
    """

    def __init__(self, out: Path, recipe: dict[str, Any], header: str, force: bool, identify: Identify):
        """Find the lines of an interrupted run by the same recipe and, unless `force`, of a finished one.

        `identify` says by a line, as a number of 64 bits, which item it is of.
        """
        self.identify = identify
        self.out, self.header, self.work = out, header.encode(), work_folder(out)
        self.recipe, self.forced = recipe, {"forced": force}
        finished = None if force else self.finished()
        self.shards = [*([finished] if finished else []), *self.interrupted()]
        self.old = len(finished.keys) if finished else 0
        keys = concatenated((shard.keys for shard in self.shards), np.uint64)
        marks = concatenated((shard.marks for shard in self.shards), np.uint8)
        self.count = len(keys)
        offered = np.flatnonzero((marks != ERROR) | (np.arange(self.count) >= self.old))  # errors may be gone by now
        self.numbers = offered[np.argsort(keys[offered], kind="stable")]
        self.keys = keys[self.numbers]
        self.taken = np.zeros(len(self.keys), np.int32)  # of equal keys, counted at the first of them
        self.order = array("q")
        self.waiting: deque[int] = deque()
        self.drawn = 0

    def finished(self) -> Shard | None:
        """Return the output that a run by the same recipe finished; None where there is none, or it has been changed since."""
        found = read_shard(self.out, state_of(self.out), self.recipe) if self.out.is_file() else ""
        if isinstance(found, Shard):
            return found
        if found:
            log.info("%s: %s; every item is labelled again", self.out, found)
        return None

    def interrupted(self) -> list[Shard]:
        """Return the shards of an interrupted run by the same recipe; everything else in the work folder becomes `others`."""
        read = [
            read_shard(path, described(path), self.recipe | self.forced)
            for path in sorted(self.work.glob(f"*{SUFFIX}"))
        ]
        for reason in sorted({item for item in read if isinstance(item, str) and item}):
            log.info("%s: of what an interrupted run labelled, something is not used: %s", self.out, reason)
        found = [item for item in read if isinstance(item, Shard)]
        whole = {path for shard in found for path in (shard.path, described(shard.path))}
        self.others = set(self.work.iterdir()) - whole
        self.next = int(found[-1].path.stem) + 1 if found else 0
        if found:
            log.info("%s: going on after %d items that an interrupted run labelled", self.out,
                     sum(len(shard.keys) for shard in found))  # fmt: skip
        return found

    def known(self, key: int) -> bool:
        """Take the next row of the input in, by its key; return whether it has a line already.

        Of several equal rows the first gets the first line, and so on.
        """
        first = int(np.searchsorted(self.keys, np.uint64(key)))
        if first < len(self.keys) and self.keys[first] == key:
            place = first + self.taken[first]
            if place < len(self.keys) and self.keys[place] == key:
                self.taken[first] += 1
                self.order.append(self.numbers[place])
                return True
        self.order.append(self.count + self.drawn)
        self.drawn += 1
        self.waiting.append(key)
        return False

    def publish(self, lines: Sequence[Line]) -> None:
        """Write a shard: the lines of the next rows that were not known. The first one replaces what others labelled: a command
        that comes so far was meant.
        """
        for path in self.others:
            path.unlink()
        self.others = set()
        keys = np.array([self.waiting.popleft() for _ in lines], np.uint64)
        texts = [line.text.encode() for line in lines]
        bounds = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        shard = Shard(
            self.work / f"{self.next:06d}{SUFFIX}", keys, bounds, np.array([line.mark for line in lines], np.uint8)
        )
        data = b"".join(texts)
        write_whole(shard.path, data)
        write_whole(
            described(shard.path), description(shard, hashlib.sha256(data).hexdigest(), self.recipe | self.forced)
        )
        self.shards.append(shard)
        self.next += 1

    def join(self) -> Counts:
        """Write the output, in the order of the rows, and its state, unless a finished one holds these very lines already;
        remove the shards. Return what it holds.
        """
        order = np.frombuffer(self.order, np.int64) if self.order else np.zeros(0, np.int64)
        sizes = [len(shard.keys) for shard in self.shards]
        files = np.repeat(np.arange(len(sizes)), sizes)[order]
        keys = concatenated((shard.keys for shard in self.shards), np.uint64)[order]
        marks = concatenated((shard.marks for shard in self.shards), np.uint8)[order]
        starts = concatenated((shard.bounds[:-1] for shard in self.shards), np.int64)[order]
        ends = concatenated((shard.bounds[1:] for shard in self.shards), np.int64)[order]
        kept = int((order < self.old).sum())
        counts = Counts(
            len(order), int((marks == ERROR).sum()), int((marks == REVIEW).sum()), kept, self.vanished(order)
        )
        if self.old and np.array_equal(order, np.arange(self.old)):
            for path in self.work.iterdir():  # of rows that are gone
                path.unlink()
            return counts
        digest = hashlib.sha256()
        with open(self.work / JOINED, "wb") as file:
            for piece in (self.header, *self.pieces(files, starts, ends)):
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        bounds = len(self.header) + np.cumsum([0, *(ends - starts)], dtype=np.int64)
        whole = Shard(self.out, keys, bounds, marks)
        write_whole(described(self.work / JOINED), description(whole, digest.hexdigest(), self.recipe))
        publish_joined(self.work, self.out)
        return counts

    def vanished(self, order: np.ndarray) -> int:
        """Return of how many items the finished output has lines without an error while `order`, the places of the lines to
        join [N] int64, has none: what has only changed has another line.
        """
        lost = np.setdiff1d(np.flatnonzero(self.shards[0].marks != ERROR), order) if self.old else order[:0]
        if not len(lost):
            return 0
        fresh = np.sort(order[order >= self.old])
        _, items = np.unique(np.concatenate([self.items(lost), self.items(fresh)]), return_inverse=True)
        before, now = (np.bincount(part, minlength=len(items)) for part in (items[: len(lost)], items[len(lost) :]))
        return int((before - now).clip(0).sum())

    def items(self, places: np.ndarray) -> np.ndarray:
        """Return of which items the lines at `places` [N] int64, in ascending order, are: [N] uint64."""
        found, first = [], 0
        for shard in self.shards:
            after = first + len(shard.keys)
            here = places[(first <= places) & (places < after)] - first
            with open(shard.path, "rb") as file:
                for start, end in zip(shard.bounds[here].tolist(), shard.bounds[here + 1].tolist(), strict=True):
                    file.seek(start)
                    found.append(self.identify(file.read(end - start)))
            first = after
        return np.array(found, np.uint64)

    def pieces(self, files: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[bytes]:
        """Yield the bytes of lines, given by the number of their shard and their place in it; neighbours are read at once."""
        if not len(files):
            return
        breaks = np.flatnonzero((files[1:] != files[:-1]) | (starts[1:] != ends[:-1])) + 1
        opened: dict[int, Any] = {}
        try:
            for first, after in zip([0, *breaks], [*breaks, len(files)], strict=True):
                number = int(files[first])
                if number not in opened:
                    while len(opened) > 1:  # the old output, which is come back to, and one more
                        opened.pop(next(reversed(opened))).close()
                    opened[number] = open(self.shards[number].path, "rb")  # noqa: SIM115
                file = opened[number]
                file.seek(starts[first])
                rest = int(ends[after - 1] - starts[first])
                while rest:
                    piece = file.read(min(rest, 1 << 20))
                    if not piece:
                        raise LabelerError(
                            f"{file.name}: became shorter while it was read; the same command labels what is lost"
                        )
                    rest -= len(piece)
                    yield piece
        finally:
            for file in opened.values():
                file.close()


def described(path: Path) -> Path:
    """Return the file that describes the shard in `path`."""
    return path.with_suffix(".json")


def description(shard: Shard, sha256: str, recipe: dict[str, Any]) -> bytes:
    """Return what the description of a shard holds."""
    arrays = {name: getattr(shard, name).tolist() for name in ("keys", "bounds", "marks")}
    return orjson.dumps({"recipe": recipe, "sha256": sha256, "count": len(shard.keys), **arrays})


def concatenated(arrays: Iterable[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    """Return the arrays one after the other, as one of numbers of that kind; an empty one where there are none."""
    return np.concatenate([np.zeros(0, kind), *arrays])


def read_shard(path: Path, description: Path, recipe: dict[str, Any]) -> Shard | str:
    """Return the shard in `path`; where it is not whole or was not labelled by `recipe` the reason, which may be empty."""
    try:
        found = orjson.loads(description.read_bytes())
        given, wanted = found["recipe"], orjson.loads(orjson.dumps(recipe))
        if changed := [
            f"{key} was {shown(given.get(key))}, is {shown(value)}"
            for key, value in wanted.items()
            if given.get(key) != value
        ]:
            return "; ".join(changed)
        if sha256_file(path) != found["sha256"]:
            return f"{path.name} has been changed since it was written"
        kinds = {"keys": np.uint64, "bounds": np.int64, "marks": np.uint8}
        return Shard(path, *(np.array(found[name], kind) for name, kind in kinds.items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # cut off by a kill, or not ours
        return ""


def shown(value: Any) -> str:
    """Return a value of a recipe to be read; what computes without an export stands there as "None"."""
    return "PyTorch" if value == "None" else repr(value)


def publish_joined(work: Path, out: Path) -> None:
    """Put a joined output into its place, and its state; where a run was killed while doing so, do what is left of it."""
    joined, state = work / JOINED, described(work / JOINED)
    if not state.is_file():
        return
    for path in set(work.iterdir()) - {joined, state}:
        path.unlink()
    if joined.is_file():
        joined.replace(out)
    state.replace(state_of(out))
    shutil.rmtree(work)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; its folder is locked, or nobody else's."""
    with appearing(path, alone=True) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
