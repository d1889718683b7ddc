"""Metrics as functions of weighted rows.

With every weight 1 it is the metric itself; with the weights of a bootstrap draw it is the metric of that draw, so an
estimate and its interval cannot come from different definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property, partial
from typing import Any

import numpy as np

from labeler.evaluation.predictions import Predictions
from labeler.evaluation.ranking import (
    Ranked,
    areas,
    mean,
    over_labels,
    precisions,
    rank,
    rank_labels,
    ranks_of_truth,
    ratio,
)

HEADLINE = {"single": "accuracy", "multi": "mean_average_precision"}
SECOND = {"single": "weighted_f1", "multi": "micro_f1"}
ANSWERS = "vqa_accuracy"  # of rows whose label is what most people answered to a question
TOP = (2, 3, 5)
OF_ORDER = {"mean_average_precision": precisions, "auroc": areas}  # they share most of their work


class Statistics:
    """Every metric of one model's predictions, for many weights of its rows: what depends on no weights is worked out once."""

    def __init__(self, task: str, predictions: Predictions) -> None:
        self.task, self.predictions = task, predictions
        truth, predicted = predictions.truth, predictions.predicted
        self.both = truth & predicted
        self.right = (truth == predicted).all(axis=1).astype(float)

    @cached_property
    def ranked(self) -> list[Ranked | None]:
        """Each label's rows in order of their scores."""
        return rank_labels(self.predictions.scores, self.predictions.truth)

    @cached_property
    def places(self) -> np.ndarray:
        """On which place, from 0, each row's true label stands: [N]."""
        return ranks_of_truth(self.predictions.scores, self.predictions.truth)

    @cached_property
    def row_f1(self) -> np.ndarray:
        """Each row's F1: [N]."""
        claims = (self.predictions.truth.sum(axis=1) + self.predictions.predicted.sum(axis=1))[:, None]
        return np.where(claims > 0, ratio(2 * self.both.sum(axis=1)[:, None], claims), 1.0)[:, 0]

    def of(self, weights: np.ndarray, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return the `wanted` metrics, all by default, in each column of row weights [N, D]: see `statistics`."""
        truth, predicted = self.predictions.truth, self.predictions.predicted
        hits, support, claimed = (x.T.astype(float) @ weights for x in (self.both, truth, predicted))  # [L, D]
        f1 = np.where(support > 0, ratio(2 * hits, support + claimed), np.nan)
        total = weights.sum(axis=0)
        of_order = self.of_order(weights, wanted)
        ways: dict[str, Callable[[], np.ndarray]]
        if self.task == "single":
            ways = {
                "accuracy": lambda: ratio(self.right @ weights, total),
                "balanced_accuracy": lambda: mean(ratio(hits, support)),
                "weighted_f1": lambda: ratio((np.nan_to_num(f1) * support).sum(axis=0), total),
                "macro_f1": lambda: mean(f1),
            } | {
                f"top_{k}_accuracy": partial(lambda k: ratio((self.places < k).astype(float) @ weights, total), k)
                for k in TOP
                if k < truth.shape[1]
            }
            if self.predictions.agreed is not None:
                asked = ~np.isnan(self.predictions.agreed)
                agreed = np.where(asked, self.predictions.agreed, 0.0)
                ways[ANSWERS] = lambda: ratio(agreed @ weights, asked.astype(float) @ weights)
        else:
            ways = {
                "micro_f1": lambda: ratio(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
                "macro_f1": lambda: mean(f1),
                "sample_f1": lambda: ratio(self.row_f1 @ weights, total),
                "mean_average_precision": lambda: of_order["mean_average_precision"],
                "subset_accuracy": lambda: ratio(self.right @ weights, total),
            }
        ways["auroc"] = lambda: of_order["auroc"]
        return {name: way() for name, way in ways.items() if wanted is None or name in wanted}

    def of_order(self, weights: np.ndarray, wanted: Collection[str] | None) -> dict[str, np.ndarray]:
        """Return those of OF_ORDER that are `wanted`, all by default; precisions are no metric of a single label a row."""
        there = ["auroc"] if self.task == "single" else list(OF_ORDER)
        names = [name for name in there if wanted is None or name in wanted]
        if not names:
            return {}
        return dict(zip(names, over_labels(self.ranked, weights, [OF_ORDER[name] for name in names]), strict=True))


def statistics(
    task: str, predictions: Predictions, weights: np.ndarray, wanted: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return every metric in each column of the row weights [N, D], as {metric: [D]}; NaN where it is not defined.

    Macro averages go over the labels that occur in the (weighted) truth. F1 is 2 TP / (positives + predicted). A row
    without labels for which none is predicted has a sample F1 of 1. The VQA accuracy is the mean over the rows whose answers are
    known. `wanted` are the metrics to return, all by default; those of ranks (`mean_average_precision`, `auroc`) take the
    longest. For several sets of weights, `Statistics` does once what does not depend on them.
    """
    return Statistics(task, predictions).of(weights, wanted)


def per_class(task: str, names: list[str], predictions: Predictions) -> list[dict[str, Any]]:
    """Return for each label its precision, recall, F1 and counts; for task multi its average precision too."""
    truth, predicted = predictions.truth, predictions.predicted
    once = np.ones((len(truth), 1))
    counts = [x.sum(axis=0).tolist() for x in (truth & predicted, truth, predicted)]
    rows: list[dict[str, Any]] = []
    for i, (name, hits, support, claimed) in enumerate(zip(names, *counts, strict=True)):
        row: dict[str, Any] = {
            "label": name,
            "precision": hits / claimed if claimed else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + claimed) if support else None,
            "support": support,
            "predicted": claimed,
        }
        ranked = [rank(predictions.scores[:, i], truth[:, i])]
        found = {
            key: float(value)
            for key, (value,) in zip(OF_ORDER, over_labels(ranked, once, list(OF_ORDER.values())), strict=True)
        }
        if task == "multi":
            row["average_precision"] = found["mean_average_precision"] if support else None
        row["auroc"] = None if np.isnan(found["auroc"]) else found["auroc"]
        rows.append(row)
    return rows
