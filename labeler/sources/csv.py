"""csv and tsv: a header line, then one row a line; every value stays the string that it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row

ROWS_AT_A_TIME = 10_000


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield the rows of `path`; `line` counts rows, the header being 1.

    Raises BadInputError where the file as a whole is no table in UTF-8.
    """
    import pandas

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    number = 1
    try:
        chunks = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig",
                                 chunksize=ROWS_AT_A_TIME)  # fmt: skip
        for chunk in chunks:
            for fields in chunk.to_dict("records"):
                number += 1
                yield Row(str(path), number, {str(key): value for key, value in fields.items()})
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 (byte {error.start}); convert it, for example with iconv") from error
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise BadInputError(f"{path}: after row {number}: {error}") from error
