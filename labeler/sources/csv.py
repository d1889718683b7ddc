"""csv and tsv: a header line, then one row a line; every value stays the string that it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row
from labeler.sources.text import EncodingError, encoding_note, file_encoding


def read(path: Path, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of `path`; `line` counts rows, the header being 1. A row with cells too many or too few is a reject.

    `encoding` is UTF-8, or else what the bytes look like, by default.

    Raises BadInputError where the file as a whole is no table of text: no encoding fits, no header, a column named
    twice, a quote that is never closed (it would swallow all rows after it).
    """
    try:
        found = file_encoding(path, encoding)
        notes = encoding_note(found, encoding)
        with open(path, encoding="utf-8-sig" if found == "utf-8" else found, newline="") as file:
            start = next((line for line in file if line.strip()), "")
            file.seek(0)
            table = csv.reader(file, delimiter=separator_in(start, path), strict=True)
            yield from read_rows(
                path, header(path, next((cells for cells in table if not is_blank(cells)), [])), table, notes
            )
    except (EncodingError, UnicodeDecodeError) as error:
        message = str(error) if isinstance(error, EncodingError) else f"byte {error.start} is not {error.encoding}"
        raise BadInputError(f"{path}: {message}") from error
    except csv.Error as error:
        raise BadInputError(f"{path}: no header that can be read ({error})") from error


def separator_in(line: str, path: Path) -> str:
    """Return what stands between the columns' names: the usual, or what else does where that is not there.

    Spreadsheets write semicolons where the comma is a decimal point.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return next((sign for sign in (usual, ";", "\t", ",") if sign in line), usual)


def header(path: Path, names: list[str]) -> list[str]:
    """Return the columns' names; raises BadInputError where there are none or one stands twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        found = "no header line" if not names else f"the column {twice!r} stands twice in the header"
        raise BadInputError(f"{path}: {found}; give every column a name of its own")
    return names


def read_rows(
    path: Path, names: list[str], table: Iterator[list[str]], notes: tuple[str, ...]
) -> Iterator[Row | Reject]:
    """Yield the rows after the header; blank lines are passed over and not counted."""
    number = 1
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise BadInputError(f"{path}: after row {number}: a quote is opened and never closed") from error
            number += 1
            yield Reject(str(path), number, None, "not-csv", f"not a row of a table: {error}")
            continue
        if cells is None:
            return
        if not cells or (is_blank(cells) and len(names) > 1):
            continue
        number += 1
        if len(cells) == len(names):
            yield Row(str(path), number, dict(zip(names, cells, strict=True)), notes)
        else:
            message = f"{len(cells)} cells, the header has {len(names)}; is a separator or a quote missing?"
            yield Reject(str(path), number, None, "cell-count", message)


def is_blank(cells: list[str]) -> bool:
    """Return whether a line holds nothing but blanks."""
    return len(cells) < 2 and not "".join(cells).strip()
