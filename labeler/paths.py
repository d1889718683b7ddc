"""Paths of artifacts: where a folder lies, and what it may be called."""

from __future__ import annotations

import os
from pathlib import Path

from labeler.errors import BadInputError


def by_name(folder: Path) -> Path:
    """Return the folder by a path that ends in its name, which `.` and `..` do not."""
    return folder.resolve() if folder.name in ("", "..") else folder


def place_of(folder: Path) -> Path:
    """Return where `folder` lies, by a path that ends in its name: a link names another place, perhaps on another disk."""
    return Path(os.path.realpath(folder)) if folder.is_symlink() else by_name(folder)


def refuse_bytes(path: Path | str) -> None:
    """Raise BadInputError for a path that is not UTF-8: no manifest could name it."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        raise BadInputError(
            f"{shown}: a name that is not UTF-8, which no manifest can hold; rename the folder"
        ) from None
