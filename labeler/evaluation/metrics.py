"""Metrics as functions of weighted rows.

With every weight 1 it is the metric itself; with the weights of a bootstrap draw it is the metric of that draw, so an
estimate and its interval cannot come from different definitions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from labeler.evaluation.predictions import Predictions

HEADLINE = {"single": "accuracy", "multi": "mean_average_precision"}
SECOND = {"single": "weighted_f1", "multi": "micro_f1"}
ANSWERS = "vqa_accuracy"  # of rows whose label is what most people answered to a question
TOP = (2, 3, 5)


def statistics(
    task: str, predictions: Predictions, weights: np.ndarray, wanted: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return every metric in each column of the row weights [N, D], as {metric: [D]}; NaN where it is not defined.

    Macro averages go over the labels that occur in the (weighted) truth. F1 is 2 TP / (positives + predicted). A row
    without labels for which none is predicted has a sample F1 of 1. The VQA accuracy is the mean over the rows whose answers are
    known. `wanted` are the metrics to return, all by default;
    those of ranks (`mean_average_precision`, `auroc`) take the longest.
    """
    truth, predicted = predictions.truth, predictions.predicted
    hits, support, claimed = (x.T.astype(float) @ weights for x in (truth & predicted, truth, predicted))  # [L, D]
    f1 = np.where(support > 0, _ratio(2 * hits, support + claimed), np.nan)
    total = weights.sum(axis=0)
    right = (truth == predicted).all(axis=1).astype(float) @ weights
    ways: dict[str, Callable[[], np.ndarray]]
    if task == "single":
        places = ranks_of_truth(predictions.scores, truth)
        ways = {
            "accuracy": lambda: _ratio(right, total),
            "balanced_accuracy": lambda: _mean(_ratio(hits, support)),
            "weighted_f1": lambda: _ratio((np.nan_to_num(f1) * support).sum(axis=0), total),
            "macro_f1": lambda: _mean(f1),
        } | {
            f"top_{k}_accuracy": functools.partial(lambda k: _ratio((places < k).astype(float) @ weights, total), k)
            for k in TOP
            if k < truth.shape[1]
        }
        if predictions.agreed is not None:
            asked = ~np.isnan(predictions.agreed)
            agreed = np.where(asked, predictions.agreed, 0.0)
            ways[ANSWERS] = lambda: _ratio(agreed @ weights, asked.astype(float) @ weights)
    else:
        claims = (truth.sum(axis=1) + predicted.sum(axis=1))[:, None]
        row_f1 = np.where(claims > 0, _ratio(2 * (truth & predicted).sum(axis=1)[:, None], claims), 1.0)[:, 0]
        ways = {
            "micro_f1": lambda: _ratio(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
            "macro_f1": lambda: _mean(f1),
            "sample_f1": lambda: _ratio(row_f1 @ weights, total),
            "mean_average_precision": lambda: mean_average_precision(predictions.scores, truth, weights),
            "subset_accuracy": lambda: _ratio(right, total),
        }
    ways["auroc"] = lambda: _mean(
        np.stack([auroc(*label, weights) for label in zip(predictions.scores.T, truth.T, strict=True)])
    )
    return {name: way() for name, way in ways.items() if wanted is None or name in wanted}


def ranks_of_truth(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return on which place, from 0, each row's true label stands by its score: [N, L], [N, L] -> [N].

    Of equal scores the first label counts as higher, as in `decide`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(truth, order, axis=1).argmax(axis=1)


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one label's area under the ROC curve in each column of row weights: [N], [N], [N, D] -> [D].

    The chance that a positive scores above a negative, equal scores counted half. NaN where no positive or no negative has
    weight.
    """
    if not truth.any():
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-scores, kind="stable")
    ranked, positives = scores[order], np.flatnonzero(truth[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1
    blocks = np.searchsorted(ends, positives, side="right")  # rows of equal scores
    drawn = weights[order]
    negatives = np.vstack([np.zeros(drawn.shape[1]), np.cumsum(np.where(truth[order][:, None], 0.0, drawn), axis=0)])
    above = (negatives[ends[blocks]] + negatives[np.append(0, ends)[blocks]]) / 2
    hits = drawn[positives]
    return _ratio((hits * (negatives[-1] - above)).sum(axis=0), hits.sum(axis=0) * negatives[-1])


def mean_average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of `average_precision` over the labels with a positive: [N, L], [N, L], [N, D] -> [D]."""
    return _mean(np.stack([average_precision(scores[:, i], truth[:, i], weights) for i in range(truth.shape[1])]))


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one label's average precision in each column of row weights: [N], [N], [N, D] -> [D].

    Rows with equal scores enter together, as in scikit-learn's average_precision_score. NaN where no positive has
    weight.
    """
    if not truth.any():
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-scores, kind="stable")
    ranked, positives = scores[order], np.flatnonzero(truth[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1
    # Only blocks of equal scores with a positive in them count; what lies between two of them is summed at once.
    ends = ends[np.unique(np.searchsorted(ends, positives, side="right"))]
    starts = np.append(0, ends[:-1])
    drawn = np.cumsum(np.add.reduceat(weights[order[: ends[-1]]], starts, axis=0), axis=0)  # [blocks, D]
    hits = np.add.reduceat(weights[order[positives]], np.searchsorted(positives, starts), axis=0)
    precision = np.cumsum(hits, axis=0) / np.maximum(drawn, np.finfo(float).tiny)
    return _ratio((hits * precision).sum(axis=0), hits.sum(axis=0))


def per_class(task: str, names: list[str], predictions: Predictions) -> list[dict[str, Any]]:
    """Return for each label its precision, recall, F1 and counts; for task multi its average precision too."""
    truth, predicted = predictions.truth, predictions.predicted
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        hits, support, claimed = (int(x[:, i].sum()) for x in (truth & predicted, truth, predicted))
        row: dict[str, Any] = {
            "label": name,
            "precision": hits / claimed if claimed else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + claimed) if support else None,
            "support": support,
            "predicted": claimed,
        }
        if task == "multi":
            found = average_precision(predictions.scores[:, i], truth[:, i], np.ones((len(truth), 1)))[0]
            row["average_precision"] = float(found) if support else None
        area = auroc(predictions.scores[:, i], truth[:, i], np.ones((len(truth), 1)))[0]
        row["auroc"] = None if np.isnan(area) else float(area)
        rows.append(row)
    return rows


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
