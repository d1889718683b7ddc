"""Rows of a folder, a picture or a table on S3, as `labeler.sources` gives those of this machine's; pictures come later."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.errors import BadInputError
from labeler.records import Reject, Remote, Row, find_field
from labeler.remote import LOST, PREFIX, as_our_errors, copied, file_of, in_threads, lost, opened, read_bytes, status
from labeler.sources import Reading, named_format, read_source, stands_for
from labeler.sources.folder import (
    MAX_SIDECAR_BYTES,
    METADATA,
    Entry,
    entries,
    metadata_rows,
    say_strays,
    sidecars,
    text_row,
    with_sidecar,
)
from labeler.values import RowError, clean_path

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

Tasks = Iterator[Callable[[], "Row | Reject"]]


def read(url: str, mapping: dict[str, str], allow_outside: bool, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Return the rows of what lies at `url`, their pictures Remote, as `labeler.sources.read_source` would.

    Of a folder the names in one of its folders at a time are held in memory; a table is copied to this machine first. What has to
    be asked for each row, its text or what is known of its picture, is asked ahead of the rows. `encoding` is that of texts.

    Raises BadInputError when there is no such place, or it cannot be read.
    """
    found, url, how = status(url), url.rstrip("/"), Reading(mapping=mapping, encoding=encoding)
    if found.is_file and named_format(url) != "picture":
        return in_threads(perform, table_tasks(url, how, allow_outside))
    if found.is_file:
        tasks = picture_tasks(url, how)
    elif found.type.name == "Directory":
        tasks = folder_tasks(url, how, allow_outside)
    else:
        raise BadInputError(f"{url}: no such object or folder")
    return (row for item in in_threads(perform, tasks) for row in stands_for(item, how))


def format_of(url: str) -> str:
    """Return the format of what lies at `url`, as `labeler.sources.find_format` names it; raises BadInputError for no format."""
    return named_format(url) if status(url).is_file else "folder"


def perform(task: Callable[[], Row | Reject]) -> Row | Reject:
    """Return what a task makes."""
    return task()


def folder_tasks(url: str, how: Reading, allow_outside: bool) -> Tasks:
    """Yield what makes each row of a folder, in the order of `labeler.sources.folder.read`."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, top = opened(url)
    root, named, strays = Path(top), set[str](), list[str]()

    def there(place: Path) -> bool:
        return bool(filesystem.get_file_info(str(place)).is_file)

    folders = [top]
    while folders:
        current = folders.pop()
        with as_our_errors(f"{PREFIX}{current}"):
            listed = filesystem.get_file_info(FileSelector(current))
        inside = [info for info in listed if info.base_name and info.path.startswith(f"{current}/")]
        if len(inside) < len(listed):  # of such keys Arrow lists the folder itself, or one without a name
            place = f"{current}//".removeprefix(f"{top}/")
            message = f"{place}: keys with an empty part cannot be reached; copy what lies there to other keys"
            yield partial(Reject, url, 0, place, "folder-unreadable", message)
        shown = [info for info in inside if not info.base_name.startswith(".")]
        files = {info.base_name: info for info in shown if info.type is FileType.File}
        folders += sorted((info.path for info in shown if info.type is FileType.Directory), reverse=True)
        if METADATA in files:
            with copied(f"{PREFIX}{current}/{METADATA}") as copy:
                for item in metadata_rows(copy, root, Path(current), named, how.mapping, there):
                    if isinstance(item, Row):
                        yield partial(metadata_row, item, root, Path(current), files, how, url, allow_outside)
                    else:
                        yield partial(item._replace, source=f"{PREFIX}{current}/{METADATA}")
        for entry in entries(root, Path(current), sorted(files), named, strays):
            yield partial(row_of, root, entry, files, how)
    say_strays(url, strays)


def picture_tasks(url: str, how: Reading) -> Tasks:
    """Yield what makes the row of one picture."""
    image = Path(opened(url)[1])
    texts = sidecars(image)
    files = {place.name: info for place in [image, *texts] if (info := status(f"{PREFIX}{place}")).is_file}
    text = next((place for place in texts if place.name in files), texts[0])
    yield partial(row_of, image.parent, Entry(1, image, text), files, how)


def table_tasks(url: str, how: Reading, allow_outside: bool) -> Tasks:
    """Yield what makes each row of a table, whose pictures' names are relative to the table's folder."""
    folder = url.rpartition("/")[0]
    with copied(url) as copy:
        try:
            for item in read_source(copy, how):
                yield partial(with_picture, item._replace(source=url), folder, how.mapping, allow_outside)
        except BadInputError as error:
            raise BadInputError(str(error).replace(str(copy), url)) from None


def metadata_row(
    row: Row,
    root: Path,
    current: Path,
    files: dict[str, FileInfo],
    how: Reading,
    url: str,
    allow_outside: bool,
) -> Row | Reject:
    """Return a row of the metadata in the folder `current`, with the place of its picture and the text beside it."""
    key = find_field(row.fields, "image", how.mapping)
    told: Row | Reject = row
    if not str(row.fields.get(key) if key else None).startswith(PREFIX):  # beside one named by URL nobody puts a text
        told = with_sidecar(row, root, how.mapping, how.encoding, text_reader(files, current))
    return with_picture(told._replace(source=url), url, how.mapping, allow_outside)


def text_reader(files: dict[str, FileInfo], folder: Path) -> Callable[[Path, Path], bytes | None]:
    """Return what reads the text at a place, None where there is none; it asks for those alone that may be there: in the folder
    `files` are known by their names.
    """

    def read_text(root: Path, place: Path) -> bytes | None:
        if place.parent == folder and place.name not in files:
            return None
        with suppress(FileNotFoundError):
            return read_bytes(f"{PREFIX}{place}", MAX_SIDECAR_BYTES)
        return None

    return read_text


def row_of(root: Path, entry: Entry, files: dict[str, FileInfo], how: Reading) -> Row | Reject:
    """Return the row of a pair in a folder below `root` whose `files` are known by their names."""
    place = (entry.image or entry.sidecar).parent
    row = text_row(root, entry, how.encoding, text_reader(files, place), how.mapping)._replace(source=f"{PREFIX}{root}")
    if isinstance(row, Reject) or entry.image is None:
        return row
    info = files[entry.image.name]
    return row._replace(picture=Remote(f"{PREFIX}{entry.image}", info.size, info.mtime_ns))


def with_picture(item: Row | Reject, folder: str, mapping: dict[str, str], allow_outside: bool) -> Row | Reject:
    """Return a row with the place of its picture, whose name is relative to `folder` or a URL; one with its bytes as it is."""
    key = None if isinstance(item, Reject) or item.picture is not None else find_field(item.fields, "image", mapping)
    if isinstance(item, Reject) or key is None:
        return item
    try:
        name = clean_path(item.fields.get(key))
    except RowError:
        return item  # whoever makes a record of it says why
    return item if name is None else item._replace(picture=picture_called(name, folder, allow_outside))


def picture_called(name: str, folder: str, allow_outside: bool) -> Remote:
    """Return the place of the picture `name`, a URL or relative to `folder`; with slashes where backslashes lead nowhere."""
    root = folder.removeprefix(PREFIX)
    path = name.removeprefix(PREFIX) if name.startswith(PREFIX) else posixpath.join(root, name)
    path = posixpath.normpath(path).lstrip("/")
    url = f"{PREFIX}{path}"
    if not allow_outside and not path.startswith(f"{root}/"):
        return Remote(url, outside=True)
    try:
        filesystem, path = opened(file_of(url))
        info = filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        if LOST in str(error):
            raise lost(url, error) from None
        return Remote(url)  # to fetch it fails too, and says why
    if not info.is_file and "\\" in name:  # which part folders on Windows, and may stand in a name here
        return picture_called(name.replace("\\", "/"), folder, allow_outside)
    return Remote(url, info.size, info.mtime_ns)
