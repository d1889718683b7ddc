"""parquet: a table with named columns, through pandas; lists stay lists, missing values are None."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row

UNNAMED = "__index_level_0__"  # an index without a name, which numbers the rows
ROWS = 4096  # held in memory at a time


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield the rows of `path`; `line` counts rows from 1.

    Raises BadInputError where the file is no parquet table.
    """
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                # integers stay integers where some are missing, in whichever batch they stand
                # what pandas made the index is a column too
                table = batch.to_pandas(integer_object_nulls=True, ignore_metadata=True)
                for fields in table.to_dict("records"):
                    number += 1
                    yield Row(
                        str(path), number, {str(key): plain(value) for key, value in fields.items() if key != UNNAMED}
                    )
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error


def plain(value: Any) -> Any:
    """Return a cell as Python has it: arrays as lists, NumPy's numbers as numbers, missing as None."""
    import pandas

    if hasattr(value, "tolist"):
        return value.tolist()
    return None if value is pandas.NaT or value is pandas.NA or value != value else value
