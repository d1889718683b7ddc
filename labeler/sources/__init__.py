"""Sources: one file an input format. Each yields a `Row` for a row it can read and a `Reject` for one it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labeler.errors import BadInputError, UsageError
from labeler.records import Reject, Row
from labeler.sources import class_folders, coco, csv, folder, hub, json_rows, jsonl, label_studio, lance, meld, parquet
from labeler.sources.answers import with_answer
from labeler.sources.captions import with_captions

SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
SPREADSHEETS = (".xls", ".xlsx", ".xlsm", ".ods", ".numbers")


@dataclass(frozen=True)
class Reading:
    """How a source is read. format: a name of FORMATS, or `auto`; encoding: of texts, by default found; label and
    frames: what a format with several of them takes (see `labeler.sources.meld`); caption: `longest` or `each` of a
    list; mapping: {our field: their field}; image_folder: what the images of rows are relative to, in place of their
    source's folder.
    """

    format: str = "auto"
    encoding: str | None = None
    label: str | None = None
    frames: int = 1
    caption: str = "longest"
    mapping: dict[str, str] = field(default_factory=dict)
    image_folder: Path | None = None


FORMATS: dict[str, Callable[[Path, Reading], Iterator[Row | Reject]]] = {
    "jsonl": lambda path, how: jsonl.read(path),
    "json": lambda path, how: json_rows.read(path),
    "csv": lambda path, how: csv.read(path, how.encoding),
    "parquet": lambda path, how: parquet.read(path, how.mapping),
    "folder": lambda path, how: folder.read(path, how.encoding, how.mapping),
    "picture": lambda path, how: folder.read_picture(path, how.encoding, how.mapping),
    "class-folders": lambda path, how: class_folders.read_class_folders(path, how.encoding, how.mapping),
    "label-studio": lambda path, how: label_studio.read(path, how.mapping.get("labels")),
    "coco": lambda path, how: coco.read(path),
    "meld": lambda path, how: meld.read(path, how.label, how.frames, how.encoding),
    "lance": lambda path, how: lance.read(path, how.mapping.get("image")),
    "hub": lambda path, how: hub.read(path, how.mapping.get("image"), how.mapping.get("id")),
}
FOLDERS = ("folder", "class-folders", "meld", "lance", "hub")
PLACED = ("folder", "picture", "class-folders", "meld", "hub")  # formats whose pictures have their places
ENCODED = {"csv", "meld", "folder", "picture", "class-folders"}  # formats in which the encoding is asked for


def read_source(path: Path, how: Reading | None = None) -> Iterator[Row | Reject]:
    """Yield the rows of a file or folder, in its own format or the one that `how` names.

    Raises BadInputError when there is no such file, its format is unknown, or it is not what `how` says.
    """
    how = how or Reading()
    items = FORMATS[find_format(path, how.format)](path, how)
    return (row for item in items for row in stands_for(item, how))


def stands_for(item: Row | Reject, how: Reading) -> Iterator[Row | Reject]:
    """Yield what a source's row stands for: a row with its most frequent answer as label, or one for each caption."""
    if isinstance(item, Reject):
        yield item
    else:
        yield from with_captions(with_answer(item, how.mapping), how.caption, how.mapping)


def find_format(path: Path, wanted: str = "auto") -> str:
    """Return the name of the format of `path`: `wanted`, or what name and content tell.

    Raises BadInputError when there is no such file, or its format is unknown.
    """
    if hub.claims(path):
        return "hub"
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if wanted != "auto":
        if path.is_dir() and wanted not in FOLDERS:
            raise BadInputError(f"{path}: a folder; --format {wanted} takes a file")
        if path.is_file() and wanted in FOLDERS and wanted != "meld":
            raise BadInputError(f"{path}: a file; --format {wanted} takes a folder")
        return wanted
    if meld.claims(path):
        return "meld"
    if path.is_dir():
        return "lance" if lance.claims(path) else "folder"
    if not path.is_file():
        raise BadInputError(f"{path}: neither a file nor a folder")
    if path.suffix.lower() == ".json" and label_studio.claims(path):
        return "label-studio"
    if path.suffix.lower() == ".json" and coco.claims(path):
        return "coco"
    if path.suffix.lower() == ".json" and json_rows.claims(path):
        return "json"
    return named_format(str(path))


def named_format(place: str) -> str:
    """Return the format that the name of a file tells; raises BadInputError where it tells none."""
    suffix = Path(place).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in folder.PICTURES:
        return "picture"
    hint = '; put texts into a .jsonl file, {"text": "..."} a line, or name a table .csv' if suffix == ".txt" else ""
    if suffix in SPREADSHEETS:
        hint = "; save the sheet as CSV UTF-8"
    raise BadInputError(
        f"{place}: unknown format {suffix!r}; expected {', '.join(SUFFIXES)}, a picture or a folder{hint}"
    )


def image_root(path: Path, image_folder: Path | None = None) -> Path:
    """Return the folder to which a source's image paths are relative: `image_folder`, or where it lies itself."""
    if image_folder:
        return image_folder
    if hub.claims(path):
        return hub.root_of(path)
    return path if path.is_dir() and not lance.claims(path) else path.parent


def check_image_folder(paths: Sequence[Path], how: Reading) -> None:
    """Raise UsageError where a source's pictures cannot lie in the image folder, BadInputError where there is no such folder."""
    if how.image_folder is None:
        return
    if not how.image_folder.is_dir():
        raise BadInputError(f"--image-folder {how.image_folder}: no such folder")
    for path in paths:
        if (form := find_format(path, how.format)) in PLACED:
            raise UsageError(
                f"--image-folder is for tables, whose rows name pictures; {path} ({form}) says itself where they lie"
            )


def refuse_encoding(encoding: str | None, forms: Iterable[str]) -> None:
    """Raise UsageError where an encoding is named and none of the sources, of these formats, is read in one."""
    if encoding and not ENCODED & set(forms):
        raise UsageError(f"--encoding {encoding} is for csv, MELD and texts beside pictures; leave it out")


def brings_pictures(path: Path) -> bool:
    """Return whether a source's rows may bring their pictures as bytes, in place of paths."""
    return hub.claims(path) or lance.claims(path) or parquet.brings_pictures(path)


def common_root(
    paths: Sequence[Path],
    artifact: Path,
    image_folder: Path | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Path:
    """Return the folder to which records name their images: of all sources, `artifact` standing for those with bytes.

    A parquet table may have both, bytes and paths. Links are followed, since `..` in a name leads on from where they lead.
    `mapping`: what fields are called.
    """
    roots = [artifact for path in paths if brings_pictures(path)]
    roots += [image_root(path, image_folder) for path in paths if names_pictures(path, mapping or {})]
    return Path(os.path.commonpath([os.path.realpath(root) for root in roots]))


def names_pictures(path: Path, mapping: Mapping[str, str]) -> bool:
    """Return whether a source's rows may name pictures as files."""
    if parquet.brings_pictures(path):
        return parquet.names_pictures(path, mapping)
    return not (hub.claims(path) or lance.claims(path))
