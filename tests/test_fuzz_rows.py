"""Rows that nobody thought of: any bytes, any values in any field; a row is read, or refused with a code, and nothing else.

`LABELER_FUZZ=20000` runs that many examples of each test, each time others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import record_from, write_records

from labeler.ingestion import IngestOptions, ingest
from labeler.records import ALIASES, Record, Reject, Row, read_records
from labeler.sources import jsonl
from labeler.sources.answers import with_answer
from labeler.sources.captions import with_captions
from labeler.values import RowError

MANY = int(os.environ.get("LABELER_FUZZ", "0"))
fuzz = settings(
    max_examples=MANY or 60, derandomize=not MANY, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

# half surrogates, NUL, line ends of every kind and marks among the letters
TEXT = st.text(st.characters() | st.sampled_from("\ud800\udfff\0\r\n\u2028\x85\u202e\ufeff'\"\\{}[]|:,"), max_size=20)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**4299), 2**63, 2**64, 1e308, -0.0])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
HASHABLE = st.none() | st.booleans() | NUMBERS | TEXT | st.binary(max_size=4) | st.complex_numbers()
LITERALS = st.recursive(
    HASHABLE | st.just(...),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["meta", "question", "answers", "note", *(name for names in ALIASES.values() for name in names)]
)


def deep(depth: int, kind: str) -> str:
    """Return JSON nested that deeply."""
    return {"list": "[" * depth + "]" * depth, "object": '{"a":' * depth + "1" + "}" * depth}[kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def survives(record: Record, folder: Path) -> None:
    """Check that a record is the same after it was written and read."""
    write_records(folder / "records.jsonl", [record, record])
    assert list(read_records(folder)) == [record, record]


def check(row: Row, folder: Path) -> Record | str:
    """Return the row's record, after it was written and read, or the code with which it was refused."""
    record: Record | str = "none"
    for one in with_captions(with_answer(row, {}), "each", {}):
        for labelled in (True, False):
            try:
                record = record_from(one, {}, labelled=labelled)
            except RowError as error:
                record = error.code
            else:
                survives(record, folder)
    return record


def read_all(folder: Path, data: bytes) -> list[Row | Reject]:
    """Return what a file of these bytes holds: something for every line that is not blank."""
    (folder / "rows.jsonl").write_bytes(data)
    items = list(jsonl.read(folder / "rows.jsonl"))
    assert all(isinstance(item, (Row, Reject)) for item in items)
    found = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [item.line for item in items] == [number for number, line in enumerate(found, 1) if line.strip()]
    return items


@fuzz
@given(st.binary(max_size=200) | st.lists(st.binary(max_size=30), max_size=5).map(b"\n".join))
def test_any_bytes_are_rows_or_rejects(folder, data):
    for item in read_all(folder, data):
        if isinstance(item, Row):
            check(item, folder)


@fuzz
@given(st.lists(st.dictionaries(NAMES | TEXT, JSON_VALUES, max_size=5), max_size=3))
def test_any_json_objects_are_records_or_refused(folder, rows):
    text = "\n".join(json.dumps(row) for row in rows)
    for item in read_all(folder, text.encode()):
        if isinstance(item, Row):
            check(item, folder)


@fuzz
@given(st.dictionaries(NAMES | HASHABLE, LITERALS, max_size=5))
def test_any_python_literals_are_records_or_refused(folder, fields):
    for item in read_all(folder, repr(fields).encode("utf-8", "surrogatepass")):
        if isinstance(item, Row):
            check(item, folder)


@fuzz
@given(st.dictionaries(NAMES, JSON_VALUES | LITERALS, min_size=1, max_size=6), st.binary(max_size=3) | st.none())
def test_any_fields_are_a_record_or_refused(folder, fields, picture):
    check(Row("source.jsonl", 3, fields, picture=picture), folder)


@fuzz
@given(
    st.dictionaries(NAMES | TEXT, JSON_VALUES, max_size=4).map(json.dumps)
    | st.dictionaries(NAMES, LITERALS, max_size=4).map(repr),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), TEXT), min_size=1, max_size=4),
)  # fmt: skip
def test_lines_damaged_anywhere_are_rows_or_rejects(folder, text, damages):
    for place, length, instead in damages:
        text = text[:place] + instead + text[place + length :]
    for item in read_all(folder, text.encode("utf-8", "surrogatepass")):
        if isinstance(item, Row):
            check(item, folder)


@fuzz
@given(
    st.integers(1, 3000),
    st.sampled_from(["list", "object"]),
    st.sampled_from(["note", "text", "label", "answers", "id"]),
)
def test_any_depth_is_read_whole_or_refused(folder, depth, kind, field):
    base = {"id": "1", "text": "x", "label": "y"}
    line = json.dumps(base)[:-1] + f', "{field}2": 0, "z{field}": {deep(depth, kind)}}}'
    for item in read_all(folder, line.encode()):
        if isinstance(item, Row):
            check(item._replace(fields=item.fields | {field: item.fields[f"z{field}"]}), folder)


@fuzz
@given(st.lists(
    st.binary(max_size=20) | st.dictionaries(NAMES, JSON_VALUES, max_size=5).map(lambda row: json.dumps(row).encode())
    | st.dictionaries(NAMES, LITERALS, max_size=5).map(lambda row: repr(row).encode("utf-8", "surrogatepass")),
    max_size=5,
))  # fmt: skip
def test_a_file_with_any_lines_is_ingested_and_every_row_counted(folder, bad):
    good = [json.dumps({"id": f"good {n}", "text": f"text {n}", "label": "ab"[n % 2]}).encode() for n in range(4)]
    (folder / "mixed.jsonl").write_bytes(b"\n".join([*good[:2], *bad, *good[2:]]))
    options = IngestOptions(split="0.5,0.25,0.25", caption="each")
    profile = ingest([folder / "mixed.jsonl"], folder / "out", options, force=True).profile
    rejects = [json.loads(line) for line in (folder / "out" / "rejects.jsonl").read_bytes().split(b"\n")[:-1]]
    assert profile["rows"] == profile["kept"] + len(rejects) >= 4
    assert all(reject["code"] and reject["message"] for reject in rejects)
    assert len(list(read_records(folder / "out"))) == profile["kept"] >= 4


@fuzz
@given(
    st.integers(1, 6000),
    st.sampled_from(["9", "-9", "0x", "1e", "0.", "0b1"]),
    st.sampled_from(["id", "text", "label", "note"]),
)
def test_numbers_of_any_length_are_read_or_refused(folder, digits, form, field):
    number = form + "7" * digits if form != "0b1" else form + "1" * (digits * 4)
    base = {"id": "1", "text": "x", "label": "y"} | {field: "@"}
    line = repr(base).replace("'@'", number)
    for data in (line.encode(), line.replace("'", '"').encode()):
        for item in read_all(folder, data):
            if isinstance(item, Row):
                check(item, folder)
