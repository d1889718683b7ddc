"""What `predict` writes: a line an item, as jsonl or csv; to a stream at once, to a file by shards, to S3 as a file."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import IO, Any

from xxhash import xxh3_64_intdigest

from labeler.artifacts import locked, sha256_bytes, sha256_file
from labeler.errors import BadInputError
from labeler.remote import download, endpoint, upload, version
from labeler.shards import (
    ERROR,
    PLAIN,
    REVIEW,
    Counts,
    Line,
    Shards,
    refuse_foreign,
    sharded,
    state_of,
    write_whole,
    written_sha256,
)
from labeler.values import neutral, writable

log = logging.getLogger("labeler")

COLUMNS = ("id", "image", "text", "labels", "model", "error")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")  # no formula, although it may begin with a -
FIRST_CELL = re.compile(rb'"(?:[^"]|"")*"|[^,]*')  # Python's reader of csv refuses a row with a long text


class LineFormat:
    """Lines as jsonl, or as csv with a column for each label's score. It can be pickled."""

    def __init__(
        self, form: str, names: Sequence[str], review: bool = False, carried: Sequence[str] = (), apart: bool = False
    ):
        """Write as `form`, jsonl or csv; `names` are those of the scores, `review`: whether lines say what is for review.

        `carried` are the fields that lines have besides; `apart`: whether lines have a label without its parent.
        """
        self.form, self.names, self.carried = form, list(names), list(carried)
        self.extra = [name for name, there in (("label", apart), ("review", review)) if there]

    @property
    def header(self) -> str:
        """Return what stands before all lines."""
        if self.form != "csv":
            return ""
        carried = map(neutral, self.carried)
        return table_row([*COLUMNS, *self.extra, *carried, *(neutral(f"score:{name}") for name in self.names)])

    def __call__(self, line: dict[str, Any]) -> Line:
        """Return the line as it is written."""
        mark = ERROR if line["error"] is not None else REVIEW if line.get("review") else PLAIN
        if self.form != "csv":
            return Line(writable(json.dumps(line, ensure_ascii=False) + "\n"), mark)
        # where something is wrong or withheld, nobody has said that no label applies
        labels = joined(line["labels"]) if line["labels"] or mark == PLAIN else ""
        cells = [line["id"], line["image"], line["text"], labels, line["model"], line["error"]]
        for name in self.extra:
            value = line[name]
            cells.append(str(value).lower() if isinstance(value, bool) else value)
        kept = []
        for name in self.carried:
            value = line[name]
            kept.append(value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False))
        row = [*map(neutral, cells), *(cell if cell and NUMBER.fullmatch(cell) else neutral(cell) for cell in kept)]
        return Line(writable(table_row([*row, *(line["scores"].get(name, "") for name in self.names)])), mark)

    def error_of(self, line: Line) -> str:
        """Return what a written line says went wrong; "" where nothing did."""
        if self.form == "csv":
            return next(csv.reader([line.text]))[COLUMNS.index("error")]
        return json.loads(line.text)["error"] or ""

    def identify(self, line: bytes) -> int:
        """Return 64 bits that say by a written line of which item it is: its id."""
        if self.form == "csv":
            first = FIRST_CELL.match(line)
            return xxh3_64_intdigest(first[0] if first else b"")
        return xxh3_64_intdigest(json.loads(line)["id"].encode())


def joined(labels: Sequence[str]) -> str:
    """Return labels as one cell, which `labeler ingest` takes apart again: `a|b`; JSON where there are none, or one of them
    holds a `|` or begins as JSON does.
    """
    plain = labels and not any("|" in name or name.startswith("[") for name in labels)
    return "|".join(labels) if plain else json.dumps(list(labels), ensure_ascii=False)


def table_row(cells: Sequence[Any]) -> str:
    """Return a line of a csv file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # so that cells with a \r of their own are quoted too
    return buffer.getvalue().removesuffix("\r\n") + "\n"


class Stream:
    """Lines written as they come. It is called as `labeler.shards.Shards` is, and knows no row."""

    def __init__(self, file: IO[str], header: str):
        """Write to `file`."""
        self.file, self.counts = file, Counts(0, 0, 0)
        file.write(header)

    def known(self, key: int) -> bool:
        """Return False: every row is to be labelled."""
        return False

    def publish(self, lines: Sequence[Line]) -> None:
        """Write lines."""
        self.file.writelines(line.text for line in lines)
        self.file.flush()
        marks = [line.mark for line in lines]
        items, errors, review, *_ = self.counts
        self.counts = Counts(items + len(marks), errors + marks.count(ERROR), review + marks.count(REVIEW))

    def join(self) -> Counts:
        """Return what was written."""
        return self.counts


@contextmanager
def writing(
    out: Path | str | None, recipe: dict[str, Any], written: LineFormat, force: bool = False
) -> Iterator[Shards | Stream]:
    """Yield what takes the lines: a stream for standard output (None), a pipe or a device; else the shards of the file `out`, or
    of the copy of an output on S3.
    """
    header, identify = written.header, written.identify
    if out is None:
        yield Stream(sys.stdout, header)
    elif isinstance(out, str):
        with uploaded(out, force) as copy, sharded(copy, recipe, header, force, identify) as shards:
            yield shards
    elif out.exists() and not out.is_file():
        with open(out, "w", encoding="utf-8", newline="") as file:
            yield Stream(file, header)
    else:
        with sharded(out, recipe, header, force, identify) as shards:
            yield shards


@contextmanager
def uploaded(url: str, force: bool = False) -> Iterator[Path]:
    """Yield a file of this machine to write in place of `url`; when the block ends without an error, it is uploaded.

    Objects appear whole, the one that describes the output (`labeler.shards.state_of`) after it. Both are fetched first, so
    that the lines of what has not changed are kept on whichever machine. What is not finished or not uploaded yet lies in
    `cache_folder`, one for every output, and is found there by the next run; a whole output that cannot be uploaded any more
    is put beside it.

    Raises LockedError where another process is writing it, BadInputError where `labeler predict` has not written the object, or
    it has been changed since or meanwhile, unless `force`, and as `as_our_errors` does.
    """
    folder = cache_folder(url)
    path = folder / posixpath.basename(url)
    files = {path: url, state_of(path): f"{posixpath.dirname(url)}/{state_of(path).name}"}
    with locked(folder):
        folder.mkdir(exist_ok=True)
        try:
            there = [version(place) for place in files.values()]
            before = changed_at(path) if fetched(files, there, force) else None
            yield path
            if changed_at(path) != before:
                if not force:
                    refuse_changed(files, there)
                for file, place in files.items():
                    upload(file, place)
            rmtree(folder)
        finally:
            with suppress(OSError):  # it may hold what the next run needs
                folder.rmdir()


def fetched(files: dict[Path, str], there: list[str | None], force: bool) -> bool:
    """Fetch what `files`, an output's copy and that of its description, are to hold of the objects whose versions are `there`.

    What an earlier run left there stays where the objects are still those that it began with: it is not uploaded yet. Return
    whether all that lies there now is the objects'. Raises BadInputError as `uploaded` does.
    """
    (path, url), (state, described) = files.items()
    known = path.with_name(f".{path.name}.known")
    before = json.loads(known.read_bytes()) if known.is_file() else None
    if before == [*there, "own"] or (force and before == [*there, "foreign"]):
        return False
    known.unlink(missing_ok=True)  # first: an object may become again what it was, and the copy here would be another's
    if path.is_file() and written_sha256(path) == sha256_file(path):
        kept = set_aside(path)
        log.warning("%s: not what the last run began with any more; its output, not uploaded, lies in %s", url, kept)
    path.unlink(missing_ok=True)
    if there[0] is not None:
        download(url, path)
    uploaded_before = path.is_file() and written_sha256(path) == sha256_file(path)  # but not its description
    if not uploaded_before:
        state.unlink(missing_ok=True)
        if there[1] is not None:
            download(described, state)
    whose = "own"
    try:
        refuse_foreign(path, url)
    except BadInputError:
        if not force:
            path.unlink()
            state.unlink(missing_ok=True)
            raise
        whose = "foreign"  # a next run that is not forced is to look at it again
    write_whole(known, json.dumps([*there, whose]).encode())
    return path.is_file() and not uploaded_before


def set_aside(path: Path) -> Path:
    """Move a whole output out of its folder in the cache; return where it lies now."""
    place = path.parent.with_name(f"{path.parent.name}-{path.stat().st_mtime_ns}.unsent")
    return path.replace(place)


def refuse_changed(files: dict[Path, str], there: list[str | None]) -> None:
    """Raise BadInputError where the objects of `files` have not the versions `there` any more."""
    try:
        now = [version(place) for place in files.values()]
    except BadInputError:  # to upload fails too, and says where the whole output lies
        return
    if now != there:
        path, url = next(iter(files.items()))
        raise BadInputError(
            f"{url}: has been changed meanwhile; what was labelled lies in {set_aside(path)}, to be copied there if it is to be "
            "replaced all the same; --force labels anew and replaces it, or name another --out"
        )


def changed_at(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is written, and not when it is read."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def cache_folder(url: str) -> Path:
    """Return the folder in this user's cache in which an output on S3 is made; raises BadInputError where there can be none."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labeler"
    except RuntimeError:  # no HOME, and a user of whom the system knows none
        raise BadInputError(f"{url}: no home folder to make it in; name a cache folder in XDG_CACHE_HOME") from None
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{cache}: cannot be made a folder ({error.strerror}); name another cache folder in XDG_CACHE_HOME"
        ) from None
    return cache / f"{posixpath.basename(url)}-{sha256_bytes(f'{endpoint()} {url}'.encode())[:16]}"
