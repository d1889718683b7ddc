"""Temperatures against a search by hand, calibration errors against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference
from test_evaluation import make, rows_of

from labeler.evaluation import decide
from labeler.evaluation.calibration import fit_temperature, log_loss, reliability, scores_of_logits


def overconfident(task: str, rows: int, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are `factor` times too large for how often they are right, and the truth."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(rows, 4))
    chances = scores_of_logits(task, logits)
    if task == "multi":
        return factor * logits, random.random(logits.shape) < chances
    drawn = (random.random((rows, 1)) < chances.cumsum(axis=1)).argmax(axis=1)
    return factor * logits, np.arange(4) == drawn[:, None]


@pytest.mark.parametrize("task", ["single", "multi"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_is_too_sure_or_too_shy(task, factor):
    logits, truth = overconfident(task, 4000, factor)
    temperature = fit_temperature(task, logits, truth)
    assert temperature == pytest.approx(factor, rel=0.08)
    losses = {t: log_loss(task, logits / t, truth) for t in np.geomspace(0.1, 10, 400)}
    assert log_loss(task, logits / temperature, truth) <= min(losses.values()) + 1e-5


@pytest.mark.parametrize("task", ["single", "multi"])
def test_calibrated_scores_are_off_by_less(task):
    logits, truth = overconfident(task, 3000, 3.0)
    unseen, unseen_truth = overconfident(task, 3000, 3.0, seed=1)
    temperature = fit_temperature(task, logits, truth)
    errors, briers = [], []
    for t in (1.0, temperature):
        scores = scores_of_logits(task, unseen, t)
        found = reliability(task, make()._replace(truth=unseen_truth, scores=scores, predicted=decide(task, scores)))
        errors.append(found["ece"])
        briers.append(found["brier"])
    assert errors[1] < 0.03 < errors[0]
    assert briers[1] < briers[0]


def test_log_loss_and_brier_are_scikit_learns():
    logits, truth = overconfident("single", 200, 2.0)
    scores = scores_of_logits("single", logits)
    assert log_loss("single", logits, truth) == pytest.approx(reference.log_loss(truth.argmax(axis=1), scores))
    logits, truth = overconfident("multi", 200, 2.0)
    scores = scores_of_logits("multi", logits)
    assert log_loss("multi", logits, truth) == pytest.approx(reference.log_loss(truth.ravel(), scores.ravel()))
    found = reliability("multi", make()._replace(truth=truth, scores=scores, predicted=scores > 0.5))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(truth.ravel(), scores.ravel()))


def test_bins_by_hand():
    scores = np.array([[0.95, 0.05], [0.91, 0.09], [0.55, 0.45], [1.0, 0.0]])
    truth = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=bool)
    found = reliability("single", make(rows=4)._replace(truth=truth, scores=scores, predicted=decide("single", scores)))
    low, high = found["bins"]
    assert (low["low"], low["high"], low["n"], low["confidence"], low["accuracy"]) == (0.5, 0.6, 1, 0.55, 1.0)
    assert (high["low"], high["high"], high["n"]) == (0.9, 1.0, 3)
    assert found["ece"] == pytest.approx(0.25 * 0.45 + 0.75 * abs((0.95 + 0.91 + 1) / 3 - 2 / 3))


@pytest.mark.parametrize("task", ["single", "multi"])
def test_no_rows_and_perfect_rows_are_no_error(task):
    empty = rows_of(make(task), np.arange(0))
    assert reliability(task, empty) == {"ece": None, "brier": None, "bins": []}
    assert fit_temperature(task, empty.scores, empty.truth) == 1.0
    _, truth = overconfident(task, 50, 1.0)
    temperature = fit_temperature(task, np.where(truth, 5.0, -5.0), truth)
    sure = scores_of_logits(task, np.array([[5.0, -5.0, -5.0, -5.0]]), temperature)[0, 0]
    assert 1 - 1 / 51 < sure < 1 - 1 / 51 / 5  # as sure as 50 rows without a mistake allow
    assert np.isfinite(scores_of_logits(task, np.where(truth, 500.0, -500.0), temperature)).all()
