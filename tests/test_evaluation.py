"""Predictions on disk, thresholds, and metrics against scikit-learn."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from labeler import evaluation
from labeler.errors import BadInputError
from labeler.evaluation import Predictions, decide, fit_thresholds, measure, statistics

NAMES = ["anger", "joy", "neutral", "sadness", "surprise"]


def make(
    task: str = "single", rows: int = 120, skill: float = 2.0, seed: int = 0, labels: int = 5, digits: int = 6
) -> Predictions:
    """Return predictions of a model of that skill; few `digits` make many equal scores."""
    random = np.random.default_rng(seed)
    truth = np.arange(labels) == random.integers(0, labels, rows)[:, None]
    if task == "multi":
        truth = random.random((rows, labels)) < np.linspace(0.03, 0.4, labels)
    logits = skill * truth + random.normal(size=truth.shape)
    scores = (
        np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) if task == "single" else 1 / (1 + np.exp(1 - logits))
    )
    scores = np.round(scores, digits)
    ids = [f"r{i}" for i in range(rows)]
    return Predictions(ids, ids, truth, scores, decide(task, scores))


def rows_of(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Return the given rows."""
    ids, groups = ([names[i] for i in rows] for names in predictions[:2])
    return Predictions(ids, groups, *(values[rows] for values in predictions[2:5]))


def never_nan(value) -> None:
    """Assert that JSON can hold the value."""
    json.dumps(value, allow_nan=False)


def test_decide_takes_the_first_of_equal_scores_or_what_reaches_its_threshold():
    scores = np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])
    assert decide("single", scores).tolist() == [[False, True, False], [True, False, False]]
    assert decide("multi", scores).tolist() == [[False, False, False], [True, True, False]]
    assert decide("multi", scores, [0.2, 0.41, 0.0]).tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("task", ["single", "multi"])
def test_predictions_come_back_as_they_were_written(tmp_path, task):
    names = ["a\nb", '"quoted"', "\u732b", "<script>", "\u2028"]
    found = make(task)._replace(ids=[f"\u2028 {i}" for i in range(120)])
    evaluation.write_predictions(tmp_path / "p.jsonl", names, found)
    back = evaluation.read_predictions(tmp_path / "p.jsonl", names)
    assert back.ids == found.ids
    assert back.groups == found.groups
    for one, other in zip(back[2:5], found[2:5], strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert np.array_equal(decide(task, back.scores), found.predicted)
    evaluation.write_predictions(tmp_path / "again.jsonl", names, back)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()


def test_a_line_holds_what_other_tools_read(tmp_path):
    evaluation.write_predictions(
        tmp_path / "p.jsonl", NAMES, make(rows=1)._replace(scores=np.array([[1 / 3, 0, 0, 0, 2 / 3]]))
    )
    line = json.loads((tmp_path / "p.jsonl").read_text())
    assert line.keys() == {"id", "group", "truth", "predicted", "scores"}
    assert line["scores"] == {"anger": 0.333333, "joy": 0.0, "neutral": 0.0, "sadness": 0.0, "surprise": 0.666667}


def test_no_rows_can_be_written_and_measured(tmp_path):
    empty = rows_of(make(), np.arange(0))
    evaluation.write_predictions(tmp_path / "p.jsonl", NAMES, empty)
    for task in ("single", "multi"):
        found = measure(task, NAMES, evaluation.read_predictions(tmp_path / "p.jsonl", NAMES))
        never_nan(found)
        assert found["n"] == 0
        assert found["macro_f1"] is None
        assert "macro_f1: not defined, the split holds no row" in found["notes"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: line[:-5], "not a row of predictions"),
        (lambda line: "", "not a row of predictions"),
        (lambda line: line.replace('"joy": 0', '"joy": 7'), r"a score is not in 0\.\.1"),
        (lambda line: line.replace('"joy": 0', '"joy": NaN, "x": 0'), "scores for"),
        (lambda line: line.replace('"truth": ["', '"truth": ["un'), "unknown labels"),
        (lambda line: line.replace('"group"', '"grp"'), "no 'group'"),
        (lambda line: line.replace('"r2"', "2"), "not both text"),
        (lambda line: line.replace('"id": "r2"', '"id": "r1"'), "the id 'r1' comes a second time"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, reason):
    path = tmp_path / "p.jsonl"
    evaluation.write_predictions(path, NAMES, make(rows=5))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], change(lines[2]), *lines[3:]]) + "\n")
    with pytest.raises(BadInputError, match=rf"p\.jsonl:3: .*{reason}"):
        evaluation.read_predictions(path, NAMES)
    with pytest.raises(BadInputError, match=r"none\.jsonl: no readable predictions file; run `labeler evaluate`"):
        evaluation.read_predictions(tmp_path / "none.jsonl", NAMES)


def test_thresholds_maximise_f1_where_positives_are_many():
    found = make("multi", rows=3000, labels=3)
    thresholds = fit_thresholds(found.scores, found.truth)
    for i in range(3):
        best = max(reference.f1_score(found.truth[:, i], found.scores[:, i] >= t) for t in np.linspace(0.02, 0.98, 97))
        assert reference.f1_score(found.truth[:, i], found.scores[:, i] >= thresholds[i]) >= best - 0.02


def test_a_threshold_lies_midway_and_few_positives_are_drawn_to_the_common_one():
    scores = np.array([[0.9, 0.3], [0.8, 0.2], [0.4, 0.1], [0.2, 0.1]])
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)
    alone, none = fit_thresholds(scores, truth)
    assert alone == pytest.approx(0.6)
    assert none == 0.5
    truth[0, 1] = True
    own, common = 0.25, 0.25  # 3 of the 3 highest in both columns would be 0.6; all 3 hits are reached at 0.25
    assert fit_thresholds(scores, truth)[1] == pytest.approx((own + 5 * common) / 6)
    assert fit_thresholds(scores[:, :1], np.zeros((4, 1), dtype=bool)) == [0.5]
    assert 0 <= fit_thresholds(np.zeros((4, 1)), np.ones((4, 1), dtype=bool))[0] <= 0


def test_drawing_thresholds_together_helps_unseen_rows_of_rare_labels():
    base = np.geomspace(0.01, 0.3, 40)
    odds = np.log(base / (1 - base))

    def calibrated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        truth = random.random((rows, 40)) < base
        return 1 / (1 + np.exp(2 - odds - 2 * (2 * truth + random.normal(size=truth.shape)))), truth

    values = []
    for seed in range(8):
        (scores, truth), (unseen, unseen_truth) = calibrated(150, seed), calibrated(2000, 100 + seed)
        own = [
            evaluation.thresholds.best_threshold(scores[:, i], truth[:, i]) if truth[:, i].any() else 0.5
            for i in range(40)
        ]
        for thresholds in (fit_thresholds(scores, truth), own):
            predicted = decide("multi", unseen, thresholds)
            values.append(reference.f1_score(unseen_truth, predicted, average="macro", zero_division=0))
    assert np.mean(values[::2]) > np.mean(values[1::2]) + 0.01


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_average_precision_of_weighted_rows_is_scikit_learns(digits):
    found = make("multi", rows=90, digits=digits, labels=8)
    weights = np.random.default_rng(1).multinomial(90, np.full(90, 1 / 90), size=40).T.astype(float)
    for i in range(8):
        values = evaluation.average_precision(found.scores[:, i], found.truth[:, i], weights)
        for value, weight in zip(values, weights.T, strict=True):
            if not weight[found.truth[:, i]].any():
                assert np.isnan(value)
                continue
            expected = reference.average_precision_score(found.truth[:, i], found.scores[:, i], sample_weight=weight)
            assert value == pytest.approx(expected, abs=1e-12)


def mean_area(found: Predictions, weight: np.ndarray) -> float:
    """Return scikit-learn's area under the ROC curve, averaged over the labels that some drawn rows carry and some do not."""
    drawn = weight > 0
    divided = [i for i in range(5) if 0 < found.truth[drawn, i].sum() < drawn.sum()]
    areas = [reference.roc_auc_score(found.truth[:, i], found.scores[:, i], sample_weight=weight) for i in divided]
    return float(np.mean(areas))


def test_the_area_counts_equal_scores_half():
    found = make("multi", rows=80, digits=1)
    result = measure("multi", NAMES, found, draws=10)
    expected = reference.roc_auc_score(found.truth, found.scores, average=None)
    assert [row["auroc"] for row in result["per_class"]] == pytest.approx(expected)


def test_only_what_is_wanted_is_measured():
    assert statistics("multi", make("multi"), np.ones((120, 1)), ["micro_f1"]).keys() == {"micro_f1"}


def test_single_statistics_of_weighted_rows_are_scikit_learns():
    found = make(rows=60)
    truth, predicted = found.truth.argmax(axis=1), found.predicted.argmax(axis=1)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=20).T.astype(float)
    values = statistics("single", found, weights)
    for draw, weight in enumerate(weights.T):
        present = np.unique(truth[weight > 0])
        expected = {
            "accuracy": reference.accuracy_score(truth, predicted, sample_weight=weight),
            "balanced_accuracy": reference.recall_score(
                truth, predicted, labels=present, average="macro", sample_weight=weight, zero_division=0
            ),
            "weighted_f1": reference.f1_score(
                truth, predicted, average="weighted", sample_weight=weight, zero_division=0
            ),
            "macro_f1": reference.f1_score(
                truth, predicted, labels=present, average="macro", sample_weight=weight, zero_division=0
            ),
            "auroc": mean_area(found, weight),
        } | {
            f"top_{k}_accuracy": reference.top_k_accuracy_score(
                truth, found.scores, k=k, sample_weight=weight, labels=np.arange(5)
            )
            for k in (2, 3)
        }
        assert {name: value[draw] for name, value in values.items()} == pytest.approx(expected, abs=1e-12)


def test_multi_statistics_of_weighted_rows_are_scikit_learns():
    found = make("multi", rows=60, digits=1)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=20).T.astype(float)
    values = statistics("multi", found, weights)
    for draw, weight in enumerate(weights.T):
        given = {"sample_weight": weight, "zero_division": 0}
        present = np.flatnonzero(weight @ found.truth)
        sample = reference.f1_score(
            found.truth, found.predicted, average="samples", sample_weight=weight, zero_division=1
        )
        expected = {
            "micro_f1": reference.f1_score(found.truth, found.predicted, average="micro", **given),
            "macro_f1": reference.f1_score(found.truth, found.predicted, labels=present, average="macro", **given),
            "sample_f1": sample,
            "mean_average_precision": reference.average_precision_score(
                found.truth[:, present], found.scores[:, present], sample_weight=weight
            ),
            "subset_accuracy": reference.accuracy_score(found.truth, found.predicted, sample_weight=weight),
            "auroc": mean_area(found, weight),
        }
        assert {name: value[draw] for name, value in values.items()} == pytest.approx(expected, abs=1e-12)


def test_measure_single_has_scikit_learns_table_and_confusion():
    found = make()
    result = measure("single", NAMES, found, draws=200)
    truth, predicted = found.truth.argmax(axis=1), found.predicted.argmax(axis=1)
    assert result["confusion"] == reference.confusion_matrix(truth, predicted).tolist()
    assert result["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
    columns = reference.precision_recall_fscore_support(truth, predicted)
    for row, values in zip(result["per_class"], zip(*columns, strict=True), strict=True):
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(values)
    for metric in ("accuracy", "weighted_f1", "macro_f1"):
        low, high = result[f"{metric}_ci95"]
        assert 0 <= low < result[metric] < high <= 1
    assert (result["n"], result["groups"], result["notes"]) == (120, 120, [])


def test_measure_multi_leaves_accuracy_out_and_gives_average_precision():
    found = make("multi")
    result = measure("multi", NAMES, found, draws=200)
    never_nan(result)
    assert "accuracy" not in result
    assert "confusion" not in result
    expected = reference.average_precision_score(found.truth, found.scores, average=None)
    assert [row["average_precision"] for row in result["per_class"]] == pytest.approx(expected)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_what_is_not_defined_is_null_with_a_reason(task):
    found = make(task)
    rows = np.flatnonzero(~found.truth[:, 1])
    found = rows_of(found, rows)
    found.predicted[found.predicted[:, 3], 0] = True
    found.predicted[:, 3] = False
    if task == "single":
        found.predicted[:, 0] = ~found.predicted[:, 1:].any(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = measure(task, NAMES, found, draws=100)
    never_nan(result)
    absent, silent = result["per_class"][1], result["per_class"][3]
    assert (absent["support"], absent["recall"], absent["f1"]) == (0, None, None)
    assert (silent["precision"], silent["f1"]) == (None, 0.0)
    assert any("no row carries these labels" in note and "joy" in note for note in result["notes"])
    assert any("never predicted" in note and "sadness" in note for note in result["notes"])


def test_no_positive_anywhere_gives_null():
    found = make("multi", rows=30)
    found = found._replace(truth=np.zeros_like(found.truth), predicted=np.zeros_like(found.truth))
    result = measure("multi", NAMES, found, draws=100)
    never_nan(result)
    assert result["mean_average_precision"] is None
    assert result["subset_accuracy"] == 1.0
    assert "mean_average_precision: not defined, no row carries a label" in result["notes"]


def test_groups_that_are_all_half_right_have_no_interval_of_another_share():
    found = make(rows=6)
    predicted = found.truth.copy()
    predicted[::2] = np.roll(found.truth[::2], 1, axis=1)
    result = measure(
        "single", NAMES, found._replace(predicted=predicted, groups=["a", "a", "b", "b", "c", "c"]), draws=100
    )
    assert (result["accuracy"], result["accuracy_ci95"]) == (0.5, None)


def test_of_very_many_labels_the_auroc_has_no_interval(monkeypatch):
    found = make("multi", rows=60)
    few = measure("multi", NAMES, found, draws=100)
    monkeypatch.setattr("labeler.evaluation.measuring.MOST_CONFUSED", len(NAMES) - 1)
    many = measure("multi", NAMES, found, draws=100)
    assert few["auroc_ci95"][0] < few["auroc"] < few["auroc_ci95"][1]
    assert (many["auroc"], many["auroc_ci95"]) == (few["auroc"], None)
    assert any(note.startswith("auroc: no interval, which would take long") for note in many["notes"])
    assert {**many, "auroc_ci95": 0, "notes": 0} == {**few, "auroc_ci95": 0, "notes": 0}


def test_all_right_has_an_exact_interval_instead_of_a_point():
    found = make(rows=30)
    result = measure("single", NAMES, found._replace(predicted=found.truth), draws=100)
    assert result["accuracy_ci95"] == pytest.approx([0.025 ** (1 / 30), 1.0])
    assert result["macro_f1_ci95"] is None
    assert any(note.startswith("macro_f1: no interval") for note in result["notes"])
    one_group = found._replace(groups=["all"] * 30)
    assert measure("single", NAMES, one_group, draws=100)["accuracy_ci95"] is None


def test_groups_are_drawn_together_and_widen_the_interval():
    found = rows_of(make(rows=60), np.repeat(np.arange(60), 4))
    grouped = found._replace(ids=[str(i) for i in range(240)])
    alone = grouped._replace(groups=grouped.ids)
    width = [np.ptp(measure("single", NAMES, p)["accuracy_ci95"]) for p in (alone, grouped)]
    assert width[1] > 1.6 * width[0]
    for weights in evaluation.bootstrap.draw_weights(grouped.groups, 0, 20):
        by_group = weights.reshape(60, 4, -1)
        assert (by_group == by_group[:, :1]).all()


def test_rounding_is_what_a_file_holds():
    scores = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    rounded = evaluation.round_scores(scores)
    assert rounded.dtype == np.float64
    assert np.array_equal(rounded, np.array([[float(f"{x:.6f}") for x in row] for row in rounded]))
    assert np.array_equal(rounded, np.array(json.loads(json.dumps(rounded.tolist()))))
