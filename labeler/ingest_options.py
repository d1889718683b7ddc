"""The options of stage `ingest`, which its manifest records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labeler.errors import BadInputError, UsageError
from labeler.rows.chunks import RowReading
from labeler.rows.selection import parse_split_option
from labeler.sources import Reading, check_image_folder, find_format, refuse_encoding
from labeler.sources.folder import has_metadata
from labeler.sources.label_columns import name_of
from labeler.taxonomy import read_taxonomy
from labeler.values import RowError, clean_text


@dataclass(frozen=True)
class IngestOptions:
    """How `ingest` reads a source; every field is recorded in the manifest."""

    label: str | None = None
    task: str = "auto"
    mapping: dict[str, str] = field(default_factory=dict)
    separator: str = "|"
    split: str = "auto"
    group_by: str | None = None
    allow_missing_image: bool = False
    allow_unlabelled: bool = False
    allow_outside: bool = False
    strict: bool = False
    format: str = "auto"
    encoding: str | None = None
    fix_text: bool = False
    drop_leaks: bool = False
    frames: int = 1
    caption: str = "longest"
    labels: Path | None = None
    answers: Path | None = None
    top_answers: int | None = None
    taxonomy: Path | None = None
    image_folder: Path | None = None
    label_columns: tuple[str, ...] = ()

    def check(self, sources: Sequence[Path]) -> None:
        """Raise UsageError for shares that are none, several vocabularies, or an option that the sources do not go with.

        Raises BadInputError where a source or the folder of pictures is not there, or the taxonomy is none.
        """
        if self.split not in ("auto", "keep"):
            parse_split_option(self.split)  # before any work
        if self.frames < 1:
            raise UsageError(f"--frames {self.frames}: expected 1 or more")
        if sum(bool(given) for given in (self.labels, self.answers, self.top_answers)) > 1:
            raise UsageError("--labels, --answers and --top-answers: expected one of them")
        if self.taxonomy and self.top_answers:
            raise UsageError("--taxonomy and --top-answers: expected one of them; --labels names the labels that stay")
        for ours, option, theirs in (("labels", "--label", self.label), ("group", "--group-by", self.group_by)):
            if theirs and self.mapping.get(ours, theirs) != theirs:
                raise UsageError(f"--map {ours}={self.mapping[ours]} and {option} {theirs}: expected one of them")
        if self.label_columns and (self.label or "labels" in self.mapping):
            raise UsageError("--label-columns and --label, or --map labels=: expected one of them")
        read_taxonomy(self.taxonomy)  # its own faults before any work
        check_image_folder(sources, self.reading())
        self.refuse_idle(sources)

    def refuse_idle(self, sources: Sequence[Path]) -> None:
        """Raise UsageError for an option that has no effect on any of the sources, BadInputError where a source is missing."""
        forms = {find_format(source, self.format) for source in sources}
        if self.frames > 1 and "meld" not in forms:
            raise UsageError(f"--frames {self.frames} is for MELD, whose clips have several; leave it out")
        refuse_encoding(self.encoding, forms)
        if self.drop_leaks and self.split not in ("auto", "keep"):
            raise UsageError(
                f"--drop-leaks is for given splits; those that --split {self.split} draws leak nothing; leave it out"
            )
        if forms == {"class-folders"} and (label := self.fields().get("labels")):
            option = "--label-columns" if self.label_columns else "--label"
            raise UsageError(f"{option} {label}: the labels of class folders are the folders' names; leave it out")
        named = [f"{ours}={theirs}" for ours, theirs in self.mapping.items() if ours in ("id", "image", "text")]
        if named and forms <= {"folder", "class-folders"} and not any(map(has_metadata, sources)):
            raise UsageError(
                f"--map {named[0]}: pictures in folders have no fields without a metadata.jsonl; leave it out"
            )

    def reading(self) -> Reading:
        """Return how the sources are read."""
        return Reading(
            self.format, self.encoding, self.label, self.frames, self.caption, self.fields(), self.image_folder
        )

    def fields(self) -> dict[str, str]:
        """Return {our field: their field} from `--map`, `--label` and `--group-by`."""
        named = {"labels": self.label or name_of(self.label_columns), "group": self.group_by}
        return self.mapping | {ours: theirs for ours, theirs in named.items() if theirs}

    def asked(self) -> list[tuple[str, str, str]]:
        """Return (option, their field, our field) of every field that is asked for by its name."""
        options = {"labels": "--label", "group": "--group-by"}
        named = {ours: theirs for ours, theirs in self.fields().items() if ours != "labels" or not self.label_columns}
        return [(options.get(ours, "--map"), theirs, ours) for ours, theirs in named.items()] + [
            ("--label-columns", column, "labels") for column in self.label_columns
        ]

    def row_reading(self, root: Path) -> RowReading:
        """Return how rows become records whose images are relative to `root`."""
        return RowReading(
            root, self.fields(), self.separator, self.allow_outside, self.fix_text,
            read_vocabulary(self.labels), str(self.labels), read_vocabulary(self.answers, "--answers"), not self.allow_unlabelled,
            self.reading(), self.label_columns,
        )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """Return the options as a manifest records them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def read_vocabulary(path: Path | None, option: str = "--labels") -> frozenset[str] | None:
    """Return the labels or answers of the vocabulary file that `option` names, one a line, cleaned like labels, or None.

    Raises BadInputError where it cannot be read or has none.
    """
    if path is None:
        return None
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
        names = frozenset(name for line in lines if (name := clean_text(line, "label")))
    except (OSError, UnicodeDecodeError, RowError) as error:
        raise BadInputError(f"{option} {path}: expected a file with a label a line in UTF-8 ({error})") from error
    if not names:
        raise BadInputError(f"{path}: no label in it; expected one a line")
    return names
