"""A JSON array of rows: read as rows, its faults are its elements' own, and what is no such array is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeler.errors import BadInputError
from labeler.ingestion import ingest
from labeler.records import Reject, Row
from labeler.sources import read_source

ROWS = [{"id": str(number), "text": text, "label": "joy"} for number, text in enumerate(["é 🎉", "表情", 'q"uote'])]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[dict], list[Reject]]:
    """Return the fields of the rows and the rejects, by the format that is found."""
    items = list(read_source(path))
    rows = [item for item in items if isinstance(item, Row)]
    return [row.fields for row in rows], [item for item in items if isinstance(item, Reject)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_rows_is_read_as_rows(tmp_path, indent):
    path = written(tmp_path / "rows.json", "\ufeff" + json.dumps(ROWS, ensure_ascii=False, indent=indent))
    assert read(path) == (ROWS, [])
    rows = [{"id": number, "text": f"text {number}", "label": "ab"[number % 2]} for number in range(30)]
    profile = ingest([written(tmp_path / "b.json", json.dumps(rows, indent=indent))], tmp_path / "out").profile
    assert (profile["kept"], profile["rejected"]) == (30, 0)


def test_a_faulty_element_of_an_array_costs_its_own_row_alone(tmp_path):
    faulty = ['{"id": "1", "id": "2"}', '{"id": "3", "meta": [{"x": NaN}]}', "7", "[]", "null"]
    path = written(
        tmp_path / "rows.json", "[\n" + ",\n".join([json.dumps(ROWS[0]), *faulty, json.dumps(ROWS[1])]) + "\n]\n"
    )
    rows, rejects = read(path)
    assert rows == ROWS[:2]
    assert [(reject.line, reject.code) for reject in rejects] == [
        (2, "duplicate-key"), (3, "not-json"), (4, "not-an-object"), (5, "not-an-object"), (6, "not-an-object")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            '{\n "rows": [{"id": 1}],\n "version": 2\n}',
            "one JSON object with the keys 'rows', 'version'; expected a list of",
        ),
        ('[{"id": 1},\n {"id": 2},\n', r"not JSON \(.* at line 3, column 1\); expected a list of rows, \[\{"),
        ("[{'id': 1}]", r"not JSON .* or one such object a line"),
        ("{\n}", "one JSON object without keys; expected"),
    ],
)
def test_a_document_that_is_no_list_of_rows_is_refused(tmp_path, data, message):
    with pytest.raises(BadInputError, match=message):
        read(written(tmp_path / "rows.json", data))


def test_an_array_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("labeler.sources.json_rows.MAX_BYTES", 1 << 20)
    with pytest.raises(BadInputError, match=r"over 1 MiB, .* write one object a line \(jsonl\)"):
        read(written(tmp_path / "rows.json", json.dumps([{"text": "x" * (1 << 20)}])))
