"""Several rows or files about one pair, moved sources, and errors that say why rows were left out."""

from __future__ import annotations

import json
import shutil

import pytest
from test_nothing_lost import draw, write_rows

from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.items import ItemReading, read_items
from labeler.preprocessing import preprocess
from labeler.records import Reject, read_records
from labeler.rows import chunks
from labeler.sources import read_source


def test_metadata_without_texts_has_those_beside_the_pictures(tmp_path):
    for n in range(4):
        draw(tmp_path / f"in/{n}.png", n)
        (tmp_path / f"in/{n}.txt").write_text(f"caption {n}")
    rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in range(3)] + [
        {"file_name": "3.png", "text": "own", "label": "a"}
    ]
    write_rows(tmp_path / "in/metadata.jsonl", [*rows, {"file_name": "../4.png", "label": "b", "text": None}])
    found = list(read_source(tmp_path / "in"))
    assert [row.fields["text"] for row in found[:4]] == ["caption 0", "caption 1", "caption 2", "own"]
    assert found[4].fields["text"] is None
    (tmp_path / "in/1.txt").write_bytes(bytes(range(256)))
    assert [(item.id, item.code) for item in read_source(tmp_path / "in") if isinstance(item, Reject)] == [
        ("1.png", "text-unreadable")
    ]


def test_of_a_row_in_two_splits_the_test_split_keeps_its_copy(tmp_path):
    rows = [{"id": str(n), "text": f"text {n}", "label": "ab"[n % 2], "split": split}
            for n, split in [(1, "train"), (2, "test"), (2, "train"), (3, "train"), (3, "test"), (1, "train"), (4, "test"),
                             (5, "train"), (5, "validation")]]  # fmt: skip
    done = ingest([write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "records", IngestOptions(split="keep"))
    assert {row.id: row.split for row in read_records(tmp_path / "records")} == {
        "1": "train", "2": "test", "3": "test", "4": "test", "5": "validation"}  # fmt: skip
    assert done.profile["rejects"] == {"duplicate": 4}


def test_sources_that_were_moved_are_found_by_the_next_stage(tmp_path, text_tower, image_tower):
    for n in range(6):
        draw(tmp_path / f"src/{n}.png", n)
    write_rows(tmp_path / "src/a.jsonl", [{"image": f"{n}.png", "label": "ab"[n % 2]} for n in range(6)])
    first = ingest([tmp_path / "src/a.jsonl"], tmp_path / "out")
    shutil.move(tmp_path / "src", tmp_path / "archive")
    again = ingest([tmp_path / "archive/a.jsonl"], tmp_path / "out")
    assert (first.profile["root"], again.profile["root"], again.already) == ("../src", "../archive", False)
    assert ingest([tmp_path / "archive/a.jsonl"], tmp_path / "out").already
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk/deep")
    ingest([tmp_path / "archive/a.jsonl"], tmp_path / "data/records")
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower)}
    assert preprocess(tmp_path / "data/records", tmp_path / "data/store", **towers).rows == 6


def test_too_few_labels_are_told_with_why_rows_were_left_out(tmp_path):
    rows = [{"image": f"{n}.png", "label": "a"} for n in range(3)] + [{"text": "x", "label": "b"}]
    with pytest.raises(
        BadInputError,
        match=r"only the label 'b' occurs .* \(image-missing 3\); the first, line 1: .*0\.png: no such",
    ):
        ingest([write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "records")


def test_where_no_line_can_be_read_that_is_said_and_not_that_a_field_is_missing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"mood": "x", "text": "a"\n{"mood": "y" "text": "b"}\n')
    with pytest.raises(BadInputError, match=r"no usable row among 2 \(not-json 2\); the first, line 1: not JSON"):
        ingest([tmp_path / "a.jsonl"], tmp_path / "records", IngestOptions(label="mood"))


@pytest.mark.parametrize(
    ("line", "text"),
    [("{'id': 1, 'text': 'it''s', 'label': 'a'}", None), ('{"id": "1", "text": "he said ""no""", "label": "x"}', None),
     ("{'id': 1, 'text': '', 'label': 'a'}", ""), ("""{'id': 1, 'text': 'a " "b"', 'label': 'a'}""", 'a " "b"')],
)  # fmt: skip
def test_strings_side_by_side_are_not_joined(tmp_path, line, text):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    [found] = read_source(tmp_path / "a.jsonl")
    if text is None:
        assert (found.code, found.message[:9]) == ("not-json", "not JSON:")
    else:
        assert found.fields["text"] == text


def test_the_closest_label_is_looked_for_once(tmp_path, monkeypatch):
    rows = [{"id": n, "text": f"t {n}", "label": ["joy", "anger", "jy"][n % 3]} for n in range(30)]
    (tmp_path / "labels.txt").write_text("joy\nanger\n")
    real, looked = chunks.closest, []
    monkeypatch.setattr("labeler.rows.chunks.closest", lambda *given: looked.append(given[0]) or real(*given))
    ingest(
        [write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "records", IngestOptions(labels=tmp_path / "labels.txt")
    )
    rejects = [json.loads(line) for line in (tmp_path / "records/rejects.jsonl").read_text().splitlines()]
    assert rejects[0]["message"].endswith("the closest is 'joy'")
    assert (len(rejects), looked) == (10, ["jy"])


def test_no_two_items_of_a_source_share_a_made_up_id(tmp_path):
    lines = '{"text": "a"}\n\n[1]\n{"text": "b"}\n'
    (tmp_path / "bl.jsonl").write_text(lines)
    (tmp_path / "bl.csv").write_text('text,label\na,x\n\nb\nc,x\n"d"e,x\nf,x\n')
    for name in ("in", "in/one", "in/two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text(lines)
    for name, count in (("bl.jsonl", 3), ("bl.csv", 5), ("in", 9)):
        ids = [item.record.id for item in read_items(read_source(tmp_path / name), ItemReading({}), 32)]
        assert len(set(ids)) == len(ids) == count, ids


def test_ids_that_repeat_in_all_rows_are_what_is_wrong(tmp_path):
    rows = [{"id": n % 2, "text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)]
    with pytest.raises(
        BadInputError,
        match=r"^none of 6 rows is kept \(id-conflict 6\); the first, line 1: the id '0' stands on 3 rows .* id=FIELD",
    ):
        ingest([write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "records")


def test_a_link_to_a_folder_stands_on_no_line(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/far").symlink_to(tmp_path)
    [item] = read_items(read_source(tmp_path / "in"), ItemReading({}), 32)
    assert item.error.startswith("far: a link to a folder")
    with pytest.raises(BadInputError, match=r"\(folder-linked 1\); the first: far: a link to a folder"):
        ingest([tmp_path / "in"], tmp_path / "records")
    with pytest.raises(BadInputError, match=r"in: far: a link to a folder"):
        ingest([tmp_path / "in"], tmp_path / "records", IngestOptions(strict=True))
