"""Data sets with typed columns: which of them holds the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labeler.errors import BadInputError
from labeler.records import ALIASES, field_called
from labeler.values import shown_names

PICTURE_PARTS = {"bytes": "binary", "path": "string"}  # of a struct that is a picture, and their types


def picture_column(place: str, names: Sequence[str], wanted: str | None) -> str | None:
    """Return the column with the picture among the `names` of those that hold bytes; None where there is none.

    It is the one `wanted`, or none where that is a column of another kind, else the first alias of `image`, else the only one.
    Raises BadInputError, which names the data set `place`, where it cannot be told among several.
    """
    if wanted:
        return field_called(names, wanted)
    known = next((name for name in ALIASES["image"] if name in names), None)
    if known is None and len(names) > 1:
        raise BadInputError(f"{place}: pictures or bytes in {shown_names(names)}; choose one with --map image=COLUMN")
    return known or next(iter(names), None)


def named_picture(value: Any) -> tuple[str | None, bytes | None]:
    """Return the name and the bytes of a picture, each None where it has none: from bytes, or from {"bytes", "path"}."""
    if value is None or isinstance(value, bytes):
        return None, value
    return value.get("path"), value.get("bytes")


def class_name(names: list[str], value: int | None) -> str | None:
    """Return the name of a class; None for -1, which stands for a label that is kept secret, and for other numbers."""
    return names[value] if value is not None and 0 <= value < len(names) else None
