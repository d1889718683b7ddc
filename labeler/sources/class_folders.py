"""Folders of classes: `animals/cat/1.jpg` below `animals` is a picture of the class `cat`; of splits too, `train/cat/1.jpg`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from labeler.errors import BadInputError
from labeler.pictures.images import VIDEOS
from labeler.records import Reject, Row, find_field
from labeler.sources import folder
from labeler.values import SPLIT_ALIASES

PICTURES = folder.PICTURES + VIDEOS


def read_class_folders(
    root: Path, encoding: str | None = None, mapping: Mapping[str, str] | None = None
) -> Iterator[Row | Reject]:
    """Yield the rows of a folder (see `folder.read`) with the name of their first-level sub-folder as `label`.

    Where all sub-folders with pictures are named like splits and have sub-folders with pictures themselves, the first is
    the `split` and the second the label.

    The label is a tuple of one, since a folder's name may hold what separates labels in a string. What lies in `root`
    itself has no label and is a reject. Raises BadInputError where `root` is no folder.
    """
    if not root.is_dir():
        raise BadInputError(f"{root}: no folder; expected one whose sub-folders are named by their labels")
    by_split = has_splits(root)
    for item in folder.read(root, encoding, mapping):
        yield with_label(item, mapping or {}, by_split) if isinstance(item, Row) else item


def with_label(row: Row, mapping: Mapping[str, str], by_split: bool = False) -> Row | Reject:
    """Return the row with its label, and its split where folders name it; the reject of one that lies in no such folder."""
    name = find_field(row.fields, "image", mapping)
    place = row.fields.get(name) if name else None
    place = place if isinstance(place, str) else row.fields.get("id")
    parts = PurePosixPath(str(place)).parts
    least = 3 if by_split else 2  # split, label and file, or the last two
    if len(parts) < least or parts[0] in ("..", "/"):
        below = f" of {parts[0]}" if by_split and len(parts) == 2 else ""
        message = f"{place}: lies in no sub-folder{below}, whose name would be its label"
        return Reject(row.source, row.line, str(place), "label-missing", message)
    label = parts[1] if by_split else parts[0]
    found: dict[str, object] = {mapping.get("labels", "label"): (label,)}
    if by_split:
        found[mapping.get("split", "split")] = parts[0]
    return row._replace(fields=row.fields | found)


def has_splits(root: Path) -> bool:
    """Return whether the sub-folders with pictures, or with texts where no picture is, are splits that have classes in them."""
    suffixes = PICTURES if with_pictures(root) else (folder.TEXT,)
    found = with_pictures(root, suffixes)
    return bool(found) and all(path.name.lower() in SPLIT_ALIASES and with_pictures(path, suffixes) for path in found)


def with_pictures(root: Path, suffixes: tuple[str, ...] = PICTURES) -> list[Path]:
    """Return the sub-folders that rows are made of and that have a picture or video in them, at any depth; raises nothing.

    With other `suffixes`, those that have a file that ends in one.
    """
    try:
        folders = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # to read it is a reject
        return []
    return [
        path
        for path in sorted(folders)
        if not path.name.startswith(".") and not folder.is_ours(path)
        and any(name.lower().endswith(suffixes) for _, _, names in os.walk(path) for name in names)
    ]  # fmt: skip
