"""Data sets with typed columns: which of them holds the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.errors import BadInputError
from labeler.records import ALIASES, Row, field_called, find_field
from labeler.values import shown_names

if TYPE_CHECKING:
    from pyarrow import DataType

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


def is_bytes(kind: DataType) -> bool:
    """Return whether a column holds bytes."""
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_picture(kind: DataType) -> bool:
    """Return whether a column is a struct of a picture's bytes and its path, or of one of them."""
    from pyarrow import types

    if not types.is_struct(kind) or not kind.num_fields or not {part.name for part in kind} <= PICTURE_PARTS.keys():
        return False
    return all(str(part.type).removeprefix("large_") in (PICTURE_PARTS[part.name], "null") for part in kind)


def has_bytes(kind: DataType) -> bool:
    """Return whether there are bytes in a column's values: in themselves, in their lists, or in their fields."""
    return is_bytes(kind) or any(has_bytes(kind.field(number).type) for number in range(kind.num_fields))


def with_picture(row: Row, column: str | None, mapping: Mapping[str, str]) -> Row:
    """Return the row with its picture's bytes, and the picture's name in their place, under a name of our field's."""
    if column is None:
        return row
    name, data = named_picture(row.fields[column])
    ours = column if find_field(row.fields, "image", mapping) == column else "image"
    fields = {ours if key == column else key: value for key, value in row.fields.items()}
    shown = name if data is None or name is None else Path(name).name
    return row._replace(fields=fields | {ours: shown}, picture=data)
