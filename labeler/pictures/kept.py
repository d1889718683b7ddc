"""Pictures that a source gives as bytes: each kept once as a file, named by its sha256, in the artifact of `ingest`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from labeler.artifacts import sha256_bytes
from labeler.pictures.images import check_size, suffix_of
from labeler.records import Row

PICTURES = "pictures"


class Pictures:
    """Where the pictures of an artifact lie: in the end, and while it is being made."""

    def __init__(self, artifact: Path, root: Path, folder: Path | None = None):
        """Keep pictures for `artifact`, whose image paths lead from the real path `root`, in `folder`; none without one."""
        self.root, self.folder = root, folder
        self.prefix = Path(os.path.relpath(os.path.realpath(artifact / PICTURES), root)).as_posix() + "/"

    def keep(self, row: Row) -> Row:
        """Return the row with what a record calls its picture, whose bytes are now in a file; one without bytes as it is.

        Raises ImageError where there are no bytes or too many.
        """
        if not isinstance(row.picture, bytes):
            return row
        check_size(len(row.picture))
        digest = sha256_bytes(row.picture)
        name = f"{digest[:2]}/{digest}{suffix_of(row.picture)}"
        if self.folder and not (path := self.folder / PICTURES / name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.picture)
        return row._replace(picture=self.prefix + name)

    def holds(self, image: str) -> bool:
        """Return whether a record's image came as bytes, and is named by its sha256."""
        return image.startswith(self.prefix)

    def file_of(self, image: str) -> Path:
        """Return the file of a record's image: as long as the artifact is being made, ours lie elsewhere than in the end."""
        if self.folder and image.startswith(self.prefix):
            return self.folder / PICTURES / image.removeprefix(self.prefix)
        # the root is a real path, whose `..` words tell, and the artifact, from which they would lead, may not be there yet
        return Path(os.path.normpath(self.root / image))

    def keep_only(self, images: Iterable[str]) -> None:
        """Remove the pictures that no record calls by one of `images`."""
        if not self.folder or not (self.folder / PICTURES).is_dir():
            return
        used = {image.removeprefix(self.prefix) for image in images}
        for path in list((self.folder / PICTURES).rglob("*.*")):
            if path.relative_to(self.folder / PICTURES).as_posix() not in used:
                path.unlink()
