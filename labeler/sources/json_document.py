"""A file that is one JSON document, for the formats that are: read whole, and its keys seen from its beginning."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from labeler.errors import BadInputError

HEAD_BYTES = 64 << 10
MAX_KEY_DEPTH = 4
# a string (cut off at the end, perhaps), the colon after it; or a bracket
TOKENS = re.compile(r'"((?:[^"\\]|\\.)*)(?:"\s*(:)?|\\?\Z)|([{}\[\]])', re.DOTALL)


class Fault(NamedTuple):
    """What stands in a document in place of a value that would be lost or is not JSON; `code` is the reject's code."""

    code: str
    message: str


class Document(NamedTuple):
    """A JSON document; `damaged` where a Fault stands somewhere in `value`."""

    value: Any
    damaged: bool

    def fault_in(self, part: Any) -> Fault | None:
        """Return the first Fault found in a part of the document, or None."""
        waiting = [part] if self.damaged else []
        while waiting:
            item = waiting.pop()
            if isinstance(item, Fault):
                return item
            if isinstance(item, dict):
                waiting += item.values()
            elif isinstance(item, list):
                waiting += item
        return None


def load(path: Path, expected: str) -> Document:
    """Return the JSON document in `path`, a byte order mark passed over.

    A key that stands twice in an object, a NaN or an infinity becomes a Fault, so that it costs one row and not the file.

    Raises BadInputError, which names what was `expected`, where the file is not UTF-8, not JSON or nested too deeply, or
    where the document itself is a Fault.
    """
    damaged = False

    def unique_keys(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal damaged
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        damaged = True
        names = [name for name, _ in pairs]
        return Fault("duplicate-key", f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")

    def refuse_constant(name: str) -> Any:
        nonlocal damaged
        damaged = True
        return Fault("not-json", f"{name} is not JSON")

    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 (byte {error.start}); expected {expected}") from error
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise BadInputError(f"{path}: not JSON ({place}); expected {expected}") from error
    except RecursionError as error:
        raise BadInputError(f"{path}: nested too deeply; expected {expected}") from error
    except ValueError as error:
        raise BadInputError(f"{path}: a number of over 4,300 digits; expected {expected}") from error
    if isinstance(value, Fault):
        raise BadInputError(f"{path}: {value.message}; expected {expected}")
    return Document(value, damaged)


def head_of(path: Path) -> str:
    """Return the first 64 KiB of a file without blanks at the beginning; nothing where it cannot be read. Raises nothing."""
    if not os.path.isfile(path):  # opening a FIFO would wait for ever
        return ""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return ""


def head_keys(path: Path) -> set[tuple[str, ...]]:
    """Return the paths of the keys in the first 64 KiB of a JSON document, arrays as "[]"; empty for anything else.

    [{"data": {"text": 1}}] has ("[]", "data") and ("[]", "data", "text"). Raises nothing.
    """
    head = head_of(path)
    return keys_in(head) if head[:1] in ("{", "[") else set()


def keys_in(head: str) -> set[tuple[str, ...]]:
    """Return the paths of the keys in the beginning of a JSON text, down to MAX_KEY_DEPTH; a second document is not read."""
    found: set[tuple[str, ...]] = set()
    inside: list[str] = []  # for every open container the key whose value is read, or "[]"
    for string, colon, bracket in TOKENS.findall(head):
        if bracket == "[":
            inside.append("[]")
        elif bracket == "{":
            inside.append("")
        elif bracket and inside:
            inside.pop()
            if not inside:
                break
        elif colon and inside and inside[-1] != "[]":
            inside[-1] = string
            if len(inside) <= MAX_KEY_DEPTH:
                found.add(tuple(inside))
    return found
