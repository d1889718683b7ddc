"""Intervals from a bootstrap over groups: rows that share a group are always drawn together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labeler.evaluation.metrics import statistics
from labeler.evaluation.predictions import Predictions

# Macro averages of rare labels rise when rows are drawn twice. In a simulation (20 labels, 300 rows, 3 to 90 positives)
# the percentile interval of mean average precision covered the truth in 30 % of cases, the reflected one in 86 %.
REFLECTED = ("macro_f1", "mean_average_precision", "balanced_accuracy")
CELLS = 2_000_000  # rows x draws held at once: 16 MB of weights


def _draws(groups: list[str], seed: int, draws: int) -> Iterator[np.ndarray]:
    """Yield bootstrap weights [N, D] until D adds up to `draws`: how often each row's group was drawn."""
    names, group_of_row = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    size = max(1, CELLS // max(len(groups), 1))
    for first in range(0, draws, size):
        count = min(size, draws - first)
        drawn = random.integers(0, len(names), (count, len(names))) + np.arange(count)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, len(names))
        yield np.ascontiguousarray(times.T[group_of_row], dtype=np.float64)


def resample(task: str, predictions: Predictions, seed: int = 0, draws: int = 2000) -> dict[str, np.ndarray]:
    """Return {metric: [draws]}: every metric of every bootstrap draw of groups.

    The same groups and seed give the same draws, so two models' results on the same rows are paired.
    """
    parts = [statistics(task, predictions, weights) for weights in _draws(predictions.groups, seed, draws)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(metric: str, estimate: float, values: np.ndarray) -> list[float] | None:
    """Return the 95 % interval [low, high] from bootstrap values: percentile, or reflected for macro averages.

    None when there is nothing to tell from: an undefined estimate, or fewer than half of the draws defined.
    """
    known = values[~np.isnan(values)]
    if np.isnan(estimate) or len(known) * 2 < len(values):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    if metric in REFLECTED:
        low, high = 2 * estimate - high, 2 * estimate - low
    return [float(min(low, estimate)), float(max(high, estimate))]
