"""Folders of classes: the name of the first-level sub-folder is the label."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labeler.artifacts import BadInputError
from labeler.records import Reject, Row, record_from
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
