"""What the first stages must notice: splits that changed, folders of others, files called alike, columns that were named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from test_first_steps import draw, write_rows
from transformers import AutoTokenizer

from labeler import batches, ingestion
from labeler.artifacts import Recipe, check_free, making
from labeler.errors import BadInputError, UsageError
from labeler.ingest_options import IngestOptions
from labeler.ingestion import ingest
from labeler.records import Row, read_records
from labeler.sources import Reading, read_source


def png(number):
    return bytes(np.random.default_rng(number).integers(0, 256, 30, np.uint8))


def test_a_folder_whose_splits_or_kinds_of_label_changed_is_read_again(tmp_path):
    def write(sizes, label=str):
        splits = [name for name, size in zip(("train", "validation", "test"), sizes, strict=True) for _ in range(size)]
        rows = [{"text": f"text {n}", "label": label("ab"[n % 2]), "split": split} for n, split in enumerate(splits)]
        write_rows(tmp_path / "data/metadata.jsonl", rows)
        return ingest([tmp_path / "data"], tmp_path / "records")

    assert list(write((4, 4, 4)).profile["splits"].values()) == [4, 4, 4]
    assert write((4, 4, 4)).already
    found = write((8, 2, 2))
    assert (found.already, list(found.profile["splits"].values())) == (False, [8, 2, 2])
    found = write((8, 2, 2), lambda name: [name])
    assert (found.already, found.profile["task"]) == (False, "multi")
    assert write((8, 2, 2), lambda name: [name]).already


@pytest.mark.parametrize("manifest", ['{"name": "app", "files": []}', "[1]", '{"stage": "beta"}'])
def test_a_folder_with_somebody_elses_manifest_is_left_alone(tmp_path, manifest):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    (folder / "thesis.tex").write_text("years of work", encoding="utf-8")
    recipe = Recipe("ingest", (), {})
    with pytest.raises(BadInputError, match="app: exists and was not made by labeler, so it is left alone"):
        check_free(folder, "ingest")
    with pytest.raises(BadInputError, match="so it is left alone"), making(folder, recipe):
        pass
    assert (folder / "thesis.tex").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("form", ["auto", "class-folders"])
def test_files_of_two_folders_may_be_called_alike(tmp_path, form):
    for number in range(24):
        place = tmp_path / "xy"[number % 2] / "ab"[number // 2 % 2] / f"{number // 4}"
        draw(place.with_suffix(".png"), number)
        place.with_suffix(".txt").write_text(f"text {number}", encoding="utf-8")
    options = IngestOptions(format=form, allow_unlabelled=form == "auto")
    profile = ingest([tmp_path / "x", tmp_path / "y"], tmp_path / "records", options).profile
    assert (profile["kept"], profile["rejected"]) == (24, 0)
    records = list(read_records(tmp_path / "records"))
    assert len({record.id for record in records}) == 24
    assert {record.text for record in records} == {f"text {number}" for number in range(24)}


def test_a_column_of_names_that_was_named_is_not_replaced_by_one_of_bytes(tmp_path):
    columns = {"photo": ["a.png", "b.png"], "thumbnail": [png(0), png(1)], "label": ["a", "b"]}
    lance.write_dataset(pyarrow.table(columns), str(tmp_path / "pets.lance"))
    DatasetDict({"train": Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "disk"))
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "hub/train.parquet"))
    for place in (str(tmp_path / "pets.lance"), f"hub:{tmp_path / 'hub'}"):
        rows = list(read_source(type(tmp_path)(place), Reading(mapping={"image": "photo"})))
        assert [(row.fields["photo"], row.picture) for row in rows] == [("a.png", None), ("b.png", None)], place
        rows = list(read_source(type(tmp_path)(place), Reading()))
        assert [row.picture for row in rows] == columns["thumbnail"], place
    with pytest.raises(UsageError, match="--map: no row has the field 'tumbnail'"):
        ingest([tmp_path / "pets.lance"], tmp_path / "records", IngestOptions(mapping={"image": "tumbnail"}))


def test_ids_of_several_splits_of_a_hubs_data_set_are_told_apart_by_any_name(tmp_path):
    for split in ("train", "test"):
        columns = {"uid": [0, 1], "text": [f"{split} one", f"{split} two"], "label": ["a", "b"]}
        Dataset.from_dict(columns).to_parquet(str(tmp_path / f"hub/data/{split}-0.parquet"))
    source = type(tmp_path)(f"hub:{tmp_path / 'hub'}")
    rows = list(read_source(source, Reading(mapping={"id": "uid"})))
    assert sorted(row.fields["uid"] for row in rows if isinstance(row, Row)) == [
        "test/0",
        "test/1",
        "train/0",
        "train/1",
    ]


def test_splits_of_texts_alone_are_splits(tmp_path):
    for number in range(8):
        place = tmp_path / "imdb" / ("train", "test")[number % 2] / ("pos", "neg")[number // 2 % 2] / f"{number}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"text {number}", encoding="utf-8")
    rows = list(read_source(tmp_path / "imdb", Reading(format="class-folders")))
    assert {(row.fields["split"], row.fields["label"]) for row in rows} == {
        (split, (label,)) for split in ("train", "test") for label in ("pos", "neg")
    }


def test_texts_are_tokenized_some_at_a_time(text_tower, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(text_tower)
    texts = ["a red circle", None, "", "a blue square", "circle"] * 3
    whole = batches.tokenize(tokenizer, texts, 8)
    monkeypatch.setattr(batches, "TOKENIZED", 2)
    assert batches.tokenize(tokenizer, texts, 8) == whole
    assert whole[1:3] == [[], []]
    assert len(whole) == 15
    assert batches.tokenize(tokenizer, [], 8) == []


def test_an_artifact_that_a_kill_left_aside_is_put_back_before_another_is_made(tmp_path):
    folder, aside = tmp_path / "records", tmp_path / ".records.old"
    with making(folder, Recipe("ingest", (), {})) as work:
        (work / "a").write_text("first", encoding="utf-8")
    folder.rename(aside)
    with pytest.raises(OSError, match="full"), making(folder, Recipe("ingest", (), {"other": 1})):
        raise OSError("full")
    assert (folder / "a").read_text(encoding="utf-8") == "first"
    assert not aside.exists()


@pytest.mark.parametrize("place", ["source", "out", "way", "images"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_before_any_row_is_read(tmp_path, labeler, place, monkeypatch):
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    (strange / "in").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    source = (tmp_path / "plain" if place in ("out", "images") else strange / "in") / "a.jsonl"
    write_rows(source, [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)])
    out = (strange if place == "out" else tmp_path / "plain") / "records"
    given = ["--image-folder", strange] if place == "images" else []
    if place == "way":
        monkeypatch.chdir(source.parent)
        source = Path(source.name)
    done = labeler("ingest", source, "--out", out, *given)
    assert done.code == 3, done.said
    assert "a name that is not UTF-8, which no manifest can hold; rename the folder" in done.said
    assert not out.exists()
    if place == "way":
        assert labeler("ingest", source, "--out", "records").code == 0


def test_a_stage_refuses_an_artifact_in_a_folder_whose_name_is_not_utf_8(tmp_path, labeler):
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    source = write_rows(tmp_path / "a.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)])
    ingest([source], tmp_path / "records")
    strange.mkdir()
    shutil.copytree(tmp_path / "records", strange / "records")
    for records, out in ((strange / "records", tmp_path / "store"), (tmp_path / "records", strange / "store")):
        done = labeler("preprocess", records, "--out", out)
        assert done.code == 3
        assert "caf\ufffd" in done.said
        assert "a name that is not UTF-8" in done.said
        assert not out.exists()


def test_rows_are_read_once_where_options_or_files_say_that_all_is_made_again(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "a.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)])
    real, read = ingestion.read_all, []
    monkeypatch.setattr("labeler.ingestion.read_all", lambda *given: read.append(given[-1]) or real(*given))
    for options, seed, made, times in (({}, 0, False, 1), ({}, 0, True, 1), ({"task": "multi"}, 0, False, 1),
                                       ({"task": "multi"}, 1, False, 1)):  # fmt: skip
        read.clear()
        assert ingest([source], tmp_path / "records", IngestOptions(**options), seed=seed).already == made
        assert len(read) == times
    write_rows(source, [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(30)])
    read.clear()
    assert not ingest([source], tmp_path / "records", IngestOptions(task="multi"), seed=1).already
    assert len(read) == 1
