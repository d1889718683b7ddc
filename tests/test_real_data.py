"""Ingest on real data kept outside the repository: the folder that LABELER_DATA names."""

import json
import os
from pathlib import Path

import pytest

from labeler.ingestion import IngestOptions, ingest

DATA = Path(os.environ.get("LABELER_DATA", "/nonexistent"))
CASES = [
    ("mvsa_single/train.jsonl", "label", {"positive": 2388, "negative": 1193, "neutral": 419}),
    ("openclipart/data.jsonl", "category", None),
    ("openclipart/data.jsonl", "tags", None),
]


@pytest.mark.parametrize(("source", "label", "counts"), CASES)
def test_every_row_of_a_real_set_is_accounted_for_and_none_leaks(tmp_path, source, label, counts):
    path = DATA / source
    if not path.is_file():
        pytest.skip(f"LABELER_DATA names no folder with {source}")
    result = ingest([path], tmp_path / "records", IngestOptions(label=label))
    profile = result.profile
    lines = (tmp_path / "records" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert profile["rows"] == len(path.read_bytes().splitlines())
    assert profile["rows"] == profile["kept"] + profile["rejected"] == len(lines) + profile["rejected"]
    assert profile["leaked_rows"] == 0
    assert abs(profile["splits"]["train"] / profile["kept"] - 0.7) < 0.01
    if counts:
        labels = json.loads((tmp_path / "records" / "labels.json").read_text(encoding="utf-8"))["labels"]
        assert {item["name"]: item["count"] for item in labels} == counts


def test_retweets_in_mvsa_end_in_one_split(tmp_path):
    path = DATA / "mvsa_single/train.jsonl"
    if not path.is_file():
        pytest.skip("LABELER_DATA names no folder with mvsa_single/train.jsonl")
    ingest([path], tmp_path / "records")
    places: dict[str, set[str]] = {}
    for line in (tmp_path / "records" / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        places.setdefault(record["meta"]["image_sha256"], set()).add(record["split"])
        places.setdefault(record["text"], set()).add(record["split"])
    assert max(len(splits) for splits in places.values()) == 1
