"""Items to label: rows of any source with their pictures decoded, or with the reason why they cannot be."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import lru_cache, partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xxhash import xxh3_64_intdigest

from labeler.pictures.decoding import Wanted, prepare_images
from labeler.pictures.images import ImageError, check_size, frame_of, resolve_image, spelt
from labeler.processes import AHEAD
from labeler.records import Record, Reject, Remote, Row, field_called, pair_from
from labeler.remote import fetch, in_threads
from labeler.sources import image_root
from labeler.values import RowError, jsonable, writable

if TYPE_CHECKING:
    import numpy as np


class Item(NamedTuple):
    """One thing to label: a record, its picture's file, or its name and bytes or where to fetch these (`remote`), and the
    picture as the image tower takes it; or why it cannot be. `carried` is what its line has besides.
    """

    record: Record
    path: Path | str | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    error: str | None = None
    remote: Remote | None = None
    carried: dict[str, Any] | None = None


class ItemReading(NamedTuple):
    """How rows become items. mapping: {our field: their field}; allow_outside: read pictures outside the source's folder;
    allow_missing: label a row whose picture is not there by its text; keep: fields that its line carries; several: there are
    several sources, and a line says which is its own; image_folder: what images of rows are relative to, in place of their
    source's folder.
    """

    mapping: dict[str, str]
    allow_outside: bool = False
    allow_missing: bool = False
    keep: tuple[str, ...] = ()
    several: bool = False
    image_folder: Path | None = None

    @property
    def carried(self) -> list[str]:
        """Return the fields that a line has besides an item's own."""
        return [*(["source"] if self.several else []), *self.keep]

    def arguments(self) -> dict[str, Any]:
        """Return what decides lines, as the state of an output records it; what else mapping changes shows in the rows' keys."""
        found = self._asdict() | {"keep": list(self.keep), "image_folder": self.image_folder and str(self.image_folder)}
        del found["mapping"]
        return found


def read_items(
    rows: Iterable[Row | Reject], how: ItemReading, side: int, ahead: int = AHEAD
) -> Generator[Item, None, None]:
    """Yield an item for every row, in order, its picture at `side` x `side` pixels. Up to `ahead` are decoded early."""
    read = (read_item(row, how) for row in rows)
    with closing(in_threads(partial(fetched, how=how), read, lambda item: item.remote is not None)) as here:
        source, again = tee(here)
        files = (Wanted(item.path, data=item.data) if item.path else None for item in source)
        with closing(prepare_images(files, side, ahead)) as pictures:
            for item, picture in zip(again, pictures, strict=True):
                if isinstance(picture, ImageError):
                    yield without_picture(item, picture, how)._replace(data=None)
                else:
                    yield item._replace(pixels=picture and picture.pixels, data=None)


def fetched(item: Item, how: ItemReading) -> Item:
    """Return the item with its picture's bytes in place of where they are; see `without_picture` for one without."""
    try:
        return item._replace(data=item.remote and fetch(item.remote))
    except ImageError as error:
        return without_picture(item, error, how)._replace(path=None, remote=None)


def without_picture(item: Item, error: ImageError, how: ItemReading) -> Item:
    """Return the item whose picture cannot be had as a text, where it is missing and may be; else with the error."""
    if how.allow_missing and error.code == "image-missing" and item.record.text:
        return item._replace(record=item.record.model_copy(update={"image": None}), path=None, remote=None)
    return item._replace(error=str(error))


def read_item(row: Row | Reject, how: ItemReading) -> Item:
    """Return the row as an item; an error in place of an exception."""
    if isinstance(row, Reject):
        found = Item(Record(id=row.id or row.place), error=row.told)
    else:
        found = read_record(row, how.mapping)
    found = found._replace(carried=carried(row, how))
    if isinstance(row, Reject) or found.error is not None:
        return found
    record = found.record
    try:
        if isinstance(row.picture, bytes):
            check_size(len(row.picture))
            return found._replace(path=Path(record.image or record.id), data=row.picture)
        if isinstance(row.picture, Remote):
            url = row.picture.url
            found = found._replace(record=record.model_copy(update={"image": url}))
            if row.picture.outside:
                raise ImageError(
                    "image-outside", f"{url} lies outside its input's folder; --allow-outside reads it all the same"
                )
            return found._replace(path=url, remote=row.picture)
        if record.image is None:
            return found
        return found._replace(
            path=resolve_image(root_of(row.source, how.image_folder), record.image, allow_outside=how.allow_outside)
        )
    except ImageError as error:
        return without_picture(found, error, how)


def carried(row: Row | Reject, how: ItemReading) -> dict[str, Any]:
    """Return what the row's line has besides an item's own: its source, and the fields to keep, None where it has none."""
    given = {} if isinstance(row, Reject) else row.fields
    theirs = {name: field_called(given, name) for name in how.keep}
    fields = {name: given[found] for name, found in theirs.items() if found is not None}
    try:
        fields = jsonable(fields)
    except RowError:  # some other field's value is no reason to label nothing
        fields = {name: str(value) for name, value in fields.items()}
    return ({"source": row.source} if how.several else {}) | dict.fromkeys(how.keep) | fields


def read_record(row: Row, mapping: dict[str, str]) -> Item:
    """Return the row as an item without its picture; an error in place of an exception."""
    try:
        return Item(pair_from(row, mapping))
    except RowError as error:
        return Item(unusable(row, mapping), error=str(error))


def unusable(row: Row, mapping: dict[str, str]) -> Record:
    """Return a record that names a row which is none."""
    return Record(id=writable(row.shown_id(mapping) or row.place))


@lru_cache(maxsize=64)
def root_of(source: str, image_folder: Path | None = None) -> Path:
    """Return the folder to which a source's image paths are relative; to look for it takes longer than the rest of a row."""
    return image_root(Path(source), image_folder)


def key_of(row: Row | Reject, how: ItemReading) -> int:
    """Return 64 bits that differ when a row's id, text, carried fields or picture does: its bytes, or its file's place, size
    and times, as far as these are known.

    No picture is read. Two things share a key by chance in one of 40 million runs over a million rows.
    """
    if isinstance(row, Reject):
        return xxh3_64_intdigest(repr(row).encode("utf-8", "backslashreplace"))
    item = read_record(row, how.mapping)
    image = item.record.image
    held: tuple[object, ...] = ()
    if isinstance(row.picture, bytes):
        held = (xxh3_64_intdigest(row.picture),)
    elif isinstance(row.picture, Remote):
        held = row.picture
    elif image is not None:
        path = os.path.abspath(spelt(root_of(row.source, how.image_folder), image))
        held = path, file_key(path)
    named = (item.record.id, image, item.record.text, item.error, held)
    return xxh3_64_intdigest(repr((*named, *carried(row, how).items())).encode("utf-8", "backslashreplace"))


def file_key(path: str) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None where there is none. The last time changes even where the first is set back."""
    try:
        status = os.stat(frame_of(Path(path))[0] if "#" in path else path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
