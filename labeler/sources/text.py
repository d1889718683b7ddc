"""Bytes to text: UTF-8 first, then what the bytes look like; never a character replaced in silence."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from labeler.sources.alphabets import latin_page

SAMPLE_BYTES = 1 << 20
FEW = 16  # bytes beyond ASCII: eight or fewer characters of two bytes, a word of one
ENCODING = "encoding "  # a row's note: its text was read in this encoding, which nobody named


class EncodingError(ValueError):
    """Bytes that are text in no encoding that was asked for or found."""


def decode_text(
    data: bytes, encoding: str | None = None, likely: Callable[[], str | None] | None = None
) -> tuple[str, str]:
    """Return the text in `data` without its byte order mark, and its encoding's name.

    Args:
        data: the whole of a text.
        encoding: the encoding; by default UTF-8, and where the bytes are none what charset-normalizer finds.
        likely: returns the encoding that the texts beside this one look like together, None for none; it is asked where this
            one has under FEW bytes beyond ASCII, which say little, and is not UTF-16.

    Raises EncodingError where the bytes are not text in that encoding, or in none that is known.
    """
    try:
        name = encoding or "utf-8"
        return data.decode(name).removeprefix("\ufeff"), name
    except UnicodeDecodeError as error:
        if encoding:
            raise EncodingError(f"byte {error.start} is not {encoding}") from None
    if likely and b"\0" not in data and sum(byte > 0x7F for byte in data) < FEW and (shared := likely()):
        with suppress(UnicodeDecodeError):
            return data.decode(shared), shared
    name = guess_encoding(data)
    try:
        return data.decode(name).removeprefix("\ufeff"), name
    except UnicodeDecodeError as error:
        raise EncodingError(f"looks like {name}, but byte {error.start} is not; name it with --encoding") from None


def file_encoding(path: Path, encoding: str | None = None) -> str:
    """Return the encoding of a text file of any size, read in pieces: `encoding`, UTF-8, or what a sample looks like.

    UTF-8 too where, of the lines that are not ASCII, more are UTF-8 than are not: these are damaged.

    Raises EncodingError where it is in none that is known.
    """
    if encoding:
        return encoding
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while piece := file.read(SAMPLE_BYTES):
            try:
                decoder.decode(piece)
            except UnicodeDecodeError:
                # a line that is not UTF-8 says more than thousands that are ASCII: sample around it, from a line's start
                file.seek(position)
                if position:
                    file.readline()
                sample = file.read(SAMPLE_BYTES)
                if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    return "utf-16"
                if is_mostly_utf8(path):
                    return "utf-8"
                if len(sample) == SAMPLE_BYTES:  # its last line may be cut off inside a character
                    sample = sample[: sample.rfind(b"\n") + 1] or sample
                return guess_encoding(sample)
            position += len(piece)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            if not is_mostly_utf8(path):
                raise EncodingError("the file ends inside a character") from error
    return "utf-8"


def is_mostly_utf8(path: Path) -> bool:
    """Return whether of a file's lines that are not ASCII more are UTF-8 than are not."""
    more = 0
    with open(path, "rb") as file:
        while line := file.readline(SAMPLE_BYTES):
            if not line.isascii():
                more += 1 if is_utf8(line) else -1
    return more > 0


def is_utf8(data: bytes) -> bool:
    """Return whether `data` is text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def guess_encoding(data: bytes) -> str:
    """Return the encoding that `data` looks like; raises EncodingError where it looks like none."""
    from charset_normalizer import from_bytes

    if b"\0" not in data:  # it looks at samples, which a few foreign lines among thousands of plain ones would miss
        data = b"\n".join(line for line in data.split(b"\n") if not line.isascii())
    best = from_bytes(data).best()
    if best is None:
        raise EncodingError("not UTF-8, and no other encoding fits; name it with --encoding")
    return latin_page(data, best.encoding)


def known_encoding(name: str) -> str:
    """Return the normal form of an encoding's name; raises LookupError where Python knows no such text encoding."""
    found = codecs.lookup(name)
    if not getattr(found, "_is_text_encoding", True):
        raise LookupError(f"{name} is no text encoding")
    return found.name


def encoding_note(found: str, asked: str | None) -> tuple[str, ...]:
    """Return the note for a row whose text was read in the encoding `found`; none for UTF-8 or one that was asked for."""
    return () if asked or found == "utf-8" else (f"{ENCODING}{found}",)
