"""A JSON array of rows: `[{"image": ..., "text": ..., "label": ...}, ...]`, on one line or many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from labeler.errors import BadInputError
from labeler.records import Reject, Row
from labeler.sources import json_document
from labeler.sources.json_document import Fault

MAX_BYTES = 256 << 20  # as Python holds it, it takes ten times as much
# an array of objects; or an object that goes on in the next line, as a line of jsonl never does
DOCUMENT = re.compile(r"\[\s*(?:\{|\]|\Z)|\{[^\n]*(?<=[{\[,:])[ \t\r]*\n")
EXPECTED = 'a list of rows, [{"image": ..., "text": ..., "label": ...}, ...], or one such object a line'


def claims(path: Path) -> bool:
    """Return whether `path` is one JSON document, not one object a line; raises nothing."""
    return bool(DOCUMENT.match(json_document.head_of(path)))


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield one row or reject for every element of the array in `path`; `line` counts them from 1.

    Raises BadInputError where it is no JSON array, or over 256 MiB.
    """
    if path.stat().st_size > MAX_BYTES:
        raise BadInputError(
            f"{path}: one JSON document of over {MAX_BYTES >> 20} MiB, which would have to be held in memory; write one "
            "object a line (jsonl)"
        )
    document = json_document.load(path, EXPECTED)
    if not isinstance(document.value, list):
        raise BadInputError(f"{path}: one JSON {described(document.value)}; expected {EXPECTED}")
    for number, fields in enumerate(document.value, 1):
        fault = document.fault_in(fields)
        if fault is None and not isinstance(fields, dict):
            message = f"a JSON {type(fields).__name__}, expected an object with named fields"
            fault = Fault("not-an-object", message)
        yield Row(str(path), number, fields) if fault is None else Reject(str(path), number, None, *fault)


def described(value: object) -> str:
    """Return what a JSON value is, an object with its first keys."""
    if isinstance(value, dict):
        return f"object with the keys {', '.join(map(repr, list(value)[:5]))}" if value else "object without keys"
    return type(value).__name__
