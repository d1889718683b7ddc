"""Items to label: rows of any source with their pictures decoded, or with the reason why they cannot be."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labeler.decoding import prepare_images
from labeler.images import ImageError, check_size, resolve_image
from labeler.records import Record, Reject, Row, RowError, record_from
from labeler.sources import image_root

if TYPE_CHECKING:
    import numpy as np


class Item(NamedTuple):
    """One thing to label: a record, its picture's file, or its name and bytes, and the picture as the image tower takes it; or
    why it cannot be.
    """

    record: Record
    path: Path | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    error: str | None = None


def read_items(
    rows: Iterable[Row | Reject], mapping: dict[str, str], allow_outside: bool, side: int
) -> Generator[Item, None, None]:
    """Yield an item for every row, in order, its picture at `side` x `side` pixels; they are decoded ahead of their use."""
    source, again = tee(read_item(row, mapping, allow_outside) for row in rows)
    files = ((item.path, None, item.data) if item.path else None for item in source)
    with closing(prepare_images(files, side)) as pictures:
        for item, picture in zip(again, pictures, strict=True):
            if isinstance(picture, ImageError):
                yield item._replace(error=str(picture), data=None)
            else:
                yield item._replace(pixels=picture and picture.pixels, data=None)


def read_item(row: Row | Reject, mapping: dict[str, str], allow_outside: bool) -> Item:
    """Return the row as an item; an error in place of an exception."""
    if isinstance(row, Reject):
        return Item(Record(id=row.id or f"{Path(row.source).name}:{row.line}"), error=f"line {row.line}: {row.message}")
    try:
        record = record_from(row, mapping, labelled=False)
    except RowError as error:
        return Item(unusable(row), error=str(error))
    try:
        if isinstance(row.picture, bytes):
            check_size(len(row.picture))
            return Item(record, Path(record.image or record.id), row.picture)
        if record.image is None:
            return Item(record)
        return Item(record, resolve_image(image_root(Path(row.source)), record.image, allow_outside=allow_outside))
    except ImageError as error:
        return Item(record, error=str(error))


def unusable(row: Row) -> Record:
    """Return a record that names a row which is none."""
    return Record(id=(row.shown_id or row.place).encode("utf-8", "replace").decode("utf-8"))
