"""What a report says of runs whose store is another one now, and of how runs were made and measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import NAMES, page, write_run

from labeler.artifacts import read_manifest
from labeler.ingestion import ingest
from labeler.preprocessing import preprocess
from labeler.report import report

ROWS = 80  # as many as the runs of `write_run` are measured on


@pytest.fixture
def make(tmp_path, text_tower, image_tower):
    """Return a function that makes `tmp_path`/store of rows with one text each, in place of what is there."""

    def run(text: str, **options) -> Path:
        rows = [{"id": f"row-{i}", "text": f"{text} {i}", "label": NAMES[i % len(NAMES)]} for i in range(ROWS)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ingest([tmp_path / "rows.jsonl"], tmp_path / "records")
        towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower)}
        return preprocess(tmp_path / "records", tmp_path / "store", **towers, **options).out

    return run


@pytest.mark.parametrize(
    ("key", "values"),
    [("aim", [None, "precision=0.95"]), ("zero_shot", [{"described": {}, "templates": [name]} for name in "ab"])],
)
def test_runs_that_were_measured_in_other_ways_are_no_seeds_of_one_model(tmp_path, key, values):
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    assert [row["seeds"] for row in report(runs, tmp_path / "before", explain=0)["seeds"]] == [[0, 1]]
    for run, value in zip(runs, values, strict=True):
        metrics = json.loads((run / "metrics-test.json").read_text(encoding="utf-8")) | {key: value}
        (run / "metrics-test.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert report(runs, tmp_path / "after", explain=0)["seeds"] == []


def test_texts_of_a_store_that_was_made_again_do_not_stand_beside_predictions_of_the_old_one(make, tmp_path):
    store = make("a red circle")
    run = write_run(tmp_path / "run", store=str(store), sha256=read_manifest(store)["content_sha256"])
    report([run], tmp_path / "before", explain=0)
    assert "a red circle 1" in page(tmp_path / "before").text
    make("a blue square")
    report([run], tmp_path / "after", explain=0)
    found = page(tmp_path / "after").text
    assert "a blue square" not in found
    assert f"Pictures and texts are left out: {store} is not the store any more that was measured." in found
    assert "labeler preprocess" not in found
    assert "Nothing is known of it" in page(tmp_path / "after", "data.html").text


def test_runs_that_differ_in_their_seed_alone_are_compared_by_their_mean(tmp_path):
    good = [write_run(tmp_path / f"good{seed}", seed=seed, skill=4.0) for seed in (0, 1, 2)]
    poor = [write_run(tmp_path / f"poor{seed}", "resnet-gru", seed=seed, skill=1.0) for seed in (0, 1, 2)]
    comparison = report([*good, *poor], tmp_path / "report")
    ours, theirs = "visualbert (mean of 3 seeds)", "resnet-gru (mean of 3 seeds)"
    assert len(comparison["comparisons"]) == 6, "of four contenders; pairs of seeds of one model are none"
    found = comparison["comparisons"][-1]
    means = {row["name"]: row["accuracy"]["mean"] for row in comparison["seeds"]}
    assert (found["a"], found["b"], found["verdict"]) == (ours, theirs, "worse")
    assert found["delta_accuracy"] == pytest.approx(means["resnet-gru"] - means["visualbert"])
    alone = report([good[0], poor[0]], tmp_path / "alone")["comparisons"][-1]
    assert np.ptp(found["ci95"]) < np.ptp(alone["ci95"]), "the mean over seeds is told better than one of them"
    assert comparison["answer"].startswith(f"{ours} is the best of 4 models on 80 test rows: accuracy")
    assert f"{100 * means['visualbert']:.1f}" in comparison["answer"]
    assert [row["name"] for row in comparison["against_baseline"]] == [ours, theirs]
    text = page(tmp_path / "report").text
    assert ours in text
    assert text.count("best") >= 3
    (row,) = [line for line in (tmp_path / "report/comparison.csv").read_text().split("\n") if "(good1)" in line]
    assert ",,," in row, "a seed is not compared with the row above it"
