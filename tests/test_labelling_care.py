"""Labelling with care: cells that come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.output import LineFormat
from labeler.records import Row
from labeler.sources import read_source
from labeler.values import parse_labels

LINE = {"id": "1", "image": None, "text": "one", "labels": ["a"], "scores": {"a": 0.5}, "model": "m", "error": None}


def written(path: Path, form: LineFormat, *lines: dict) -> list[dict]:
    """Write lines as `predict` does; return the fields that `ingest` reads in each."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(form.header)
        file.writelines(form(LINE | line).text for line in lines)
    found = list(read_source(path))
    assert all(isinstance(row, Row) for row in found)
    return [row.fields for row in found]


@pytest.mark.parametrize("text", ["one\rtwo", "one\r\ntwo", "one\ntwo", 'one "two", three', "one\r"])
def test_a_text_of_several_lines_is_one_row_of_a_csv_file(tmp_path, text):
    form = LineFormat("csv", ["a"])
    rows = written(tmp_path / "out.csv", form, {"text": text}, {"id": "2"})
    assert [(row["id"], row["text"]) for row in rows] == [("1", text), ("2", "one")]
    assert form(LINE | {"text": text}).text.endswith("\n")
    assert not form(LINE).text.endswith("\r\n")
    assert form.error_of(form(LINE | {"text": text, "error": text})) == text


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (["[laughs]"], {}),
        (["joy", "[laughs]"], {}),
        (["a|b", "c"], {}),
        ([], {}),
        ([], {"error": "no picture"}),
        ([], {"review": True}),
        (["joy"], {"review": True}),
    ],
)
def test_labels_in_a_cell_are_those_that_ingest_reads_in_it(tmp_path, labels, more):
    form = LineFormat("csv", ["a"], review=True)
    [row] = written(tmp_path / "out.csv", form, {"labels": labels, "review": False} | more)
    nobody_has_said = not labels and bool(more)
    assert parse_labels(row["labels"], "|") == (None if nobody_has_said else tuple(labels))


def test_numbers_that_are_kept_stay_numbers_in_a_csv_file(tmp_path):
    values = {"a": -73.9, "b": "-73.9", "c": "=1+1", "d": "-1e-5", "e": "-x", "f": None, "g": ["-1"], "h": True}
    [row] = written(tmp_path / "out.csv", LineFormat("csv", [], carried=list(values)), values)
    assert [row[name] for name in values] == ["-73.9", "-73.9", "'=1+1", "-1e-5", "'-x", "", '["-1"]', "true"]
