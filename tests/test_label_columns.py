"""Tables with a column of 0 and 1 for each label."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import kept, rejects

from labeler.artifacts import read_manifest, write_json
from labeler.cli import cli
from labeler.errors import UsageError
from labeler.ingest_options import IngestOptions
from labeler.ingestion import ingest
from labeler.sources.label_columns import mark_of
from labeler.values import RowError

FEELINGS = ("joy", "anger", "fear")


def marked(number: int, **fields) -> dict:
    """Return a row with joy, anger, both or neither, in turns."""
    row = {"id": str(number), "text": f"text number {number}", "joy": number % 2, "anger": number // 2 % 2, "fear": 0}
    return row | fields


def test_columns_become_one_list_and_none_is_left_over(ingested):
    result = ingested([marked(number, rater=7) for number in range(40)], label_columns=FEELINGS)
    assert [record.labels for record in kept(result)[:4]] == [(), ("joy",), ("anger",), ("joy", "anger")]
    assert all(record.meta == {"rater": 7} for record in kept(result))
    assert (result.profile["task"], result.profile["unused_fields"]) == ("multi", {"rater": 40})


@pytest.mark.parametrize(
    ("yes", "no"), [(1, 0), (True, False), ("1", "0"), (1.0, 0.0), ("TRUE", "false"), ("yes", "No"), (" x ", "")]
)
def test_answers_in_several_ways(yes, no):
    assert (mark_of(yes, "joy"), mark_of(no, "joy") or False) == (True, False)


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", [1], {"a": 1}, float("nan"), b"1"])
def test_what_says_neither_is_an_error(value):
    with pytest.raises(RowError, match=r"joy is .*, expected 0 or 1"):
        mark_of(value, "joy")


def test_a_row_that_says_nothing_is_unlabelled_and_one_that_says_something_else_is_rejected(ingested):
    rows = [marked(number) for number in range(30)]
    rows[3] |= {"joy": None, "anger": "", "fear": " "}
    rows[4] |= {"joy": 3}
    del rows[5]["anger"], rows[5]["fear"]
    result = ingested(rows, label_columns=FEELINGS)
    assert [(row["id"], row["code"]) for row in rejects(result)] == [("3", "label-missing"), ("4", "label-invalid")]
    assert kept(result)[3].labels == ("joy",)
    again = ingested(rows, label_columns=FEELINGS, allow_unlabelled=True, force=True)
    assert [record.labels for record in kept(again) if record.id == "3"] == [None]


def test_one_label_a_row_where_that_is_asked_for(ingested):
    rows = [marked(number, joy=number % 2, anger=1 - number % 2) for number in range(30)]
    result = ingested(rows, label_columns=FEELINGS, task="single")
    assert {record.labels for record in kept(result)} == {("joy",), ("anger",)}


def test_csv_and_parquet_give_what_jsonl_gives(ingested, tmp_path):
    rows = [marked(number) for number in range(30)]
    header = list(rows[0])
    lines = [",".join(header), *(",".join(str(row[name]) for name in header) for row in rows)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines).replace("joy", "Joy "), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    first = [record.labels for record in kept(ingested(rows, label_columns=FEELINGS))]
    for name in ("pairs.csv", "pairs.parquet"):
        result = ingested(sources=[tmp_path / name], out=name.replace(".", "-"), label_columns=FEELINGS)
        assert [record.labels for record in kept(result)] == first


def test_the_command_takes_lists(tmp_path, capsys):
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(marked(number)) + "\n" for number in range(40)), encoding="utf-8")
    lists = ["--label-columns", "joy, anger", "--label-columns", "fear,joy"]
    cli.main(["ingest", str(source), "--out", str(tmp_path / "out"), *lists], standalone_mode=False)
    assert read_manifest(tmp_path / "out")["arguments"]["label_columns"] == list(FEELINGS)
    assert sorted(re.findall(r"(joy|anger|fear) (\d+)", capsys.readouterr().err)) == [("anger", "20"), ("joy", "20")]
    with pytest.raises(UsageError, match="--label-columns and --label, or --map labels=: expected one of them"):
        cli.main(
            ["ingest", str(source), "--out", str(tmp_path / "two"), *lists, "--label", "joy"], standalone_mode=False
        )


def test_a_column_that_no_row_has_is_named(ingested):
    with pytest.raises(UsageError, match=r"--label-columns: no row has the field 'hope' \(for labels\)"):
        ingested([marked(number) for number in range(30)], label_columns=("joy", "hope"))


def test_records_that_were_made_before_there_was_the_option_are_not_made_again(ingested, tmp_path):
    rows = [marked(number, label="joy" if number % 2 else "anger") for number in range(30)]
    out = ingested(rows).out
    manifest = read_manifest(out)
    del manifest["arguments"]["label_columns"]
    write_json(out / "manifest.json", manifest)
    assert ingest([tmp_path / "data" / "pairs.jsonl"], out, IngestOptions()).already
