"""parquet: a table with named columns, through pandas; lists stay lists, missing values are None, pictures are bytes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.errors import BadInputError
from labeler.records import Reject, Row, find_field, named_fields
from labeler.sources.columns import class_name, has_bytes, is_bytes, is_picture, picture_column, with_picture

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import FileMetaData

UNNAMED = "__index_level_0__"  # an index without a name, which numbers the rows
ROWS = 4096  # held in memory at a time
PICTURES = 64  # rows with pictures in them

log = logging.getLogger("labeler")


def read(path: Path, mapping: Mapping[str, str] | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of `path`; `line` counts rows from 1.

    A picture is a column of bytes that `mapping` or an alias names, or a struct of `bytes` and `path`, as the library
    `datasets` writes it: its bytes are the row's picture, and where there are none its path is the image's name. Numbers of
    that library's classes become the classes' names. Other columns with bytes in them, such as lists of pictures, are passed
    over, which is said.

    Raises BadInputError where the file is no parquet table, or its picture cannot be told among several columns.
    """
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            picture, unused = picture_columns(path, file.schema_arrow, mapping or {})
            if unused:
                log.info("%s: passed over: %s", path, ", ".join(unused))
            classes = class_columns(file.schema_arrow)
            wanted = [name for name in file.schema_arrow.names if name not in unused] if unused else None
            for batch in file.iter_batches(PICTURES if picture else ROWS, columns=wanted):
                # integers stay integers where some are missing, in whichever batch they stand
                # what pandas made the index is a column too
                table = batch.to_pandas(integer_object_nulls=True, ignore_metadata=True)
                for fields in table.to_dict("records"):
                    number += 1
                    found = {str(key): plain(value) for key, value in fields.items() if key != UNNAMED}
                    found |= {name: named(found.get(name), names) for name, names in classes.items()}
                    yield with_picture(Row(str(path), number, found), picture, mapping or {})
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error


def brings_pictures(path: Path) -> bool:
    """Return whether a file is a parquet table that may hold pictures as bytes."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    from pyarrow.parquet import read_schema

    try:
        kinds = read_schema(path).types
    except (OSError, ValueError):  # which reading it says too
        return False
    return any(is_bytes(kind) or is_picture(kind) for kind in kinds)


def names_pictures(path: Path, mapping: Mapping[str, str]) -> bool:
    """Return whether rows of the parquet table `path` may name pictures as files: not where each brings its picture's bytes."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        picture, _ = picture_columns(path, file.schema_arrow, mapping)
        return picture is None or not (
            is_bytes(file.schema_arrow.field(picture).type) or nulls(file.metadata, f"{picture}.bytes") == 0
        )


def nulls(metadata: FileMetaData, column: str) -> int | None:
    """Return how many rows of a table lack a value in a column, `name.part` of a struct; None where the file does not say."""
    count = 0
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(number) for number in range(metadata.num_columns))
        found = next((part for part in columns if part.path_in_schema == column), None)
        if found is None or found.statistics is None or not found.statistics.has_null_count:
            return None
        count += found.statistics.null_count
    return count


def picture_columns(path: Path, schema: Schema, mapping: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return the column with the picture, None where there is none, and others with bytes that are none of our fields'."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    image = find_field(kinds, "image", mapping)
    pictures = [name for name, kind in kinds.items() if is_picture(kind) or (name == image and is_bytes(kind))]
    known = image in pictures or image is None
    picture = picture_column(str(path), pictures, image) if known else None
    others = named_fields(tuple(kinds), tuple(mapping.items())).others
    nested = [name for name, kind in kinds.items() if has_bytes(kind) and not (is_picture(kind) or is_bytes(kind))]
    unused = [name for name in kinds if name != picture and has_bytes(kinds[name]) and name in (*others, *nested)]
    return picture, unused


def class_columns(schema: Schema) -> dict[str, list[str]]:
    """Return the classes of the columns whose numbers stand for them, as the library `datasets` notes it in the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: features[name] for name in schema.names if name in features}
    except (KeyError, TypeError, ValueError):  # another's table, or a note that is none of that library's
        return {}
    found = {}
    for name, kind in kinds.items():
        # of one class, or of a list of them: in older versions a list of one feature
        inner = kind[0] if isinstance(kind, list) and kind else kind
        inner = inner.get("feature", inner) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[name] = inner["names"]
    return found


def named(value: Any, names: list[str]) -> Any:
    """Return the names that a class's number, or a list of them, stands for; anything else as it is."""
    if isinstance(value, list):
        return [named(item, names) for item in value]
    return class_name(names, value) if isinstance(value, int) else value


def plain(value: Any) -> Any:
    """Return a cell as Python has it: arrays as lists, NumPy's numbers as numbers, missing as None."""
    import pandas

    if hasattr(value, "tolist"):
        return value.tolist()
    return None if value is pandas.NaT or value is pandas.NA or value != value else value
