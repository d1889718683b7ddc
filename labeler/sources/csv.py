"""csv and tsv: a header line, then one row a line; every value stays the string that it is."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from labeler.errors import BadInputError
from labeler.records import Reject, Row
from labeler.sources.text import EncodingError, encoding_note, file_encoding

UNNAMED = "column {} (no name)"
MAX_CELL = 1 << 24  # characters; what is behind a quote that is never closed is held in memory until then
csv.field_size_limit(MAX_CELL)
BEGINNING = 1 << 16  # characters that show how a table is written
SEPARATORS = (";", "\t", ",", "|")
SEPARATOR = re.compile(r'\s*"?sep=([^\r\n"])"?\s*', re.IGNORECASE)
NOT_UTF8 = re.compile(r"[\udc80-\udcff]")  # a byte, as `surrogateescape` reads it


def read(path: Path, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of `path`; `line` counts rows, the header being 1. A row with cells too many or too few is a reject.

    `encoding` is UTF-8, or else what the bytes look like, by default.

    Raises BadInputError where the file as a whole is no table of text: no encoding fits, no header, a column named
    twice, a quote that is never closed (it would swallow all rows after it).
    """
    try:
        found = file_encoding(path, encoding)
        notes = encoding_note(found, encoding)
        guessed = encoding is None and found == "utf-8"  # a row that is not is a reject
        with open(path, encoding="utf-8-sig" if found == "utf-8" else found, newline="",
                  errors="surrogateescape" if guessed else "strict") as file:  # fmt: skip
            lines, said = lines_and_separator(file)
            first = beginning(lines)
            separator = said or separator_of(first, path)
            table = Table(chain(first, lines), separator, skips_blanks(first, separator))
            yield from read_rows(
                path, header(path, next((cells for cells in table.rows if not is_blank(cells)), [])), table, notes
            )
    except (EncodingError, UnicodeDecodeError) as error:
        message = str(error) if isinstance(error, EncodingError) else f"byte {error.start} is not {error.encoding}"
        raise BadInputError(f"{path}: {message}") from error
    except csv.Error as error:
        raise BadInputError(f"{path}: no header that can be read ({error})") from error


def separator_of(lines: list[str], path: Path) -> str:
    """Return what stands between cells in a table that begins with `lines`: the usual, or what else is in the header and leaves
    fewer rows damaged.

    Spreadsheets write semicolons where the comma is a decimal point.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    signs = [sign for sign in dict.fromkeys((usual, *SEPARATORS)) if sign in "".join(lines[:1])]
    if len(signs) < 2:
        return signs[0] if signs else usual
    return min(signs, key=lambda sign: damaged(lines, sign, skips_blanks(lines, sign)))


def lines_and_separator(file: Iterable[str]) -> tuple[Iterator[str], str | None]:
    """Return the lines from the header on, and what stands between cells where a line before it says so (Excel: `sep=;`)."""
    lines = iter(file)
    start = next((line for line in lines if line.strip()), "")
    said = SEPARATOR.fullmatch(start)
    return (lines, said[1]) if said else (chain([start], lines), None)


def beginning(lines: Iterable[str]) -> list[str]:
    """Return the first lines, BEGINNING characters or a little more."""
    found, characters = [], 0
    for line in lines:
        found.append(line)
        characters += len(line)
        if characters > BEGINNING:
            break
    return found


def skips_blanks(lines: list[str], separator: str) -> bool:
    """Return whether quotes open cells behind blanks too, as in `1, "a, b"`: where that leaves no more of the lines damaged.

    A text may begin so and have a quote in it (`1, "Well", she said`): then it is read as it stands.
    """
    opened = re.compile(rf'(?:^|{re.escape(separator)}) +"')
    return any(map(opened.search, lines)) and damaged(lines, separator, True) <= damaged(lines, separator, False)


def damaged(lines: list[str], separator: str, skip: bool) -> int:
    """Return how many rows have not as many cells as the header, or are none."""
    rows = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=skip)
    width, count = None, 0
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return count
        except csv.Error:
            count += 1
            continue
        if cells and not is_blank(cells):
            width = width or len(cells)
            count += len(cells) != width


def header(path: Path, names: list[str]) -> list[str]:
    """Return the columns' names without blanks around them; raises BadInputError where there are none or one stands twice.

    Of several columns without a name, which spreadsheets write where a cell was once used, each is called by its place.
    """
    names = [name.strip() for name in names]
    if names.count("") > 1:
        names = [name or UNNAMED.format(place) for place, name in enumerate(names, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not any(names) or twice is not None:
        found = "no header line" if not any(names) else f"the column {twice!r} stands twice in the header"
        raise BadInputError(f"{path}: {found}; give every column a name of its own")
    return names


class Table:
    """The rows of a table, and the lines of the file that the last of them was made of."""

    def __init__(self, file: Iterable[str], separator: str, skip: bool = False):
        """Read the lines of `file`; `skip`: a quote opens a cell behind blanks too."""
        self.separator = separator
        self.lines: list[str] = []
        self.rows = csv.reader(self.kept(file), delimiter=separator, strict=True, skipinitialspace=skip)

    def kept(self, file: Iterable[str]) -> Iterator[str]:
        """Yield the lines, and keep them."""
        for line in file:
            self.lines.append(line)
            yield line

    def next_row(self) -> list[str] | None:
        """Return the next row, None after the last; raises csv.Error for one that is none."""
        self.lines.clear()
        return next(self.rows, None)

    def swallowed(self, names: list[str]) -> int:
        """Return how many rows a stray quote has made one of: where tabs stand between cells, which texts rarely hold."""
        inner = self.lines[1:]
        looks = self.separator == "\t" and any(line.count("\t") == len(names) - 1 for line in inner) and len(names) > 1
        return len(self.lines) if looks else 0


def read_rows(path: Path, names: list[str], table: Table, notes: tuple[str, ...]) -> Iterator[Row | Reject]:
    """Yield the rows after the header; blank lines are passed over and not counted.

    Where a quote stands open over several lines and what is in it is no row, each of the lines is a reject.
    """
    number, unnamed = 1, {UNNAMED.format(place) for place in range(1, len(names) + 1)} & set(names)
    while True:
        error, cells = "", None
        try:
            cells = table.next_row()
        except csv.Error as raised:
            error = str(raised)
            if "unexpected end" in error:
                raise BadInputError(f"{path}: after row {number}: a quote is opened and never closed") from raised
            if "field limit" in error:  # from its middle rows would be read that are none
                raise BadInputError(
                    f"{path}: after row {number}: a cell of over {MAX_CELL:,} characters; is a quote never closed?"
                ) from raised
        if cells is None and not error:
            return
        if cells is not None and (not cells or (is_blank(cells) and len(names) > 1)):
            number += len(cells) > 1  # a row of a spreadsheet, if an empty one
            continue
        merged = len(table.lines) if error else table.swallowed(names)
        for _ in range(merged):
            number += 1
            message = f"not a row of a table: {error}" if error else "a quote is opened and closed only in another row"
            yield Reject(str(path), number, None, "not-csv", message)
        if merged or cells is None:
            continue
        number += 1
        if any(not line.isascii() and NOT_UTF8.search(line) for line in table.lines):
            message = "not UTF-8, as other rows are; convert it, or name the file's encoding with --encoding"
            yield Reject(str(path), number, None, "not-utf8", message)
        elif len(cells) == len(names):
            fields = dict(zip(names, cells, strict=True))
            for name in unnamed:
                if not fields[name].strip():
                    del fields[name]
            yield Row(str(path), number, fields, notes)
        else:
            message = f"{len(cells)} cells, the header has {len(names)}; is a separator or a quote missing?"
            yield Reject(str(path), number, None, "cell-count", message)


def is_blank(cells: list[str]) -> bool:
    """Return whether a line holds nothing but blanks."""
    return not "".join(cells).strip()
