"""A folder: pictures with `.txt` sidecars, or with a `metadata.jsonl` that names them; sub-folders too."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from labeler.artifacts import MANIFEST, read_manifest
from labeler.errors import BadInputError
from labeler.pictures.images import frame_of, spelt
from labeler.records import Reject, Row, find_field
from labeler.sources import jsonl
from labeler.sources.text import SAMPLE_BYTES, EncodingError, decode_text, encoding_note, guess_encoding, is_utf8

METADATA = "metadata.jsonl"
MAX_SIDECAR_BYTES = 1 << 20
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
TEXT = ".txt"
# what is meant as data and cannot be read as a picture is an error, where other files that lie about are none
MEANT = re.compile(
    r"\.(jpe?g|jpe|jfif|jp2|jxl|png|webp|gif|bmp|tiff?|hei[cf]|avif|svg|ico|psd|tga|p[pgn]m|raw|dng|nef|arw|cr[23]|orf|rw2|"
    r"mp4|m4v|mov|webm|mkv|avi|mpe?g|wmv|flv|3gp|mts|ogv|txt|csv|tsv|jsonl?|ndjson|parquet)"
)
TABLE = re.compile(r"\.(csv|tsv|jsonl?|ndjson|parquet)$", re.IGNORECASE)
FOLDER = "folder"  # a field of rows that is there where it is asked for, as by --group-by
SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")  # others belong to the name: `holiday.2024`
SHOWN = 5

log = logging.getLogger("labeler")


class Entry(NamedTuple):
    """A pair of a folder: its number there, its picture (None where a text stands alone), and where its text would be."""

    line: int
    image: Path | None
    sidecar: Path


def read(root: Path, encoding: str | None = None, mapping: Mapping[str, str] | None = None) -> Iterator[Row | Reject]:
    """Yield a row {"id", "image", "text"} for every file below `root`, in the order of their paths.

    A `.txt` beside a picture of the same name is its text (`a.txt` or `a.jpg.txt` of `a.jpg`, in capitals or not); one
    without a picture is a pair without a picture. Rows of a `metadata.jsonl` come in its own order, with all their fields;
    the files that it names are not repeated. Passed over are hidden files and folders, and files whose suffix is that of
    something else than pictures, videos, texts and tables, such as `Thumbs.db`, which is said. `encoding` is the
    sidecars', by default UTF-8 or else what each one looks like, short ones what all that are not UTF-8 look like together.
    """
    likely = cache(lambda: common_encoding(root))
    named: set[str] = set()  # by a metadata.jsonl of this folder or one above
    failed: list[OSError] = []
    strays: list[str] = []
    for current, folders, names in os.walk(root, onerror=failed.append):
        ours = [name for name in folders if not name.startswith(".") and is_ours(Path(current, name))]
        for name in ours:
            log.info("%s: made by labeler, so it is passed over", Path(current, name))
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in ours))
        for name in folders:
            if os.path.islink(os.path.join(current, name)):
                place = Path(current, name).relative_to(root).as_posix()
                message = f"{place}: a link to a folder, which is not followed; name its target as a source of its own"
                yield Reject(str(root), 0, place, "folder-linked", message)
        shown = sorted(name for name in names if not name.startswith("."))
        yield from read_one(root, Path(current), shown, named, encoding, mapping or {}, strays, likely)
    say_strays(str(root), strays)
    for error in failed:
        place = os.path.relpath(str(error.filename), root)
        yield Reject(str(root), 0, place, "folder-unreadable", f"{place}: {error.strerror}")


def common_encoding(root: Path) -> str | None:
    """Return the encoding that the texts below `root` that are not UTF-8 look like together; None where they look like none.

    Those in UTF-16, which tell it themselves, are left out.
    """
    sample = bytearray()
    for current, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            with suppress(OSError):  # to read it is a reject
                data = read_sidecar(root, Path(current, name)) if is_text(name) and not name.startswith(".") else None
                sample += data + b"\n" if data and b"\0" not in data and not is_utf8(data) else b""
        if len(sample) > SAMPLE_BYTES:
            break
    try:
        return guess_encoding(bytes(sample))
    except EncodingError:
        return None


def read_picture(
    path: Path, encoding: str | None = None, mapping: Mapping[str, str] | None = None
) -> Iterator[Row | Reject]:
    """Yield the row of one picture, its sidecar's text with it."""
    sidecar = next((place for place in sidecars(path) if place.is_file()), path.with_suffix(TEXT))
    yield text_row(path.parent, Entry(1, path, sidecar), encoding, mapping=mapping)


def sidecars(image: Path) -> list[Path]:
    """Return where the text of a picture may be, the usual place first."""
    names = [image.stem, image.name]
    return [image.with_name(f"{name}{suffix}") for name in names for suffix in (TEXT, TEXT.upper())]


def is_stray(name: str) -> bool:
    """Return whether a file's name says that it is neither a picture or video, nor a text or table."""
    suffix = Path(name).suffix.lower()
    return SUFFIX.fullmatch(suffix) is not None and MEANT.fullmatch(suffix) is None


def say_strays(root: str, strays: Sequence[str]) -> None:
    """Log, in one line, which files of a folder were passed over."""
    if strays:
        shown = ", ".join(strays[:SHOWN]) + (", ..." if len(strays) > SHOWN else "")
        log.info("%s: %d files that are no pictures or texts passed over: %s", root, len(strays), shown)


def has_metadata(root: Path) -> bool:
    """Return whether a `metadata.jsonl` lies in a folder, at any depth."""
    return any(METADATA in names for _, _, names in os.walk(root))


def is_ours(folder: Path) -> bool:
    """Return whether a folder is the output of a stage, in the source of which it happens to lie."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        read_manifest(folder)
    except BadInputError:
        return False
    return True


def read_one(
    root: Path,
    current: Path,
    names: list[str],
    named: set[str],
    encoding: str | None,
    mapping: Mapping[str, str],
    strays: list[str],
    likely: Callable[[], str | None],
) -> Iterator[Row | Reject]:
    """Yield the rows of one folder, its sub-folders left out; the files that its metadata names are added to `named`, those
    that are passed over to `strays`. `likely`: see `decode_text`.
    """
    if METADATA in names and (current / METADATA).is_file():  # a FIFO of that name would never end
        for item in metadata_rows(current / METADATA, root, current, named, mapping):
            yield with_sidecar(item, root, mapping, encoding, likely=likely) if isinstance(item, Row) else item
    for entry in entries(root, current, names, named, strays):
        yield text_row(root, entry, encoding, mapping=mapping, likely=likely)


def metadata_rows(
    path: Path, root: Path, current: Path, named: set[str], mapping: Mapping[str, str],
    there: Callable[[Path], bool] = os.path.lexists,
) -> Iterator[Row | Reject]:  # fmt: skip
    """Yield the rows of the folder `current` that its metadata in `path` gives; the files that it names are added to `named`.

    `there` tells whether a file is there, for names that may be spelt in several ways.
    """
    place = (current / path.name).relative_to(root).as_posix()  # of a remote folder `path` is a copy
    for item in jsonl.read(path):
        if isinstance(item, Row):
            item, name = with_image_below(item, root, current, mapping, there)
            named.add(name)
        yield item if current == root else with_own_place(item, place, mapping)


def with_own_place(item: Row | Reject, place: str, mapping: Mapping[str, str]) -> Row | Reject:
    """Return a row of a sub-folder's metadata, which lies at `place`; one that nothing names is named by where it stands.

    The folder's own name and a number would not do: another metadata has a row of that number too.
    """
    name = f"{place}:{item.line if item.number is None else item.number}"
    if isinstance(item, Reject):
        return item._replace(id=item.id or name)
    keys = {ours: find_field(item.fields, ours, mapping) for ours in ("id", "image")}
    if any(key and item.fields.get(key) not in (None, "") for key in keys.values()):
        return item
    return item._replace(fields=item.fields | {keys["id"] or "id": name})


def with_sidecar(
    row: Row,
    root: Path,
    mapping: Mapping[str, str],
    encoding: str | None,
    read: Callable[[Path, Path], bytes | None] | None = None,
    likely: Callable[[], str | None] | None = None,
) -> Row | Reject:
    """Return a row of metadata with the text beside its picture, where it has none of its own.

    `read`, `likely`: see `text_row`.
    """
    text, image = (find_field(row.fields, ours, mapping) for ours in ("text", "image"))
    name = row.fields.get(image) if image else None
    if not isinstance(name, str) or (text and row.fields.get(text) is not None):
        return row
    below = os.path.relpath(frame_of(root / name)[0], root)
    if below.startswith(f"{os.pardir}/"):
        return row
    place = root / below
    for sidecar in sidecars(place):
        beside = text_row(root, Entry(row.line, place, sidecar), encoding, read or read_sidecar, likely=likely)
        if isinstance(beside, Reject):
            return beside
        if beside.fields["text"] is not None:
            fields = row.fields | {text or "text": beside.fields["text"]}
            return row._replace(fields=fields, notes=row.notes + beside.notes)
    return row


def entries(root: Path, current: Path, names: list[str], named: set[str], strays: list[str]) -> Iterator[Entry]:
    """Yield the pairs among the sorted `names` of the folder `current` below `root`, but those that metadata named.

    Files that are passed over are added to `strays`.
    """
    texts = {Path(name).stem: name for name in sorted(names, key=lambda name: name.endswith(TEXT)) if is_text(name)}
    images = [name for name in names if not is_text(name) and not is_stray(name) and name != METADATA]
    beside = {image: text for image in images if (text := texts.get(Path(image).stem, texts.get(image)))}
    own = set(beside.values())
    folded = {stem.casefold(): text for stem, text in texts.items() if text not in own}  # of nobody, as it is spelt
    for image in images:
        text = folded.get(Path(image).stem.casefold(), folded.get(image.casefold()))
        if image not in beside and text:
            beside[image] = text
    taken = {*beside.values()}
    for line, name in enumerate(names, 1):
        place = (current / name).relative_to(root).as_posix()
        if name == METADATA or place in named:
            continue
        if is_text(name):
            if name not in taken:
                yield Entry(line, None, current / name)
        elif is_stray(name):
            strays.append(place)
        else:
            yield Entry(line, current / name, current / beside.get(name, f"{Path(name).stem}{TEXT}"))


def is_text(name: str) -> bool:
    """Return whether a file's name is that of a text."""
    return name.lower().endswith(TEXT)


def with_image_below(
    row: Row, root: Path, current: Path, mapping: Mapping[str, str], there: Callable[[Path], bool]
) -> tuple[Row, str]:
    """Return the row as one of `root`, its image's path relative to it, and that of the image's file."""
    key = find_field(row.fields, "image", mapping)
    if key is None or not isinstance(row.fields.get(key), str):
        return row._replace(source=str(root)), ""
    place = spelt(current, row.fields[key], there)
    name, file = (Path(os.path.relpath(path, root)).as_posix() for path in (place, frame_of(place)[0]))
    return row._replace(source=str(root), fields=row.fields | {key: name}), file


def read_sidecar(root: Path, path: Path) -> bytes | None:
    """Return the bytes of a sidecar, as far as shows that it is over 1 MiB; None where there is none.

    Raises OSError where a link leads out of `root`.
    """
    if not path.is_file():
        return None
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OSError("a link to outside the folder")
    with open(path, "rb") as file:
        return file.read(MAX_SIDECAR_BYTES + 1)


def text_row(
    root: Path,
    entry: Entry,
    encoding: str | None,
    read: Callable[[Path, Path], bytes | None] = read_sidecar,
    mapping: Mapping[str, str] | None = None,
    likely: Callable[[], str | None] | None = None,
) -> Row | Reject:
    """Return the row of a pair; `read` gives the bytes of its text, as `read_sidecar` does; `mapping`: what fields are called;
    `likely`: see `decode_text`.
    """
    line, image, sidecar = entry
    place = (image or sidecar).relative_to(root)
    name = place.as_posix()
    if image is not None and TABLE.search(name):
        message = f"{name}: no picture; name a table as a source of its own, or put what it says into a {METADATA}"
        return Reject(str(root), line, name, "image-unreadable", message)
    try:
        data = read(root, sidecar)
        if data is not None and len(data) > MAX_SIDECAR_BYTES:
            raise OSError(f"over {MAX_SIDECAR_BYTES:,} bytes")
        text, found = (None, "utf-8") if data is None else decode_text(data, encoding, likely)
    except (OSError, EncodingError) as error:
        return Reject(str(root), line, name, "text-unreadable", f"{sidecar.name}: {error}")
    values = {"id": name, "image": name if image else None, "text": text and text.strip()}
    fields = {(mapping or {}).get(key, key): value for key, value in values.items()}
    if FOLDER in (mapping or {}).values() and place.parent.parts:
        fields[FOLDER] = place.parent.as_posix()
    # files of two sources may be called alike
    return Row(str(root), line, fields, encoding_note(found, encoding), borrowed="id" not in (mapping or {}))
