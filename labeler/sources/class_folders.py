"""Folders of classes: `animals/cat/1.jpg` below `animals` is a picture of the class `cat`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row, find_field
from labeler.sources import folder


def read_class_folders(
    root: Path, encoding: str | None = None, mapping: Mapping[str, str] | None = None
) -> Iterator[Row | Reject]:
    """Yield the rows of a folder (see `folder.read`) with the name of their first-level sub-folder as `label`.

    The label is a tuple of one, since a folder's name may hold what separates labels in a string. What lies in `root`
    itself has no label and is a reject. Raises BadInputError where `root` is no folder.
    """
    if not root.is_dir():
        raise BadInputError(f"{root}: no folder; expected one whose sub-folders are named by their labels")
    for item in folder.read(root, encoding, mapping):
        yield with_label(item, mapping or {}) if isinstance(item, Row) else item


def with_label(row: Row, mapping: Mapping[str, str]) -> Row | Reject:
    """Return the row with its label, or the reject of one that lies in no sub-folder."""
    name = find_field(row.fields, "image", mapping)
    place = row.fields.get(name) if name else None
    place = place if isinstance(place, str) else row.fields.get("id")
    parts = PurePosixPath(str(place)).parts
    if len(parts) < 2 or parts[0] in ("..", "/"):
        message = f"{place}: lies in no sub-folder, whose name would be its label"
        return Reject(row.source, row.line, str(place), "label-missing", message)
    return row._replace(fields=row.fields | {mapping.get("labels", "label"): (parts[0],)})
