"""The profile: what `labeler inspect` says is what is in the rows."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from labeler.cli import cli
from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.rows.profile import (
    MOST_BUCKETS,
    MOST_PAIRS,
    duplicates,
    histogram,
    label_counts,
    label_matrix,
    labels_together,
    profile_lines,
    quantiles,
)
from labeler.rows.splits import RowLabels

SHARED = Path(os.environ.get("LABELER_DATA", "/nonexistent"))
ROWS = [
    {"id": "1", "text": "one two three", "label": "a <b>", "split": "train"},
    {"id": "2", "text": "One, two: three!", "label": "c", "split": "test"},
    {"id": "3", "text": "four", "label": "c", "split": "train"},
    {"id": "4", "text": "four", "label": "a <b>", "split": "validation"},
    {"id": "5", "text": "five", "label": "c", "split": "train"},
    {"id": "6", "text": "six"},
]


@pytest.fixture
def records(tmp_path) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    ingest([tmp_path / "a.jsonl"], tmp_path / "records")
    return tmp_path / "records"


def inspect(*arguments: object):
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_every_figure_on_the_terminal_is_right(records):
    result = inspect(records)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "rows        6 read, 5 kept, 1 rejected",
        "  label-missing                    1",
        "splits      kept as given",
        "  label              train  validation        test       share",
        "  (all rows)             3           1           1",
        "  c                      2           0           1     60.0%  ████████████████████████",
        "  a <b>                  1           1           0     40.0%  ████████████████",
        "lengths and sizes              min   median      p95      max",
        "  text characters               4        4       13       16",
        "  text words                    1        1        3        3",
        "  without a picture                5",
        "twice       4 rows share a picture, text or group with another; 3 groups",
        "  the same text                           4 rows, 2 values",
        "leaks       2 rows outside train share a picture, text or group with train",
        "  validation   the same text                        1 rows",
        "  validation   the same text, verbatim              1 rows",
        "  test         the same text                        1 rows",
    ]


def test_json_is_the_profile(records):
    profile = json.loads((records / "profile.json").read_text())
    assert json.loads(inspect(records, "--json").stdout) == profile
    assert profile["leaks"] == {"validation": {"text": 1, "text, verbatim": 1}, "test": {"text": 1}}


def test_what_is_no_data_set_is_refused(tmp_path, records):
    for folder, message in ((tmp_path / "none", "none"), (tmp_path, "manifest")):
        result = inspect(folder)
        assert isinstance(result.exception, BadInputError), message
    (records / "profile.json").write_text("{}")
    assert "damaged" in str(inspect(records).exception)


@pytest.mark.parametrize("values", [[7], [0, 1, 2], [3, 3, 900], list(range(5, 4000)), [320] * 50 + [48, 100000]])
def test_every_value_stands_in_its_bucket_of_a_histogram(values):
    found = histogram(np.array(values))
    start, width, counts = found["start"], found["width"], found["counts"]
    assert sum(counts) == len(values)
    assert start % width == 0
    assert start <= min(values) < start + width
    assert 1 <= len(counts) <= MOST_BUCKETS
    assert str(width).rstrip("0") in "125"
    for bucket in range(len(counts) - 1):
        low = start + bucket * width
        assert counts[bucket] == sum(low <= value < low + width for value in values)
    assert sum(value >= start + (len(counts) - 1) * width for value in values) == counts[-1] >= 0.01 * len(values)


def test_lengths_and_labels_that_stand_together_are_in_the_profile(tmp_path):
    rows = [
        {"id": str(n), "text": "a b" * (n + 1), "labels": [["x", "y"], ["x"], ["y", "z", "x"]][n]} for n in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = ingest([tmp_path / "a.jsonl"], tmp_path / "records").profile
    assert profile["label_matrix"] == {"labels": ["x", "y", "z"], "counts": [[3, 2, 1], [2, 2, 1], [1, 1, 1]]}
    assert profile["histograms"]["text_words"] == {"start": 2, "width": 1, "counts": [1, 2]}
    assert profile["histograms"]["image_width"] is None


@pytest.mark.parametrize("labels_a_row", [2, 6])
def test_pairs_of_labels_are_those_that_counting_each_finds(labels_a_row):
    random = np.random.default_rng(labels_a_row)
    names = [str(number) for number in random.permutation(30)]
    rows = [random.choice(30, random.integers(1, labels_a_row + 1), replace=False) for _ in range(200)]
    labels = RowLabels(np.concatenate(rows), np.array([len(row) for row in rows]))
    counts = Counter(tuple(sorted(pair)) for row in rows for pair in combinations([names[code] for code in row], 2))
    expected = sorted(((*pair, count) for pair, count in counts.items()), key=lambda pair: (-pair[2], pair))
    assert len(expected) > MOST_PAIRS
    assert labels_together(labels, names) == expected[:MOST_PAIRS]
    shown = list(label_counts(labels, names, np.ones(200, bool)))[:12]
    matrix = label_matrix(labels, names, shown)["counts"]
    both = [[sum({a, b} <= {names[code] for code in row} for row in rows) for b in shown] for a in shown]
    assert matrix == both


def test_pairs_of_a_large_vocabulary_take_seconds_and_no_tuple_each():
    random = np.random.default_rng(0)
    codes = np.concatenate([random.choice(8000, 20, replace=False) for _ in range(20_000)])
    labels, names = RowLabels(codes, np.full(20_000, 20)), [f"tag {number}" for number in range(8000)]
    tracemalloc.start()
    assert len(labels_together(labels, names)) == MOST_PAIRS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20


def test_nothing_stands_for_nothing():
    assert quantiles(np.zeros(0)) is None
    assert histogram(np.zeros(0)) is None
    assert duplicates({"text": np.array([1, 2, 0]), "group": np.array([0, 3, 3])}) == {}


@pytest.mark.skipif(not SHARED.is_dir(), reason="LABELER_DATA names no folder with real data")
def test_the_figures_of_real_sets_are_those_that_are_known(tmp_path):
    """Source of MELD's 331: test utterances that stand word by word in train."""
    meld = ingest([SHARED / "meld"], tmp_path / "meld", IngestOptions(label="sentiment-binary")).profile
    assert meld["rows"] == 13_708
    assert set(meld["rejects"]) == {"neutral"}
    whole = ingest([SHARED / "meld"], tmp_path / "whole").profile
    assert whole["leaks"]["test"]["text, verbatim"] == 331
    tweets = ingest([SHARED / "mvsa_single" / "train.jsonl"], tmp_path / "mvsa").profile
    counts = {name: sum(part.get(name, 0) for part in tweets["labels"].values()) for name in tweets["labels"]["train"]}
    assert counts == {"positive": 2388, "negative": 1193, "neutral": 419}
    assert tweets["duplicates"]["text"]["rows"] > 100
    assert any("leaks       0 rows" in line for line in profile_lines(tweets))
