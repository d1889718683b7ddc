"""Runs that a report takes for one: of several seeds, of one seed twice, of stores that other towers have seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_runs
from report_runs import write_run

from labeler.errors import BadInputError
from labeler.evaluation import decide, round_scores
from labeler.report import report
from labeler.report.runs import read_runs


def changed(run: Path, **fields: Any) -> Path:
    """Set fields of the run's figures; those of its data are given as `data`."""
    metrics = json.loads((run / "metrics-test.json").read_text())
    fields["data"] = metrics["data"] | fields.get("data", {})
    (run / "metrics-test.json").write_text(json.dumps(metrics | fields))
    return run


def test_a_seed_counts_once_in_the_mean(tmp_path):
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]
    alone = report(runs, tmp_path / "alone", explain=0)
    shutil.copytree(runs[0], tmp_path / "again")
    found = report([*runs, tmp_path / "again"], tmp_path / "report", explain=0)
    assert found["contenders"] == alone["contenders"]
    assert found["comparisons"] == alone["comparisons"]
    (row,), (before,) = found["seeds"], alone["seeds"]
    assert row == before | {"runs": row["runs"], "repeated": ["visualbert (again)"]}
    assert found["cautions"] == [
        "visualbert (again): of a seed that another run of visualbert has; the mean counts each seed once."
    ]
    assert len(found["models"]) == len(alone["models"]) + 1, "the table shows it"


def test_seeds_that_were_measured_before_there_was_an_option_are_seeds_of_the_same_model(tmp_path):
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]
    settings = json.loads((runs[0] / "metrics-test.json").read_text())["settings"]
    changed(runs[0], settings=settings | {"ema": 0.0})
    assert [row["seeds"] for row in report(runs, tmp_path / "report", explain=0)["seeds"]] == [[0, 1, 2]]


def test_the_mean_of_runs_without_a_mistake_has_the_interval_of_such_a_run(tmp_path, monkeypatch):
    def without_mistake(task, names, *arguments, **options):
        found = simulate(task, names, *arguments, **options)
        scores = round_scores(found.truth * 0.9 + 0.1 / len(names))
        return found._replace(scores=scores, predicted=decide(task, scores))

    simulate = report_runs.simulate
    monkeypatch.setattr(report_runs, "simulate", without_mistake)
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed, rows=40) for seed in range(3)]
    mean = report(runs, tmp_path / "three", explain=0)["contenders"][-1]
    (one,) = (row for row in report(runs[:1], tmp_path / "one", explain=0)["contenders"] if not row["baseline"])
    assert (mean["accuracy"], mean["runs"]) == (1.0, [f"visualbert (seed-{seed})" for seed in range(3)])
    assert mean["accuracy_ci95"] == pytest.approx(one["accuracy_ci95"])
    assert 0.8 < mean["accuracy_ci95"][0] < mean["accuracy_ci95"][1] == 1


def test_an_aim_that_is_the_usual_one_is_no_other_way_of_measuring(tmp_path):
    runs = [write_run(tmp_path / name, name, task="multi") for name in ("resnet-gru", "visualbert")]
    before = report(runs, tmp_path / "before", explain=0)
    changed(runs[0], aim="f1")
    after = report(runs, tmp_path / "after", explain=0)
    assert [row["name"] for row in after["contenders"]] == [row["name"] for row in before["contenders"]]
    assert after["comparisons"] == before["comparisons"]


def test_runs_on_stores_of_the_same_records_are_compared_whatever_towers_have_seen_them(tmp_path):
    small, large = (write_run(tmp_path / name, preset=name, sha256=2 * sign * 32, store=f"data/{name}/store", seed=seed)
                    for seed, (name, sign) in enumerate({"small": "a", "large": "b"}.items()))  # fmt: skip
    with pytest.raises(BadInputError, match="its data sha256 is bb"):
        report([small, large], tmp_path / "report", explain=0)
    for run in (small, large):
        changed(run, data={"records": "cd" * 32})
    found = report([small, large], tmp_path / "report", explain=0)
    assert found["seeds"] == [], "towers are no seeds"
    names = [row["name"] for row in found["contenders"] if not row["baseline"]]
    assert names == ["visualbert (small)", "visualbert (large)"]
    assert any({pair["a"], pair["b"]} == set(names) for pair in found["comparisons"])
    changed(large, data={"records": "ef" * 32})
    with pytest.raises(BadInputError, match="its data records is ef"):
        report([small, large], tmp_path / "report", explain=0)


def test_zero_shot_labels_are_those_of_the_split_that_was_measured(tmp_path):
    run = write_run(tmp_path / "run")
    labels = json.loads((run / "labels.json").read_text())
    shutil.copy(run / "labels.json", run / "labels-test.json")
    before = read_runs([run], "test")[0]
    (run / "labels.json").write_text(json.dumps(labels | {"labels": labels["labels"][::-1]}))
    assert read_runs([run], "test")[0].names == before.names


def test_figures_stand_in_the_order_of_the_first_run_s_labels(tmp_path):
    run = write_run(tmp_path / "run")
    labels = json.loads((run / "labels.json").read_text())
    (run / "labels.json").write_text(json.dumps(labels | {"labels": labels["labels"][::-1]}))
    (found,) = read_runs([run], "test")
    assert [row["label"] for row in found.metrics["per_class"]] == found.names
