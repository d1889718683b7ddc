"""Inputs: where the artifacts are that another was made from."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labeler.artifacts import read_manifest, verify
from labeler.errors import BadInputError

log = logging.getLogger("labeler")


def verified_store(folder: Path) -> dict[str, Any]:
    """Return the manifest of a store that is whole; warn where the records that it was made from have changed since.

    Raises BadInputError when it is no store, or damaged.
    """
    manifest = verify(folder, "preprocess")
    records = manifest["inputs"][0]
    if replaced(found_again(folder, records), records["sha256"], "ingest"):
        warn_of_change(folder, records["path"])
    return manifest


@functools.cache  # once in a command, however often it opens the store
def warn_of_change(store: Path, records: str) -> None:
    """Say that the store was made from other records than lie there now."""
    log.warning("%s: made from %s, which have changed since; `labeler preprocess` reads them again", store, records)


def found_again(folder: Path, made_from: Mapping[str, str]) -> Path:
    """Return where an input {path, sha256} of the artifact `folder` is.

    That is where it was then, or where it lies to the artifact as before: that was moved with it, or is looked at from another
    directory than it was made in. Where it is at none of these: where it was.
    """
    was = Path(made_from["path"])
    return next((place for place in (was, *near(folder, was)) if holds(place, made_from["sha256"])), was)


def near(folder: Path, was: Path) -> Iterator[Path]:
    """Yield where the path `was` may be now, had it been moved together with `folder`: the longest end of it first."""
    names = was.parts[1:] if was.is_absolute() else was.parts
    for start in range(len(names)):
        for parent in folder.resolve().parents:
            yield parent.joinpath(*names[start:])


def replaced(place: Path, sha256: str, stage: str = "preprocess") -> bool:
    """Return whether an artifact of `stage`, by default a store, of another content than `sha256` lies there.

    False where there is none, or it cannot be read.
    """
    try:
        return bool(read_manifest(place, stage)["content_sha256"] != sha256)
    except (BadInputError, KeyError, OSError):
        return False


def holds(place: Path, sha256: str) -> bool:
    """Return whether there is an artifact of that content."""
    try:
        return bool(read_manifest(place)["content_sha256"] == sha256)
    except (BadInputError, KeyError, OSError):  # a folder that may not be looked into is none
        return False
