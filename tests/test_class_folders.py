"""Folders of classes: the name of the first-level sub-folder is the label."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from recording import record_from

from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.records import Reject, Row
from labeler.sources.class_folders import read_class_folders
from labeler.values import RowError

ODD = ['say "no"', "two\nlines", "<b>&amp;", "悲しい 生气", "a|b", "[draft]", "=cmd"]


def write(folder: Path, name: str, data: bytes | str = b"x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(folder: Path) -> tuple[list[dict], list[Reject]]:
    """Return the fields of the rows and the rejects."""
    items = list(read_class_folders(folder))
    rows = [item.fields for item in items if isinstance(item, Row)]
    return rows, [item for item in items if isinstance(item, Reject)]


def test_the_first_folder_is_the_label_and_sidecars_are_texts(tmp_path):
    for name in ("cat/1.jpg", "cat/deep/dog/2.jpg", "dog/1.jpg", ".git/x.jpg"):
        write(tmp_path, name)
    write(tmp_path, "cat/1.txt", "a cat")
    write(tmp_path, "dog/alone.txt", "no picture")
    rows, rejects = read(tmp_path)
    assert rows == [
        {"id": "cat/1.jpg", "image": "cat/1.jpg", "text": "a cat", "label": ("cat",)},
        {"id": "cat/deep/dog/2.jpg", "image": "cat/deep/dog/2.jpg", "text": None, "label": ("cat",)},
        {"id": "dog/1.jpg", "image": "dog/1.jpg", "text": None, "label": ("dog",)},
        {"id": "dog/alone.txt", "image": None, "text": "no picture", "label": ("dog",)},
    ]
    assert rejects == []


def test_what_lies_in_no_sub_folder_is_rejected(tmp_path):
    for name in ("1.jpg", "README.txt", "cat/1.jpg"):
        write(tmp_path, name)
    rows, rejects = read(tmp_path)
    assert [row["id"] for row in rows] == ["cat/1.jpg"]
    assert [(reject.id, reject.code) for reject in rejects] == [
        ("1.jpg", "label-missing"),
        ("README.txt", "label-missing"),
    ]
    assert rejects[0].message == "1.jpg: lies in no sub-folder, whose name would be its label"


@pytest.mark.parametrize("name", ODD)
def test_odd_names_stay_one_label_as_they_are(tmp_path, name):
    write(tmp_path, f"{name}/1.jpg")
    (row,) = read_class_folders(tmp_path)
    assert record_from(row, {}).labels == (name,)


def test_a_name_that_no_file_can_carry_is_refused_by_the_record(tmp_path):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes no such name")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/1.jpg")).write_bytes(b"x")
    (row,) = read_class_folders(tmp_path)
    with pytest.raises(RowError, match="half a surrogate pair"):
        record_from(row, {})


def test_metadata_gives_fields_and_the_folder_the_label(tmp_path):
    write(tmp_path, "cat/1.jpg")
    write(tmp_path, "cat/metadata.jsonl", json.dumps({"file_name": "1.jpg", "text": "t", "label": "old"}) + "\n{oops\n")
    rows, rejects = read(tmp_path)
    assert rows == [{"file_name": "cat/1.jpg", "text": "t", "label": ("cat",)}]
    assert [(reject.line, reject.code) for reject in rejects] == [(2, "not-json")]


def test_a_path_that_leads_out_is_no_class(tmp_path):
    write(tmp_path, "animals/cat/1.jpg")
    write(tmp_path, "animals/cat/metadata.jsonl", json.dumps({"file_name": "../../x/secret.jpg"}) + "\n")
    rows, rejects = read(tmp_path / "animals")
    assert [row["image"] for row in rows] == ["cat/1.jpg"]
    assert [(reject.id, reject.code) for reject in rejects] == [("../x/secret.jpg", "label-missing")]


def test_what_is_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "none", write(tmp_path, "a.jsonl", "{}")):
        with pytest.raises(BadInputError, match="no folder; expected one whose sub-folders are named by their labels"):
            list(read_class_folders(path))


def test_sub_folders_named_like_splits_are_splits_and_theirs_are_labels(tmp_path):
    for name in ("train/joy/1.jpg", "train/anger/deep/2.JPG", "Val/joy/3.png", "test/anger/4.mp4"):
        write(tmp_path, name)
    write(tmp_path, "train/joy/metadata.jsonl", json.dumps({"file_name": "1.jpg", "text": "t", "split": "test"}) + "\n")
    write(tmp_path, "train/5.jpg")
    write(tmp_path, "6.jpg")
    write(tmp_path, "notes/todo.txt", "no picture, so no label of others")
    rows, rejects = read(tmp_path)
    found = [(row.get("id"), row["split"], row["label"]) for row in rows]
    assert found == [
        ("Val/joy/3.png", "Val", ("joy",)),
        ("test/anger/4.mp4", "test", ("anger",)),
        ("train/anger/deep/2.JPG", "train", ("anger",)),
        (None, "train", ("joy",)),
    ]
    assert [(reject.id, reject.code) for reject in rejects] == [
        ("6.jpg", "label-missing"), ("notes/todo.txt", "label-missing"), ("train/5.jpg", "label-missing"),
    ]  # fmt: skip
    assert rejects[2].message == "train/5.jpg: lies in no sub-folder of train, whose name would be its label"


@pytest.mark.parametrize("names", [("train/1.jpg", "test/joy/2.jpg"), ("train/joy/1.jpg", "holiday/joy/2.jpg")])
def test_sub_folders_that_only_look_like_splits_are_labels(tmp_path, names):
    for name in names:
        write(tmp_path, name)
    rows, rejects = read(tmp_path)
    assert sorted(row["label"] for row in rows) == sorted((name.split("/")[0],) for name in names)
    assert not any("split" in row for row in rows)
    assert rejects == []


def test_splits_as_folders_are_kept(tmp_path):
    for number in range(12):
        split, label = ("train", "val", "test")[number % 3], ("joy", "anger")[number // 3 % 2]
        picture = tmp_path / "photos" / split / label / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 20 + 10 * number).save(picture)
    profile = ingest([tmp_path / "photos"], tmp_path / "out", IngestOptions(format="class-folders")).profile
    assert profile["splits"] == {"train": 4, "validation": 4, "test": 4}
    assert profile["labels"]["train"] == {"anger": 2, "joy": 2}


def test_a_folder_without_labels_is_told_of_class_folders(tmp_path):
    write(tmp_path, "photos/joy/1.jpg")
    write(tmp_path, "photos/anger/1.jpg")
    with pytest.raises(
        BadInputError, match=r"Are the labels the sub-folders' names \(anger, joy\)\? --format class-folders"
    ):
        ingest([tmp_path / "photos"], tmp_path / "out")
    write(tmp_path, "flat/1.jpg")
    with pytest.raises(BadInputError, match=r"label-missing(?!.*class-folders)"):
        ingest([tmp_path / "flat"], tmp_path / "out")
