"""A folder: pictures with `.txt` sidecars, or with a `metadata.jsonl` that names them; sub-folders too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from labeler.records import Reject, Row, find_field
from labeler.sources import jsonl

METADATA = "metadata.jsonl"


def read(root: Path) -> Iterator[Row | Reject]:
    """Yield a row {"id", "image", "text"} for every file below `root`, in the order of their paths.

    A `.txt` beside a picture of the same name is its text; one without a picture is a pair without a
    picture. Rows of a `metadata.jsonl` come in its own order, with all their fields; the files that it
    names are not repeated. Hidden files and folders are passed over.
    """
    for current, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from read_one(root, Path(current), sorted(name for name in names if not name.startswith(".")))


def read_picture(path: Path) -> Iterator[Row | Reject]:
    """Yield the row of one picture, its sidecar's text with it."""
    yield text_row(path.parent, path.with_suffix(".txt"), 1, image=path)


def read_one(root: Path, current: Path, names: list[str]) -> Iterator[Row | Reject]:
    """Yield the rows of one folder, its sub-folders left out."""
    named: set[str] = set()
    if METADATA in names:
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
                yield text_row(root, current / name, line, image=None)
            continue
        yield text_row(root, (current / name).with_suffix(".txt"), line, image=current / name)


def with_image_below(row: Row, root: Path, current: Path) -> tuple[Row, str]:
    """Return the row as one of `root`, its image's path relative to it, and that path."""
    key = find_field(row.fields, "image", {})
    if key is None or not isinstance(row.fields[key], str):
        return row._replace(source=str(root)), ""
    name = Path(os.path.relpath(current / row.fields[key], root)).as_posix()
    return row._replace(source=str(root), fields=row.fields | {key: name}), name


def text_row(root: Path, sidecar: Path, line: int, image: Path | None) -> Row | Reject:
    """Return the row of a picture and its sidecar, or of a sidecar alone."""
    name = (image or sidecar).relative_to(root).as_posix()
    try:
        text = sidecar.read_text(encoding="utf-8-sig").strip() if sidecar.is_file() else None
    except UnicodeDecodeError:
        return Reject(str(root), line, name, "not-utf8", f"{sidecar.name} is not UTF-8")
    return Row(str(root), line, {"id": name, "image": name if image else None, "text": text})
