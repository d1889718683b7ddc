"""The splits of ingest: given ones are kept, others drawn, and where no row is for validation some of train are."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from ingesting import kept, row, split_of, write

from labeler.errors import BadInputError, UsageError
from labeler.rows.selection import parse_split_option
from labeler.values import SPLITS


@pytest.fixture
def run(ingested):
    return ingested


def test_an_official_split_is_kept_and_its_leaks_counted(run):
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = [row(number, split=split) for number, split in enumerate(splits)]
    rows[8]["text"] = rows[7]["text"] = rows[0]["text"]
    result = run(rows)
    assert result.profile["split"] == "kept as given"
    assert result.profile["splits"] == {"train": 6, "validation": 2, "test": 2}
    assert list(split_of(result).values()) == ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    assert result.profile["leaked_rows"] == 2
    assert result.profile["leaks"] == {split: {"text": 1, "text, verbatim": 1} for split in ("validation", "test")}
    dropped = run(rows, drop_leaks=True, out="dropped")
    assert (dropped.profile["leaked_rows"], dropped.profile["rejects"]) == (0, {"leak": 1})
    assert dropped.profile["splits"] == {"train": 5, "validation": 2, "test": 2}
    redrawn = run(rows, split="0.6,0.2,0.2", out="redrawn")
    assert redrawn.profile["leaked_rows"] == 0
    assert redrawn.profile["splits"] == {"train": 6, "validation": 2, "test": 2}


def test_leaks_between_validation_and_test_are_counted_and_told(tmp_path, labeler):
    rows = [row(number, split=["train", "validation", "test"][number % 3]) for number in range(60)]
    rows[2]["text"] = rows[1]["text"] + "!"
    rows[5]["text"] = rows[4]["text"]
    source, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "records"
    done = labeler("ingest", source, "--out", out)
    assert "warning: 2 test rows share a picture, text or group with validation" in done.said
    profile = json.loads((out / "profile.json").read_text(encoding="utf-8"))
    assert profile["leaked_rows"] == 0
    assert profile["leaked_from_validation"] == 2
    assert profile["leaks_from_validation"] == {"text": 2, "text, verbatim": 1}
    shown = labeler("inspect", out).out.splitlines()
    place = shown.index("            2 test rows share a picture, text or group with validation")
    assert shown[place + 1] == "  test         the same text                        2 rows"


def test_no_row_that_leaks_into_test_is_drawn_for_validation(run):
    rows = [row(number, split="test" if number % 4 == 0 else "train") for number in range(80)]
    for number in range(1, 80, 4):
        rows[number]["text"] = rows[number - 1]["text"]
        rows[number + 1]["text"] = rows[number + 2]["text"]
    result = run(rows)
    assert (result.profile["leaked_rows"], result.profile["leaked_from_validation"]) == (20, 0)
    assert result.profile["splits"] == {"train": 54, "validation": 6, "test": 20}
    every = [row(number, split="test" if number % 2 else "train", text=f"text {number // 2}") for number in range(80)]
    whole = run(every, out="all leak")
    assert whole.profile["splits"]["validation"] == whole.profile["leaked_from_validation"] == 6


@pytest.mark.parametrize("split", ["0.6,0.2,0.2", "1/5"])
def test_leaks_are_not_dropped_from_splits_that_are_drawn(run, split):
    with pytest.raises(
        UsageError, match=f"--drop-leaks is for given splits; those that --split {split} draws leak nothing"
    ):
        run(["not even read"], split=split, drop_leaks=True)


def test_where_the_data_bring_no_splits_it_is_said_that_no_leaks_were_dropped(tmp_path, labeler):
    source = write(tmp_path / "pairs.jsonl", [row(number) for number in range(60)])
    done = labeler("ingest", source, "--out", tmp_path / "records", "--drop-leaks")
    assert done.code == 0
    assert "--drop-leaks had nothing to do: the data bring no splits" in done.said


def test_where_the_data_bring_no_validation_rows_some_train_rows_become_them(run):
    """Whole groups, a share of each label; what is tested stays."""
    rows = [row(number, split="train" if number < 100 else "test") for number in range(140)]
    rows += [row(number, split="train", text=f"text number {number - 200}") for number in range(200, 230)]
    result = run(rows)
    splits = result.profile["splits"]
    assert splits["test"] == 40
    assert 15 <= splits["validation"] <= 24
    assert splits["train"] + splits["validation"] == 130
    assert result.profile["split"] == f"kept as given, but for {splits['validation']} train rows drawn for validation"
    by_text: dict[str, set[str]] = {}
    for record in kept(result):
        by_text.setdefault(record.text, set()).add(record.split)
    assert all(len(found) == 1 for found in by_text.values())
    labels = result.profile["labels"]
    assert abs(labels["validation"]["joy"] - labels["validation"]["anger"]) <= 3
    assert run(rows, split="keep").profile["splits"] == {"train": 130, "validation": 0, "test": 40}
    alone = run([row(number, split="test") for number in range(10)])
    assert alone.profile["splits"] == {"train": 0, "validation": 0, "test": 10}


def test_a_split_on_some_rows_only_is_refused(run):
    with pytest.raises(BadInputError, match=r"pairs\.jsonl:2: 1 rows have no split; give all rows one, or --split"):
        run([row(1, split="train"), row(2), row(3, split="test")])
    with pytest.raises(BadInputError, match="3 rows have no split"):
        run([row(1), row(2), row(3)], split="keep")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.7",
        "0.7,0.3",
        "0.5,0.5,0.5",
        "1,1,-1",
        "0,0.5,0.6",
        "a,b,c",
        "nan,nan,nan",
        "inf,0,0",
        "0/5",
        "6/5",
        "1/1",
        "1/",
        "/5",
        "-1/5",
        "1/101",
        "1/5/5",
        "1.5/5",
    ],
)
def test_shares_that_are_none_are_refused_before_any_work(run, text):
    with pytest.raises(UsageError, match="expected `keep`, three shares that add up to 1, such as"):
        run(["not even read"], split=text)
    assert parse_split_option("0.8,0.1,0.1") == (None, (0.8, 0.1, 0.1))


def test_folds_test_every_row_once_and_part_no_group(run):
    rows = [row(number, label=("joy", "anger", "calm")[number % 3], episode=str(number // 4)) for number in range(240)]
    tested = []
    for fold in range(1, 6):
        result = run(rows, out=f"fold-{fold}", split=f"{fold}/5", group_by="episode")
        assert result.profile["split"] == f"drawn: test is fold {fold} of 5, validation an eighth of the rest"
        records = kept(result)
        splits = {split: [record for record in records if record.split == split] for split in SPLITS}
        assert [len(splits[split]) for split in SPLITS] == pytest.approx([168, 24, 48], abs=8)  # a group is four rows
        for part in splits.values():
            assert Counter(label for record in part for label in record.labels) == dict.fromkeys(
                ("joy", "anger", "calm"), pytest.approx(len(part) / 3, abs=5)
            )
        episodes = [{record.meta["group"] for record in part} for part in splits.values()]
        assert sum(map(len, episodes)) == len(set.union(*episodes)) == 60
        tested += [record.id for record in splits["test"]]
    assert sorted(tested) == sorted(record.id for record in records)


def test_the_seed_decides_the_splits(run):
    rows = list(map(row, range(60)))
    outs = [run(rows, out=name, seed=seed).out / "records.jsonl" for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = (out.read_bytes() for out in outs)
    assert first == again != other
