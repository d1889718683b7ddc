"""Calibration: scores that mean what they say. A temperature fitted on validation rows, and how far scores are off."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used

from labeler.evaluation.predictions import Predictions, round_scores

BINS = 10
# of the temperature's logarithm: beyond it lies only what perfect rows would ask for
RANGE = (np.log(0.05), np.log(20.0))


def scores_of_logits(task: str, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return scores [N, L] float64 in 0..1 for logits [N, L] divided by the temperature: softmax for `single`, else sigmoid."""
    values = np.asarray(logits, dtype=np.float64) / temperature
    if task == "single":
        shares = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
        return shares / shares.sum(axis=1, keepdims=True)
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1 + small)


def scores_of(task: str, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return calibrated scores [N, L] in 0..1 for logits [N, L], rounded as they are written."""
    return round_scores(scores_of_logits(task, logits, temperature))


def fit_temperature(task: str, logits: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature of the lowest log loss on N rows [N, L] that the model was not trained on (Guo et al. 2017).

    One number for all labels: it changes no order within a row, and for task `multi` none within a label; for `single`, which of
    two rows is the surer can change, since a softmax weighs the row's other labels. A share of 1 / (N + 1) of each target goes to
    all labels alike, so that a few rows that happen to be right make no model certain (after Platt 1999). 1.0 for no rows.
    """
    if not len(logits):
        return 1.0
    wide, doubt = np.asarray(logits, dtype=np.float64), 1 / (len(logits) + 1)
    targets = (1 - doubt) * truth + doubt / (truth.shape[1] if task == "single" else 2)
    found = scipy.optimize.minimize_scalar(
        lambda log: log_loss(task, wide / np.exp(log), targets), bounds=RANGE, method="bounded"
    )
    return float(np.exp(found.x))


def log_loss(task: str, logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean cross-entropy in nats with targets [N, L] in 0..1: by row for `single`, by row and label for `multi`."""
    if task == "single":
        return float(-(targets * scipy.special.log_softmax(logits, axis=1)).sum(axis=1).mean())
    return float(-(targets * scipy.special.log_expit(logits) + (1 - targets) * scipy.special.log_expit(-logits)).mean())


def reliability(task: str, predictions: Predictions, bins: int = BINS) -> dict[str, Any]:
    """Return how sure the model was and how often it was right: `ece`, `brier`, and `bins` that are not empty.

    For task `single` of the label that was chosen, for `multi` of every row and label. Each bin of equal width has `low`, `high`,
    `n`, `confidence` (its mean score) and `accuracy` (how many were right); the expected calibration error is their mean
    difference, weighted by n. All None or empty without rows.
    """
    if task == "single":
        confidence = predictions.scores.max(axis=1, initial=0.0)
        right = (predictions.truth & predictions.predicted).any(axis=1)
        brier = ((predictions.scores - predictions.truth) ** 2).sum(axis=1)
    else:
        confidence, right = predictions.scores.ravel(), predictions.truth.ravel()
        brier = (confidence - right) ** 2
    if not len(confidence):
        return {"ece": None, "brier": None, "bins": []}
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found, error = [], 0.0
    for number in np.unique(place):
        inside = place == number
        sure, share = float(confidence[inside].mean()), float(right[inside].mean())
        error += inside.mean() * abs(sure - share)
        found.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "n": int(inside.sum()),
                "confidence": sure,
                "accuracy": share,
            }
        )
    return {"ece": float(error), "brier": float(brier.mean()), "bins": found}
