"""Values: what may stand in a field of a row, and as what it goes on."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal, cast

from labeler.errors import CodedError

Split = Literal["train", "validation", "test"]
UNKNOWN_SHARE = 1 / 3  # of a text's tokens: where a vocabulary lacks more, texts look alike to a model
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_ALIASES: dict[str, Split] = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                                   "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
SIDE_BY_SIDE = re.compile(r"""['"]\s*['"]""")
MAX_TEXT_CHARACTERS = 20_000
MAX_DEPTH = 64  # of what is in a field that we do not know; pydantic reads no more than about 200


class RowError(CodedError):
    """A row that cannot become a record; `code` is the reject's code."""


def clean_text(value: Any, field: str) -> str | None:
    """Return a string in NFC with outer blanks removed; None where it is missing or blank.

    Raises RowError for what no export could carry: lone surrogates, NUL, over 20,000 characters, a container, an
    infinite number or one of over 4,300 digits.
    """
    if value is None:
        return None
    if type(value) is str and value.isascii() and "\0" not in value and len(value) <= MAX_TEXT_CHARACTERS:
        return value.strip() or None  # what follows, for most of the world's data: five times as fast
    if isinstance(value, (dict, list, tuple, set, bytes, bool)):
        raise RowError(f"{field}-invalid", f"{field} is a {type(value).__name__}, expected a string")
    text = string_of(value, field).strip()
    if len(text) <= MAX_TEXT_CHARACTERS:  # its time grows with the square of a run of combining marks
        text = unicodedata.normalize("NFC", text)
    if "\0" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise RowError(f"{field}-invalid", f"{field} holds a NUL or half a surrogate pair, which no file can carry")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RowError(
            f"{field}-too-long", f"{field} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS:,} are read"
        )
    return text or None


def clean_path(value: Any) -> str | None:
    """Return the path of a picture as it stands, since a file's name may be in any form; None where it is missing or blank.

    Raises RowError as `clean_text` does.
    """
    cleaned = clean_text(value, "image")
    return cleaned and string_of(value, "image")


def string_of(value: Any, field: str) -> str:
    """Return a string, or a plain value as one; raises RowError for a number that is infinite or too long to be written."""
    try:
        text = str(value)
    except ValueError:
        raise RowError(f"{field}-invalid", f"{field} is a number of over 4,300 digits") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{field}-invalid", f"{field} is {text}, expected a string or a finite number")
    return text


def parse_labels(value: Any, separator: str) -> tuple[str, ...] | None:
    """Return the labels in a field's value, each once, in order; None where the field is missing or blank."""
    if value is None or value == "":
        return None
    if type(value) is str and value.isalnum() and value.isascii() and separator not in value:
        return (value,)  # what follows, for most labels: five times as fast
    if isinstance(value, (dict, set, bytes)):
        raise RowError("label-invalid", f"label is a {type(value).__name__}, expected a string or a list of strings")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = listed(value)
    if isinstance(value, str):
        if not value.strip():
            return None
        value = value.split(separator) if separator else [value]
    parts = value if isinstance(value, (list, tuple)) else [value]
    names = [clean_text(str(part).lower() if isinstance(part, bool) else part, "label") for part in parts]
    return tuple(dict.fromkeys(name for name in names if name))


def listed(text: str) -> Any:
    """Return the labels of a list written as text: as JSON, else as Python writes it, and pandas a cell that is a list.

    Raises RowError where it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unknown escape such as \\d, which stays as it is
            found = ast.literal_eval(text.strip())
        if not two_strings(text.strip()):  # as NumPy writes an array
            return found
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    raise RowError("label-invalid", f"labels {text[:80]!r} look like a JSON list and are none")


def two_strings(text: str) -> bool:
    """Return whether two strings stand side by side in Python's code, as where JSON's quotes are doubled inside of a text."""
    if not SIDE_BY_SIDE.search(text):
        return False
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    return any(one == other == tokenize.STRING for one, other in pairwise(kinds))


def parse_split(value: Any) -> Split | None:
    """Return train, validation or test for a split's name or alias; None where it is missing."""
    name = clean_text(value, "split")
    if name is None:
        return None
    split = SPLIT_ALIASES.get(name.lower())
    if split is None:
        raise RowError("split-unknown", f"split {name[:80]!r} is none of {', '.join(SPLIT_ALIASES)}")
    return split


def jsonable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` as JSON carries them: unknown types as strings, half a surrogate pair as a question mark.

    Raises RowError for an infinite number, a key that is a container, or containers in more than 64 others.
    """
    if all(name.isascii() and is_plain(value) for name, value in fields.items()):
        return dict(fields)
    try:
        text = json.dumps(fields, default=plain, ensure_ascii=False, allow_nan=False)
        found = cast(dict[str, Any], json.loads(text.encode("utf-8", "replace")))
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError("field-invalid", f"a field that JSON cannot carry: {error}") from None
    if is_deep(found):
        raise RowError("field-invalid", f"a field with containers in more than {MAX_DEPTH} others")
    return found


def is_plain(value: Any) -> bool:
    """Return whether JSON surely carries a value as it is; most values are such, and the sure way takes five times as long."""
    kind = type(value)
    if kind is str:
        return value.isascii()
    return value is None or kind is bool or (kind is int and abs(value) < 2**63)


def plain(value: Any) -> Any:
    """Return a value that JSON does not know as one that it does; a set in one order, whatever its hashes are today."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def writable(text: str) -> str:
    """Return the text as a file can carry it: half a surrogate pair, as names that are not UTF-8 have, becomes a `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def neutral(cell: str | None) -> str:
    """Return a cell that no spreadsheet takes for a formula: one that begins like a formula gets an apostrophe."""
    return f"'{cell}" if cell and cell[0] in "=+-@＝＋－＠\t\r\n" else cell or ""


def shown_names(names: Iterable[str]) -> str:
    """Return names of fields as a message lists them: those with blanks, or of nothing, in quotes, so that these are seen."""
    return ", ".join(name if name and not any(map(str.isspace, name)) else repr(name) for name in names)


def closest(name: str, known: Collection[str]) -> str:
    """Return which of the known names is spelt most like `name`, in words; nothing where none is near."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"; the closest is {close[0]!r}" if close else ""


def is_deep(value: Any) -> bool:
    """Return whether containers lie in more than MAX_DEPTH others."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in inside for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)
