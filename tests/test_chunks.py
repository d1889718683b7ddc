"""Chunks: a record's line is its record, and its numbers are equal where its things are."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from unicodedata import category

import numpy as np
import pytest

from labeler.records import Record, Reject, Row, borrowed_id, canonical_fields, named_fields
from labeler.rows.chunks import Chunk, Columns, RowReading, chunk_of, expanded, plain_records
from labeler.rows.keys import comparable, keys_of
from labeler.rows.lines import in_split, in_splits, json_id, with_meta, without_image
from labeler.sources.jsonl import MAX_LINE_BYTES, Piece, pieces, read, rows_of
from labeler.values import RowError

ODD = [
    "plain",
    'a "quoted" \\',
    '","image":null',
    '\\"',
    "Stra\u00dfe \u732b \U0001f389",
    '"split":null',
    "{}",
    "a:b",
    "x\u2028y\x7f",
]


def plain_record(row: Row) -> Record:
    """Return the row's record, its image as the row calls it, made without a line; raises RowError where it has none."""
    fields = canonical_fields(row, named_fields(tuple(row.fields), ()))
    return Record(**fields | {"id": fields["id"] or borrowed_id(row, fields["image"])})


def rows_with(odd: str) -> list[Row]:
    """Return rows with `odd` in every place."""
    return [
        Row("f.jsonl", 1, {"id": odd, "text": "t", "label": "a"}),
        Row("f.jsonl", 2, {"id": "2", "text": odd, "label": "b", "n": 1, "more": odd}),
        Row("f.jsonl", 3, {"id": "3", "text": "t", "label": ["c|d", odd], "split": "dev", "x": {"split": None}}),
        Row("f.jsonl", 4, {"id": "4", "image": odd, "label": "a", "group": odd, odd: 12345678901234567890123}),
        Row("f.jsonl", 5, {"id": "5", "image": "b.jpg", "text": odd, "label": "a", "meta": None}),
    ]


@pytest.mark.parametrize("odd", ODD)
def test_a_line_does_not_depend_on_the_rows_beside_it(tmp_path, odd):
    how = RowReading(tmp_path, allow_outside=True)
    together = chunk_of(rows_with(odd), how)
    alone = [chunk_of([row], how) for row in rows_with(odd)]
    assert together.lines == b"".join(chunk.lines for chunk in alone)
    for name in set(Columns._fields) - {"source"}:
        parts = [getattr(chunk.columns, name) for chunk in alone]
        assert getattr(together.columns, name).tolist() == np.concatenate(parts).tolist(), name


@pytest.mark.parametrize("odd", ODD)
def test_lines_are_the_records(tmp_path, odd):
    rows = rows_with(odd)
    chunk = chunk_of(rows, RowReading(tmp_path, {"id": "id"}, allow_outside=True))
    assert chunk.rejects == []
    for row, line, image in zip(rows, chunk.lines.splitlines(keepends=True), chunk.images, strict=True):
        record = plain_record(row)
        meta = record.meta | ({"group": record.group} if record.group else {})
        expected = record.model_copy(update={"split": "test", "group": record.id, "meta": meta})
        if record.image:
            assert image is not None
            assert (tmp_path / image).resolve() == Path(row.source).parent.joinpath(record.image).resolve()
            expected = expected.model_copy(update={"image": image})
        assert Record.model_validate_json(in_split(line, b'"test"', None)) == expected
        other = Record.model_validate_json(in_split(with_meta(line, "image_sha256", "ab"), b'"train"', b'"g \\" h"'))
        assert (other.split, other.group, other.meta) == ("train", 'g " h', meta | {"image_sha256": "ab"})
        assert json.loads(json_id(line)) == record.id
        assert Record.model_validate_json(in_split(without_image(line), b'"test"', None)) == expected.model_copy(
            update={"image": None}
        )
    joined = in_splits(chunk.lines, [b'"test"'] * len(rows))
    assert joined == b"".join(in_split(line, b'"test"', None) for line in chunk.lines.splitlines(keepends=True))


def test_numbers_are_those_of_the_rows(tmp_path):
    rows = [
        Row("a.csv", 2, {"text": "One, two", "label": "x", "split": "val", "group": "g"}, ("python literal",)),
        Reject("a.csv", 3, None, "cell-count", "no"),
        Row("b.csv", 9, {"text": "one TWO!", "label": "x|y"}),
        Row("b.csv", 10, {"text": None, "label": "x"}),
        Row("b.csv", 11, {"text": "one TWO!", "label": "z", "likes": 3}),
    ]
    chunk = chunk_of(rows, RowReading(tmp_path))
    columns = chunk.columns
    assert (chunk.counts["rows"], chunk.counts["python literal"], chunk.counts["field", "likes"]) == (5, 1, 1)
    assert [reject.code for reject in chunk.rejects] == ["cell-count", "empty"]
    assert [chunk.sources[place] for place in columns.source] == ["a.csv", "b.csv", "b.csv"]
    assert columns.line.tolist() == [2, 9, 11]
    assert [chunk.labels[code] for code in chunk.label_codes] == ["x", "x", "y", "z"]
    assert columns.label_count.tolist() == [1, 2, 1]
    assert len(set(columns.text_key.tolist())) == 1
    assert len(set(columns.text.tolist())) == 2
    assert columns.split.tolist() == [1, -1, -1]
    assert columns.characters.tolist() == [8, 8, 8]
    assert columns.words.tolist() == [2, 2, 2]
    assert (columns.group > 0).tolist() == [True, False, False]
    assert chunk.several
    assert not chunk_of(rows[:1], RowReading(tmp_path)).several
    assert columns.size.tolist() == [len(line) for line in chunk.lines.splitlines(keepends=True)]


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_compared_without_case_blanks_and_punctuation(seed):
    chance = random.Random(seed)
    alphabet = (
        [chr(chance.randrange(0x20, 0x2FF)) for _ in range(40)]
        + list("aB .,!?+$<|")
        + ["\u0915\u0940", "\u732b", "\U0001f389", "\u00df", "\u0130"]
    )
    for _ in range(200):
        text = "".join(
            chance.choice(alphabet if chance.random() < 0.5 else "aZ09 .!$^~") for _ in range(chance.randrange(1, 12))
        )
        folded = text.casefold()
        slow = "".join(character for character in folded if category(character)[0] in "LMNS") or folded
        assert comparable(text) == slow.encode()


def test_keys_are_the_same_everywhere_and_none_is_nothing():
    assert keys_of([b"labeler", None, b"labeler"]).tolist() == [17181523496444182729, 0, 17181523496444182729]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1 << 20])
def test_pieces_are_the_whole_file(tmp_path, size):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1"}\r\n\n  \n{"id": "2"}\n{\n\xff\n{"id": "3"}')
    found = [item for piece in pieces(path, size) for item in rows_of(piece)]
    assert found == list(read(path))
    assert [item.line for item in found] == [1, 4, 5, 6, 7]
    assert [item.number for item in found if isinstance(item, Row)] == [1, 2, 5]
    assert [isinstance(item, Row) for item in found] == [True, True, False, False, True]


def test_a_line_of_any_length_is_one_reject(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "1"}\n{"id": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}\n{"id": "3"}\n')
    assert max(len(piece.data) for piece in pieces(path)) < MAX_LINE_BYTES + (2 << 20)
    assert [(item.line, getattr(item, "code", None)) for item in read(path)] == [
        (1, None),
        (2, "line-too-long"),
        (3, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1, "id": 2}', '{"id": "a:b", "id": "c"}', '{"id": "a", "id": "\\u003a"}', '{"a": 1, "a" : 2}',
        '{"id": 12345678901234567890123}', '{"n": NaN}', '{"n": 1e999}', '{"t": "http://x:1/", "u": "b"}', '{"n": 1.5}',
        '{"t": "\\ud83d\\ude00"}', '{"a": {"b": 1, "b": 2}}', '{"a": [1, {"b": 1}]}', '{"a:b": 1}', '{"a": ["b", "c:d"]}', "[1]",
        '{"t": "\\ud800"}', "{'a': 1}", '{"a": true, "b": null}',
    ],
)  # fmt: skip
def test_the_fast_way_reads_what_the_slow_way_reads(line):
    from labeler.sources.jsonl import LineError, parse_line, parse_slowly

    def outcome(parse):
        try:
            return repr(parse(line.encode()))
        except LineError as error:
            return error.code, str(error)

    assert outcome(parse_line) == outcome(parse_slowly)


def test_rows_that_are_no_records_are_rejects_with_the_same_words(tmp_path):
    for fields, words in (
        ({"label": "a"}, "neither an image nor a text"),
        ({"text": "x"}, "no label: expected"),
        ({"text": "a\0", "label": "b"}, "text holds a NUL"),
        ({"text": ["x"], "label": "b"}, "text is a list"),
        ({"text": "x", "label": {}}, "label is a dict"),
    ):
        row = Row("a", 1, {"id": 7, **fields})
        with pytest.raises(RowError, match=words) as caught:
            plain_record(row)
        assert chunk_of([row], RowReading(tmp_path)).rejects == [
            Reject("a", 1, "7", caught.value.code, str(caught.value))
        ]


PLAIN_ROWS = [
    {"id": str(n), "text": f"text {n}", "label": "ab"[n % 2], "split": "train", "n": n, "s": "x", "b": None}
    for n in range(9)
]
CHANGES = [
    {}, {"text": " a:b "}, {"text": ""}, {"text": "\u00e9"}, {"text": 'q"\\'}, {"text": None}, {"text": 3}, {"id": " "},
    {"id": 5}, {"label": "a|b"}, {"label": "[]"}, {"label": "[1"}, {"label": ""}, {"label": " "}, {"label": ["a"]},
    {"split": "val"}, {"split": "?"}, {"split": None}, {"n": 1.5}, {"n": 2**63}, {"n": 10**30}, {"s": "\u00e9"}, {"s": None},
    {"s": "a:b"}, {"b": {"c": 1}}, {"text": ["a", "bc"]}, {"text": "x" * 20_001}, {"text": "nul\0"}, {"image": "a.jpg"},
    {"group": "g"}, {"answers": ["a"]}, {"more": 1}, {"a:b": 1},
]  # fmt: skip


ROW = json.dumps(PLAIN_ROWS[0])
LINES = [
    "{", "", " ", "[1]", "{'id': 1}", '{"id": "1", "id": "2"}', '{"a":"\\u003a"}',
    f" {ROW}", f"{ROW}\r", f"{ROW},", f"{ROW},{ROW}",
    # as many objects as lines, which are no lines of objects
    '{"a":[1\n{"b":1}]},5', f'{{"a":"b}}\n{{","c":"}}\n{ROW},{ROW}', f'{{"a":{{}}\n{{}}}},{ROW}', f'{ROW}\n\n{ROW},{ROW}',
]  # fmt: skip


@pytest.mark.parametrize("change", [*CHANGES, *LINES])
@pytest.mark.parametrize("everywhere", [True, False])
def test_plain_rows_at_once_are_what_they_are_one_by_one(tmp_path, change, everywhere):
    lines = []
    for number, row in enumerate(PLAIN_ROWS):
        if not isinstance(change, str):
            row = row | change if everywhere or number == 4 else row
            lines.append(json.dumps(row, ensure_ascii=number % 2 == 0))
        else:
            lines.append(change if number == 4 else json.dumps(row))
    piece = Piece(str(tmp_path / "a.jsonl"), 7, 3, "\n".join(lines).encode() + b"\n" * everywhere)
    how = RowReading(tmp_path)
    found, slow = plain_records(piece, how), chunk_of(expanded(rows_of(piece), how.reading), how)
    if change in ({}, {"text": " a:b "}, {"label": "a|b"}, {"s": "a:b"}, {"split": "val"}, {"n": 2**63}):
        assert found is not None, "this is what it is for"
    if found is None:
        return
    for name, one, other in zip(Chunk._fields, found, slow, strict=True):
        if name == "columns":
            for column, a, b in zip(Columns._fields, one, other, strict=True):
                assert a.dtype == b.dtype, column
                assert a.tolist() == b.tolist(), column
        elif name == "label_codes":
            assert one.tolist() == other.tolist()
        else:
            assert one == other, name


def test_wrong_labels_beside_a_large_vocabulary_take_seconds(tmp_path):
    names = [f"photographs of {random.Random(number).getrandbits(64):x}" for number in range(20_000)]
    rows = [Row("f.jsonl", n, {"id": str(n), "text": "t", "label": f"{names[n % 300]}x"}) for n in range(600)]
    start = time.process_time()
    chunk = chunk_of(rows, RowReading(tmp_path, labels=frozenset(names), labels_file="labels.txt"))
    assert time.process_time() - start < 15
    told = [f"; the closest is {names[n % 300]!r}" in reject.message for n, reject in enumerate(chunk.rejects)]
    assert told == [n % 300 < 5 for n in range(600)]
    small = chunk_of(rows, RowReading(tmp_path, labels=frozenset(names[:300]), labels_file="labels.txt"))
    assert sum("the closest" in reject.message for reject in small.rejects) == 200
