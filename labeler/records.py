"""Records: one image+text pair a row, in one canonical jsonl; and the labels that a dataset uses."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from labeler.errors import BadInputError
from labeler.values import RowError, Split, clean_path, clean_text, jsonable, parse_labels, parse_split

Task = Literal["single", "multi"]

# What a field may be called on the way in, in capitals or not; the first that a row has is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "ID", "uid", "guid"),
    "image": ("image", "img", "file_name", "filename", "path", "image_path"),
    "text": ("text", "caption", "captions", "title", "Utterance", "question"),
    "labels": ("label", "labels", "tags", "category", "Emotion", "Sentiment"),
    "split": ("split",),
    "group": ("group",),
}
SEPARATING = re.compile(r"[\s-]+")  # `File Name` is `file_name`
IMAGE_SHA256 = "image_sha256"  # in a record's meta: that of its picture's file
MAX_SHOWN = 200  # characters of an id that is refused
MAX_NAMED = 12  # labels of a chain that an error names


class Record(BaseModel):
    """One pair. `image` is relative to the root; one of `image` and `text` may be None, and labels that nobody has given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: str | None = None
    text: str | None = None
    labels: tuple[str, ...] | None = ()
    split: Split | None = None
    group: str | None = None
    meta: dict[str, Any] = {}


class Remote(NamedTuple):
    """A picture that is fetched when its row is labelled: its URL, its size in bytes and when it was written, in ns since 1970
    (None where that could not be learned), and whether it lies where its source may not lead.
    """

    url: str
    size: int | None = None
    written: int | None = None
    outside: bool = False


class Row(NamedTuple):
    """One row as a source gave it: where it stood, its fields, and what its reader had to guess (for counting).

    `picture` is the picture itself where the source holds it: its bytes, where to fetch them, or what a record calls it when
    they are kept; the image's field is then only its name. `number` counts the rows where `line` counts blank lines too.
    `borrowed`: the id among its fields is made of what its source calls its picture, or of its place there.
    """

    source: str
    line: int
    fields: dict[str, Any]
    notes: tuple[str, ...] = ()
    picture: bytes | Remote | str | None = None
    number: int | None = None
    borrowed: bool = False

    def shown_id(self, mapping: Mapping[str, str] | None = None) -> str | None:
        """Return the row's id to name it by where it is refused; None where it has none that can be shown."""
        name = find_field(self.fields, "id", mapping or {})
        identity = self.fields.get(name) if name else None
        try:
            return str(identity)[:MAX_SHOWN] if isinstance(identity, (str, int, float)) else None
        except ValueError:  # a number of over 4,300 digits
            return None

    @property
    def place(self) -> str:
        """Return what names a row that has no name of its own: its source and its number there."""
        return place_of(self)


class Reject(NamedTuple):
    """One row that cannot be used: where it stood, a code for counting, a sentence for reading; `number` is as a Row's."""

    source: str
    line: int
    id: str | None
    code: str
    message: str
    number: int | None = None

    @property
    def place(self) -> str:
        """Return what names a row that has no name of its own; rows and rejects of one source never share it."""
        return place_of(self)

    @property
    def told(self) -> str:
        """Return its line and what is wrong with it; what a folder has against a folder in it stands on no line."""
        return f"line {self.line}: {self.message}" if self.line else self.message

    def written(self) -> dict[str, Any]:
        """Return what is written of it."""
        return {name: value for name, value in self._asdict().items() if name != "number"}


def place_of(item: Row | Reject) -> str:
    """Return a row's source and its number there."""
    return f"{Path(item.source).name}:{item.line if item.number is None else item.number}"


class Label(BaseModel):
    """One label, how many records carry it, and the label that it brings with it, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    count: int
    parent: str | None = None


class LabelSet(BaseModel):
    """What a dataset can be labelled with. Task `single`: one label a pair; `multi`: any number.

    `parents` are names that no record carries, only labels under them do; none for `multi`, where a record carries its
    labels' parents too. A label whose parent is none of these names, or a tree of three levels, is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: Task
    labels: tuple[Label, ...]
    parents: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check_tree(self) -> LabelSet:
        """Raise ValueError unless the parents are names of this set, and have none themselves."""
        refuse_deep({label.name: label.parent for label in self.labels if label.parent is not None})
        if self.task == "multi" and self.parents:
            raise ValueError(f"for task multi a parent is a label too; move {self.parents[0]!r} to the labels")
        known = {*self.names, *self.parents}
        for label in self.labels:
            if label.parent is not None and label.parent not in known:
                raise ValueError(
                    f"the parent {label.parent!r} of {label.name!r} is no label; add it, or correct its name"
                )
        return self

    @model_serializer(mode="wrap")
    def without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `parents` out where there are none, so that a set without a taxonomy is written as it always was."""
        fields = handler(self)
        return fields if self.parents else {name: value for name, value in fields.items() if name != "parents"}

    @property
    def names(self) -> list[str]:
        """Return the label names in the order of the model's outputs."""
        return [label.name for label in self.labels]


def pair_from(row: Row, mapping: Mapping[str, str]) -> Record:
    """Return the record of a row that is to be labelled: its id, image and text; whatever else it holds is not looked at.

    Raises RowError where one of these cannot be used, or it has neither an image nor a text.
    """
    fields = pair_fields(row, named_fields(tuple(row.fields), tuple(mapping.items())))
    return Record(**fields | {"id": fields["id"] or borrowed_id(row, fields["image"])}, labels=None)


class FieldNames(NamedTuple):
    """What our fields are called in a row, None for those that it lacks, and the names that are none of ours."""

    id: str | None
    image: str | None
    text: str | None
    labels: str | None
    split: str | None
    group: str | None
    others: tuple[str, ...]


@lru_cache(maxsize=1024)
def named_fields(names: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> FieldNames:
    """Return what our fields are called in a row of fields `names`, by `mapping`'s pairs (ours, theirs) or ALIASES.

    A source's own IMAGE_SHA256 is nothing: `ingest` tells it anew, and no key may stand twice.
    """
    found = {ours: find_field(names, ours, dict(mapping)) for ours in ALIASES}
    others = tuple(name for name in names if name not in found.values() and name != IMAGE_SHA256)
    return FieldNames(**found, others=others)


def canonical_fields(row: Row, names: FieldNames, *, labelled: bool = True, separator: str = "|") -> dict[str, Any]:
    """Return the fields of the record that a row stands for, in a record's order, None for an id that it does not give.

    Args:
        row: the row as read.
        names: what our fields are called in it (see `named_fields`).
        labelled: whether the row must carry a label.
        separator: what stands between labels where one string holds several.

    Raises RowError with the reject's code where a field is missing or cannot be used.
    """
    fields = row.fields
    get = fields.get  # a name that is None is no field's
    pair = pair_fields(row, names)
    labels = parse_labels(get(names.labels), separator)  # type: ignore[arg-type]
    if labelled and labels is None:
        expected = f"the field {names.labels}" if names.labels else f"one of the fields {', '.join(ALIASES['labels'])}"
        raise RowError("label-missing", f"no label: expected in {expected}; [] says that none applies")
    split = None if (value := get(names.split)) is None else parse_split(value)  # type: ignore[arg-type]
    group = None if (value := get(names.group)) is None else clean_text(value, "group")  # type: ignore[arg-type]
    meta = jsonable({name: fields[name] for name in names.others}) if names.others else {}
    return pair | {"labels": labels, "split": split, "group": group, "meta": meta}


def pair_fields(row: Row, names: FieldNames) -> dict[str, Any]:
    """Return id, image and text of a row, None for those that it does not give; raises RowError where it is no pair."""
    get = row.fields.get
    image = None if (value := get(names.image)) is None else clean_path(value)  # type: ignore[arg-type]
    text = None if (value := get(names.text)) is None else clean_text(value, "text")  # type: ignore[arg-type]
    if image is None and text is None and row.picture is None:
        raise RowError("empty", "neither an image nor a text")
    return {"id": clean_text(get(names.id), "id") or None, "image": image, "text": text}  # type: ignore[arg-type]


def borrowed_id(row: Row, image: str | None) -> str:
    """Return the id of a record that has none of its own: what the row calls its picture, or where the row stands."""
    return clean_text(image, "id") or row.place


def find_field(names: Collection[str], ours: str, mapping: Mapping[str, str]) -> str | None:
    """Return the name that stands for our field among `names`, or None."""
    if ours in mapping:
        return field_called(names, mapping[ours]) or mapping[ours]
    folded = {SEPARATING.sub("_", name.strip().casefold()): name for name in names}
    for alias in ALIASES[ours]:
        if alias in names:
            return alias
        if alias.casefold() in folded:
            return folded[alias.casefold()]
    return None


def field_called(names: Collection[str], wanted: str) -> str | None:
    """Return the field `wanted` among `names`: as it is spelt, or the only one that is it but for capitals and outer blanks."""
    if wanted in names:
        return wanted
    alike = [name for name in names if name.strip().casefold() == wanted.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def refuse_deep(parents: Mapping[str, str]) -> None:
    """Raise ValueError, naming the labels, where {child: parent} has a cycle or more than two levels."""
    for child, parent in parents.items():
        if child == parent:
            raise ValueError(f"{child!r} is its own parent; leave it out, or name another")
        path = [child, parent]
        while path[-1] in parents and path[-1] not in path[:-1] and len(path) < MAX_NAMED:
            path.append(parents[path[-1]])
        if path[-1] in path[:-1]:
            path = path[path.index(path[-1]) :]
            raise ValueError(f"a cycle, each the parent of the one before: {', '.join(path)}; leave one of them out")
        if len(path) > 2:
            raise ValueError(
                f"more than two levels, each the parent of the one before: {', '.join(path)}; a parent has none itself: "
                f"put {child!r} right under {path[-1]!r}, or leave it out"
            )


def label_set(
    counts: Mapping[str, int], task: Task, parents: Mapping[str, str] | None = None, *, none: bool = False
) -> LabelSet:
    """Return the labels of {name: number of records}, most frequent first, of equals a parent first, then by name.

    `parents` is {child: parent}; children that do not occur are left out. For task `multi` each record that carries a
    child is taken to carry its parent.

    Raises BadInputError when fewer than two labels occur: there would be nothing to tell apart. Where there may be `none`, so
    may the labels.
    """
    if none and not counts:
        return LabelSet(task=task, labels=())
    above = {name: parent for name, parent in (parents or {}).items() if name in counts}
    labels = tuple(
        Label(name=name, count=count, parent=above.get(name))
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0] in above, item[0]))
    )
    if len(labels) < 2:
        found = f"only the label {labels[0].name!r}" if labels else "no label"
        raise BadInputError(f"{found} occurs in the data; a labeler needs at least two to tell apart")
    brought = dict.fromkeys(label.parent for label in labels if label.parent is not None)
    return LabelSet(task=task, labels=labels, parents=tuple(name for name in brought if name not in counts))


def differing_names(one: list[str], other: list[str]) -> str:
    """Return how the names of `one` label set differ from those of the `other`, a few of them, for an error."""
    lacking, surplus = ([name for name in a if name not in b][:5] for a, b in ((other, one), (one, other)))
    return f"it lacks {lacking}, it alone has {surplus}" if lacking or surplus else "the same names in another order"


def json_bytes(value: Any) -> bytes:
    """Return `value` as canonical JSON: compact, UTF-8, keys as they stand."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer of over 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records of the artifact that `labeler ingest` wrote.

    Raises BadInputError naming the line where one is not a record.
    """
    path = folder / "records.jsonl"
    with open(path, encoding="utf-8", newline="\n") as file:
        for line, text in enumerate(file, 1):
            try:
                yield Record.model_validate_json(text)
            except ValidationError as error:
                raise BadInputError(f"{path}:{line}: not a record ({error.errors()[0]['msg']})") from error


def read_label_set(folder: Path) -> LabelSet:
    """Return the label set in `folder`/labels.json; raises BadInputError where it cannot be read."""
    path = folder / "labels.json"
    try:
        return LabelSet.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BadInputError(f"{path}: not a label set ({reason})") from error
