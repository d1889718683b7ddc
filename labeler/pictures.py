"""Pictures that a source gives as bytes: each kept once as a file, named by its sha256, in the artifact of `ingest`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from labeler.artifacts import locked, make_parent, sha256_bytes
from labeler.images import check_size, suffix_of
from labeler.records import Record, Row

PICTURES = "pictures"


class Pictures:
    """The pictures of an artifact that is being made; they lie beside it until it is published."""

    def __init__(self, artifact: Path, root: Path, closing: ExitStack):
        """Keep pictures for `artifact`, whose image paths are relative to `root`; `closing` ends by removing the rest."""
        self.artifact, self.closing = artifact, closing
        self.work = artifact.with_name(f".{artifact.name}.{PICTURES}")
        self.prefix = Path(os.path.relpath(artifact.absolute() / PICTURES, root)).as_posix()
        self.opened = False

    def keep(self, row: Row) -> Row:
        """Return the row with the file that now holds its picture's bytes; a row without any as it is.

        Raises ImageError where there are no bytes or too many; LockedError where another process makes the artifact.
        """
        if not isinstance(row.picture, bytes):
            return row
        check_size(len(row.picture))
        self.open()
        digest = sha256_bytes(row.picture)
        path = self.work / digest[:2] / f"{digest}{suffix_of(row.picture)}"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(row.picture)
        return row._replace(picture=path)

    def open(self) -> None:
        """Make the folder beside the artifact, when the first picture comes; what a killed process left there goes."""
        if self.opened:
            return
        make_parent(self.artifact)
        self.closing.enter_context(locked(self.work))
        self.closing.callback(shutil.rmtree, self.work, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.opened = True

    def image_of(self, path: Path) -> str:
        """Return what a record calls the picture that `keep` put into `path`."""
        return f"{self.prefix}/{path.relative_to(self.work).as_posix()}"

    def placeless(self, record: Record) -> Record:
        """Return the record with a picture of ours named from the artifact, wherever that lies; for comparing content."""
        if record.image is None or not record.image.startswith(f"{self.prefix}/"):
            return record
        return record.model_copy(update={"image": PICTURES + record.image.removeprefix(self.prefix)})

    def publish(self, folder: Path, records: Iterable[Record]) -> None:
        """Move the pictures of `records` into `folder`, the artifact as it is being made."""
        ours = {record.image for record in records if record.image and record.image.startswith(f"{self.prefix}/")}
        for name in sorted(image.removeprefix(f"{self.prefix}/") for image in ours):
            target = folder / PICTURES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).replace(target)


@contextmanager
def collecting(artifact: Path, root: Path) -> Iterator[Pictures]:
    """Yield the place for the pictures of `artifact`; those that were not published are removed at the end."""
    with ExitStack() as closing:
        yield Pictures(artifact, root, closing)
