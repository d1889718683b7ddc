"""Abstention: which rows a model may label alone so that a promised precision is kept, and what it gives up for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used

from labeler.evaluation.predictions import Predictions

DOUBT = 0.1  # chance that a promise does not hold for rows like the validation rows
POINTS = 200  # of a curve


class Promise(NamedTuple):
    """Labels that score at least `threshold` are right with the `precision`; None where no threshold can promise that."""

    precision: float
    threshold: float | None
    n: int  # labels on the validation rows that reach it
    right: int
    total: int  # all labels that the model would give on them


def given_labels(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each label that is given, and whether it is right: [M], [M] bool; for task `single` one a row."""
    given = predictions.predicted
    return predictions.scores[given], predictions.truth[given]


def promise(predictions: Predictions, precision: float) -> Promise:
    """Return the lowest threshold of which validation rows show that labels above it are right in the share `precision`.

    They show it where a one-sided binomial test rejects any lower share at the 10 % level, rows taken as independent, without
    correction for the many thresholds looked at. In simulations (`python -m benchmarks.evaluation promises`) 4 to 10 % of such
    promises are broken, and about half of those that rows merely reach. Tests that correct for it (Learn then Test, Angelopoulos
    et al. 2021) break 0 to 3 % and give far fewer labels. `precision` lies above 0 and below 1.
    """
    scores, right = given_labels(predictions)
    order = np.argsort(-scores, kind="stable")
    ranked, wrong = scores[order], np.cumsum(~right[order])
    ends = last_of_equals(ranked)
    passed = ends[scipy.stats.binom.cdf(wrong[ends - 1], ends, 1 - precision) <= DOUBT]
    if not len(passed):
        return Promise(precision, None, 0, 0, len(ranked))
    best = int(passed[-1])
    return Promise(precision, float(ranked[best - 1]), best, best - int(wrong[best - 1]), len(ranked))


def last_of_equals(ranked: np.ndarray) -> np.ndarray:
    """Return after how many of the ranked scores [M] another value follows, or nothing."""
    return np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))[: len(ranked)] + 1


def kept(predictions: Predictions, given: Promise) -> dict[str, Any]:
    """Return whether a promise from validation rows holds on others: `n` of `total` labels given, `precision` with interval.

    `holds` is False when the whole exact 95 % interval lies below what was promised, None when nothing was labelled.
    """
    scores, right = given_labels(predictions)
    above = scores >= (np.inf if given.threshold is None else given.threshold)
    n, hits = int(above.sum()), int(right[above].sum())
    result: dict[str, Any] = {
        "promised": given.precision, "threshold": given.threshold, "total": len(scores), "n": n,
        "coverage": n / len(scores) if len(scores) else None, "precision": None, "precision_ci95": None, "holds": None,
        "validation": {"n": given.n, "right": given.right, "total": given.total},
    }  # fmt: skip
    if n:
        bounds = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
        low, high = float(bounds.low), float(bounds.high)
        result |= {"precision": hits / n, "precision_ci95": [low, high], "holds": high >= given.precision}
    return result


def kept_promise(found: dict[str, Any]) -> str:
    """Return in words what became of a promise that `kept` looked at: it holds where the whole interval is at least as high."""
    if found["holds"] is None:
        return "nothing given"
    if not found["holds"]:
        return "broken"
    return "holds" if found["precision_ci95"][0] >= found["promised"] else "not contradicted"


def risk_coverage(predictions: Predictions) -> dict[str, Any]:
    """Return what share of labels is wrong when only the surest are given: `aurc` and at most 200 `points`.

    A point is {coverage, risk, threshold}; labels of equal scores enter together. The area under the curve is the mean risk over
    all coverages (Geifman and El-Yaniv 2017), lower is better; None without labels.
    """
    scores, right = given_labels(predictions)
    if not len(scores):
        return {"aurc": None, "points": []}
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = last_of_equals(ranked)
    risk = np.cumsum(~right[order])[ends - 1] / ends
    area = float((risk * np.diff(ends, prepend=0)).sum() / len(scores))
    shown = np.unique(np.linspace(0, len(ends) - 1, POINTS).round().astype(int))
    return {"aurc": area, "points": [
        {"coverage": float(ends[i] / len(scores)), "risk": float(risk[i]), "threshold": float(ranked[ends[i] - 1])} for i in shown
    ]}  # fmt: skip
