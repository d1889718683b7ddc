"""Inputs: where the artifacts are that another was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from labeler.artifacts import read_manifest
from labeler.errors import BadInputError


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


def replaced(store: Path, sha256: str) -> bool:
    """Return whether a store of another content than `sha256` lies there; False where there is none, or it cannot be read."""
    try:
        return bool(read_manifest(store, "preprocess")["content_sha256"] != sha256)
    except (BadInputError, KeyError, OSError):
        return False


def holds(place: Path, sha256: str) -> bool:
    """Return whether there is an artifact of that content."""
    try:
        return bool(read_manifest(place)["content_sha256"] == sha256)
    except (BadInputError, KeyError, OSError):  # a folder that may not be looked into is none
        return False
