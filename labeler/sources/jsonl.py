"""jsonl: one JSON object a line; or one Python dict a line, as `str(dict)` writes it.

JSON is tried first and `ast.literal_eval` second, never `eval`: the line is data, not code.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from labeler.errors import CodedError
from labeler.records import Reject, Row
from labeler.values import MAX_TEXT_CHARACTERS, two_strings

MAX_LINE_BYTES = 8 << 20  # ast's parser needs about a hundred times a line's size in memory
PIECE_BYTES = 256 << 10  # what is made of it stays in a core's cache
PLAIN = {str, int, bool, type(None)}
MARK = b"\xef\xbb\xbf"  # of byte order; it says UTF-8
BREAK, BRACE = ord("\n"), ord("{")
BLANK = re.compile(rb"^[ \t\r\x0b\x0c]*\n", re.MULTILINE)
LITERAL = "python literal"


class LineError(CodedError):
    """A line that is no row; `code` is the reject's code."""


class Piece(NamedTuple):
    """Whole lines of a file: its path, the number of the first line, how many rows stand before it, and their bytes."""

    path: str
    first: int
    before: int
    data: bytes


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield one row or reject for every line of `path` that is not blank; lines count from 1."""
    for piece in pieces(path):
        yield from rows_of(piece)


def pieces(path: Path, size: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the lines of a file, about `size` bytes at a time; of a line over MAX_LINE_BYTES only as much as tells so."""
    line, rows = 1, 0
    with open(path, "rb") as file:
        rest = file.read(len(MARK)).removeprefix(MARK)
        while block := file.read(size):
            rest += block
            end = rest.rfind(b"\n") + 1
            if end:
                piece, rest = Piece(str(path), line, rows, rest[:end]), rest[end:]
                yield piece
                characters, starts = lines_in(piece.data)
                line, rows = line + len(starts), rows + len(starts)
                if characters[starts].min() <= ord(" "):  # to look for blank lines takes ten times as long
                    rows -= len(BLANK.findall(piece.data))
            elif len(rest) > MAX_LINE_BYTES + size:
                rest = rest[: MAX_LINE_BYTES + 1]  # too long to be read: what is left tells no more
        if rest:
            yield Piece(str(path), line, rows, rest)


def lines_in(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of `data` as [B] uint8, and as [N] int64 where in them each line begins; the last may lack its break."""
    characters = np.frombuffer(data, np.uint8)
    return characters, np.append(0, np.flatnonzero(characters[:-1] == BREAK) + 1)


def plain_columns(data: bytes) -> dict[str, list[Any]] | None:
    """Return {field: values} of lines that are all objects with the same fields and plain values, in ASCII; None where they
    are not, or not surely. Each field's values are all strings or none is, and no string is longer than a text may be.

    The lines are parsed at once, as one list: no string goes on in the next line, and where no value is a container, as many
    objects as there are lines, each of which begins with a brace, are one object a line.
    """
    data = data.removesuffix(b"\n")
    if not data:
        return None
    characters, starts = lines_in(data)
    escaped = b"\\" in data and b"\\u" in data  # to look for one byte first takes a tenth of the time
    if escaped or not data.isascii() or np.diff(starts, append=len(data)).max() > MAX_TEXT_CHARACTERS:
        return None
    try:
        rows = orjson.loads(b"[%b]" % data.replace(b"\n", b",\n"))
    except orjson.JSONDecodeError:  # of a blank line too
        return None
    if len(starts) != len(rows) or (characters[starts] != BRACE).any() or set(map(type, rows)) != {dict}:
        return None
    keys = tuple(rows[0])
    if not keys or set(map(tuple, rows)) != {keys}:
        return None
    columns = {key: list(map(itemgetter(key), rows)) for key in keys}
    kinds = {key: set(map(type, values)) for key, values in columns.items()}
    if not all(kind == {str} or kind <= PLAIN - {str} for kind in kinds.values()):
        return None
    colons = data.count(b":") - len(rows) * len(keys)
    if colons:  # within strings, or a key stands twice: see `is_plain`
        inside = sum("".join(values).count(":") for key, values in columns.items() if kinds[key] == {str})
        if colons != inside + len(rows) * "".join(keys).count(":"):
            return None
    return columns


def rows_of(piece: Piece) -> Iterator[Row | Reject]:
    """Yield one row or reject for every line of `piece` that is not blank."""
    number = piece.before
    for line, raw in enumerate(piece.data.split(b"\n"), piece.first):
        if not raw or raw.isspace():
            continue
        number += 1
        try:
            fields, literal = parse_line(raw)
            yield Row(piece.path, line, fields, (LITERAL,) if literal else (), None, number)
        except LineError as error:
            yield Reject(piece.path, line, None, error.code, str(error), number)


def parse_line(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return the object in one line, and whether it was a Python literal in place of JSON.

    Raises LineError: not UTF-8, too long, neither JSON nor a literal, NaN, a key twice, not an object.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise LineError("line-too-long", f"over {MAX_LINE_BYTES:,} bytes, which is all that is read of a line")
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return parse_slowly(raw)  # which says what is wrong, or reads what orjson does not
    return (fields, False) if is_plain(fields, raw) else parse_slowly(raw)


def is_plain(fields: Any, raw: bytes) -> bool:
    """Return whether orjson's `fields` are surely all that is in `raw`: it rounds large integers, and of a key that
    stands twice it drops one value. With no key twice there is one colon for each key, beside those within strings.
    """
    if type(fields) is not dict:
        return False
    colons = raw.count(b":")
    if colons == len(fields) and PLAIN.issuperset(map(type, fields.values())):
        return True
    inside = 0
    for key, value in fields.items():
        if type(value) is str:
            inside += value.count(":")
        elif type(value) is list and all(type(item) is str for item in value):
            inside += sum(item.count(":") for item in value)
        elif type(value) not in PLAIN:
            return False
        inside += key.count(":")
    return colons == len(fields) + inside and b"\\u003" not in raw


def parse_slowly(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return what `parse_line` does, by the standard library: slower, exact, with an error's place."""
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
        if two_strings(text):
            raise ValueError("two strings, which Python would join")
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
