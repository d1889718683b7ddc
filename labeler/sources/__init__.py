"""Sources: one file an input format. Each yields a `Row` for a row it can read and a `Reject` for one it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row
from labeler.sources import csv, folder, jsonl, parquet

Reader = Callable[[Path], Iterator[Row | Reject]]
READERS: dict[str, Reader] = {
    ".jsonl": jsonl.read,
    ".json": jsonl.read,
    ".ndjson": jsonl.read,
    ".csv": csv.read,
    ".tsv": csv.read,
    ".parquet": parquet.read,
}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def read_source(path: Path) -> Iterator[Row | Reject]:
    """Yield the rows of a jsonl, csv, tsv or parquet file, of a folder of pictures, or of one picture.

    Raises BadInputError when there is no such file or its format is unknown.
    """
    if path.is_dir():
        return folder.read(path)
    if not path.is_file():
        raise BadInputError(f"{path}: no such file or folder")
    reader = READERS.get(path.suffix.lower())
    if reader is None and path.suffix.lower() in PICTURES:
        return folder.read_picture(path)
    if reader is None:
        raise BadInputError(
            f"{path}: unknown format {path.suffix!r}; expected {', '.join(READERS)}, a picture or a folder"
        )
    return reader(path)


def image_root(path: Path) -> Path:
    """Return the folder to which a source's image paths are relative."""
    return path if path.is_dir() else path.parent
