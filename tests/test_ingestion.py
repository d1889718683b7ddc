"""Stage ingest: every row is kept or rejected with a reason, and no picture, text or group lies in two splits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from ingesting import kept, picture, rejected, rejects, row, write

from labeler.artifacts import sha256_file
from labeler.errors import BadInputError, UsageError
from labeler.ingestion import IngestOptions, ingest
from labeler.records import read_label_set


@pytest.fixture
def run(ingested):
    return ingested


def test_records_labels_and_profile_are_written(run, tmp_path):
    picture(tmp_path / "data" / "a.png", 0, side=30)
    result = run([row(1, image="a.png", likes=3), *map(row, range(2, 21))])
    assert not result.already
    first = kept(result)[0]
    assert (first.id, first.image, first.text, first.labels) == ("1", "a.png", "text number 1", ("joy",))
    assert first.meta == {"likes": 3, "image_sha256": sha256_file(tmp_path / "data" / "a.png")}
    labels = read_label_set(result.out)
    assert (labels.task, labels.names) == ("single", ["anger", "joy"])
    profile = result.profile
    assert profile["splits"] == {"train": 14, "validation": 3, "test": 3}
    assert profile["without_image"] == 19
    assert profile["image_width"] == {"min": 30, "median": 30, "p95": 30, "max": 30}
    assert profile["unused_fields"] == {"likes": 1}
    assert (result.out / profile["root"] / first.image).resolve() == (tmp_path / "data" / "a.png").resolve()
    assert sum(sum(counts.values()) for counts in profile["labels"].values()) == 20


def test_rows_that_cannot_be_used_are_rejected_with_their_lines(run, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "data" / "folder.jpg").mkdir()
    picture(tmp_path / "outside.png", 0)
    cut = picture(tmp_path / "data" / "cut.jpg", 1)
    cut.write_bytes(cut.read_bytes()[:300])
    bad = [
        ('{"id": "a", "text": "x", "label": NaN}', "not-json"), ('{"id": "b", "id": "c"}', "duplicate-key"),
        ("[]", "not-an-object"), (row(90, label=None), "label-missing"), (row(91, text=None), "empty"),
        (row(92, text="nul \0"), "text-invalid"), (row(93, split="holdout"), "split-unknown"),
        (row(94, image="../outside.png"), "image-outside"), (row(95, image="none.png"), "image-missing"),
        (row(96, image="page.jpg"), "image-unreadable"), (row(97, image="cut.jpg"), "image-unreadable"),
        (row(98, image="folder.jpg"), "image-unreadable"), (row(99, label=["joy", {"a": 1}]), "label-invalid"),
        (row(100, id="half \ud800"), "id-invalid"), ('{"id": "cut o', "not-json"),
    ]  # fmt: skip
    result = run([*map(row, range(10)), *(item for item, _ in bad)])
    assert sorted(rejected(result)) == [(line, code) for line, (_, code) in enumerate(bad, 11)]
    assert {item["id"] for item in rejects(result) if item["code"] == "image-missing"} == {"95"}
    assert all(item["message"] and item["source"].endswith("pairs.jsonl") for item in rejects(result))
    assert len(kept(result)) == 10


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"pairs\.jsonl:3: not JSON.*\[not-json\] \(--strict stops here\)"),
        (row(3, text=""), r"pairs\.jsonl:3: neither an image nor a text \[empty\]"),
        (row(3, image="none.png"), r"pairs\.jsonl:3: .*no such file \[image-missing\]"),
        (row(1, text="other"), r"the id '1' stands on 2 rows that differ \[id-conflict\]"),
    ],
)
def test_strict_stops_at_the_first_and_writes_nothing(run, tmp_path, bad, message):
    with pytest.raises(BadInputError, match=message):
        run([row(1), row(2), bad, row(4)], strict=True)
    assert not (tmp_path / "out").exists()


def test_the_same_row_twice_is_counted_once(run):
    result = run([row(1), row(2), row(1), row(3), row(1)])
    assert rejected(result) == [(3, "duplicate"), (5, "duplicate")]
    assert "the same row as" in rejects(result)[0]["message"]
    assert [record.id for record in kept(result)] == ["1", "2", "3"]


@pytest.mark.parametrize("change", [{"text": "other"}, {"label": "calm"}, {"likes": 4}])
def test_one_id_on_rows_that_differ_rejects_all_of_them(run, change):
    result = run([row(1), row(2), row(3), row(1, **change), row(1)])
    assert rejected(result) == [(1, "id-conflict"), (4, "id-conflict"), (5, "id-conflict")]
    assert [record.id for record in kept(result)] == ["2", "3"]


def test_rows_without_an_id_are_told_apart_by_picture_and_text(run, tmp_path):
    for folder in "ab":
        picture(tmp_path / folder / "1.png", ord(folder))
    captions = tmp_path / "a" / "captions.csv"  # as Flickr's: a row a caption
    captions.write_text(
        "image,caption,label\n1.png,one,joy\n1.png,two,anger\n1.png,one,joy\n1.png,three,joy\n1.png,three,fear\n"
    )
    other = tmp_path / "b" / "captions.csv"
    other.write_text("image,caption,label\n1.png,one,joy\n,words alone,anger\n,more words,joy\n")
    texts = tmp_path / "a" / "b" / "captions.csv"
    texts.parent.mkdir()
    texts.write_text("image,caption,label\n,here,joy\n,there,anger\n,where,joy\n")
    named = write(tmp_path / "named.jsonl", [row(1, id="captions.csv:3"), row(2, id="1.png#2")])
    result = run(sources=[captions, other, texts, named])
    assert [(record.id, record.image, record.text) for record in kept(result)] == [
        ("1.png", "a/1.png", "one"), ("1.png#2#", "a/1.png", "two"), ("1.png#3", "b/1.png", "one"),
        ("captions.csv:3#2", None, "words alone"), ("captions.csv:4", None, "more words"),
        ("captions.csv:2", None, "here"), ("captions.csv:3#3", None, "there"), ("captions.csv:4#2", None, "where"),
        ("captions.csv:3", None, "text number 1"), ("1.png#2", None, "text number 2"),
    ]  # fmt: skip
    assert rejected(result) == [(4, "duplicate"), (5, "id-conflict"), (6, "id-conflict")]
    assert (
        rejects(result)[1]["message"]
        == "the id '1.png' stands on 2 rows without an id that have this picture and text, and differ"
    )
    assert {record.group for record in kept(result) if record.image == "a/1.png"} == {"1.png"}
    assert kept(result)[1].split == kept(result)[0].split


def test_lists_of_captions_of_pictures_called_alike_are_told_apart(run, tmp_path):
    for folder in "ab":
        picture(tmp_path / folder / "1.png", ord(folder))
        write(tmp_path / folder / "rows.jsonl", [{"image": "1.png", "text": ["one", folder], "label": "joy"},
                                                 {"text": ["two", folder], "label": "fear"}])  # fmt: skip
    result = run(sources=[tmp_path / folder / "rows.jsonl" for folder in "ab"], caption="each")
    assert [(record.id, record.image, record.text) for record in kept(result)] == [
        ("1.png-1", "a/1.png", "one"), ("1.png-2", "a/1.png", "a"),
        ("rows.jsonl:2-1", None, "two"), ("rows.jsonl:2-2", None, "a"),
        ("1.png-1#2", "b/1.png", "one"), ("1.png-2#2", "b/1.png", "b"),
        ("rows.jsonl:2-1#2", None, "two"), ("rows.jsonl:2-2#2", None, "b"),
    ]  # fmt: skip
    assert not rejected(result)


def test_captions_without_a_value_of_their_group_are_their_picture_s_group(run, tmp_path):
    rows = [
        {"text": ["a b", "c d"], "label": "joy", "Author": None},
        {"text": ["e", "f"], "label": "joy", "Author": "x"},
    ]
    source = write(tmp_path / "rows.jsonl", [*rows, {"text": "g", "label": "fear", "Author": "y"}])
    groups = [record.meta["group"] for record in kept(run(sources=[source], caption="each", group_by="author"))]
    assert groups == ["rows.jsonl:1", "rows.jsonl:1", "x", "x", "y"]
    with pytest.raises(UsageError, match="no row has the field 'writer'"):
        run(sources=[source], out="none", caption="each", group_by="writer")


def test_a_field_called_group_that_is_not_the_group_is_carried_along(run):
    rows = [row(number, group=f"site-{number}", dialog=f"d{number // 2}") for number in range(6)]
    result = run(rows, group_by="dialog")
    assert kept(result)[3].meta == {"group": "site-3", "dialog": "d1"}
    assert kept(result)[2].group == kept(result)[3].group


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"label": "topic", "mapping": {"labels": "mood"}},
            "--map labels=mood and --label topic: expected one of them",
        ),
        (
            {"group_by": "user", "mapping": {"group": "site"}},
            "--map group=site and --group-by user: expected one of them",
        ),
    ],
)
def test_a_field_is_named_once(run, given, message):
    with pytest.raises(UsageError, match=message):
        run([row(1)], **given)


@pytest.mark.parametrize(
    ("take", "texts"), [("longest", ["a cat", "words", "only"]), ("each", ["a cat", "a", "words", "only"])]
)
def test_blank_captions_are_none(run, tmp_path, take, texts):
    lists = [["  " * 9, "a cat", "a" + " " * 9], ["", "words"], ["only", " "]]
    rows = [{"id": str(number), "text": captions, "label": "ab"[number % 2]} for number, captions in enumerate(lists)]
    result = run(sources=[write(tmp_path / "rows.jsonl", rows)], caption=take)
    assert [record.text for record in kept(result)] == texts
    assert result.profile["captions_left_out"] == (1 if take == "longest" else 0)


def test_a_missing_image_can_be_allowed_an_unreadable_one_cannot(run, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.png").write_bytes(b"no picture")
    rows = [row(1, image="no.png"), row(2), row(3, image="no.png", text=None), row(4), row(5, image="bad.png"), row(7)]
    bad = [(5, "image-unreadable")]
    assert rejected(run(rows)) == [(1, "image-missing"), (3, "image-missing"), *bad]
    result = run(rows, allow_missing_image=True)
    assert rejected(result) == [(3, "image-missing"), *bad], "without a text nothing is left of row 3"
    assert kept(result)[0].image is None
    assert kept(result)[0].text == "text number 1"
    assert result.profile["without_image"] == 4


def test_an_image_outside_can_be_allowed(run, tmp_path):
    picture(tmp_path / "outside.png", 0)
    rows = [row(1), row(2), row(3, image="../outside.png"), row(4, image=str(tmp_path / "outside.png"))]
    assert rejected(run(rows)) == [(3, "image-outside"), (4, "image-outside")]
    result = run(rows, allow_outside=True)
    assert rejected(result) == []
    assert [(result.out / result.profile["root"] / item.image).is_file() for item in kept(result)[2:]] == [True, True]


def test_an_image_outside_a_folder_that_is_a_link_is_the_one_that_opening_it_finds(tmp_path):
    wanted = picture(tmp_path / "disk" / "deep" / "outside.png", 0)
    for number, place in enumerate(("outside.png", "disk/other.png", "disk/deep/data/a.png"), 1):
        picture(tmp_path / place, number)
    source = tmp_path / "link" / "pairs.jsonl"
    names = ["../outside.png", "a.png", "album/../b.png", str(tmp_path / "link" / "a.png")]
    write(tmp_path / "disk/deep/data/pairs.jsonl", [row(number, image=name) for number, name in enumerate(names)])
    (tmp_path / "link").symlink_to(tmp_path / "disk/deep/data")
    (tmp_path / "disk/deep/data/album").symlink_to(tmp_path / "disk/deep")
    inner = picture(tmp_path / "disk" / "b.png", 7)
    result = ingest([source], tmp_path / "out" / "records", IngestOptions(allow_outside=True))
    assert rejected(result) == []
    found = [(result.out / result.profile["root"] / item.image).resolve() for item in kept(result)]
    assert found == [wanted, *[inner if name == 2 else tmp_path / "disk/deep/data/a.png" for name in (1, 2, 3)]]
    hashes = [sha256_file(path) for path in found]
    assert [item.meta["image_sha256"] for item in kept(result)] == hashes


def test_records_made_where_a_link_leads_to_name_their_pictures_from_there(run, tmp_path):
    picture(tmp_path / "data" / "a.png", 0)
    (tmp_path / "far" / "disk" / "records").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "disk" / "records")
    result = run([row(1, image="a.png"), row(2)])
    assert result.out.is_symlink()
    image = result.out / result.profile["root"] / kept(result)[0].image
    assert image.resolve() == tmp_path / "data" / "a.png"
    assert run([row(1, image="a.png"), row(2)]).already


def test_a_field_that_is_called_as_the_pictures_hash_leaves_one_of_that_name(run, tmp_path):
    picture(tmp_path / "data" / "a.png", 0)
    result = run([row(0, image="a.png", image_sha256="theirs"), row(1, image_sha256="theirs", more=1)])
    lines = (result.out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0].count('"image_sha256"') == 1
    assert kept(result)[0].meta == {"image_sha256": sha256_file(tmp_path / "data" / "a.png")}
    assert kept(result)[1].meta == {"more": 1}


def test_one_label_is_nothing_to_learn(run, tmp_path):
    with pytest.raises(BadInputError, match="only the label 'joy' occurs in the data; a labeler needs at least two"):
        run([row(1), row(3), row(5)])
    with pytest.raises(BadInputError, match=r"no usable row among 2 \(label-missing 2\)"):
        run([row(1, label=None), row(2, label="")])
    with pytest.raises(BadInputError, match=r"pairs\.jsonl: it holds no rows$"):
        run([])
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInputError, match=r"bare: no picture, text or metadata\.jsonl lies in it$"):
        run(sources=[tmp_path / "bare"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels", [["joy", "anger"], [["joy"], ["anger"]], ["joy|calm", "b"], ['["joy", "calm"]', "b"]]
)
def test_the_task_is_seen_from_the_labels(run, labels):
    task = "single" if labels == ["joy", "anger"] else "multi"
    result = run([row(number, label=labels[number % 2]) for number in range(8)])
    assert result.profile["task"] == read_label_set(result.out).task == task


def test_a_single_task_takes_one_label_a_row(run):
    result = run([row(1), row(2), row(3, label=["joy", "anger"]), row(4, label=[])], task="single")
    assert rejected(result) == [(3, "label-count"), (4, "label-count")]
    result = run([row(1), row(2), row(3, label=[])], task="multi")
    assert kept(result)[2].labels == ()


def test_a_second_call_finds_it_made(run, tmp_path):
    picture(tmp_path / "data" / "a.png", 0)
    rows = [row(1, image="a.png"), row(2), row(3), "{"]
    first = run(rows)
    before = (first.out / "manifest.json").read_bytes()
    second = run(rows)
    assert second.already
    assert second.profile == first.profile
    assert (first.out / "manifest.json").read_bytes() == before
    assert not run(rows, force=True).already
    assert not run(rows, seed=1).already
    assert not run(rows, allow_outside=True).already
    assert not run([*rows, row(4)]).already


@pytest.mark.parametrize("change", ["other picture", "one byte more", "gone"])
def test_a_changed_picture_makes_it_again(run, tmp_path, change):
    path = picture(tmp_path / "data" / "a.png", 0)
    rows = [row(1, image="a.png"), row(2), row(3), row(4)]
    old = kept(run(rows))[0].meta["image_sha256"]
    if change == "other picture":
        picture(path, 1)
    elif change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    result = run(rows)
    assert not result.already
    assert old not in (result.out / "records.jsonl").read_text()


def folder_source(folder: Path, **fields) -> Path:
    """Return a folder whose rows stand in a nested metadata.jsonl."""
    rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in range(4)]
    for number in range(4):
        picture(folder / "sub" / f"{number}.png", number)
    write(folder / "sub" / "metadata.jsonl", [rows[0] | fields, *rows[1:]])
    return folder


@pytest.mark.parametrize("change", [{"label": "b"}, {"likes": 3}, {"text": "new"}, {"group": "g"}])
def test_a_change_in_a_folders_metadata_makes_it_again(run, tmp_path, change):
    source = folder_source(tmp_path / "photos")
    result = run(sources=[source])
    assert [record.image for record in kept(result)] == [f"sub/{number}.png" for number in range(4)]
    assert result.profile["rejected"] == 0
    assert run(sources=[source]).already
    folder_source(source, **change)
    assert not run(sources=[source]).already
    with open(source / "sub" / "metadata.jsonl", "a") as file:
        file.write("{cut o")
    assert run(sources=[source]).profile["rejected"] == 1


def test_several_sources_become_one(run, tmp_path):
    (tmp_path / "b").mkdir()
    picture(tmp_path / "a" / "1.png", 0)
    picture(tmp_path / "b" / "deep" / "1.png", 1)
    table = tmp_path / "b" / "rows.csv"
    table.write_text("id,image,text,label\nx,deep/1.png,one,joy\ny,,two,anger\nz,,three\n", encoding="utf-8")
    result = run(sources=[write(tmp_path / "a" / "rows.jsonl", [row(1, image="1.png"), row(2)]), table])
    assert [(record.id, record.image) for record in kept(result)] == [
        ("1", "a/1.png"), ("2", None), ("x", "b/deep/1.png"), ("y", None),
    ]  # fmt: skip
    assert rejected(result) == [(4, "cell-count")]
    assert [(result.out / result.profile["root"] / r.image).is_file() for r in kept(result) if r.image] == [True, True]
    sources = [write(tmp_path / name, [row(1, text=name), row(2), row(3)]) for name in ("a.jsonl", "b.jsonl")]
    assert run(sources=sources).profile["rejects"] == {"id-conflict": 2, "duplicate": 2}


def test_python_literals_are_counted(run):
    result = run([str(row(1)), row(2), str(row(3)), "{'id': nan}"])
    assert result.profile["python_literal_lines"] == 2
    assert all("python" not in json.dumps(record.meta) for record in kept(result))


def test_a_clean_and_a_marked_file_give_the_same_records(run, tmp_path):
    rows = [row(number, text=f"é 🎉 {number}") for number in range(20)]
    clean = write(tmp_path / "clean" / "pairs.jsonl", rows)
    marked = tmp_path / "marked" / "pairs.jsonl"
    marked.parent.mkdir()
    marked.write_bytes(b"\xef\xbb\xbf" + clean.read_bytes().replace(b"\n", b"\r\n\r\n"))
    files = [run(sources=[path], out=path.parent.name + "-out").out / "records.jsonl" for path in (clean, marked)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up_on_any_mixture(run, tmp_path, seed):
    chance = random.Random(seed)
    for number in range(4):
        picture(tmp_path / "data" / f"{number}.png", number)
    (tmp_path / "data" / "bad.png").write_bytes(b"bad")
    kinds = [
        lambda n: row(n), lambda n: row(n), lambda n: row(chance.randrange(9)), lambda n: row(n, label=["joy", "calm"]),
        lambda n: row(n, image=f"{chance.randrange(6)}.png"), lambda n: row(n, image="bad.png"), lambda n: "{",
        lambda n: row(n, text=None), lambda n: row(n, label=None), lambda n: str(row(n)), lambda n: row(7, text=str(n)),
    ]  # fmt: skip
    result = run(
        [chance.choice(kinds)(number) for number in range(80)], seed=seed, task=chance.choice(["auto", "single"])
    )
    assert result.profile["rows"] == 80
    assert result.profile["leaked_rows"] == 0


def test_dialogues_of_given_splits_are_not_joined_by_what_everybody_says(run):
    rows = [row(number, text="What?" if number % 3 == 0 else f"text {number}", split="train", group=f"d{number // 3}")
            for number in range(9)]  # fmt: skip
    rows += [row(9, split="test", group="d9"), row(10, split="val", group="d10")]
    groups = {record.id: record.group for record in kept(run(rows))}
    assert len(set(groups.values())) == 5
    for number in range(9):
        del rows[number]["group"]
    groups = {record.id: record.group for record in kept(run(rows, out="ungrouped"))}
    assert groups["0"] == groups["3"] == groups["6"]


def test_the_profile_says_what_stands_twice_and_together(run):
    rows = [row(number, label=["a", "b"] if number % 2 else ["b"]) for number in range(10)]
    rows[4]["text"] = rows[2]["text"].upper() + "!!"
    profile = run(rows).profile
    assert profile["duplicates"]["text"] == {"values": 1, "rows": 2}
    assert profile["labels_together"] == [["a", "b", 5]]
    assert profile["text_words"]["min"] >= 1
