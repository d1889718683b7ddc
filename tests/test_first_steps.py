"""What a newcomer does first: sheets as spreadsheets write them, folders of key frames, fields that are not there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from labeler.errors import BadInputError, UsageError
from labeler.ingest_options import IngestOptions
from labeler.ingestion import ingest
from labeler.records import find_field, read_records
from labeler.sources import named_format


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    return path


def rows_of(count, **more):
    return [{"text": f"text {n}", "label": "ab"[n % 2]} | more for n in range(count)]


@pytest.mark.parametrize(
    ("given", "match"),
    [({"group_by": "user"}, r"--group-by: no row has the field 'user' \(for group\)$"),
     ({"label": "mood"}, r"--label: no row has the field 'mood' \(for labels\); there are also: text, label$"),
     ({"mapping": {"image": "photo"}}, r"--map: no row has the field 'photo' \(for image\)$")],
)  # fmt: skip
def test_a_field_that_no_row_has_is_an_error_where_rows_have_no_other(tmp_path, given, match):
    source = write_rows(tmp_path / "pairs.jsonl", rows_of(30))
    with pytest.raises(UsageError, match=match):
        ingest([source], tmp_path / "records", IngestOptions(**given))


def test_so_it_is_for_a_folder(tmp_path):
    for number in range(24):
        draw(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", number)
    options = IngestOptions(format="class-folders", group_by="nobody")
    with pytest.raises(UsageError, match="--group-by: no row has the field 'nobody'"):
        ingest([tmp_path / "pictures"], tmp_path / "records", options)


def test_frames_of_a_video_stay_together_where_its_folder_is_the_group(tmp_path):
    for number in range(60):
        draw(tmp_path / "clips" / "ab"[number % 2] / f"video-{number // 4}" / f"frame-{number}.png", number)
    options = IngestOptions(format="class-folders", group_by="folder")
    profile = ingest([tmp_path / "clips"], tmp_path / "records", options).profile
    splits = {}
    for record in read_records(tmp_path / "records"):
        splits.setdefault(record.id.rpartition("/")[0], set()).add(record.split)
    assert profile["groups"] == len(splits) == 30
    assert all(len(found) == 1 for found in splits.values())


def test_pictures_that_lie_in_no_folder_are_in_no_group(tmp_path):
    for number, name in enumerate(("a/0.png", "1.png", "2.png", "a/3.png")):
        draw(tmp_path / "clips" / name, number)
    options = IngestOptions(allow_unlabelled=True, group_by="folder")
    ingest([tmp_path / "clips"], tmp_path / "records", options)
    found = {record.id: record.group for record in read_records(tmp_path / "records")}
    assert found["a/0.png"] == found["a/3.png"]
    assert len(set(found.values())) == 3


def test_a_table_beside_pictures_is_told_from_a_broken_picture(tmp_path, labeler):
    for number in range(8):
        draw(tmp_path / f"clips/video-{number // 4}/{number}.png", number)
    (tmp_path / "clips/video-0/info.JSON").write_text("{}")
    done = labeler("ingest", tmp_path / "clips", "--out", tmp_path / "records", "--allow-unlabelled")
    assert done.code == 4
    [reject] = map(json.loads, (tmp_path / "records/rejects.jsonl").read_text().splitlines())
    assert (reject["id"], reject["code"]) == ("video-0/info.JSON", "image-unreadable")
    assert reject["message"].endswith("name a table as a source of its own, or put what it says into a metadata.jsonl")


def test_labels_that_hold_another_look_like_several(tmp_path, labeler):
    moods = ["joy", "anger", "sadness", "fear", "anger, surprise"]
    rows = [{"text": f"text {n}", "label": moods[n % 5]} for n in range(100)]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert (
        "warning: 1 of 5 labels look like several each, such as 'anger, surprise': --label-separator ','?" in done.said
    )
    rows = [{"text": f"text {n}", "label": [*moods[:4], "food, drink"][n % 5]} for n in range(100)]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert "look like several" not in done.said


def test_ingest_says_what_the_rows_are_made_of(tmp_path, labeler):
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    rows = [row | ({"image": f"{n}.png"} if n < 3 else {}) for n, row in enumerate(rows_of(40, mood="calm", tags="x"))]
    rows += [{"image": "2.png", "label": "b"}]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert (
        "labels (one a row): b 21, a 20 rows: 3 with picture and text, 1 with a picture alone, 37 with a text alone"
        in done.said
    )
    assert "warning: fields that may hold labels too, and were not read: tags: --label FIELD takes one" in done.said
    done = labeler("ingest", tmp_path / "pairs.jsonl", "--out", tmp_path / "records", "--label", "label")
    assert "may hold labels too" not in done.said


@pytest.mark.parametrize(
    ("ours", "names", "found"),
    [("image", ["File Name", "Caption"], "File Name"), ("image", ["FILE-NAME"], "FILE-NAME"),
     ("labels", ["Emotion", "Category"], "Category"), ("labels", ["Category", "category"], "category"),
     ("text", ["first name"], None)],
)  # fmt: skip
def test_fields_are_found_in_the_order_that_the_guide_names(ours, names, found):
    assert find_field(names, ours, {}) == found


def test_columns_and_rows_that_a_spreadsheet_leaves_empty_are_passed_over(tmp_path):
    lines = [
        ";;;;",
        "Text;Label;;note;",
        *(f"text {n};{'ab'[n % 2]};;;" for n in range(30)),
        ";;;;",
        "last;a;odd;;",
        ";;;;",
    ]
    (tmp_path / "sheet.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    profile = ingest([tmp_path / "sheet.csv"], tmp_path / "records").profile
    assert (profile["rows"], profile["kept"], profile["rejected"]) == (31, 31, 0)
    found = {record.text: record.meta for record in read_records(tmp_path / "records")}
    assert found["last"] == {"column 3 (no name)": "odd", "note": ""}
    assert found["text 3"] == {"note": ""}


def test_an_empty_row_counts_in_a_sheets_numbers(tmp_path):
    lines = ["text,label", *(f"text {n},{'ab'[n % 2]}" for n in range(30)), ",", "too,many,cells"]
    (tmp_path / "sheet.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ingest([tmp_path / "sheet.csv"], tmp_path / "records")
    [reject] = map(json.loads, (tmp_path / "records/rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["code"]) == (33, "cell-count")


def test_pictures_that_are_not_there_bring_the_options_that_help(tmp_path, labeler):
    rows = [row | {"image": f"{n}.png"} for n, row in enumerate(rows_of(5))]
    rows[0]["image"] = "https://x.example/0.png"
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert done.code == 3
    assert "0.png: no such file; pictures are not fetched from the web" in done.said
    assert "(image-missing 5)" in done.said
    assert "--image-folder DIR says where pictures lie; --allow-missing-image reads the texts without them" in done.said


@pytest.mark.parametrize(
    ("name", "hint"), [("a.xlsx", "save the sheet as CSV UTF-8"), ("a.txt", "or name a table .csv")]
)
def test_a_sheet_that_is_not_read_brings_a_way(name, hint):
    with pytest.raises(BadInputError, match=hint):
        named_format(name)
