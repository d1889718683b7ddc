"""Chunks: a few thousand rows at a time, turned into record lines and the numbers that splits and profile are made of.

What must be known of all rows at once is held as arrays, some sixty bytes a row; the records themselves pass by.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.pictures.images import ImageError, resolve_image
from labeler.records import Reject, Row, borrowed_id, canonical_fields, field_called, find_field, named_fields
from labeler.rows.keys import comparables, encoded, keys_of, word_counts
from labeler.rows.lines import Fields, lines_of
from labeler.rows.splits import RowLabels
from labeler.sources import Reading, image_root, stands_for
from labeler.sources.answers import UNKNOWN
from labeler.sources.jsonl import Piece, plain_columns, rows_of
from labeler.sources.label_columns import called, with_labels
from labeler.values import SPLITS, RowError, Split, closest, parse_labels, parse_split

LISTS = {list, tuple}
FIXED = "fixed text"  # a count of rows whose text was repaired
BREAK = ord("\n")
MOST_TOLD = 100  # wrong labels of a chunk that are told with their closest
MOST_COMPARED = 100_000  # names that are compared for that, in 1 to 3 s
PLACES: dict[Split | None, int] = {None: -1} | {split: place for place, split in enumerate(SPLITS)}


@dataclass(frozen=True)
class RowReading:
    """How rows become records.

    root: what images are made relative to. mapping: {our field: their field}. labels: the only ones that there may be,
    and the file that says so. answers: those that are labels of their own; all others become UNKNOWN.
    labelled: whether each row must have a label. label_columns: fields that say of a label each if it applies.
    """

    root: Path
    mapping: dict[str, str] = field(default_factory=dict)
    separator: str = "|"
    allow_outside: bool = False
    fix_text: bool = False
    labels: frozenset[str] | None = None
    labels_file: str = ""
    answers: frozenset[str] | None = None
    labelled: bool = True
    reading: Reading = field(default_factory=Reading)
    label_columns: tuple[str, ...] = ()


class Columns(NamedTuple):
    """What must be known of N records at once. `keys` are numbers, equal where the things are; 0: there is none.

    Of a picture that has not been looked at, key and size are 0.
    """

    line: np.ndarray  # [N] int64
    source: np.ndarray  # [N] int32, places in `Chunk.sources`
    id: np.ndarray  # [N] uint64
    borrowed: np.ndarray  # [N] bool: the source gave no id; it is the picture's name, or the record's place
    text: np.ndarray  # [N] uint64: the text as it stands
    text_key: np.ndarray  # [N] uint64: without case, blanks and punctuation
    group: np.ndarray  # [N] uint64
    split: np.ndarray  # [N] int8: a place in SPLITS, -1: none given
    characters: np.ndarray  # [N] int32, -1: no text
    words: np.ndarray  # [N] int32
    label_count: np.ndarray  # [N] int32, -1: nobody has labelled it
    image: np.ndarray  # [N] uint64: the first bytes of the picture's sha256
    width: np.ndarray  # [N] int32
    height: np.ndarray  # [N] int32
    size: np.ndarray  # [N] int64: bytes of the record's line


class Chunk(NamedTuple):
    """Rows as records: each one's line (with GAP in place of its split), its image, and what else must be known of it.

    images: relative to the root, none at all where no record has one. looks: their difference hashes. labels: names, which
    `label_codes` number, one row's after another's. several: whether any row's labels are a list, or more than one.
    counts: of rows, of what their readers had to guess, under `("field", name)` of fields that none of ours is taken from,
    under `("refused", name)` of those of rows that are rejected, and under `("mapped", name)` of rows with a field that was
    named for one of ours. broken: what is wrong with a record's
    picture.
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
    """Return the chunk of a piece of a jsonl file."""
    found = plain_records(piece, how)
    if found is not None:
        return found
    return chunk_of(expanded(rows_of(piece), how.reading), how)


def chunk_of_lines(place: str, piece: Piece, how: RowReading) -> Chunk:
    """Return `chunk_of_piece`, in a worker process; `place` names the piece where that dies."""
    return chunk_of_piece(piece, how)


def plain_records(piece: Piece, how: RowReading) -> Chunk | None:
    """Return the chunk of a piece whose rows all have the same fields, short ASCII strings and no picture; else None.

    That is what `chunk_of` returns, in a third of the time: what can be asked of all rows at once is not asked of each.
    """
    if how.fix_text or how.labels is not None or how.answers is not None or how.label_columns:
        return None
    column = plain_columns(piece.data)
    if column is None:
        return None
    names = named_fields(tuple(column), tuple(how.mapping.items()))
    wanted = {names.id, names.text, names.labels, *([names.split] if names.split else [])}
    if names.image or names.group or "answers" in column or not wanted <= set(column):
        return None
    strings = {name: values for name, values in column.items() if type(values[0]) is str}
    if not {names.id, names.text, names.labels} <= strings.keys():
        return None
    ids, texts = (list(map(str.strip, strings[str(key)])) for key in (names.id, names.text))
    rows = len(ids)
    if not all(ids) or not all(texts):
        return None
    try:
        labels = {value: parse_labels(value, how.separator) for value in set(column[str(names.labels)])}
        splits = {value: parse_split(value) for value in set(column.get(str(names.split), ()))}
    except RowError:
        return None
    if None in labels.values():
        return None
    others = zip(*(column[name] for name in names.others), strict=True)
    records = Fields(
        line=list(range(piece.first, piece.first + rows)),
        source=[piece.path] * rows,
        id=ids,
        image=[None] * rows,
        text=texts,
        labels=[labels[value] or () for value in column[str(names.labels)]],
        split=[splits[value] for value in column[names.split]] if names.split else [None] * rows,
        group=[None] * rows,
        meta=[dict(zip(names.others, values, strict=True)) for values in others] or [{} for _ in range(rows)],
    )
    counts: Counter[Any] = Counter({"rows": rows} | {("field", name): rows for name in names.others})
    counts.update({("mapped", theirs): rows for theirs in how.mapping.values() if field_called(column, theirs)})
    return chunk_from(records, np.zeros(rows, bool), any(len(value or ()) > 1 for value in labels.values()), [], counts)


def expanded(rows: Iterable[Row | Reject], how: Reading) -> Iterator[Row | Reject]:
    """Yield the rows, those with lists of answers or captions as what they stand for."""
    for row in rows:
        if isinstance(row, Reject) or LISTS.isdisjoint(map(type, row.fields.values())):
            yield row
        else:
            yield from stands_for(row, how)


def chunk_of(rows: Iterable[Row | Reject], how: RowReading) -> Chunk:
    """Return the chunk of `rows`: every row is in its lines or among its rejects."""
    records = Fields([], [], [], [], [], [], [], [], [])
    appends = [(name, values.append) for name, values in records._asdict().items() if name not in ("line", "source")]
    borrowed: list[bool] = []
    rejects: list[Reject] = []
    counts: Counter[Any] = Counter()
    mapping = tuple(how.mapping.items())
    shapes: Counter[tuple[tuple[str, ...], bool]] = Counter()  # the fields of rows, and whether they bring a picture
    several = False
    told: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        if row.notes:
            counts.update(row.notes)
        if mapping:
            shapes[tuple(row.fields), row.picture is not None] += 1
        if how.fix_text and (fixed := fixed_text(row, how.mapping)) is not row:
            counts[FIXED] += 1
            row = fixed
        try:
            if how.label_columns:
                row = with_labels(row, how.label_columns)
            names = named_fields(tuple(row.fields), mapping)
            fields = canonical_fields(row, names, labelled=how.labelled, separator=how.separator)
            own = fields["id"]
            fields["id"] = own or borrowed_id(row, fields["image"])
            if isinstance(row.picture, str):
                fields["image"] = row.picture
            elif fields["image"] is not None:
                fields["image"] = relative_image(row, fields["image"], how)
            if fields["group"] is not None and "group" in fields["meta"]:  # a field of that name which is not the group
                fields["meta"][names.group] = fields["group"]
            labels = fields["labels"]
            if how.labels is not None:
                refuse_unknown(labels or (), how.labels, how.labels_file, told)
            if how.answers is not None and labels is not None:
                fields["labels"] = with_unknown(labels, how.answers)
        except (RowError, ImageError) as error:
            counts.update(("refused", name) for name in row.fields)
            rejects.append(Reject(row.source, row.line, row.shown_id(how.mapping), error.code, str(error)))
            continue
        if labels is not None:
            several = several or len(fields["labels"]) > 1 or type(row.fields[names.labels]) is list  # type: ignore[index]
        records.line.append(row.line)
        records.source.append(row.source)
        for name, append in appends:
            append(fields[name])
        borrowed.append(own is None or row.borrowed)
    counts["rows"] = len(records.id) + len(rejects)
    for (shape, pictured), rows_alike in shapes.items():
        found = [theirs for ours, theirs in mapping if field_called(shape, theirs) or (ours == "image" and pictured)]
        counts.update({("mapped", theirs): rows_alike for theirs in (*found, *called(shape, how.label_columns))})
    counts.update(("field", name) for meta in records.meta for name in meta)
    return chunk_from(records, np.array(borrowed, bool), several, rejects, counts)


def chunk_from(
    records: Fields, borrowed: np.ndarray, several: bool, rejects: list[Reject], counts: Counter[Any]
) -> Chunk:
    """Return the chunk of N records."""
    texts, number = records.text, len(records.id)
    given = [labels or () for labels in records.labels]
    sources, labels = numbered(records.source), numbered(chain.from_iterable(given))
    nothing = np.zeros(number, np.int32)
    if any(records.group):
        for group, meta in zip(records.group, records.meta, strict=True):
            if group is not None:
                meta.setdefault("group", group)
    lines = lines_of(records)
    columns = Columns(
        line=np.array(records.line, np.int64),
        source=np.fromiter(map(sources.__getitem__, records.source), np.int32, number),
        id=keys_of(encoded(records.id)),
        borrowed=borrowed,
        text=keys_of(encoded(texts)),
        text_key=keys_of(comparables(texts)),
        group=keys_of(encoded(records.group)),
        split=np.fromiter(map(PLACES.__getitem__, records.split), np.int8, number),
        characters=lengths_of(texts),
        words=word_counts(texts),
        label_count=lengths_of(records.labels),
        image=nothing.astype(np.uint64),
        width=nothing,
        height=nothing.copy(),
        size=np.diff(np.flatnonzero(np.frombuffer(lines, np.uint8) == BREAK), prepend=-1),
    )
    codes = np.fromiter(map(labels.__getitem__, chain.from_iterable(given)), np.int32)
    images = records.image if any(records.image) else []
    return Chunk(lines, images, [], columns, list(sources), list(labels), codes, several, rejects, counts, {})


def lengths_of(values: Sequence[Sized | None]) -> np.ndarray:
    """Return [N] int32: how long each of the values is, -1 for None."""
    if None in values:
        return np.fromiter((-1 if value is None else len(value) for value in values), np.int32, len(values))
    return np.fromiter(map(len, values), np.int32, len(values))  # type: ignore[arg-type]


def row_labels(codes: np.ndarray, columns: Columns) -> RowLabels:
    """Return the labels of the records with these columns, one record's codes after another's."""
    return RowLabels(codes, np.maximum(columns.label_count, 0))


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return each name's place among the distinct ones, in the order in which they come."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def refuse_unknown(labels: Iterable[str], vocabulary: frozenset[str], file: str, told: dict[str, str]) -> None:
    """Raise RowError for a label that is not in the vocabulary of `file`.

    It names the closest one, which is kept in `told`, for as many wrong labels as there is time for: to find it takes a look at
    the whole vocabulary.
    """
    for name in labels:
        if name not in vocabulary:
            if name not in told and len(told) < min(MOST_TOLD, MOST_COMPARED / len(vocabulary)):
                told[name] = closest(name, vocabulary)
            raise RowError("label-unknown", f"the label {name!r} is not in {file}{told.get(name, '')}")


def with_unknown(labels: Iterable[str], vocabulary: Collection[str]) -> tuple[str, ...]:
    """Return the labels with UNKNOWN, once, in place of those that are not in the vocabulary."""
    return tuple(dict.fromkeys(name if name in vocabulary else UNKNOWN for name in labels))


def relative_image(row: Row, name: str, how: RowReading) -> str:
    """Return the row's image relative to the root; raises ImageError where it must not be read."""
    base = Path(os.path.realpath(image_root(Path(row.source), how.reading.image_folder)))  # as `how.root` is
    path = resolve_image(base, name, allow_outside=how.allow_outside)
    # by words `..` would lead back out of a link, not on from its target
    if ".." in path.parts or not path.is_relative_to(base):
        path = Path(os.path.realpath(path.parent)) / path.name
    return Path(os.path.relpath(path, how.root)).as_posix()


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
