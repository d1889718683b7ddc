"""jsonl: one JSON object a line; or one Python dict a line, as `str(dict)` writes it.

JSON is tried first and `ast.literal_eval` second, never `eval`: the line is data, not code.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labeler.records import Reject, Row

MAX_LINE_BYTES = 8 << 20  # ast's parser needs about a hundred times a line's size in memory
LITERAL = "python literal"


class LineError(ValueError):
    """A line that is no row; `code` is the reject's code."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield one row or reject for every line of `path` that is not blank; lines count from 1."""
    number = 0
    with open(path, "rb") as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            number += 1
            try:
                fields, literal = parse_line(raw)
                yield Row(str(path), line, fields, (LITERAL,) if literal else (), number=number)
            except LineError as error:
                yield Reject(str(path), line, None, error.code, str(error))


def parse_line(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return the object in one line, and whether it was a Python literal in place of JSON.

    Raises LineError: not UTF-8, too long, neither JSON nor a literal, NaN, a key twice, not an object.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise LineError("line-too-long", f"{len(raw):,} bytes, at most {MAX_LINE_BYTES:,} are read")
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise LineError("not-utf8", f"byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    try:
        value, literal = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant), False
    except LineError:
        raise
    except json.JSONDecodeError as error:
        value, literal = parse_literal(text, error), True
    except ValueError:
        raise LineError("not-json", "a number of over 4,300 digits") from None
    except RecursionError:
        raise LineError("not-json", "nested too deeply") from None
    if not isinstance(value, dict):
        raise LineError("not-an-object", f"a JSON {type(value).__name__}, expected an object with named fields")
    try:
        return unique_keys([(str(key), item) for key, item in value.items()]), literal
    except LineError:
        raise
    except ValueError:
        raise LineError("not-json", "a number of over 4,300 digits") from None


def parse_literal(text: str, json_error: json.JSONDecodeError) -> Any:
    """Return the value of a Python literal; the error tells JSON's complaint, since JSON is what is expected."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unknown escape such as \\d, which stays as it is
            tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                unique_keys([(ast.literal_eval(key), None) for key in node.keys if key is not None])
        return ast.literal_eval(tree)
    except LineError:
        raise
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise LineError("not-json", f"not JSON: {json_error.msg} at column {json_error.colno}") from None


def unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return the object of `pairs`; raises LineError where a key stands twice, since one value would be lost."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise LineError("duplicate-key", f"the key {key!r} stands twice")
        found[key] = value
    return found


def refuse_constant(name: str) -> Any:
    """Raise LineError for NaN and the infinities, which are not JSON."""
    raise LineError("not-json", f"{name} is not JSON")
