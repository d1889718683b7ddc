"""Five folds as one: predictions are joined, nothing is trained twice, and every pair is a test pair once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import folds
from benchmarks.accuracy import DataSet
from labeler.evaluation import Predictions, read_predictions
from labeler.records import LabelSet
from labeler.training_options import options_for


def test_groups_of_two_folds_are_two_even_where_their_names_are_one():
    truth = np.eye(2, dtype=bool)
    part = Predictions(["a", "b"], ["g0", "g0"], truth, truth * 0.5, truth)
    whole = folds.joined([part, part._replace(ids=["c", "d"])])
    assert whole.ids == ["a", "b", "c", "d"]
    assert whole.groups == ["0/g0", "0/g0", "1/g0", "1/g0"]
    assert whole.truth.shape == whole.scores.shape == whole.predicted.shape == (4, 2)


def test_a_model_that_there_is_not_is_refused():
    result = CliRunner().invoke(folds.main, ["--models", "visualbert,clipart"])
    assert result.exit_code == 2
    assert "'clipart' is none of resnet-gru," in result.output


@pytest.mark.slow
def test_every_pair_is_a_test_pair_once(store, options, text_tower, image_tower, tmp_path, monkeypatch):
    source = store.parent / "source" / "pairs.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({key: value for key, value in row.items() if key != "split"}) + "\n" for row in rows]
    drawn = source.with_name("unsplit.jsonl")
    drawn.write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv("LABELER_BENCH", str(tmp_path))
    monkeypatch.setattr(folds, "FOLDS", 2)
    monkeypatch.setattr("benchmarks.accuracy.preprocess", with_towers(text_tower, image_tower))
    monkeypatch.setattr(folds, "data_sets", lambda: [DataSet("clipart-category", drawn, "labels")])
    monkeypatch.setattr(folds, "options_for", lambda model: options_for(model, {"epochs": 1, "batch_size": 8}))
    call = [
        "--data",
        "clipart-category",
        "--seeds",
        "1",
        "--models",
        "resnet-gru",
        "--results",
        str(tmp_path / "results"),
    ]
    assert CliRunner().invoke(folds.main, call, catch_exceptions=False).exit_code == 0
    result = json.loads((tmp_path / "results" / "folds-clipart-category.json").read_text(encoding="utf-8"))
    runs = [tmp_path / f"clipart-category-fold-{number}" / "resnet-gru-0" for number in (1, 2)]
    names = list(LabelSet.model_validate_json((runs[0] / "labels.json").read_text(encoding="utf-8")).names)
    parts = [read_predictions(run / "predictions-test.jsonl", names) for run in runs]
    assert sorted(name for part in parts for name in part.ids) == sorted(row["id"] for row in rows)
    right = np.concatenate([(part.truth == part.predicted).all(axis=1) for part in parts])
    entry = next(model for model in result["models"] if model["name"] == "resnet-gru")
    assert entry["accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    assert result["data"] == {"n": len(rows), "folds": 2}
    assert {item["a"] for item in result["comparisons"]} == {"logistic-regression"}
    assert CliRunner().invoke(folds.main, [*call, "--fold", "2"], catch_exceptions=False).exit_code == 0
    alone = json.loads((tmp_path / "results" / "fold-2-clipart-category.json").read_text(encoding="utf-8"))
    assert alone["data"] == {"n": len(parts[1].ids), "folds": 1}


def with_towers(text_tower, image_tower):
    """Return `preprocess` with the tiny towers."""
    from labeler.preprocessing import preprocess

    return lambda records, out: preprocess(records, out, text_encoder=str(text_tower), image_encoder=str(image_tower))
