"""A folder: pictures with `.txt` sidecars, or with a `metadata.jsonl` that names them; sub-folders too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from labeler.records import Reject, Row, find_field
from labeler.sources import jsonl
from labeler.sources.text import EncodingError, decode_text, encoding_note

METADATA = "metadata.jsonl"
MAX_SIDECAR_BYTES = 1 << 20


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
    yield text_row(path.parent, path.with_suffix(".txt"), 1, path, encoding)


def read_one(
    root: Path, current: Path, names: list[str], named: set[str], encoding: str | None
) -> Iterator[Row | Reject]:
    """Yield the rows of one folder, its sub-folders left out; the files that its metadata names are added to `named`."""
    if METADATA in names and (current / METADATA).is_file():  # a FIFO of that name would never end
        for item in jsonl.read(current / METADATA):
            if isinstance(item, Row):
                item, name = with_image_below(item, root, current)
                named.add(name)
            yield item
    stems = {Path(name).stem for name in names if not name.endswith(".txt") and name != METADATA}
    for line, name in enumerate(names, 1):
        if name == METADATA or (current / name).relative_to(root).as_posix() in named:
            continue
        if name.endswith(".txt"):
            if Path(name).stem not in stems:
                yield text_row(root, current / name, line, None, encoding)
            continue
        yield text_row(root, (current / name).with_suffix(".txt"), line, current / name, encoding)


def with_image_below(row: Row, root: Path, current: Path) -> tuple[Row, str]:
    """Return the row as one of `root`, its image's path relative to it, and that path."""
    key = find_field(row.fields, "image", {})
    if key is None or not isinstance(row.fields[key], str):
        return row._replace(source=str(root)), ""
    name = Path(os.path.relpath(current / row.fields[key], root)).as_posix()
    return row._replace(source=str(root), fields=row.fields | {key: name}), name


def text_row(root: Path, sidecar: Path, line: int, image: Path | None, encoding: str | None) -> Row | Reject:
    """Return the row of a picture and its sidecar, or of a sidecar alone."""
    name = (image or sidecar).relative_to(root).as_posix()
    try:
        text, found = decode_text(read_sidecar(root, sidecar), encoding) if sidecar.is_file() else (None, "utf-8")
    except (OSError, EncodingError) as error:
        return Reject(str(root), line, name, "text-unreadable", f"{sidecar.name}: {error}")
    fields = {"id": name, "image": name if image else None, "text": text and text.strip()}
    return Row(str(root), line, fields, encoding_note(found, encoding))


def read_sidecar(root: Path, path: Path) -> bytes:
    """Return the bytes of a sidecar; raises OSError where it is over 1 MiB or a link leads out of `root`."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OSError("a link to outside the folder")
    with open(path, "rb") as file:
        data = file.read(MAX_SIDECAR_BYTES + 1)
    if len(data) > MAX_SIDECAR_BYTES:
        raise OSError(f"over {MAX_SIDECAR_BYTES:,} bytes")
    return data
