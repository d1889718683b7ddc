"""Two models on the same rows: the difference, its interval, an exact test, a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

from labeler.artifacts import BadInputError
from labeler.evaluation.bootstrap import interval, resample
from labeler.evaluation.metrics import HEADLINE, SECOND, statistics
from labeler.evaluation.predictions import Predictions


def compare(
    task: str,
    a: Predictions,
    b: Predictions,
    seed: int = 0,
    draws: int = 2000,
    resampled: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Return how b differs from a on the same rows: differences (b - a), 95 % intervals, exact test, verdict.

    The interval is a bootstrap of groups with the same draws for both (`resampled`: what `resample` gave for a and for
    b, where the caller has it). Task single adds McNemar's exact two-sided test on the rows that one of them alone has
    right; it takes rows as independent. The verdict on b is "better" or "worse" when the interval excludes 0 and
    the test, where there is one, gives p < 0.05; else "cannot tell". The test matters where few rows differ:
    there a bootstrap interval is too narrow.

    Raises BadInputError when the rows are none, or not the same in the same order with the same truth.
    """
    if a.ids != b.ids or a.groups != b.groups or not a.ids or not np.array_equal(a.truth, b.truth):
        raise BadInputError(
            f"only predictions for the same rows can be compared: {len(a.ids)} and {len(b.ids)} rows, "
            f"{_first_difference(a, b)}; evaluate both on one store with `labeler evaluate RUN --data STORE`"
        )
    one = np.ones((len(a.ids), 1))
    before, after = statistics(task, a, one), statistics(task, b, one)
    drawn_a, drawn_b = resampled or (resample(task, a, seed, draws), resample(task, b, seed, draws))
    result: dict[str, Any] = {}
    for metric, key in ((HEADLINE[task], "ci95"), (SECOND[task], f"delta_{SECOND[task]}_ci95")):
        delta = float(after[metric][0] - before[metric][0])
        result[f"delta_{metric}"] = None if np.isnan(delta) else delta
        result[key] = interval(metric, delta, drawn_b[metric] - drawn_a[metric])
    result |= _mcnemar(a, b) if task == "single" else {"mcnemar_p": None}
    return result | {"verdict": _verdict(result["ci95"], result["mcnemar_p"])}


def _first_difference(a: Predictions, b: Predictions) -> str:
    for row, (one, other) in enumerate(zip(a.ids, b.ids, strict=False), start=1):
        if one != other:
            return f"row {row} is {one!r} in one and {other!r} in the other"
    return "with the same ids but another truth or group" if a.ids == b.ids and a.ids else "one ends before the other"


def _mcnemar(a: Predictions, b: Predictions) -> dict[str, Any]:
    """Return the rows that only one has right, and McNemar's exact p (1.0 without such rows)."""
    right_a, right_b = ((p.truth == p.predicted).all(axis=1) for p in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"mcnemar_p": float(p), "only_a_right": only_a, "only_b_right": only_b}


def _verdict(bounds: list[float] | None, p: float | None) -> str:
    if bounds is None or bounds[0] <= 0 <= bounds[1] or (p is not None and p >= 0.05):
        return "cannot tell"
    return "better" if bounds[0] > 0 else "worse"
