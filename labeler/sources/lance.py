"""Lance: a dataset whose rows bring their pictures as bytes, such as flickr8k's {image, image_id, captions}, or our store's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeler.errors import BadInputError
from labeler.records import LabelSet, Reject, Row, read_label_set
from labeler.sources.columns import has_bytes, is_bytes, is_picture, picture_column, with_picture

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_A_TIME = 16  # of up to 64 MiB each
READ_AHEAD = 32 << 20  # bytes; by default Lance would hold 2 GiB of what slower stages wait for

log = logging.getLogger("labeler")


def claims(path: Path) -> bool:
    """Return whether `path` is a folder as Lance writes it."""
    return (path / "_versions").is_dir()


def read(path: Path, image: str | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of the newest version of a dataset, a few in memory at a time; `line` counts rows from 1.

    The picture is the column of bytes that `image` names, or that an alias names, or the only one, or a struct of `bytes` and
    `path`, as in parquet; a column of strings holds paths relative to the dataset's parent folder. Vectors and other columns
    with bytes in them are passed over, lists of pictures with a word. In a store of ours (pictures of at most 320 px) the label
    numbers become the names in its labels.json.

    Raises BadInputError where it is no Lance dataset, is damaged, or has several columns of bytes and none is named.
    """
    import lance

    number = 0
    try:
        dataset = lance.dataset(str(path))
        plain, pictures, structs = columns(path, dataset.schema)
        picture = picture_column(str(path), pictures, image)
        taken = [*plain, *([picture] if picture else [])]
        labels = label_set_beside(path, dataset.schema)
        scanner = dataset.scanner(
            columns=taken, batch_size=ROWS_AT_A_TIME, blob_handling="all_binary",
            batch_readahead=1, fragment_readahead=1, io_buffer_size=READ_AHEAD,
        )  # fmt: skip
        for batch in scanner.to_batches():
            for fields in batch.to_pylist():
                number += 1
                row = Row(str(path), number, named_labels(fields, labels))
                if picture in structs:
                    yield with_picture(row, picture, {"image": image} if image else {})
                else:
                    yield row._replace(picture=row.fields.pop(picture, None) if picture else None)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadInputError(f"{path}: after row {number}: not a whole Lance dataset ({reason})") from error


def columns(path: Path, schema: pyarrow.Schema) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the columns with plain values, of those with pictures, and which of these are structs.

    Vectors are in none of them, nor are other columns with bytes in them, which is said.
    """
    plain: list[str] = []
    pictures: list[str] = []
    others: list[str] = []
    for field in schema:
        if holds_bytes(field) or is_picture(field.type):
            pictures.append(field.name)
        elif has_bytes(field.type):
            others.append(field.name)
        elif not is_vector(field.type):
            plain.append(field.name)
    if others:
        log.info("%s: passed over: %s", path, ", ".join(others))
    return plain, pictures, [name for name in pictures if is_picture(schema.field(name).type)]


def holds_bytes(field: pyarrow.Field) -> bool:
    """Return whether a column holds bytes, in itself or as Lance's blobs."""
    blob = str(getattr(field.type, "extension_name", "")).startswith("lance.blob")
    return blob or is_bytes(field.type)


def is_vector(kind: pyarrow.DataType) -> bool:
    """Return whether a column holds lists of floating numbers, such as embeddings."""
    from pyarrow import types

    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return listed and types.is_floating(kind.value_type)


def label_set_beside(path: Path, schema: pyarrow.Schema) -> LabelSet | None:
    """Return the label set of a store of ours, whose `labels` are numbers; None for any other dataset."""
    from pyarrow import types

    if "labels" not in schema.names or not (path.parent / "labels.json").is_file():
        return None
    kind = schema.field("labels").type
    return read_label_set(path.parent) if types.is_list(kind) and types.is_integer(kind.value_type) else None


def named_labels(fields: dict[str, Any], labels: LabelSet | None) -> dict[str, Any]:
    """Return the fields with names in place of label numbers: a list of them, or a tuple of one where the task is single."""
    if labels is None or fields["labels"] is None:
        return fields
    numbers: Sequence[int] = fields["labels"]
    names = [labels.names[number] for number in numbers]
    return fields | {"labels": tuple(names) if labels.task == "single" else names}
