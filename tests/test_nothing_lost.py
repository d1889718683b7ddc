"""What a source holds is read, or it is said to be left out: names that no row has, links, indexes, spellings, our own output."""

from __future__ import annotations

import json
import tracemalloc
import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labeler.artifacts import read_manifest
from labeler.errors import UsageError
from labeler.export_tasks import export_tasks
from labeler.ingestion import IngestOptions, ingest
from labeler.items import ItemReading, key_of, read_item
from labeler.preprocessing import preprocess
from labeler.records import Reject, Row, read_records
from labeler.rows.looks import enough, look_groups
from labeler.rows.splits import components
from labeler.sources import Reading, read_source
from labeler.values import parse_labels


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def dialogues(count=40, **more):
    return [{"id": f"r{n}", "text": f"line {n} of {n // 4}", "label": "ab"[n % 2], "dialogue": f"d{n // 4}", **more}
            for n in range(count)]  # fmt: skip


def draw(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.mark.parametrize(
    ("given", "match"),
    [({"label": "mood"}, r"--label: no row has the field 'mood' \(for labels\); there are also: .*dialogue"),
     ({"group_by": "dialog"}, r"--group-by: no row has the field 'dialog' \(for group\); there are also: dialogue"),
     ({"mapping": {"split": "fold"}}, r"--map: no row has the field 'fold' \(for split\)"),
     ({"mapping": {"image": "photo"}}, r"--map: no row has the field 'photo' \(for image\)")],
)  # fmt: skip
@pytest.mark.parametrize("text", ["plain", "größer"])  # one that is read column by column, and one that is not
def test_a_field_that_no_row_has_is_an_error(tmp_path, given, match, text):
    rows = [row | {"text": f"{row['text']} {text}"} for row in dialogues()]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UsageError, match=match):
        ingest([source], tmp_path / "records", IngestOptions(**given))
    assert not (tmp_path / "records").exists()
    ingest([source], tmp_path / "records", IngestOptions(group_by="dialogue", mapping={"text": "text"}))
    splits = {}
    for record in read_records(tmp_path / "records"):
        splits.setdefault(record.group, set()).add(record.split)
    assert len(splits) == 10
    assert all(len(found) == 1 for found in splits.values())


def test_names_count_in_capitals_or_not_and_semicolons_are_separators(tmp_path):
    rows = [f"r{n};line {n}, and more;{'ab'[n % 2]}" for n in range(30)]
    (tmp_path / "table.csv").write_text("\n".join(["ID;Text;SENTIMENT", *rows]) + "\n", encoding="utf-8")
    assert ingest([tmp_path / "table.csv"], tmp_path / "records").profile["kept"] == 30
    found = {record.id: (record.text, record.labels) for record in read_records(tmp_path / "records")}
    assert found["r3"] == ("line 3, and more", ("b",))


def test_fields_that_options_name_are_found_in_capitals_or_not(tmp_path):
    rows = [{"words": f"text {n}", " Mood": "ab"[n % 2], "Who": f"w{n % 9}", "Text ": "no"} for n in range(30)]
    options = IngestOptions(label="mood", mapping={"text": "Words"}, group_by="WHO")
    profile = ingest([write_rows(tmp_path / "a.jsonl", rows)], tmp_path / "a", options).profile
    assert (profile["kept"], profile["groups"], set(profile["unused_fields"])) == (30, 9, {"Text "})
    both = [{"text": f"text {n}", "Mood": "ab"[n % 2], "mood": "c"} for n in range(30)]
    with pytest.raises(UsageError, match="--label: no row has the field 'MOOD'"):
        ingest([write_rows(tmp_path / "b.jsonl", both)], tmp_path / "b", IngestOptions(label="MOOD"))


def test_nothing_usable_says_what_the_fields_are(tmp_path, labeler):
    source = write_rows(tmp_path / "pairs.jsonl", [{"t": f"text {n}", "mood": "ab"[n % 2]} for n in range(9)])
    done = labeler("ingest", source, "--out", tmp_path / "records")
    assert done.code == 3
    assert (
        "no usable row among 9 (empty 9); the first, line 1: neither an image nor a text. Fields: t, mood; --label"
        in done.said
    )


def test_of_several_faults_the_commonest_is_shown(tmp_path, labeler):
    rows = [{"image": f"{n}.png", "text": "x", "label": "ab"[n % 2]} for n in range(6)]
    source = write_rows(tmp_path / "pairs.jsonl", [{"text": "no label"}, *rows])
    other = write_rows(tmp_path / "more.jsonl", [{"image": "7.png", "label": "a"}])
    said = labeler("ingest", source, other, "--out", tmp_path / "records").said
    assert (
        f"{source}, {other}: no usable row among 8 (image-missing 7, label-missing 1); the first image-missing, line 2: "
        in said
    )
    assert "0.png: no such file" in said
    assert "--allow-unlabelled" not in said


def test_a_refused_row_is_named_by_its_id_whatever_that_is_called(tmp_path, labeler):
    rows = [{"UID": str(n), "text": f"text {n}", "label": "ab"[n % 2]} for n in range(30)]
    source = write_rows(tmp_path / "pairs.jsonl", [*rows, {"UID": "x-1", "text": "no label"}])
    labeler("ingest", source, "--out", tmp_path / "records")
    [reject] = map(json.loads, (tmp_path / "records" / "rejects.jsonl").read_text(encoding="utf-8").splitlines())
    assert (reject["id"], reject["code"]) == ("x-1", "label-missing")
    assert Row("t.csv", 3, {"tweet": "x-2"}).shown_id({"id": "Tweet"}) == "x-2"
    assert read_item(Row("t.csv", 3, {"tweet": "x-2"}), ItemReading({"id": "tweet"})).record.id == "x-2"


def test_a_caption_that_most_rows_share_is_told_of(tmp_path, labeler):
    rows = [{"text": "Untitled" if n < 80 else f"text {n}", "id": n, "label": "ab"[n % 2]} for n in range(200)]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert (
        "warning: 80 rows share a picture, a text or a group, and so lie in one split, whatever its share" in done.said
    )
    rows = [row | {"text": f"text {row['id'] // 2}"} for row in rows]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "other")
    assert "so lie in one split" not in done.said


def test_a_column_that_is_not_taken_for_a_picture_is_asked_about(tmp_path, labeler):
    rows = [{"photo": f"{n}.png", "text": f"text {n}", "label": "ab"[n % 2]} for n in range(30)]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert done.code == 0
    assert "warning: no row has a picture; is it in one of these fields? photo: --map image=FIELD" in done.said
    assert "warning: 4 rows in test: too few to tell how good a model is" in done.said


@pytest.mark.parametrize("sign", [", ", ";"])
def test_labels_that_look_like_several_are_asked_about(tmp_path, labeler, sign):
    moods = [sign.join(names) for names in (("joy", "calm"), ("joy", "fear"), ("calm", "fear"))] + ["joy"]
    rows = [{"text": f"text {n}", "label": moods[n % 4]} for n in range(40)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    done = labeler("ingest", source, "--out", tmp_path / "records")
    said = f"3 of 4 labels look like several each, such as 'joy{sign}calm': --label-separator '{sign.strip()}'?"
    assert f"warning: {said}" in done.said
    for option in (("--task", "single"), ("--label-separator", sign.strip())):
        done = labeler("ingest", source, "--out", tmp_path / "records", *option)
        assert done.code == 0
        assert "look like several" not in done.said


def test_labels_that_differ_in_how_they_are_written_alone_are_asked_about(tmp_path, labeler):
    moods = ["Joy", "joy", "JOY", "1", "1.0", "No ", "no", "a  b", "a B", "fear", "2", "12"]
    rows = [{"text": f"text {n}", "label": moods[n % 12]} for n in range(48)]
    done = labeler("ingest", write_rows(tmp_path / "pairs.jsonl", rows), "--out", tmp_path / "records")
    assert (
        "may be one, written in several ways: '1', '1.0'; 'JOY', 'Joy', 'joy'; 'No', 'no'; ...: they stay" in done.said
    )
    profile = json.loads((tmp_path / "records/profile.json").read_text())
    assert profile["labels_alike"][3] == ["a  b", "a B"]
    assert len(profile["labels"]["train"]) == 12


@pytest.mark.parametrize(("labels", "split", "said"), [
    (60, "auto", "'m0', has 1; a label needs 7 or more that"), (60, "1/4", "'m0', has 1; a label needs 11 or more that"),
    (8, "auto", ""), (60, "1,0,0", ""),
])  # fmt: skip
def test_labels_too_rare_for_the_splits_are_said_with_what_is_needed(tmp_path, labeler, labels, split, said):
    rows = [{"text": f"text {n}", "label": f"m{n % labels}"} for n in range(60)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    done = labeler("ingest", source, "--out", tmp_path / "records", "--split", split)
    assert done.code == 0
    found = "no label has enough rows to be in every split: the most frequent, "
    assert not said or found + said in done.said
    assert (found in done.said) == bool(said)
    assert "0 rows in test" not in done.said


def test_a_split_that_was_given_no_share_is_not_called_too_small(tmp_path, labeler):
    source = write_rows(tmp_path / "pairs.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)])
    done = labeler("ingest", source, "--out", tmp_path / "records", "--split", "0,0,1")
    assert done.code == 0
    assert "in train" not in done.said
    assert "in validation" not in done.said
    assert "warning: 12 rows in test: too few to tell how good a model is" in done.said


def test_the_label_is_mapped_by_either_of_its_names(tmp_path, labeler):
    rows = [{"text": f"text {n}", "Stimmung": "ab"[n % 2], "Art": "cd"[n % 2]} for n in range(30)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    for name in ("label", "labels"):
        done = labeler("ingest", source, "--out", tmp_path / name, "--map", f"{name}=Stimmung")
        assert done.code == 0
        assert next(read_records(tmp_path / name)).labels == ("a",)
    done = labeler("ingest", source, "--out", tmp_path / "out", "--map", "label=Stimmung", "--map", "labels=Art")
    assert done.code == 2
    assert "labels is taken from one field, not from 'Stimmung' and 'Art'" in done.said


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        (
            "pets",
            ["--format", "class-folders", "--label", "foo"],
            "--label foo: the labels of class folders are the folders'",
        ),
        ("pets", ["--format", "class-folders", "--map", "label=foo"], "--label foo: the labels of class folders"),
        (
            "pets",
            ["--format", "class-folders", "--map", "text=xx"],
            "--map text=xx: pictures in folders have no fields without",
        ),
        ("pairs.csv", ["--frames", "3"], "--frames 3 is for MELD"),
        ("pairs.jsonl", ["--encoding", "cp1252"], "--encoding cp1252 is for csv, MELD and texts"),
        ("pairs.csv", ["--label", "red", "--label", "green"], "expected once, not with 'red' and 'green'"),
    ],
)
def test_an_option_that_would_do_nothing_is_an_error(tmp_path, labeler, source, given, said):
    draw(tmp_path / "pets/cat/0.png")
    draw(tmp_path / "pets/dog/0.png", 1)
    (tmp_path / "pairs.csv").write_text("text,label\na,x\nb,y\n")
    write_rows(tmp_path / "pairs.jsonl", [{"text": name, "label": name} for name in "ab"])
    done = labeler("ingest", tmp_path / source, "--out", tmp_path / "records", *given)
    assert done.code == 2
    assert said in done.said
    assert labeler("ingest", tmp_path / "pairs.csv", "--label", "label", "--out", tmp_path / "records").code == 0


def test_a_linked_folder_is_said_and_not_followed(tmp_path):
    for name in ("in/cat/0.png", "in/cow/0.png", "out/0.png"):
        draw(tmp_path / name)
    (tmp_path / "in/dog").symlink_to(tmp_path / "out")
    rows = list(read_source(tmp_path / "in", Reading(format="class-folders")))
    (reject,) = [row for row in rows if isinstance(row, Reject)]
    assert (reject.id, reject.code) == ("dog", "folder-linked")
    assert "name its target as a source of its own" in reject.message
    assert [row.fields["label"] for row in rows if row is not reject] == [("cat",), ("cow",)]


def test_an_output_inside_its_source_is_no_data(tmp_path):
    for number, name in enumerate("abcdef"):
        draw(tmp_path / f"pictures/{'xy'[number % 2]}/{name}.png", number)
    options = IngestOptions(format="class-folders")
    for _ in range(2):
        done = ingest([tmp_path / "pictures"], tmp_path / "pictures/records", options)
        assert (done.profile["rows"], done.profile["rejected"]) == (6, 0)
    assert done.already
    (tmp_path / "pictures/x/manifest.json").write_text("{}", encoding="utf-8")  # somebody's own
    [manifest, *pictures] = sorted(read_source(tmp_path / "pictures/x"), key=lambda row: not isinstance(row, Reject))
    assert (manifest.id, len(pictures)) == ("manifest.json", 3)


def test_the_index_of_a_parquet_table_is_a_column(tmp_path):
    frame = pd.DataFrame({"id": ["p", "q"], "text": ["one", "two"], "label": ["a", "b"]})
    frame.set_index("id").to_parquet(tmp_path / "named.parquet")
    frame[frame.id != "none"].iloc[::-1].to_parquet(tmp_path / "numbered.parquet")
    named = [row.fields for row in read_source(tmp_path / "named.parquet")]
    assert [row["id"] for row in named] == ["p", "q"]
    assert [set(row.fields) for row in read_source(tmp_path / "numbered.parquet")] == [{"id", "text", "label"}] * 2


def test_pictures_may_lie_in_a_folder_of_their_own(tmp_path, labeler):
    for number, name in enumerate(("photos/x/0.png", "photos/1.png", "outside.png", "tables/1.png")):
        draw(tmp_path / name, number)
    names = ["x/0.png", "1.png", "../outside.png", str(tmp_path / "photos/1.png")]
    rows = [{"id": str(n), "image": name, "text": f"text {n}", "label": "ab"[n % 2]} for n, name in enumerate(names)]
    (tmp_path / "tables").mkdir(exist_ok=True)
    sources = [write_rows(tmp_path / "tables/a.jsonl", rows[:2]), write_rows(tmp_path / "b.jsonl", rows[2:])]
    given = IngestOptions(image_folder=tmp_path / "photos")
    result = ingest(sources, tmp_path / "records", given)
    assert result.profile["rejects"] == {"image-outside": 1}
    assert result.profile["root"] == "../photos"
    kept = {record.id: record.image for record in read_records(tmp_path / "records")}
    assert kept == {"0": "x/0.png", "1": "1.png", "3": "1.png"}
    assert ingest(sources, tmp_path / "records", given).already
    assert read_manifest(tmp_path / "records")["arguments"]["image_folder"] == str(tmp_path / "photos")
    assert ingest(sources, tmp_path / "all", replace(given, allow_outside=True)).profile["rejected"] == 0
    how = ItemReading({}, image_folder=tmp_path / "photos")
    read = [read_item(row, how) for row in read_source(sources[0])]
    assert [item.path for item in read] == [tmp_path / "photos/x/0.png", tmp_path / "photos/1.png"]
    [row] = list(read_source(sources[0]))[1:]
    key = key_of(row, how)
    draw(tmp_path / "photos/1.png", 9)
    assert key_of(row, how) != key
    done = labeler("ingest", *sources, "--image-folder", tmp_path / "photos", "--out", tmp_path / "more")
    assert done.code == 4
    done = labeler("ingest", tmp_path / "photos", "--image-folder", tmp_path, "--out", tmp_path / "more")
    assert done.code == 2
    assert "--image-folder is for tables, whose rows name pictures;" in done.said
    done = labeler("ingest", *sources, "--image-folder", tmp_path / "none", "--out", tmp_path / "more")
    assert done.code == 3
    assert "none: no such folder" in done.said


def test_a_picture_is_found_by_its_path_on_windows(tmp_path):
    names = [r"bilder\0.png", r"bilder\tief\übung 1.png", r"odd\name.png", r"..\outside.png", r"bilder\gone.png"]
    for number, name in enumerate(
        ("bilder/0.png", "bilder/tief/übung 1.png", r"odd\name.png", "odd/name.png", "../outside.png")
    ):
        draw(tmp_path / "in" / name, number)
    rows = [{"id": str(n), "image": name, "label": "ab"[n % 2]} for n, name in enumerate(names)]
    source = write_rows(tmp_path / "in/rows.jsonl", rows)
    profile = ingest([source], tmp_path / "records").profile
    assert profile["rejects"] == {"image-outside": 1, "image-missing": 1}
    kept = {record.id: record.image for record in read_records(tmp_path / "records")}
    assert kept == {"0": "bilder/0.png", "1": "bilder/tief/übung 1.png", "2": r"odd\name.png"}
    read = [read_item(row, ItemReading({})) for row in read_source(source)]
    assert [item.error is None for item in read] == [True, True, True, False, True]
    assert read[0].path == tmp_path / "in/bilder/0.png"
    metadata = [{"file_name": r"tief\übung 1.png", "label": "a"}]
    write_rows(tmp_path / "in/bilder/metadata.jsonl", metadata)
    assert [row.fields.get("file_name") for row in read_source(tmp_path / "in/bilder")] == ["tief/übung 1.png", None]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_pictures_are_found_in_either_form_of_unicode(tmp_path, form, listed):
    names = [f"été {number}.png" for number in range(4)]
    for number, name in enumerate(names):
        draw(tmp_path / "in" / unicodedata.normalize(form, name), number)
    rows = [{"image": f" {unicodedata.normalize(listed, name)} ", "text": name, "label": "ab"[number % 2]}
            for number, name in enumerate(names)]  # fmt: skip
    write_rows(tmp_path / "in/pairs.jsonl", rows)
    assert ingest([tmp_path / "in/pairs.jsonl"], tmp_path / "records").profile["rejected"] == 0
    (tmp_path / "in/pairs.jsonl").unlink()
    write_rows(tmp_path / "in/metadata.jsonl", rows)
    assert len(list(read_source(tmp_path / "in"))) == 4, "no picture comes a second time"
    [row, *_] = read_source(tmp_path / "in")
    key = key_of(row, ItemReading({}))
    draw(tmp_path / "in" / unicodedata.normalize(form, names[0]), 9)
    assert key_of(row, ItemReading({})) != key
    (tmp_path / "in/metadata.jsonl").unlink()
    records = list(read_source(tmp_path / "in"))
    assert sorted(row.fields["image"] for row in records) == sorted(unicodedata.normalize(form, name) for name in names)


def test_many_copies_of_one_picture_take_no_memory_by_their_pairs():
    hashes = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32), np.uint8), 3000, axis=0)
    hashes[np.arange(3000), np.arange(3000) % 32] ^= (1 << (np.arange(3000) // 32 % 8)).astype(np.uint8)
    hashes[:, 0] = (np.arange(3000) // 256).astype(np.uint8)
    tracemalloc.start()
    groups = look_groups(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6
    assert len(np.unique(groups)) < 20
    a, b = (np.random.default_rng(seed).integers(0, 60, 90) for seed in (1, 2))
    np.testing.assert_array_equal(components(*enough(a, b), 60), components(a, b, 60))
    assert len(enough(a, b)[0]) < 60


def test_blank_is_unlabelled_and_no_separator_is_one_label():
    assert parse_labels("  ", "|") is None
    assert parse_labels("rock|roll", "") == ("rock|roll",)
    assert parse_labels("[]", "|") == ()


def test_unlabelled_rows_of_a_store_stay_unlabelled_and_those_without_labels_stay_without(
    tmp_path, text_tower, image_tower
):
    rows = [{"id": f"r{n}", "text": f"text {n}", "labels": [["a"], ["b"], [], None][n % 4]} for n in range(16)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    options = IngestOptions(allow_unlabelled=True, task="multi")
    ingest([source], tmp_path / "records", options)
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower)}
    store = preprocess(tmp_path / "records", tmp_path / "store", **towers).out
    again = {row.fields["id"]: row.fields["labels"] for row in read_source(store / "pairs.lance")}
    assert {tuple(again[f"r{n}"]) for n in (2, 6, 10)} == {()}
    assert {again[f"r{n}"] for n in (3, 7, 11)} == {None}
    export_tasks(tmp_path / "records", tmp_path / "tasks.json")
    tasks = {task["data"]["id"]: task for task in json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))}
    assert tasks["r2"]["annotations"] == [{"result": []}]
    assert "annotations" not in tasks["r3"]


def test_a_dataset_with_a_rejected_picture_is_already_made_the_second_time(tmp_path):
    import lance
    import pyarrow

    good = [draw(tmp_path / f"{number}.png", number).read_bytes() for number in range(8)]
    good[3] = good[3][:200]
    table = pyarrow.table({"image": good, "text": [f"text {n}" for n in range(8)], "label": list("abababab")})
    lance.write_dataset(table, str(tmp_path / "pairs.lance"))
    first = ingest([tmp_path / "pairs.lance"], tmp_path / "records")
    assert (first.profile["rejected"], first.already) == (1, False)
    assert ingest([tmp_path / "pairs.lance"], tmp_path / "records").already
    assert read_manifest(tmp_path / "records", "ingest")


def test_a_mapping_reaches_the_metadata_of_a_folder(tmp_path):
    for number in range(4):
        draw(tmp_path / f"in/sub/{number}.png", number)
    write_rows(tmp_path / "in/sub/metadata.jsonl",
               [{"photo": f"{n}.png", "text": f"text {n}", "label": "ab"[n % 2]} for n in range(4)])  # fmt: skip
    done = ingest([tmp_path / "in"], tmp_path / "records", IngestOptions(mapping={"image": "photo"}))
    assert (done.profile["rows"], done.profile["rejected"]) == (4, 0)
    assert {record.image for record in read_records(tmp_path / "records")} == {f"sub/{n}.png" for n in range(4)}
