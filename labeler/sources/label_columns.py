"""Tables with a column for each label, 1 where it applies, as GoEmotions has them: the columns become one list of labels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from labeler.records import Row, field_called
from labeler.values import RowError

APPLIES = {"1": True, "1.0": True, "true": True, "yes": True, "x": True}
APPLIES |= {"0": False, "0.0": False, "false": False, "no": False}


def name_of(columns: tuple[str, ...]) -> str:
    """Return what the list that is made of the columns is called among a row's fields: their names."""
    return ",".join(columns)


def with_labels(row: Row, columns: tuple[str, ...]) -> Row:
    """Return the row with the list of its labels in place of the fields `columns`, which say of a label each if it applies.

    A field that is blank or missing says no; a row in which all are is unlabelled. Raises RowError for any other value.
    """
    there = called(tuple(row.fields), columns)
    marks = {column: mark_of(row.fields[name], column) for column, name in there.items()}
    fields = {name: value for name, value in row.fields.items() if name not in there.values()}
    labels = [column for column, applies in marks.items() if applies]
    return row._replace(fields=fields | {name_of(columns): None if set(marks.values()) <= {None} else labels})


@lru_cache(maxsize=1024)
def called(names: tuple[str, ...], columns: tuple[str, ...]) -> dict[str, str]:
    """Return {column: what it is called among `names`} of those that are there."""
    return {column: name for column in columns if (name := field_called(names, column)) is not None}


def mark_of(value: Any, column: str) -> bool | None:
    """Return whether a column's label applies by its `value`, None where that is blank; raises RowError where it is no answer."""
    if value is None or value == "":
        return None
    text = str(value).strip().casefold() if isinstance(value, (str, bool, int, float)) else ""
    if not text and isinstance(value, str):
        return None
    if text not in APPLIES:
        raise RowError("label-invalid", f"{column} is {str(value)[:80]!r}, expected 0 or 1")
    return APPLIES[text]
