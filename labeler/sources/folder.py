"""A folder: pictures with `.txt` sidecars, or with a `metadata.jsonl` that names them; sub-folders too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from labeler.records import Reject, Row, find_field
from labeler.sources import jsonl
from labeler.sources.text import EncodingError, decode_text, encoding_note

METADATA = "metadata.jsonl"
MAX_SIDECAR_BYTES = 1 << 20


class Entry(NamedTuple):
    """A pair of a folder: its number there, its picture (None where a text stands alone), and where its text would be."""

    line: int
    image: Path | None
    sidecar: Path


def read(root: Path, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Yield a row {"id", "image", "text"} for every file below `root`, in the order of their paths.

    A `.txt` beside a picture of the same name is its text; one without a picture is a pair without a
    picture. Rows of a `metadata.jsonl` come in its own order, with all their fields; the files that it
    names are not repeated. Hidden files and folders are passed over. `encoding` is the sidecars', by default UTF-8
    or else what each one looks like.
    """
    named: set[str] = set()  # by a metadata.jsonl of this folder or one above
    for current, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        yield from read_one(root, Path(current), shown, named, encoding)


def read_picture(path: Path, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Yield the row of one picture, its sidecar's text with it."""
    yield text_row(path.parent, Entry(1, path, path.with_suffix(".txt")), encoding)


def read_one(
    root: Path, current: Path, names: list[str], named: set[str], encoding: str | None
) -> Iterator[Row | Reject]:
    """Yield the rows of one folder, its sub-folders left out; the files that its metadata names are added to `named`."""
    if METADATA in names and (current / METADATA).is_file():  # a FIFO of that name would never end
        yield from metadata_rows(current / METADATA, root, current, named)
    for entry in entries(root, current, names, named):
        yield text_row(root, entry, encoding)


def metadata_rows(path: Path, root: Path, current: Path, named: set[str]) -> Iterator[Row | Reject]:
    """Yield the rows of the folder `current` that its metadata in `path` gives; the files that it names are added to `named`."""
    for item in jsonl.read(path):
        if isinstance(item, Row):
            item, name = with_image_below(item, root, current)
            named.add(name)
        yield item


def entries(root: Path, current: Path, names: list[str], named: set[str]) -> Iterator[Entry]:
    """Yield the pairs among the sorted `names` of the folder `current` below `root`, but those that metadata named."""
    stems = {Path(name).stem for name in names if not name.endswith(".txt") and name != METADATA}
    for line, name in enumerate(names, 1):
        if name == METADATA or (current / name).relative_to(root).as_posix() in named:
            continue
        if name.endswith(".txt"):
            if Path(name).stem not in stems:
                yield Entry(line, None, current / name)
            continue
        yield Entry(line, current / name, (current / name).with_suffix(".txt"))


def with_image_below(row: Row, root: Path, current: Path) -> tuple[Row, str]:
    """Return the row as one of `root`, its image's path relative to it, and that path."""
    key = find_field(row.fields, "image", {})
    if key is None or not isinstance(row.fields[key], str):
        return row._replace(source=str(root)), ""
    name = Path(os.path.relpath(current / row.fields[key], root)).as_posix()
    return row._replace(source=str(root), fields=row.fields | {key: name}), name


def read_sidecar(root: Path, path: Path) -> bytes | None:
    """Return the bytes of a sidecar, as far as shows that it is over 1 MiB; None where there is none.

    Raises OSError where a link leads out of `root`.
    """
    if not path.is_file():
        return None
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OSError("a link to outside the folder")
    with open(path, "rb") as file:
        return file.read(MAX_SIDECAR_BYTES + 1)


def text_row(
    root: Path, entry: Entry, encoding: str | None, read: Callable[[Path, Path], bytes | None] = read_sidecar
) -> Row | Reject:
    """Return the row of a pair; `read` gives the bytes of its text, as `read_sidecar` does."""
    line, image, sidecar = entry
    name = (image or sidecar).relative_to(root).as_posix()
    try:
        data = read(root, sidecar)
        if data is not None and len(data) > MAX_SIDECAR_BYTES:
            raise OSError(f"over {MAX_SIDECAR_BYTES:,} bytes")
        text, found = (None, "utf-8") if data is None else decode_text(data, encoding)
    except (OSError, EncodingError) as error:
        return Reject(str(root), line, name, "text-unreadable", f"{sidecar.name}: {error}")
    fields = {"id": name, "image": name if image else None, "text": text and text.strip()}
    return Row(str(root), line, fields, encoding_note(found, encoding))
