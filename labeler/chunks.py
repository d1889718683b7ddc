"""Chunks: a few thousand rows at a time, turned into record lines and the numbers that splits and profile are made of.

What must be known of all rows at once is held as arrays, some sixty bytes a row; the records themselves pass by.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
import orjson
from xxhash import xxh3_64_intdigest

from labeler.images import ImageError, resolve_image
from labeler.records import SPLITS, Reject, Row, RowError, canonical_fields, find_field, json_line, named_fields
from labeler.sources import Reading, image_root
from labeler.sources import rows_of as stands_for
from labeler.sources.answers import UNKNOWN
from labeler.sources.jsonl import Piece, rows_of

LISTS = {list, tuple}
FIXED = "fixed text"  # a count of rows whose text was repaired
GAP = b"\0"  # stands in a record's line where its split will; JSON escapes it, so that no line holds one
HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"),"image":("(?:[^"\\]|\\.)*"|null)')  # how a record's line begins


@dataclass(frozen=True)
class RowReading:
    """How rows become records.

    root: what images are made relative to. mapping: {our field: their field}. labels: the only ones that there may be,
    and the file that says so. answers: those that are labels of their own; all others become UNKNOWN.
    """

    root: Path
    mapping: dict[str, str] = field(default_factory=dict)
    separator: str = "|"
    allow_outside: bool = False
    fix_text: bool = False
    labels: frozenset[str] | None = None
    labels_file: str = ""
    answers: frozenset[str] | None = None
    reading: Reading = field(default_factory=Reading)


class Columns(NamedTuple):
    """What must be known of N records at once. `keys` are numbers, equal where the things are; 0: there is none.

    Of a picture that has not been looked at, key and size are 0.
    """

    line: np.ndarray  # [N] int64
    source: np.ndarray  # [N] int32, places in `Chunk.sources`
    id: np.ndarray  # [N] uint64
    text: np.ndarray  # [N] uint64: the text as it stands
    text_key: np.ndarray  # [N] uint64: without case, blanks and punctuation
    group: np.ndarray  # [N] uint64
    split: np.ndarray  # [N] int8: a place in SPLITS, -1: none given
    characters: np.ndarray  # [N] int32, -1: no text
    words: np.ndarray  # [N] int32
    label_count: np.ndarray  # [N] int32
    image: np.ndarray  # [N] uint64: the first bytes of the picture's sha256
    width: np.ndarray  # [N] int32
    height: np.ndarray  # [N] int32
    size: np.ndarray  # [N] int64: bytes of the record's line


class Chunk(NamedTuple):
    """Rows as records: each one's line (with GAP in place of its split), its image, and what else must be known of it.

    images: relative to the root, none at all where no record has one. looks: their difference hashes. labels: names, which
    `label_codes` number, one row's after another's. several: whether any row's labels are a list, or more than one.
    counts: of rows, of what their readers had to guess, and, each under `("field", name)`, of fields that none of ours
    is taken from. broken: what is wrong with a record's picture.
    """

    lines: bytes
    images: list[str | None]
    looks: list[bytes | None]
    columns: Columns
    sources: list[str]
    labels: list[str]
    label_codes: np.ndarray
    several: bool
    rejects: list[Reject]
    counts: Counter[Any]
    broken: dict[int, ImageError]


def chunk_of_piece(piece: Piece, how: RowReading) -> Chunk:
    """Return the chunk of a piece of a jsonl file; what a worker process does."""
    return chunk_of(expanded(rows_of(piece), how.reading), how)


def expanded(rows: Iterable[Row | Reject], how: Reading) -> Iterator[Row | Reject]:
    """Yield the rows, those with lists of answers or captions as what they stand for."""
    for row in rows:
        if isinstance(row, Reject) or LISTS.isdisjoint(map(type, row.fields.values())):
            yield row
        else:
            yield from stands_for(row, how)


def chunk_of(rows: Iterable[Row | Reject], how: RowReading) -> Chunk:
    """Return the chunk of `rows`: every row is in its lines or among its rejects."""
    read: list[tuple[Row, dict[str, Any]]] = []
    rejects: list[Reject] = []
    counts: Counter[Any] = Counter()
    mapping = tuple(how.mapping.items())
    several = False
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        if row.notes:
            counts.update(row.notes)
        if how.fix_text and (fixed := fixed_text(row, how.mapping)) is not row:
            counts[FIXED] += 1
            row = fixed
        names = named_fields(tuple(row.fields), mapping)
        try:
            fields = canonical_fields(row, names, separator=how.separator)
            if isinstance(row.picture, str):
                fields["image"] = row.picture
            elif fields["image"] is not None:
                fields["image"] = relative_image(row, fields["image"], how)
            if how.labels is not None:
                refuse_unknown(fields["labels"], how.labels, how.labels_file)
            if how.answers is not None:
                fields["labels"] = with_unknown(fields["labels"], how.answers)
        except (RowError, ImageError) as error:
            rejects.append(Reject(row.source, row.line, row.shown_id, error.code, str(error)))
            continue
        several = several or len(fields["labels"]) > 1 or type(row.fields[names.labels]) is list  # type: ignore[index]
        read.append((row, fields))
    counts["rows"] = len(read) + len(rejects)
    counts.update(("field", name) for _, fields in read if fields["meta"] for name in fields["meta"])
    return chunk_from(read, several, rejects, counts)


def chunk_from(
    read: list[tuple[Row, dict[str, Any]]], several: bool, rejects: list[Reject], counts: Counter[Any]
) -> Chunk:
    """Return the chunk of rows and the records' fields that they stand for."""
    records = [fields for _, fields in read]
    texts = [fields["text"] for fields in records]
    encoded = [text and text.encode() for text in texts]
    sources = {name: place for place, name in enumerate(dict.fromkeys(row.source for row, _ in read))}
    labels = {
        name: place for place, name in enumerate(dict.fromkeys(name for item in records for name in item["labels"]))
    }
    nothing = np.zeros(len(read), np.int32)
    columns = Columns(
        line=np.array([row.line for row, _ in read], np.int64),
        source=np.array([sources[row.source] for row, _ in read], np.int32),
        id=np.array([key_of(fields["id"].encode()) for fields in records], np.uint64),
        text=np.array([key_of(text) if text else 0 for text in encoded], np.uint64),
        text_key=np.array([key_of(comparable(text)) if text else 0 for text in texts], np.uint64),
        group=np.array([key_of(group.encode()) if (group := item["group"]) else 0 for item in records], np.uint64),
        split=np.array([-1 if (split := item["split"]) is None else SPLITS.index(split) for item in records], np.int8),
        characters=np.array([len(text) if text else -1 for text in texts], np.int32),
        words=np.array([len(text.split()) if text else 0 for text in encoded], np.int32),
        label_count=np.array([len(fields["labels"]) for fields in records], np.int32),
        image=nothing.astype(np.uint64),
        width=nothing,
        height=nothing.copy(),
        size=nothing.astype(np.int64),
    )
    lines = [record_line(fields) for fields in records]
    columns.size[:] = [len(line) for line in lines]
    codes = np.array([labels[name] for fields in records for name in fields["labels"]], np.int32)
    images = [fields["image"] for fields in records]
    return Chunk(b"".join(lines), images if any(images) else [], [], columns, list(sources), list(labels), codes, several,
                 rejects, counts, {})  # fmt: skip


def refuse_unknown(labels: Iterable[str], vocabulary: frozenset[str], file: str) -> None:
    """Raise RowError, naming the closest label, for one that is not in the vocabulary of `file`."""
    for name in labels:
        if name not in vocabulary:
            close = get_close_matches(name, sorted(vocabulary), n=1, cutoff=0)[0]
            raise RowError("label-unknown", f"the label {name!r} is not in {file}; the closest there is {close!r}")


def with_unknown(labels: Iterable[str], vocabulary: Collection[str]) -> tuple[str, ...]:
    """Return the labels with UNKNOWN, once, in place of those that are not in the vocabulary."""
    return tuple(dict.fromkeys(name if name in vocabulary else UNKNOWN for name in labels))


def relative_image(row: Row, name: str, how: RowReading) -> str:
    """Return the row's image relative to the root; raises ImageError where it must not be read."""
    path = resolve_image(image_root(Path(row.source)), name, allow_outside=how.allow_outside)
    return Path(os.path.relpath(path, how.root)).as_posix()


def record_line(fields: dict[str, Any]) -> bytes:
    """Return the record's line with GAP for its split; its group is its id until groups are known."""
    if fields["group"] is not None:
        fields["meta"]["group"] = fields["group"]
    fields["split"], fields["group"] = None, fields["id"]
    # no string before it can hold this: its quotes would be escaped
    return json_line(fields).replace(b'"split":null', b'"split":' + GAP, 1)


def with_meta(line: bytes, name: str, value: str) -> bytes:
    """Return the record's line with one more string in its meta, last."""
    comma = b"" if line.endswith(b"{}}\n") else b","
    return b"%b%b%b:%b}}\n" % (line[:-3], comma, orjson.dumps(name), orjson.dumps(value))


def json_id(line: bytes) -> bytes:
    """Return the id of a record's line, as JSON."""
    return HEAD.match(line)[1]  # type: ignore[index]


def json_image(line: bytes) -> bytes:
    """Return what a record's line calls its image, as JSON."""
    return HEAD.match(line)[2]  # type: ignore[index]


def without_image(line: bytes) -> bytes:
    """Return the record's line with no image."""
    return HEAD.sub(rb'{"id":\1,"image":null', line, count=1)


def with_labels(line: bytes, labels: Iterable[str]) -> bytes:
    """Return the record's line with other labels."""
    head, tail = line.split(GAP)
    return b'%b,"labels":%b,"split":%b%b' % (head[: head.rindex(b',"labels":[')], orjson.dumps(list(labels)), GAP, tail)


def in_split(line: bytes, split: bytes, group: bytes | None) -> bytes:
    """Return the record's line with its split and, where it is not its own, its group's name; both as JSON."""
    head, tail = line.split(GAP)
    if group is not None:
        tail = b',"group":%b%b' % (group, tail[len(b',"group":') + len(json_id(line)) :])
    return head + split + tail


def in_splits(lines: bytes, splits: list[bytes]) -> bytes:
    """Return several records' lines, each with its split as JSON."""
    whole = [b""] * (2 * len(splits) + 1)
    whole[0::2], whole[1::2] = lines.split(GAP), splits
    return b"".join(whole)


def fixed_text(row: Row, mapping: dict[str, str]) -> Row:
    """Return the row with its text repaired where one encoding was taken for another; the row itself where none was."""
    from ftfy import fix_text

    name = find_field(row.fields, "text", mapping)
    if name is None or not isinstance(row.fields.get(name), str):
        return row
    # only what is broken: curly quotes, ligatures, full-width letters and HTML are the author's own
    fixed = fix_text(
        row.fields[name], unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False,
        fix_character_width=False, fix_line_breaks=False, normalization=None,
    )  # fmt: skip
    return row if fixed == row.fields[name] else row._replace(fields=row.fields | {name: fixed})


def key_of(value: bytes) -> int:
    """Return a number from 1 below 2**64 that is equal for equal bytes, with every run and on every machine."""
    return xxh3_64_intdigest(value) or 1


class Compared(dict[int, "int | None"]):
    """A table for str.translate: letters, marks, numbers and symbols stay, all else goes."""

    def __missing__(self, code: int) -> int | None:
        self[code] = code if category(chr(code))[0] in "LMNS" else None
        return self[code]


COMPARED = Compared()
LOWER = bytes(ord(chr(code).lower()) if code < 128 else code for code in range(256))
IGNORED = bytes(code for code in range(128) if COMPARED[code] is None)


def comparable(text: str) -> bytes:
    """Return what texts are compared by: no case, blanks or punctuation; emoji and Indic vowel signs count.

    A text of nothing else stands for itself.
    """
    if text.isascii():  # a fifth of the time
        return text.encode().translate(LOWER, IGNORED) or text.lower().encode()
    folded = text.casefold()
    return (folded.translate(COMPARED) or folded).encode()
