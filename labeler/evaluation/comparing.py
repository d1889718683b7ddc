"""Models on the same rows: the difference of two, its interval, an exact test, and a verdict over all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used

from labeler.errors import BadInputError
from labeler.evaluation.bootstrap import Resampled, resample
from labeler.evaluation.metrics import HEADLINE, SECOND
from labeler.evaluation.predictions import Predictions, right_rows

ALPHA = 0.05
LEAST_GROUPS = 6  # of which a sign test can say p < 0.05
FLIPS = 100_000  # draws of signs: a p below 0.001 is told for 20 pairs too
POWER = 0.8  # of the number of rows that would be needed


def compare(
    task: str,
    a: Predictions,
    b: Predictions,
    seed: int = 0,
    draws: int = 2000,
    resampled: tuple[Resampled, Resampled] | None = None,
) -> dict[str, Any]:
    """Return how b differs from a on the same rows: differences (b - a), 95 % intervals, tests, a verdict.

    The interval is a bootstrap of groups with the same draws for both (`resampled`: what `resample` gave for a and for
    b, where the caller has it). Task single adds McNemar's exact two-sided test on the rows that one of them alone has
    right; it takes rows as independent. `p` is the larger of the bootstrap's and McNemar's: the first knows of groups, the
    second is exact where few rows differ. `rows_needed` is how many rows like these would tell a difference of this size
    in four of five cases. The verdict is that of `judge` for this pair alone.

    Raises BadInputError when the rows are none, or not the same in the same order with the same truth.
    """
    _refuse_other_rows(a, b)
    headline, second = HEADLINE[task], SECOND[task]
    before, after = resampled or (resample(task, one, seed, draws, (headline, second)) for one in (a, b))
    delta = after.minus(before)
    tests = _mcnemar(a, b) if task == "single" else {"mcnemar_p": None}
    found: dict[str, Any] = {"n": len(a.ids)} | differences(delta, headline, second) | tests
    found["p"] = max(found["p"], tests["mcnemar_p"] or 0.0) if found["ci95"] else 1.0
    judge([found])
    return found


def compare_means(
    task: str, a: Sequence[Predictions], b: Sequence[Predictions], drawn: tuple[Resampled, Resampled]
) -> dict[str, Any]:
    """Return what `compare` does of means over several runs' predictions of the same rows; `drawn`: these means, resampled.

    In place of McNemar's test, which knows of two runs only, stands a sign-flip test over groups. The runs count as they are: how
    far runs of other seeds would be from them is not in the interval. Raises what `compare` does.
    """
    if len(a) == len(b) == 1:
        return compare(task, a[0], b[0], resampled=drawn)
    for other in (*a[1:], *b):
        _refuse_other_rows(a[0], other)
    found: dict[str, Any] = {"n": len(a[0].ids)} | differences(drawn[1].minus(drawn[0]), HEADLINE[task], SECOND[task])
    found |= (
        {"mcnemar_p": None, "only_a_right": None, "only_b_right": None} if task == "single" else {"mcnemar_p": None}
    )
    if task == "single" and found["ci95"]:
        right_a, right_b = (np.mean([right_rows(one) for one in some], axis=0) for some in (a, b))
        group_of_row = np.unique(a[0].groups, return_inverse=True)[1]
        found["p"] = max(found["p"], sign_flip_p(np.bincount(group_of_row, right_b - right_a)))
    judge([found])
    return found


def sign_flip_p(differences: np.ndarray) -> float:
    """Return the two-sided p of a sum of differences [G] that are as likely to be turned round each, by FLIPS random draws."""
    sizes, counts = np.unique(np.abs(differences).round(9), return_counts=True)
    random = np.random.default_rng(0)
    sums = np.zeros(FLIPS)
    for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
        sums += size * (2.0 * random.binomial(count, 0.5, FLIPS) - count)
    return float((1 + (np.abs(sums) >= abs(differences.sum()) - 1e-6).sum()) / (FLIPS + 1))


def differences(delta: Resampled, headline: str, second: str) -> dict[str, Any]:
    """Return the differences of two metrics with their intervals, the bootstrap's `p` for the first, and its standard error."""
    result: dict[str, Any] = {}
    for metric, key in ((headline, "ci95"), (second, f"delta_{second}_ci95")):
        value = delta.estimate[metric]
        result[f"delta_{metric}"] = None if np.isnan(value) else value
        # draws of a few groups are few different ones, which say nothing of how sure a difference is
        stuck = len(delta.left_out[metric]) < LEAST_GROUPS
        result[key] = None if stuck else delta.interval(metric)
    known = result["ci95"] is not None
    return result | {
        "p": delta.p_value(headline) if known else 1.0,
        "standard_error": delta.error(headline) if known else None,
    }


def judge(comparisons: list[dict[str, Any]]) -> None:
    """Set in each what `compare` found: `p_holm`, `verdict`, and `rows_needed` where the verdict is open.

    `p_holm` is Holm's (1979) correction over all of them: with no difference anywhere, all verdicts together say that there
    is one in at most 5 % of cases. The verdict on b is "better" or "worse" when the interval excludes 0 and `p_holm` < 0.05; else
    "cannot tell".
    """
    corrected, factors = holm([found["p"] for found in comparisons])
    for found, p, factor in zip(comparisons, corrected, factors, strict=True):
        bounds, found["p_holm"] = found["ci95"], p
        told = bounds is not None and not bounds[0] <= 0 <= bounds[1] and p < ALPHA
        found["verdict"] = ("better" if bounds[0] > 0 else "worse") if told else "cannot tell"
        found["rows_needed"] = None if told else rows_needed(found, factor)


def rows_needed(found: dict[str, Any], factor: int = 1) -> int | None:
    """Return how many rows would tell a difference of the size found, in four of five cases; None where it is 0 or unknown.

    `factor` is what its p is multiplied by, for the other pairs that are tested. In any case it is more than there are already.
    From the standard error, which falls with the square root of the rows, or from `p` where that says more: of a few rows the
    exact test is less sure than the bootstrap.
    """
    delta = next(value for key, value in found.items() if key.startswith("delta_") and not key.endswith("ci95"))
    if not delta or not found["standard_error"] or found["p"] >= 1:
        return None
    errors = min(abs(delta) / found["standard_error"], scipy.stats.norm.isf(found["p"] / 2))
    wanted = scipy.stats.norm.isf(ALPHA / factor / 2) + scipy.stats.norm.ppf(POWER)
    return max(found["n"] + 1, math.ceil(found["n"] * (wanted / errors) ** 2))


def holm(p_values: list[float]) -> tuple[list[float], list[int]]:
    """Return each p corrected for all of them, and its factor.

    The k-th smallest of m is multiplied by m - k + 1; what comes of it is never below a smaller one's, and at most 1.
    """
    corrected, factors, highest = [1.0] * len(p_values), [1] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        factors[index] = len(p_values) - place
        highest = max(highest, min(1.0, factors[index] * p_values[index]))
        corrected[index] = highest
    return corrected, factors


def _refuse_other_rows(a: Predictions, b: Predictions) -> None:
    """Raise BadInputError unless both are of the same rows, some, in the same order with the same truth."""
    if a.ids != b.ids or a.groups != b.groups or not a.ids or not np.array_equal(a.truth, b.truth):
        raise BadInputError(
            f"only predictions for the same rows can be compared: {len(a.ids)} and {len(b.ids)} rows, "
            f"{_first_difference(a, b)}; evaluate both on one store with `labeler evaluate RUN --data STORE`"
        )


def _first_difference(a: Predictions, b: Predictions) -> str:
    for row, (one, other) in enumerate(zip(a.ids, b.ids, strict=False), start=1):
        if one != other:
            return f"row {row} is {one!r} in one and {other!r} in the other"
    return "with the same ids but another truth or group" if a.ids == b.ids and a.ids else "one ends before the other"


def _mcnemar(a: Predictions, b: Predictions) -> dict[str, Any]:
    """Return the rows that only one has right, and McNemar's exact p (1.0 without such rows)."""
    right_a, right_b = right_rows(a), right_rows(b)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = scipy.stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"mcnemar_p": float(p), "only_a_right": only_a, "only_b_right": only_b}
