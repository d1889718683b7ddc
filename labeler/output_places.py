"""Where `predict` may write: what is refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from labeler.artifacts import locked, make_parent, work_folder
from labeler.errors import BadInputError, UsageError
from labeler.output import cache_folder
from labeler.remote import status
from labeler.shards import refuse_foreign
from labeler.sources.folder import METADATA

FORMATS = ("jsonl", "csv")
NOT_WRITTEN = (".tsv", ".xlsx", ".xls", ".ods", ".parquet", ".gz", ".zst", ".bz2", ".xz", ".zip")


def output_format(format: str | None, out: Path | str | None) -> str:
    """Return the format to write `out` in; raises UsageError where it is none that is written."""
    suffix = os.path.splitext(str(out))[1].lower()
    if format is None and suffix in NOT_WRITTEN:
        raise UsageError(f"--out {out}: {suffix} is not written; end it in .csv or .jsonl, or say --format")
    form = format or ("csv" if suffix == ".csv" else "jsonl")
    if form not in FORMATS:
        raise UsageError(f"--format {form}: expected {' or '.join(FORMATS)}")
    return form


def place_to_write(inputs: Sequence[Path | str], out: Path | str | None, force: bool) -> Path | str | None:
    """Return where the labels of `inputs` are written: None for standard output; of a link what it leads to, since a file that
    is renamed to the link's name would take the link's place.

    Raises UsageError where `out` is one of the inputs, or would be read as the metadata of one; BadInputError where it is a
    folder, or something else's that labels would replace, or nothing can be written there; LockedError where another process
    is writing it.
    """
    if out is None or out == Path("/dev/stdout"):
        return None
    if isinstance(out, Path) and out.is_symlink() and (out.is_file() or not out.exists()):
        out = Path(os.path.realpath(out))
    if is_folder(out):
        raise BadInputError(f"{out}: a folder; --out takes the file to write")
    if absolute(out) in map(absolute, inputs):
        raise UsageError(f"--out {out}: an input itself, which the labels would replace; choose another --out")
    if os.path.basename(absolute(out)) == METADATA and any(lies_in(out, place) for place in inputs):
        raise UsageError(f"--out {out}: a {METADATA} in an input's folder names its pictures; choose another --out")
    if isinstance(out, str):
        with locked(cache_folder(out)):
            return out
    if out.exists() and not out.is_file():  # a pipe or a device
        return out
    if not force and not work_folder(out).exists():  # else what was interrupted is ended first
        refuse_foreign(out)
    make_parent(out)
    with locked(out):
        return out


def is_folder(place: Path | str) -> bool:
    """Return whether no file can be written at a place, since a folder is there; raises BadInputError as `status` does."""
    if isinstance(place, Path):
        return place.is_dir()
    return place.endswith("/") or status(place).type.name == "Directory"


def lies_in(out: Path | str, place: Path | str) -> bool:
    """Return whether `out` lies in the folder at `place`, or in one below it."""
    return absolute(out).startswith(f"{absolute(place)}/")


def absolute(place: Path | str) -> str:
    """Return where a file or folder really is; a URL without a slash at its end."""
    return os.path.realpath(place) if isinstance(place, Path) else place.rstrip("/")
