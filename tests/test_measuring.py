"""Measuring: what is worked out once, what is left out, what is held, and that figures are those of plain loops."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from labeler import evaluating, evaluation, exporting
from labeler.decisions import Rule
from labeler.errors import BadInputError
from labeler.evaluation import Predictions, decide, measure, resample
from labeler.evaluation import metrics as figures


def make(task: str = "multi", rows: int = 60, labels: int = 5, digits: int = 6) -> Predictions:
    """Return predictions in groups of two rows; few `digits` make many equal scores."""
    random = np.random.default_rng(0)
    truth = np.arange(labels) == random.integers(0, labels, rows)[:, None]
    if task == "multi":
        truth = random.random((rows, labels)) < np.linspace(0.05, 0.4, labels)
    scores = np.round(1 / (1 + np.exp(1 - 2 * truth - random.normal(size=truth.shape))), digits)
    ids = [str(row) for row in range(rows)]
    return Predictions(ids, [str(row // 2) for row in range(rows)], truth, scores, decide(task, scores))


def names_of(found: Predictions) -> list[str]:
    return [f"label {number}" for number in range(found.truth.shape[1])]


def plain_area(scores: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Return one label's AUROC by its definition, over all pairs of a positive and a negative."""
    above = (scores[truth][:, None] > scores[~truth]) + (scores[truth][:, None] == scores[~truth]) / 2
    pairs = weight[truth].sum() * weight[~truth].sum()
    return (weight[truth] @ above @ weight[~truth]) / pairs if pairs else np.nan


def plain_precision(scores: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Return one label's average precision by its definition, one score after another from the highest."""
    found = 0.0
    for score in sorted(set(scores), reverse=True):
        reached, hits = scores >= score, weight[truth & (scores == score)].sum()
        if hits:
            found += hits * (weight[truth & reached].sum() / weight[reached].sum())
    positives = weight[truth].sum()
    return found / positives if positives else np.nan


def plain_mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known)


@pytest.mark.parametrize("cells", [1, 100, 500_000])  # of weights that are summed at once
@pytest.mark.parametrize("digits", [1, 6])
def test_figures_of_order_are_those_of_plain_loops_to_the_last_digit(digits, cells, monkeypatch):
    monkeypatch.setattr("labeler.evaluation.ranking.CELLS", cells)
    found = make(digits=digits)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=9).T.astype(float)
    values = figures.statistics("multi", found, weights)
    for metric, plain in (("auroc", plain_area), ("mean_average_precision", plain_precision)):
        expected = [
            plain_mean([plain(found.scores[:, i], found.truth[:, i], weight) for i in range(5)]) for weight in weights.T
        ]
        assert values[metric].tolist() == expected


@pytest.mark.parametrize("task", ["single", "multi"])
def test_rows_are_put_in_order_once_for_all_draws(task, monkeypatch):
    found, sort, sorted_of = make(task), np.argsort, []
    monkeypatch.setattr("labeler.evaluation.bootstrap.CELLS", 600)  # ten draws at once
    monkeypatch.setattr(np, "argsort", lambda values, **how: sorted_of.append(values.shape) or sort(values, **how))
    resample(task, found, draws=100)
    assert sorted_of.count((60,)) == 5  # each label
    assert sorted_of.count((60, 5)) == (task == "single")


@pytest.mark.parametrize(("largest", "left_out"), [(300, False), (299, True)])
def test_of_very_many_rows_and_labels_the_auroc_has_no_interval(largest, left_out, monkeypatch):
    found = make()
    expected = measure("multi", names_of(found), found, draws=50)
    monkeypatch.setattr("labeler.evaluation.measuring.LARGEST", largest)
    result = measure("multi", names_of(found), found, draws=50)
    assert (result["auroc_ci95"] is None) == left_out
    note = "auroc: no interval, which would take long with 60 rows of 5 labels"
    assert (note in result["notes"]) == left_out
    assert {**result, "auroc_ci95": 0, "notes": 0} == {**expected, "auroc_ci95": 0, "notes": 0}


@pytest.mark.parametrize(("task", "metric"), [("single", "accuracy"), ("multi", "mean_average_precision")])
def test_an_export_is_measured_by_its_headline_metric_alone(task, metric, monkeypatch):
    found, seen, of = make(task), [], figures.Statistics.of
    expected = measure(task, names_of(found), found)

    def watched(self, weights, wanted=None):
        result = of(self, weights, wanted)
        seen.append(set(result))
        return result

    monkeypatch.setattr(figures.Statistics, "of", watched)
    monkeypatch.setattr(exporting, "said", lambda *_: found)
    rule = Rule(Path(), SimpleNamespace(task=task), None, 1.0)
    shown = exporting.figure_of(rule, found.scores, exporting.Checked([], found.truth))
    assert shown == {key: expected[key] for key in (metric, f"{metric}_ci95")}
    assert all(names == {metric} for names in seen)


@pytest.mark.parametrize("pictures", [60, 50])
def test_rows_that_all_have_both_are_not_measured_a_second_time(pictures, monkeypatch):
    found, measured = make("single"), []
    store = SimpleNamespace(
        rows={"id": found.ids, "group": found.groups},
        label_set=SimpleNamespace(task="single", names=names_of(found)),
        rows_of=lambda _: np.arange(60),
        complete=lambda rows: rows < pictures,
    )
    run = SimpleNamespace(
        model=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        preprocessor={"max_text_tokens": 8},
        temperature=1.0,
        thresholds=None,
    )
    monkeypatch.setattr("labeler.batches.StorePairs", lambda _, rows, *rest: rows)
    monkeypatch.setattr("labeler.inference.model_outputs", lambda _, rows, *rest: np.zeros((len(rows), 2, 5)))
    monkeypatch.setattr(
        evaluating, "predictions_of", lambda store, rows, scores, thresholds: evaluation.rows_of(found, rows)
    )

    def measure_few(store, predictions):
        measured.append(len(predictions.ids))
        return measure("single", names_of(found), predictions, draws=20)

    monkeypatch.setattr(evaluating, "measured", measure_few)
    whole = measure("single", names_of(found), found, draws=20)
    result = evaluating.score_modalities(run, store, found, whole, "test", 8)
    assert measured == ([60, 60] if pictures == 60 else [50, 50, 50])
    assert list(result) == ["both", "text", "image"]
    assert result["both"] == result["text"]  # the model says the same of both here
    assert {"per_class", "confusion"} & set(result["both"]) == set()


class Counted(np.ndarray):
    """A matrix that counts how often two such are compared."""

    times = 0

    def __and__(self, other):
        Counted.times += 1
        return np.asarray(self) & np.asarray(other)


def test_counts_of_labels_are_taken_from_all_labels_at_once(monkeypatch):
    found = make(labels=40)
    expected = figures.per_class("multi", names_of(found), found)
    for row, truth, predicted in zip(expected, found.truth.T, found.predicted.T, strict=True):
        assert (row["support"], row["predicted"]) == (truth.sum(), predicted.sum())
        assert row["recall"] == ((truth & predicted).sum() / truth.sum() if truth.any() else None)
        assert {type(value) for value in row.values()} <= {str, int, float, type(None)}
    monkeypatch.setattr(Counted, "times", 0)
    watched = found._replace(truth=found.truth.view(Counted))
    assert figures.per_class("multi", names_of(found), watched) == expected
    assert Counted.times == 1


def most_held(work) -> int:
    """Return how many bytes were held at once while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_predictions_file_is_written_and_read_line_by_line(tmp_path):
    found, path = make(rows=200, labels=200), tmp_path / "p.jsonl"
    names = names_of(found)
    held = most_held(lambda: evaluation.write_predictions(path, names, found))
    assert held < path.stat().st_size / 4
    lines = path.read_bytes().split(b"\n")
    assert [list(json.loads(line)["scores"].values()) for line in lines[:-1]] == found.scores.tolist()
    assert lines[-1] == b""
    back = []
    held = most_held(lambda: back.append(evaluation.read_predictions(path, names)))
    assert held < 3 * (found.scores.nbytes + found.truth.nbytes + found.predicted.nbytes)
    assert back[0].ids == found.ids
    assert all(np.array_equal(a, b) for a, b in zip(back[0][2:5], found[2:5], strict=True))


def test_a_predictions_file_appears_whole_or_not_at_all(tmp_path):
    found, path = make(), tmp_path / "p.jsonl"
    evaluation.write_predictions(path, names_of(found), found)
    before = path.read_bytes()
    found.scores[-1, 0] = np.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        evaluation.write_predictions(path, names_of(found), found)
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]
    assert path.read_bytes() == before


def test_a_predictions_file_that_is_no_text_further_on_is_named(tmp_path):
    found, path = make(), tmp_path / "p.jsonl"
    evaluation.write_predictions(path, names_of(found), found)
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(BadInputError, match=r"p\.jsonl: no readable predictions file"):
        evaluation.read_predictions(path, names_of(found))
