"""Promises of precision against simulation, curves and intervals by hand, thresholds for other aims than F1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from test_evaluation import make, rows_of

from labeler.errors import UsageError
from labeler.evaluation import Predictions, aim_of, decide, fit_thresholds, kept, kept_promise, promise, risk_coverage
from labeler.evaluation.abstention import DOUBT, Promise
from labeler.evaluation.thresholds import NEVER, best_threshold


def sure(rows: int, seed: int, honest: float = 1.0) -> Predictions:
    """Return predictions of two labels whose chance to be right is the score to the power of `honest`."""
    random = np.random.default_rng(seed)
    confidence = 0.5 + 0.5 * random.beta(2, 1, rows)
    right = random.random(rows) < confidence**honest
    truth = np.tile([True, False], (rows, 1))
    scores = np.where(right[:, None], [1, 0], [0, 1]) * confidence[:, None]
    scores = np.where(scores == 0, 1 - confidence[:, None], scores)
    ids = [str(i) for i in range(rows)]
    return Predictions(ids, ids, truth, scores, np.arange(2) == scores.argmax(axis=1)[:, None])


@pytest.mark.parametrize("honest", [1.0, 2.0])
@pytest.mark.parametrize("rows", [300, 1000])
def test_a_promise_holds_in_nine_of_ten_cases_and_is_no_refusal(rows, honest):
    """Whether or not the scores are calibrated; 200 samples, so that some more may miss it."""
    everything = sure(200_000, 999, honest)
    ranked, broken, shares = everything.scores.max(axis=1), 0, []
    right = everything.truth[:, 0] & everything.predicted[:, 0]
    for seed in range(200):
        found = promise(sure(rows, seed, honest), 0.9)
        shares.append(found.n / rows)
        if found.threshold is not None:
            broken += right[ranked >= found.threshold].mean() < 0.9
    assert broken / 200 <= DOUBT + 0.07
    possible = max((ranked >= t).mean() for t in np.linspace(0.5, 1, 101)[:-1] if right[ranked >= t].mean() >= 0.9)
    assert np.mean(shares) > possible * (0.5 if rows == 300 else 0.75)


def test_a_promise_is_proven_by_the_rows_it_names():
    found = promise(sure(500, 3), 0.9)
    assert found.total == 500
    assert binom.cdf(found.n - found.right, found.n, 0.1) <= DOUBT
    rows = sure(500, 3)
    assert (rows.scores.max(axis=1) >= found.threshold).sum() == found.n


def test_too_few_rows_or_too_many_errors_promise_nothing():
    assert promise(sure(20, 0), 0.95).threshold is None
    assert promise(rows_of(sure(20, 0), np.arange(0)), 0.95) == (0.95, None, 0, 0, 0)
    wrong = sure(400, 0)
    wrong = wrong._replace(truth=~wrong.predicted)
    assert promise(wrong, 0.5).threshold is None
    right = wrong._replace(truth=wrong.predicted)
    assert promise(right, 0.95).n == 400


def test_equal_scores_are_promised_together_or_not_at_all():
    found = sure(400, 1)
    scores = np.round(found.scores, 1)
    found = found._replace(scores=scores, truth=found.predicted.copy())
    found.truth[:15] = ~found.truth[:15]
    given = promise(found, 0.9)
    assert given.n == (scores.max(axis=1) >= given.threshold).sum()


@pytest.mark.parametrize("task", ["single", "multi"])
def test_what_is_kept_on_other_rows(task):
    found = make(task, rows=200, skill=4.0)
    given = promise(found, 0.8)
    result = kept(make(task, rows=300, skill=4.0, seed=1), given)
    assert result["promised"] == 0.8
    assert 0 < result["n"] <= result["total"]
    assert result["precision_ci95"][0] < result["precision"] <= result["precision_ci95"][1]
    assert result["holds"] is True
    assert kept(make(task, rows=300, skill=0.0, seed=1), given)["holds"] is False
    nothing = kept(found, given._replace(threshold=None))
    assert (nothing["n"], nothing["precision"], nothing["holds"], nothing["coverage"]) == (0, None, None, 0.0)
    empty = kept(rows_of(found, np.arange(0)), given)
    assert (empty["coverage"], empty["holds"]) == (None, None)


@pytest.mark.parametrize(
    ("right", "n", "word"),
    [(100, 100, "holds"), (20, 20, "not contradicted"), (1, 2, "not contradicted"), (1, 20, "broken")],
)
def test_a_promise_is_called_kept_only_where_that_was_seen(right, n, word):
    scores = np.tile([0.9, 0.1], (n, 1))
    truth = np.zeros((n, 2), dtype=bool)
    truth[np.arange(n), (np.arange(n) >= right).astype(int)] = True
    found = make(rows=n)._replace(truth=truth, scores=scores, predicted=decide("single", scores))
    assert kept_promise(kept(found, Promise(0.95, 0.5, 100, 99, 100))) == word


def test_risk_and_coverage_by_hand():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.7, 0.3]])
    truth = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=bool)
    found = risk_coverage(make(rows=4)._replace(truth=truth, scores=scores, predicted=decide("single", scores)))
    assert [(p["coverage"], p["risk"], p["threshold"]) for p in found["points"]] == [
        (0.25, 0.0, 0.9), (0.5, 0.5, 0.8), (1.0, 0.5, 0.7)]  # fmt: skip
    assert found["aurc"] == pytest.approx(0.25 * 0 + 0.25 * 0.5 + 0.5 * 0.5)
    assert risk_coverage(rows_of(make(), np.arange(0))) == {"aurc": None, "points": []}


def test_a_curve_of_many_rows_has_few_points():
    found = risk_coverage(make(rows=5000))
    assert len(found["points"]) == 200
    assert found["points"][-1]["coverage"] == 1.0


def test_aims_are_read_and_shown():
    assert [str(aim_of(text)) for text in ("f1", "precision=0.95", "recall=0.9")] == [
        "f1",
        "precision=0.95",
        "recall=0.9",
    ]
    for text in ("precision", "precision=0", "recall=1.1", "recall=nan", "accuracy=0.9", "", "f1=0.5"):
        with pytest.raises(UsageError, match="expected f1, precision=P or recall=R"):
            aim_of(text)


def test_thresholds_reach_what_they_aim_at():
    found = make("multi", rows=3000, labels=3)
    unseen = make("multi", rows=3000, labels=3, seed=1)
    for text, value in (("precision=0.8", 0.8), ("recall=0.9", 0.9)):
        predicted = decide("multi", unseen.scores, fit_thresholds(found.scores, found.truth, aim_of(text)))
        hits = (predicted & unseen.truth).sum(axis=0)
        reached = hits / (predicted if text.startswith("precision") else unseen.truth).sum(axis=0)
        assert reached == pytest.approx([value] * 3, abs=0.08)


def test_a_precision_out_of_reach_names_nothing():
    scores, truth = np.array([0.9, 0.8, 0.4]), np.array([False, True, True])
    assert best_threshold(scores, truth, aim_of("precision=0.9")) == NEVER
    assert best_threshold(scores, truth, aim_of("precision=0.6")) == pytest.approx(0.2)
    assert best_threshold(scores, truth, aim_of("recall=0.5")) == pytest.approx(0.6)
    assert best_threshold(scores, truth, aim_of("recall=1")) == pytest.approx(0.2)
    [threshold] = fit_thresholds(scores[:, None], truth[:, None], aim_of("precision=0.9"))
    assert not decide("multi", np.ones((1, 1)), [threshold]).any()
