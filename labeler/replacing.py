"""Files that a command may replace: those that it wrote itself, and others where it is told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labeler.errors import BadInputError

FOREIGN = "{}: was not written by `labeler {}`, so it is left alone; --force replaces it, or name another --{}"


def refuse_to_replace(path: Path, is_own: Callable[[Path], bool], command: str, option: str = "out") -> None:
    """Raise BadInputError where the file `path` is there, is not empty, and `is_own` says that `command` did not write it."""
    if path.is_file() and path.stat().st_size and not is_own(path):
        raise BadInputError(FOREIGN.format(path, command, option))


def is_marked(path: Path, mark: bytes) -> bool:
    """Return whether `mark` stands in the first 1,024 bytes of a file."""
    with open(path, "rb") as file:
        return mark in file.read(1024)
