"""Keys: numbers that are equal where texts are, as they stand or without case, blanks and punctuation; and counts of words."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import category

import numpy as np
from xxhash import xxh3_64_intdigest

BLANK = np.array([chr(code).isspace() and code < 128 for code in range(256)])


def keys_of(values: Sequence[bytes | None]) -> np.ndarray:
    """Return [N] uint64, equal for equal values, with every run and on every machine; 0 for None alone."""
    found = np.fromiter(map(xxh3_64_intdigest, filter(None, values)), np.uint64)
    found[found == 0] = 1  # one value in 2**64: it is given another's
    if len(found) == len(values):
        return found
    keys = np.zeros(len(values), np.uint64)
    keys[np.fromiter(map(bool, values), bool, len(values))] = found
    return keys


class Compared(dict[int, "int | None"]):
    """A table for str.translate: letters, marks, numbers and symbols stay, all else goes."""

    def __missing__(self, code: int) -> int | None:
        self[code] = code if category(chr(code))[0] in "LMNS" else None
        return self[code]


COMPARED = Compared()
LOWER = bytes(ord(chr(code).lower()) if code < 128 else code for code in range(256))
IGNORED = bytes(code for code in range(128) if COMPARED[code] is None)
IGNORED_IN_LINES = IGNORED.replace(b"\n", b"")


def comparables(texts: Sequence[str | None]) -> list[bytes | None]:
    """Return `comparable` of each of the texts, None for None; of plain ones all at once."""
    if all(texts) and (whole := "\n".join(texts)).isascii():  # type: ignore[arg-type]
        found = whole.encode().translate(LOWER, IGNORED_IN_LINES).split(b"\n")
        if len(found) == len(texts) and all(found):
            return found  # type: ignore[return-value]
    return [comparable(text) if text else None for text in texts]


def comparable(text: str) -> bytes:
    """Return what texts are compared by: no case, blanks or punctuation; emoji and Indic vowel signs count.

    A text of nothing else stands for itself.
    """
    if text.isascii():  # a fifth of the time
        return text.encode().translate(LOWER, IGNORED) or text.lower().encode()
    folded = text.casefold()
    return (folded.translate(COMPARED) or folded).encode()


def encoded(values: Sequence[str | None]) -> list[bytes | None]:
    """Return the values in UTF-8; None for None and for nothing."""
    return list(map(str.encode, values)) if all(values) else [value.encode() if value else None for value in values]  # type: ignore[arg-type]


def word_counts(texts: Sequence[str | None]) -> np.ndarray:
    """Return [N] int32: how many words each of the texts has, 0 for None."""
    if not all(texts) or not (whole := "".join(texts)).isascii():  # type: ignore[arg-type]
        return np.array([len(text.split()) if text else 0 for text in texts], np.int32)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))  # type: ignore[arg-type]
    starts = np.cumsum(lengths) - lengths
    blank = BLANK.take(np.frombuffer(whole.encode(), np.uint8))
    begins = ~blank  # a word begins after a blank, or with its text
    begins[1:] &= blank[:-1]
    begins[starts] = ~blank[starts]
    return np.add.reduceat(begins, starts, dtype=np.int32)
