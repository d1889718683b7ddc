"""The profile: what `labeler inspect` says is what is in the rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from labeler.artifacts import BadInputError
from labeler.cli import cli
from labeler.ingestion import IngestOptions, ingest
from labeler.profile import described, duplicates, quantiles

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


def test_nothing_stands_for_nothing():
    assert quantiles(np.zeros(0)) is None
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
    assert any("leaks       0 rows" in line for line in described(tweets))
