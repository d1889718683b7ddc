"""Labelling with care: cells that come back as they were, options that are never ignored, pictures that may be missing."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, copy_files

from labeler.encoders.image import recorded_image_encoder
from labeler.engines import native
from labeler.errors import UsageError
from labeler.items import ItemReading, read_items
from labeler.output import LineFormat
from labeler.predicting import first_of, label, opened, predict
from labeler.records import Row
from labeler.remote_rows import read
from labeler.runs import load_run
from labeler.sources import read_source
from labeler.values import parse_labels

LINE = {"id": "1", "image": None, "text": "one", "labels": ["a"], "scores": {"a": 0.5}, "model": "m", "error": None}


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("resnet-gru")


def written(path: Path, form: LineFormat, *lines: dict) -> list[dict]:
    """Write lines as `predict` does; return the fields that `ingest` reads in each."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(form.header)
        file.writelines(form(LINE | line).text for line in lines)
    found = list(read_source(path))
    assert all(isinstance(row, Row) for row in found)
    return [row.fields for row in found]


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


def missing_on_s3(s3, tmp_path, pictures) -> str:
    """Return the URL of a table: a picture that is there, two that are not, the second without a text."""
    drawn = sorted(pictures.glob("*.png"))[0]
    rows = [{"image": "there.png", "text": "red"}, {"image": "no.png", "text": "blue"}, {"image": "no.png"}]
    for file, name in ((drawn, "there.png"), (jsonl(tmp_path / "rows.jsonl", *rows), "rows.jsonl")):
        copy_files(str(file), f"pets/{name}", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    return "s3://pets/rows.jsonl"


def test_a_row_whose_picture_is_not_on_s3_may_be_labelled_by_its_text(s3, tmp_path, pictures):
    rows = list(read(missing_on_s3(s3, tmp_path, pictures), {}, False))
    found = list(read_items(rows, ItemReading({}, allow_missing=True), 32))
    gone = "s3://pets/no.png: no such file"
    assert [item.error for item in found] == [None, None, gone]
    assert [item.record.image for item in found] == ["s3://pets/there.png", None, "s3://pets/no.png"]
    assert [item.pixels is None for item in found] == [False, True, True]
    assert [item.error for item in read_items(rows, ItemReading({}), 32)] == [None, gone, gone]


def test_what_is_advised_for_pictures_that_are_missing_on_s3_is_possible_there(s3, tmp_path, pictures, run, caplog):
    assert predict([missing_on_s3(s3, tmp_path, pictures)], run, tmp_path / "out.jsonl", device="cpu").errors == 2
    assert "no such file. --allow-missing-image reads the texts without them" in caplog.text
    assert "--image-folder" not in caplog.text


def test_texts_beside_pictures_that_metadata_on_s3_names_in_other_folders_are_read(s3, tmp_path, pictures):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / "sub" / name).write_bytes(next(pictures.glob("*.png")).read_bytes())
    (folder / "sub" / "a.txt").write_text("a red circle", encoding="utf-8")
    jsonl(folder / "metadata.jsonl", {"file_name": "sub/a.png"}, {"file_name": "sub/b.png"})
    copy_files(str(folder), "pets/folder", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    here, there = (
        [(row.fields["file_name"], row.fields.get("text")) for row in rows]
        for rows in (read_source(folder), read("s3://pets/folder", {}, False))
    )
    assert there == here == [("sub/a.png", "a red circle"), ("sub/b.png", None)]


def pictures_in_parquet(path: Path, picture_bytes, count: int) -> Path:
    """Write a parquet table whose pictures are bytes."""
    from pyarrow import table
    from pyarrow.parquet import write_table

    drawn = picture_bytes(1)
    write_table(table({"image": [{"bytes": drawn, "path": "a.jpg"}] * count, "words": ["one"] * count}), path)
    return path


@pytest.mark.parametrize("how", [ItemReading({"text": "wrods"}), ItemReading({"text": "words"}, keep=("author",))])
def test_a_field_that_no_row_has_is_seen_where_rows_bring_their_pictures(tmp_path, picture_bytes, how, caplog):
    few = pictures_in_parquet(tmp_path / "few.parquet", picture_bytes, 3)
    with pytest.raises(
        UsageError, match=r"(--map|--keep): no row has the field '(wrods|author)'.*; there are: image, words"
    ):
        opened([few], how, None, None)
    many = pictures_in_parquet(tmp_path / "many.parquet", picture_bytes, 40)
    job = opened([many], how, None, None)
    assert "in the first 16" in caplog.text
    assert len(list(job.rows)) == 40


def test_few_rows_of_a_table_on_s3_are_held_where_they_bring_their_pictures(tmp_path, picture_bytes, s3):
    table = pictures_in_parquet(tmp_path / "many.parquet", picture_bytes, 40)
    copy_files(str(table), "pets/many.parquet", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    rows = read("s3://pets/many.parquet", {}, False)
    first, whole = first_of(rows)
    assert (len(first), whole) == (16, False)
    assert len(list(rows)) == 24


def test_an_encoding_is_refused_where_no_input_has_one(tmp_path, s3):
    rows = jsonl(tmp_path / "rows.jsonl", {"text": "one"})
    copy_files(str(rows), "pets/rows.jsonl", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    for place in (rows, "s3://pets/rows.jsonl"):
        with pytest.raises(
            UsageError, match="--encoding cp1252 is for csv, MELD and texts beside pictures; leave it out"
        ):
            predict([place], tmp_path / "run", tmp_path / "out.jsonl", encoding="cp1252")
    (tmp_path / "table.csv").write_bytes("text\ncafé\n".encode("cp1252"))
    job = opened([rows, tmp_path / "table.csv", "s3://pets"], ItemReading({}), "cp1252", None)
    assert [row.fields["text"] for row in job.rows if isinstance(row, Row)] == ["one", "café"]


def test_an_empty_path_is_no_picture(run):
    with pytest.raises(TypeError, match=r"expected an opened run, not its folder; load_run\(.*\) opens it"):
        label(run, [{"text": "a red circle"}])
    [line] = label(load_run(run, "cpu"), [{"image": "", "text": "a red circle"}])
    assert (line["image"], line["error"]) == (None, None)
    assert line["labels"]


def test_pair_by_pair_the_image_tower_is_loaded_once(run, pictures, monkeypatch):
    loads = []
    monkeypatch.setattr(
        native, "recorded_image_encoder", lambda *given: loads.append(given) or recorded_image_encoder(*given)
    )
    opened = load_run(run, "cpu")
    pairs = [{"image": pictures / "circle-red-one.png"}, {"text": "a red circle"}]
    one_by_one = [label(opened, [pair])[0]["scores"] for pair in pairs]
    assert one_by_one == [line["scores"] for line in label(opened, pairs, batch_size=1)]
    assert len(loads) == 1
    model = weakref.ref(opened.model)
    del opened
    gc.collect()
    assert model() is None  # nothing else holds it


@pytest.mark.parametrize("redirected", ["", ">&-"])
def test_standard_output_carries_any_text_and_may_be_closed(tmp_path, run, redirected):
    rows = jsonl(tmp_path / "rows.jsonl", {"text": "one red circle 猫"})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONIOENCODING": "latin-1"}
    command = f"'{sys.executable}' -m labeler predict '{rows}' --model '{run}' --device cpu {redirected}"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode("latin-1")) == (0, "-: 1 items, 0 with an error\n")
    assert done.stdout == b"" if redirected else json.loads(done.stdout)["text"] == "one red circle 猫"


def test_items_are_counted_without_saying_anything_twice(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "labeler")
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text("one", encoding="utf-8")
    (tmp_path / "notes.pdf").write_bytes(b"")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for most in (1000, 5):
        caplog.clear()
        monkeypatch.setattr("labeler.predicting.MANY", most)
        job = opened([tmp_path], ItemReading({}), None, None)
        assert job.total() == 12
        assert len(list(job.rows)) == 12
        assert caplog.text.count("notes.pdf") == 1
