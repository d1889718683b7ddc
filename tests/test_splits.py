"""Splits: groups are whole, shares are kept, the seed decides."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeler.ingestion import Ingested, IngestOptions, ingest
from labeler.records import read_records
from labeler.rows.splits import Keys, RowLabels, shuffled, sorted_by
from labeler.rows.splits import group_rows as group_arrays
from labeler.rows.splits import leaking as leaking_arrays
from labeler.rows.splits import leaks as leaks_in_arrays
from labeler.rows.splits import split_groups as split_arrays
from labeler.values import SPLITS

FRACTIONS = (0.7, 0.15, 0.15)
SEEDS = range(20)


def arrays(rows: list[list]) -> Keys:
    """Return keys as arrays: one a kind and place, in which equal things have equal numbers."""
    rows = [[key if isinstance(key, tuple) else ("any", key) for key in row] for row in rows]
    numbers: dict = {}
    found: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows):
        for kind, value in row:
            place = next(
                p for p in range(9) if not found.setdefault(f"{kind}{p}", np.zeros(len(rows), np.uint64))[number]
            )
            found[f"{kind}{place}"][number] = numbers.setdefault((kind, value), len(numbers) + 1)
    return found


def group_rows(rows: list[list]) -> list[int]:
    """Return the groups of rows with several keys of a kind, which arrays have as more rows."""
    owners = [number for number, row in enumerate(rows) for _ in row]
    values = [key for row in rows for key in row]
    numbers = {value: place + 1 for place, value in enumerate(dict.fromkeys(values))}
    key = np.zeros(len(rows) + len(values), np.uint64)
    owner = np.zeros(len(rows) + len(values), np.uint64)
    key[len(rows) :] = [numbers[value] for value in values]
    owner[: len(rows)] = np.arange(len(rows)) + 1
    owner[len(rows) :] = np.array(owners, int) + 1
    return group_arrays({"key": key, "owner": owner}, len(key))[: len(rows)].tolist()


def leaks(rows: list[list], splits: list[str]) -> dict[int, set[str]]:
    found = leaks_in_arrays(arrays(rows), np.array([SPLITS.index(split) for split in splits]))
    result: dict[int, set[str]] = {}
    for kind, leaked in found.items():
        for row in np.flatnonzero(leaked).tolist():
            result.setdefault(row, set()).add(kind[:-1])
    return result


def leaking(rows: list[list], splits: list[str]) -> dict[int, int]:
    found = leaking_arrays(arrays(rows), np.array([SPLITS.index(split) for split in splits]))
    return {row: int(found[row]) for row in np.flatnonzero(found >= 0).tolist()}


def as_arrays(groups, labels: list[list[str]]) -> tuple[np.ndarray, RowLabels]:
    groups = [list(groups).index(group) for group in groups]
    names = sorted({label for row in labels for label in row})
    codes = np.array([names.index(label) for row in labels for label in row], int)
    return np.array(groups, int), RowLabels(codes, np.array([len(row) for row in labels], int))


def split_groups(groups, labels: list[list[str]], fractions, seed: int) -> list[str]:
    return [SPLITS[place] for place in split_arrays(*as_arrays(groups, labels), fractions, seed)]


def joined_by_search(keys: list[list[int]]) -> list[set[int]]:
    """Return the groups by walking from row to row: slow and plain, to compare with."""
    left, found = set(range(len(keys))), []
    while left:
        group, waiting = set(), [min(left)]
        while waiting:
            row = waiting.pop()
            group.add(row)
            waiting += [other for other in left - group if set(keys[row]) & set(keys[other])]
        found.append(group)
        left -= group
    return found


def random_rows(seed: int, rows: int = 200, multi: bool = False) -> tuple[list[int], list[list[str]]]:
    """Return groups and labels: most groups of one row, some large, labels from frequent to rare."""
    chance = random.Random(seed)
    groups: list[int] = []
    while len(groups) < rows:
        groups += [len(groups)] * min(chance.choice([1, 1, 1, 1, 2, 3, 5]), rows - len(groups))
    chance.shuffle(groups)
    counts = (1, 1, 2, 3) if multi else (1,)
    names = "aaaaaaaabbbbccd"
    return groups, [sorted({chance.choice(names) for _ in range(chance.choice(counts))}) for _ in groups]


def test_rows_that_share_a_key_share_a_group():
    groups = group_rows([["x"], ["y"], ["x"], [], []])
    assert groups[0] == groups[2]
    assert len(set(groups)) == 4, "rows without keys stand alone"


def test_grouping_goes_through_others():
    assert len(set(group_rows([["a"], ["c"], ["b", "c"], ["a", "b"]]))) == 1
    chain = [[number, number + 1] for number in range(3000)]
    random.Random(0).shuffle(chain)
    assert len(set(group_rows(chain))) == 1


def test_keys_of_different_kinds_do_not_mix():
    assert len(set(group_rows([[("text", "x")], [("look", "x")]]))) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_those_of_a_plain_search(seed):
    chance = random.Random(seed)
    keys = [[chance.randrange(60) for _ in range(chance.randrange(3))] for _ in range(60)]
    by_number = defaultdict(set)
    for row, group in enumerate(group_rows(keys)):
        by_number[group].add(row)
    assert sorted(map(sorted, by_number.values())) == sorted(map(sorted, joined_by_search(keys)))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_group_lies_in_two_splits(seed, multi):
    groups, labels = random_rows(seed, multi=multi)
    splits = split_groups(groups, labels, FRACTIONS, seed)
    assert len({(group, split) for group, split in zip(groups, splits, strict=True)}) == len(set(groups))
    assert leaks([[("group", str(group))] for group in groups], splits) == {}


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("fractions", [FRACTIONS, (0.8, 0.1, 0.1), (0.5, 0.25, 0.25)])
@pytest.mark.parametrize("seed", SEEDS)
def test_sizes_and_labels_have_their_shares(seed, fractions, multi):
    groups, labels = random_rows(seed, multi=multi)
    splits = split_groups(groups, labels, fractions, seed)
    sizes, totals = Counter(splits), Counter(label for row in labels for label in row)
    found = Counter((split, label) for split, row in zip(splits, labels, strict=True) for label in row)
    for split, share in zip(SPLITS, fractions, strict=True):
        assert abs(sizes[split] - share * len(groups)) <= 0.06 * len(groups)
        for label, total in totals.items():
            assert abs(found[split, label] - share * total) <= max(5, 0.1 * total), (split, label)


@pytest.mark.parametrize("rare", range(5, 12))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rare_label_is_in_every_split_where_it_can_be(seed, rare):
    labels = [["rare"]] * rare + [["common"]] * 100
    splits = split_groups(range(len(labels)), labels, FRACTIONS, seed)
    assert set(splits[:rare]) == set(SPLITS)


@pytest.mark.parametrize("seed", SEEDS)
def test_rare_labels_are_in_every_split_beside_other_labels(seed):
    chance = random.Random(seed)
    labels = [["rare", chance.choice("abc")] if row < 10 else [chance.choice("abc")] for row in range(150)]
    splits = split_groups(range(len(labels)), labels, FRACTIONS, seed)
    assert set(splits[:10]) == set(SPLITS)


def test_a_label_with_one_row_is_learned_from():
    splits = split_groups(range(51), [["once"], *[["often"]] * 50], FRACTIONS, 0)
    assert splits[0] == "train"


@pytest.mark.parametrize("multi", [False, True])
def test_the_seed_decides(multi):
    groups, labels = random_rows(1, multi=multi)
    runs = [split_groups(groups, labels, FRACTIONS, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.8, 0.0, 0.2), (0.2,) * 5, (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("seed", SEEDS)
def test_long_runs_of_a_label_are_dealt_out_as_one_by_one(monkeypatch, seed, fractions):
    chance = random.Random(seed)
    count, joined = chance.randint(100, 600), chance.randint(0, 90)
    groups = [row // 3 * 3 for row in range(joined)] + list(range(joined, count))
    labels = [[chance.choices("abc", (9, 3, 1))[0]] * (row % 11 > 0) for row in range(count)]
    found = []
    for long_run in (1, 64, 10**9):
        monkeypatch.setattr("labeler.rows.splits.LONG_RUN", long_run)
        places = split_arrays(*as_arrays(groups, labels), fractions, seed)
        found.append(places.tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("fractions", [(1.0, 0.0, 0.0), (0.8, 0.0, 0.2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_split_of_no_share_stays_empty(seed, fractions):
    groups, labels = random_rows(seed, multi=True)
    used = set(split_groups(groups, labels, fractions, seed))
    assert used == {split for split, share in zip(SPLITS, fractions, strict=True) if share}


def test_rows_without_labels_are_shared_out_too():
    sizes = Counter(split_groups(range(100), [[]] * 100, FRACTIONS, 0))
    assert sizes == {"train": 70, "validation": 15, "test": 15}
    assert split_groups([], [], FRACTIONS, 0) == []


def test_one_group_of_all_goes_to_train():
    assert set(split_groups([0] * 9, [["a"]] * 9, FRACTIONS, 0)) == {"train"}


def test_leaks_are_rows_outside_train_that_share_a_key_with_train():
    keys = [
        [("text", "a")],
        [("text", "a"), ("look", "x")],
        [("look", "x")],  # with train only through the row before: no train row says anything about it
        [("text", "b"), ("group", "g")],
        [("text", "a"), ("group", "g")],
        [("group", "g"), ("look", "a")],
    ]
    splits = ["train", "test", "validation", "test", "validation", "train"]
    assert leaks(keys, splits) == {1: {"text"}, 3: {"group"}, 4: {"text", "group"}}
    assert leaking(keys, splits) == {0: 1, 5: 3}
    assert leaks(keys, ["train"] * 6) == leaking(keys, ["train"] * 6) == {}


def picture(path: Path, seed: int) -> Path:
    """Write a picture that no other seed's looks like."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((80, 80), Image.Resampling.BICUBIC).save(path)
    return path


def row(number: int, **fields) -> dict:
    return {"id": str(number), "text": f"text number {number}", "label": "joy" if number % 2 else "anger"} | fields


def drawn(folder: Path, rows: list[dict], *, seed: int = 0, **options) -> Ingested:
    """Ingest rows whose pictures lie in `folder`."""
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    result = ingest([source], folder / "out", IngestOptions(**options), seed=seed)
    assert result.profile["rejected"] == 0
    return result


def splits_of(result: Ingested) -> dict[str, str]:
    return {record.id: record.split for record in read_records(result.out)}


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_the_same_picture_under_two_names_stays_in_one_split(tmp_path, seed):
    for number in range(30):
        original = picture(tmp_path / f"a{number}.png", number)
        (tmp_path / f"b{number}.png").write_bytes(original.read_bytes())
        with Image.open(original) as image:
            image.save(tmp_path / f"c{number}.bmp")  # other bytes, the same look
    names = [name for n in range(30) for name in (f"a{n}.png", f"b{n}.png", f"c{n}.bmp")]
    rows = [row(number, image=name) for number, name in enumerate(names)]
    random.Random(seed).shuffle(rows)
    result = drawn(tmp_path, rows, seed=seed)
    assert (result.profile["groups"], result.profile["joined_rows"], result.profile["leaked_rows"]) == (30, 90, 0)
    splits = splits_of(result)
    for number in range(0, 90, 3):
        assert splits[str(number)] == splits[str(number + 1)] == splits[str(number + 2)]


@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize(
    "texts", [["So happy!", "so  HAPPY", "So, happy..."], ["🎉🎉"] * 3, ["!?"] * 3, ["किताब", " किताब।"]]
)
def test_the_same_text_stays_in_one_split(tmp_path, seed, texts):
    rows = [row(number, text=text) for number, text in enumerate(texts)] + [row(n) for n in range(10, 40)]
    result = drawn(tmp_path, rows, seed=seed)
    assert len({splits_of(result)[str(number)] for number in range(len(texts))}) == 1
    assert result.profile["joined_rows"] == len(texts)


def test_other_texts_and_blank_pictures_are_not_joined(tmp_path):
    for number in range(2):
        Image.new("RGB", (20, 20), (255, 255, 250 + number)).save(tmp_path / f"{number}.png")
    texts = ["की", "का", "🎉", "😢", "!", "?", "a b c", "a b d", "表情", "识别"]
    rows = [row(number, text=text) for number, text in enumerate(texts)]
    rows += [row(number + 20, text=None, image=f"{number}.png") for number in range(2)]
    assert drawn(tmp_path, rows).profile["joined_rows"] == 0
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows.append(row(22, text=None, image="copy.png"))
    assert drawn(tmp_path, rows).profile["joined_rows"] == 2, "blank or not, the same bytes are the same picture"


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_group_stays_in_one_split_and_joins_through_others(tmp_path, seed):
    rows = [row(number, author=f"author {number % 12}") for number in range(60)]
    rows[12]["text"] = rows[1]["text"]  # joins the authors 0 and 1
    result = drawn(tmp_path, rows, group_by="author", seed=seed)
    by_author = defaultdict(set)
    for record in read_records(result.out):
        by_author[record.meta["group"]].add(record.split)
    assert all(len(splits) == 1 for splits in by_author.values())
    assert by_author["author 0"] == by_author["author 1"]
    assert result.profile["groups"] == 11


@pytest.mark.parametrize("most", [1, 5, 400])
def test_groups_are_dealt_in_the_order_of_three_keys(most):
    numbers = np.random.default_rng(0)
    first, second = numbers.integers(0, most, 5_000), numbers.integers(0, most, 5_000)
    last = shuffled(5_000, seed=1)
    assert (sorted_by(first, second, last) == np.lexsort((last, second, first))).all()
