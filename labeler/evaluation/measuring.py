"""One model's figures on one split, ready for JSON."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used

from labeler.evaluation.bootstrap import Resampled, defined, resample
from labeler.evaluation.metrics import per_class, statistics
from labeler.evaluation.predictions import Predictions

COUNTED = ("accuracy", "subset_accuracy")
FEW_POSITIVES = 5
MOST_CONFUSED = 200  # labels, of which a matrix can be looked at
LARGEST = 3_000_000  # rows x labels, of which AUROC gets an interval; all intervals of 1.2 million take 11 s


def measure(task: str, names: list[str], predictions: Predictions, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Return the metrics of `predictions`, ready for JSON: fractions in 0..1, None with a reason in `notes`.

    Every metric of `statistics` with its 95 % interval as `<metric>_ci95` (bootstrap of `draws` draws of groups),
    `n` rows, `groups`, `per_class`, and for task single `confusion` (rows are the truth) of up to 200 labels.
    """
    truth, predicted = predictions.truth, predictions.predicted
    result: dict[str, Any] = {"n": len(predictions.ids), "groups": len(set(predictions.groups))}
    notes: list[str] = []
    result |= _estimates(task, predictions, seed, draws, notes)
    result["per_class"] = per_class(task, names, predictions)
    if task == "single":
        assert (np.stack([truth, predicted]).sum(axis=2) == 1).all(), "task single: one label a row"
        if len(names) <= MOST_CONFUSED:
            result["confusion"] = (truth.T.astype(int) @ predicted.astype(int)).tolist()
    support, claimed = truth.sum(axis=0), predicted.sum(axis=0)
    rare = (support > 0) & (support < FEW_POSITIVES)
    for found, text in (
        (support == 0, "no row carries these labels; recall and F1 are null, and macro averages leave them out"),
        ((claimed == 0) & (support > 0), "never predicted; precision is null, F1 is 0"),
        (rare, f"fewer than {FEW_POSITIVES} rows carry these labels; their values are mostly chance"),
    ):
        if found.any():
            notes.append(f"{text}: {', '.join(names[i] for i in np.flatnonzero(found))}")
    return result | {"notes": notes}


def figure(task: str, metric: str, predictions: Predictions, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Return `metric` and `<metric>_ci95` alone, as `measure` does."""
    return _estimates(task, predictions, seed, draws, [], [metric])


def _estimates(
    task: str,
    predictions: Predictions,
    seed: int,
    draws: int,
    notes: list[str],
    wanted: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return {metric: value, metric_ci95: interval} of the `wanted`, adding to `notes` why one of them is None."""
    if not predictions.ids:
        undefined = list(statistics(task, predictions, np.ones((0, 1)), wanted))
        notes += [f"{metric}: not defined, the split holds no row" for metric in undefined]
        return {key: None for metric in undefined for key in (metric, f"{metric}_ci95")}
    result: dict[str, Any] = {}
    once = statistics(task, predictions, np.ones((len(predictions.ids), 1)), wanted)
    slow = long_reason(predictions)
    asked = once.keys() - ({"auroc"} if slow else set())
    resampled, groups = resample(task, predictions, seed, draws, asked), len(set(predictions.groups))
    for metric, estimate in ((metric, float(value[0])) for metric, value in once.items()):
        known = not np.isnan(estimate)
        result[metric] = estimate if known else None
        bounds = bounds_of(resampled, metric, groups, metric in COUNTED) if known and metric in asked else None
        result[f"{metric}_ci95"] = bounds
        if not known:
            reason = "no label divides the rows" if metric == "auroc" else "no row carries a label"
            notes.append(f"{metric}: not defined, {reason}")
        elif metric not in asked:
            notes.append(f"{metric}: no interval, which would take long with {slow}")
        elif bounds is None:
            why = "do not differ (every row alike, or one group), or hardly one lies on one side of the figure"
            notes.append(f"{metric}: no interval, the bootstrap draws {why}")
    return result


def long_reason(predictions: Predictions) -> str | None:
    """Return of what there is so much that the interval of AUROC would take long; None where it does not."""
    rows, labels = predictions.truth.shape
    if labels > MOST_CONFUSED:
        return f"over {MOST_CONFUSED} labels"
    return f"{rows:,} rows of {labels} labels" if rows * labels > LARGEST else None


def bounds_of(resampled: Resampled, metric: str, groups: int, counted: bool) -> list[float] | None:
    """Return the interval of a metric; where all draws are equal, exact for a `counted` share of 0 or 1 and else None."""
    drawn, estimate = defined(resampled.drawn[metric]), resampled.estimate[metric]
    if len(drawn) and np.ptp(drawn) > 1e-12:
        return resampled.interval(metric)
    if not counted or groups < 2 or estimate not in (0, 1):
        return None
    exact = scipy.stats.binomtest(int(estimate) * groups, groups).proportion_ci(0.95, method="exact")
    return [float(exact.low), float(exact.high)]
