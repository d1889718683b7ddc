"""Items to label: rows of any source with their pictures decoded, or with the reason why they cannot be."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from labeler.decoding import AHEAD, prepare_images
from labeler.images import ImageError, check_size, frame_of, resolve_image, spelt
from labeler.records import Record, Reject, Remote, Row, record_from
from labeler.remote import fetch, in_threads
from labeler.sources import image_root
from labeler.values import RowError

if TYPE_CHECKING:
    import numpy as np


class Item(NamedTuple):
    """One thing to label: a record, its picture's file, or its name and bytes or where to fetch these (`remote`), and the
    picture as the image tower takes it; or why it cannot be.
    """

    record: Record
    path: Path | str | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    error: str | None = None
    remote: Remote | None = None


def read_items(
    rows: Iterable[Row | Reject],
    mapping: dict[str, str],
    allow_outside: bool,
    side: int,
    ahead: int = AHEAD,
    image_folder: Path | None = None,
) -> Generator[Item, None, None]:
    """Yield an item for every row, in order, its picture at `side` x `side` pixels. Up to `ahead` are decoded early.

    The images of rows are relative to `image_folder`, or to their source's folder.
    """
    read = (read_item(row, mapping, allow_outside, image_folder) for row in rows)
    with closing(in_threads(fetched, read, lambda item: item.remote is not None)) as here:
        source, again = tee(here)
        files = ((item.path, None, item.data) if item.path else None for item in source)
        with closing(prepare_images(files, side, ahead)) as pictures:
            for item, picture in zip(again, pictures, strict=True):
                if isinstance(picture, ImageError):
                    yield item._replace(error=str(picture), data=None)
                else:
                    yield item._replace(pixels=picture and picture.pixels, data=None)


def fetched(item: Item) -> Item:
    """Return the item with its picture's bytes in place of where they are; an error in place of an exception."""
    try:
        return item._replace(data=item.remote and fetch(item.remote))
    except ImageError as error:
        return item._replace(path=None, error=str(error))


def read_item(
    row: Row | Reject, mapping: dict[str, str], allow_outside: bool, image_folder: Path | None = None
) -> Item:
    """Return the row as an item; an error in place of an exception."""
    if isinstance(row, Reject):
        return Item(Record(id=row.id or f"{Path(row.source).name}:{row.line}"), error=f"line {row.line}: {row.message}")
    item = read_record(row, mapping)
    if item.error is not None:
        return item
    record = item.record
    try:
        if isinstance(row.picture, bytes):
            check_size(len(row.picture))
            return Item(record, Path(record.image or record.id), row.picture)
        if isinstance(row.picture, Remote):
            record, url = record.model_copy(update={"image": row.picture.url}), row.picture.url
            if row.picture.outside:
                raise ImageError(
                    "image-outside", f"{url} lies outside its input's folder; --allow-outside reads it all the same"
                )
            return Item(record, url, remote=row.picture)
        if record.image is None:
            return Item(record)
        return Item(record, resolve_image(root_of(row.source, image_folder), record.image, allow_outside=allow_outside))
    except ImageError as error:
        return Item(record, error=str(error))


def read_record(row: Row, mapping: dict[str, str]) -> Item:
    """Return the row as an item without its picture; an error in place of an exception."""
    try:
        return Item(record_from(row, mapping, labelled=False))
    except RowError as error:
        return Item(unusable(row), error=str(error))


def unusable(row: Row) -> Record:
    """Return a record that names a row which is none."""
    return Record(id=(row.shown_id or row.place).encode("utf-8", "replace").decode("utf-8"))


@lru_cache(maxsize=64)
def root_of(source: str, image_folder: Path | None = None) -> Path:
    """Return the folder to which a source's image paths are relative; to look for it takes longer than the rest of a row."""
    return image_root(Path(source), image_folder)


def key_of(row: Row | Reject, mapping: dict[str, str], image_folder: Path | None = None) -> int:
    """Return 64 bits that differ when a row's id, text or picture does: its bytes, or its file's place, size and times, as far
    as these are known.

    No picture is read. Two things share a key by chance in one of 40 million runs over a million rows.
    """
    if isinstance(row, Reject):
        return xxh3_64_intdigest(repr(row).encode("utf-8", "backslashreplace"))
    item = read_record(row, mapping)
    image = item.record.image
    held: tuple[object, ...] = ()
    if isinstance(row.picture, bytes):
        held = (xxh3_64_intdigest(row.picture),)
    elif isinstance(row.picture, Remote):
        held = row.picture
    elif image is not None:
        path = os.path.abspath(spelt(root_of(row.source, image_folder), image))
        held = path, file_key(path)
    return xxh3_64_intdigest(
        repr((item.record.id, image, item.record.text, item.error, held)).encode("utf-8", "backslashreplace")
    )


def file_key(path: str) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None where there is none. The last time changes even where the first is set back."""
    try:
        status = os.stat(frame_of(Path(path))[0] if "#" in path else path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
