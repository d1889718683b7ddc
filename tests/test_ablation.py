"""The ablation: which variants it trains, that what is trained is found, and how far each is from VisualBERT."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks.ablation import VARIANTS, main, trials
from benchmarks.accuracy import measure, table
from labeler.training_options import options_for


def test_every_kind_place_and_number_is_tried_and_can_be_trained():
    planned = trials(VARIANTS)
    assert len({trial.name for trial in planned}) == 1 + 3 * 2 * 3
    assert planned[0] == ("visualbert-all-tokens", "visualbert", {"visual_token_dropout": 0.0})
    blocks = {"coattention": "hieco", "coattn_place": "between", "n_coattn": 4}
    assert ("hieco-between-4", "visualbert-coattn", {"visual_token_dropout": 0.0} | blocks) in planned
    assert {options_for(trial.model, trial.given).visual_token_dropout for trial in planned} == {0.0}
    assert len({options_for(trial.model, trial.given) for trial in planned[1:]}) == 18


def test_a_variant_that_there_is_not_is_refused():
    result = CliRunner().invoke(main, ["--variants", "seed-before-1,seed-before-3"])
    assert result.exit_code == 2
    assert "'seed-before-3' is none of vilbert-before-1," in result.output


def test_the_table_tells_each_variant_from_visualbert_and_nothing_is_trained_twice(store, tmp_path):
    (tmp_path / "store").symlink_to(store)
    planned = [trial._replace(given=trial.given | {"batch_size": 8}) for trial in trials(["seed-between-1"], epochs=1)]
    target, compared = tmp_path / "results" / "shapes.json", [(planned[0].name, planned[1].name)]
    result = measure("shapes", tmp_path / "store", planned, range(1), compared, target)
    assert json.loads(target.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    rows = {row["name"]: row for row in result["models"]}
    assert list(rows)[-2:] == ["visualbert-all-tokens-epochs-1", "seed-between-1-epochs-1"]
    assert rows["seed-between-1-epochs-1"]["settings"]["coattention"] == "seed"
    [difference] = result["comparisons"]
    expected = rows["seed-between-1-epochs-1"]["accuracy"] - rows["visualbert-all-tokens-epochs-1"]["accuracy"]
    assert difference["accuracy"]["delta"] == pytest.approx(expected, abs=2e-4)  # each figure is rounded
    assert "| seed-between-1-epochs-1 - visualbert-all-tokens-epochs-1 | " in table(result)
    weights = tmp_path / "seed-between-1-epochs-1-0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert measure("shapes", tmp_path / "store", planned, range(1), compared, target) == result
    assert weights.stat().st_mtime_ns == before
