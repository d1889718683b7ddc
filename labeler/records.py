"""Records: one image+text pair a row, in one canonical jsonl; and the labels that a dataset uses."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from labeler.artifacts import BadInputError

Split = Literal["train", "validation", "test"]
Task = Literal["single", "multi"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_ALIASES: dict[str, Split] = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                                   "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip

# What a field may be called on the way in; the first that a row has is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "ID", "uid", "guid"),
    "image": ("image", "img", "file_name", "path", "image_path"),
    "text": ("text", "caption", "captions", "title", "Utterance", "question"),
    "labels": ("label", "labels", "tags", "category", "Emotion", "Sentiment"),
    "split": ("split",),
    "group": ("group",),
}
MAX_TEXT_CHARACTERS = 20_000
MAX_SHOWN = 200  # characters of an id that is refused
MAX_NAMED = 12  # labels of a chain that an error names
MAX_DEPTH = 64  # of what is in a field that we do not know; pydantic reads no more than about 200


class Record(BaseModel):
    """One pair. `image` is relative to the dataset's root; one of `image` and `text` may be None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: str | None = None
    text: str | None = None
    labels: tuple[str, ...] = ()
    split: Split | None = None
    group: str | None = None
    meta: dict[str, Any] = {}


class Row(NamedTuple):
    """One row as a source gave it: where it stood, its fields, and what its reader had to guess (for counting).

    `picture` is the picture itself where the source holds it: its bytes, or what a record calls it when they are kept; the
    image's field is then only its name. `number` counts the rows where `line` counts blank lines too.
    """

    source: str
    line: int
    fields: dict[str, Any]
    notes: tuple[str, ...] = ()
    picture: bytes | str | None = None
    number: int | None = None

    @property
    def shown_id(self) -> str | None:
        """Return the row's id to name it by where it is refused; None where it has none that can be shown."""
        identity = self.fields.get("id")
        try:
            return str(identity)[:MAX_SHOWN] if isinstance(identity, (str, int, float)) else None
        except ValueError:  # a number of over 4,300 digits
            return None

    @property
    def place(self) -> str:
        """Return what names a row that has no name of its own: its source and its number there."""
        return f"{Path(self.source).name}:{self.line if self.number is None else self.number}"


class Reject(NamedTuple):
    """One row that cannot be used: where it stood, a code for counting, a sentence for reading."""

    source: str
    line: int
    id: str | None
    code: str
    message: str


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


class RowError(ValueError):
    """A row that cannot become a record; `code` is the reject's code."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def record_from(row: Row, mapping: Mapping[str, str], *, labelled: bool = True, separator: str = "|") -> Record:
    """Return the record that a source's row stands for.

    Args:
        row: the row as read.
        mapping: {our field: their field}; what is not in it is found by ALIASES.
        labelled: whether the row must carry a label.
        separator: what stands between labels where one string holds several.

    Raises RowError with the reject's code where a field is missing or cannot be used.
    """
    names = named_fields(tuple(row.fields), tuple(mapping.items()))
    return Record(**canonical_fields(row, names, labelled=labelled, separator=separator))


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
    """Return what our fields are called in a row of fields `names`, by `mapping`'s pairs (ours, theirs) or ALIASES."""
    found = {ours: find_field(names, ours, dict(mapping)) for ours in ALIASES}
    return FieldNames(**found, others=tuple(name for name in names if name not in found.values()))


def canonical_fields(row: Row, names: FieldNames, *, labelled: bool = True, separator: str = "|") -> dict[str, Any]:
    """Return the fields of the record that a row stands for, in a record's order; see `record_from`."""
    fields = row.fields
    get = fields.get  # a name that is None is no field's
    image = None if (value := get(names.image)) is None else clean_text(value, "image")  # type: ignore[arg-type]
    text = None if (value := get(names.text)) is None else clean_text(value, "text")  # type: ignore[arg-type]
    if image is None and text is None and row.picture is None:
        raise RowError("empty", "neither an image nor a text")
    identity = clean_text(get(names.id), "id") or image or row.place  # type: ignore[arg-type]
    labels = parse_labels(get(names.labels), separator)  # type: ignore[arg-type]
    if labelled and labels is None:
        expected = names.labels or f"one of {', '.join(ALIASES['labels'])}"
        raise RowError("label-missing", f"no label: expected in the field {expected}")
    split = None if (value := get(names.split)) is None else parse_split(value)  # type: ignore[arg-type]
    group = None if (value := get(names.group)) is None else clean_text(value, "group")  # type: ignore[arg-type]
    meta = jsonable({name: fields[name] for name in names.others}) if names.others else {}
    return {"id": identity, "image": image, "text": text, "labels": labels or (), "split": split, "group": group,
            "meta": meta}  # fmt: skip


def find_field(names: Collection[str], ours: str, mapping: Mapping[str, str]) -> str | None:
    """Return the name that stands for our field among `names`, or None."""
    if ours in mapping:
        return mapping[ours]
    return next((name for name in ALIASES[ours] if name in names), None)


def clean_text(value: Any, field: str) -> str | None:
    """Return a string in NFC with outer blanks removed; None where it is missing or blank.

    Raises RowError for what no export could carry: lone surrogates, NUL, over 20,000 characters, a container, an
    infinite number or one of over 4,300 digits.
    """
    if value is None:
        return None
    if type(value) is str and value.isascii() and "\0" not in value and len(value) <= MAX_TEXT_CHARACTERS:
        return value.strip() or None  # what follows, for most of the world's data: five times as fast
    if isinstance(value, (dict, list, tuple, set, bytes, bool)):
        raise RowError(f"{field}-invalid", f"{field} is a {type(value).__name__}, expected a string")
    text = string_of(value, field).strip()
    if len(text) <= MAX_TEXT_CHARACTERS:  # its time grows with the square of a run of combining marks
        text = unicodedata.normalize("NFC", text)
    if "\0" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise RowError(f"{field}-invalid", f"{field} holds a NUL or half a surrogate pair, which no file can carry")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RowError(
            f"{field}-too-long", f"{field} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS:,} are read"
        )
    return text or None


def string_of(value: Any, field: str) -> str:
    """Return a string, or a plain value as one; raises RowError for a number that is infinite or too long to be written."""
    try:
        text = str(value)
    except ValueError:
        raise RowError(f"{field}-invalid", f"{field} is a number of over 4,300 digits") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{field}-invalid", f"{field} is {text}, expected a string or a finite number")
    return text


def parse_labels(value: Any, separator: str) -> tuple[str, ...] | None:
    """Return the labels in a field's value, each once, in order; None where the field is missing or blank."""
    if value is None or value == "":
        return None
    if type(value) is str and value.isalnum() and value.isascii() and separator not in value:
        return (value,)  # what follows, for most labels: five times as fast
    if isinstance(value, (dict, set, bytes)):
        raise RowError("label-invalid", f"label is a {type(value).__name__}, expected a string or a list of strings")
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError("label-invalid", f"labels {value[:80]!r} look like a JSON list and are none") from None
    if isinstance(value, str):
        value = value.split(separator)
    parts = value if isinstance(value, (list, tuple)) else [value]
    names = [clean_text(int(part) if isinstance(part, bool) else part, "label") for part in parts]
    return tuple(dict.fromkeys(name for name in names if name))


def parse_split(value: Any) -> Split | None:
    """Return train, validation or test for a split's name or alias; None where it is missing."""
    name = clean_text(value, "split")
    if name is None:
        return None
    split = SPLIT_ALIASES.get(name.lower())
    if split is None:
        raise RowError("split-unknown", f"split {name[:80]!r} is none of {', '.join(SPLIT_ALIASES)}")
    return split


def jsonable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` as JSON carries them: unknown types as strings, half a surrogate pair as a question mark.

    Raises RowError for an infinite number, a key that is a container, or containers in more than 64 others.
    """
    if all(name.isascii() and is_plain(value) for name, value in fields.items()):
        return dict(fields)
    try:
        text = json.dumps(fields, default=plain, ensure_ascii=False, allow_nan=False)
        found = cast(dict[str, Any], json.loads(text.encode("utf-8", "replace")))
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError("field-invalid", f"a field that JSON cannot carry: {error}") from None
    if is_deep(found):
        raise RowError("field-invalid", f"a field with containers in more than {MAX_DEPTH} others")
    return found


def is_plain(value: Any) -> bool:
    """Return whether JSON surely carries a value as it is; most values are such, and the sure way takes five times as long."""
    kind = type(value)
    if kind is str:
        return value.isascii()
    return value is None or kind is bool or (kind is int and abs(value) < 2**63)


def plain(value: Any) -> Any:
    """Return a value that JSON does not know as one that it does; a set in one order, whatever its hashes are today."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def is_deep(value: Any) -> bool:
    """Return whether containers lie in more than MAX_DEPTH others."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in inside for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)


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


def label_set(counts: Mapping[str, int], task: Task, parents: Mapping[str, str] | None = None) -> LabelSet:
    """Return the labels of {name: number of records}, most frequent first, of equals a parent first, then by name.

    `parents` is {child: parent}; children that do not occur are left out. For task `multi` each record that carries a
    child is taken to carry its parent.

    Raises BadInputError when fewer than two labels occur: there would be nothing to tell apart.
    """
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


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as canonical jsonl: fixed field order, UTF-8, one line each."""
    with open(path, "wb") as file:
        file.writelines(json_bytes(record.model_dump()) + b"\n" for record in records)


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
