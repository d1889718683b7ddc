"""Thresholds to decide with, fitted on validation rows for a chosen aim."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from labeler.errors import UsageError

SHRINKAGE = 5.0  # best of 0 to 40 on unseen rows, in simulations with 150 and 300 rows to fit on; at 1,000 none matters
NEVER = 1.000001  # above every score


class Aim(NamedTuple):
    """What thresholds are for: the best `f1`, or the most labels with a `precision` or `recall` of at least `value`."""

    metric: str
    value: float | None = None

    def __str__(self) -> str:
        return self.metric if self.value is None else f"{self.metric}={self.value:g}"


BEST_F1 = Aim("f1")


def aim_of(text: str) -> Aim:
    """Return the aim that `f1`, `precision=0.95` or `recall=0.9` stand for; raises UsageError for anything else."""
    metric, _, value = text.partition("=")
    if text == "f1":
        return BEST_F1
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if metric not in ("precision", "recall") or not 0 < share <= 1:
        raise UsageError(f"--aim {text}: expected f1, precision=P or recall=R, with a share above 0 and up to 1")
    return Aim(metric, share)


def fit_thresholds(scores: np.ndarray, truth: np.ndarray, aim: Aim = BEST_F1) -> list[float]:
    """Return for each label the threshold to decide with, fitted on validation rows [N, L].

    A label's own threshold is the best for the aim and lies midway between two neighbouring scores. With few positives
    that is mostly chance, so it is drawn toward the common threshold that is best for all labels taken
    together: `own * n / (n + 5) + common * 5 / (n + 5)` for n positives. A label without any gets 0.5, one that cannot reach
    the aim the common threshold; where that cannot either, one above 1.
    """
    positives = truth.sum(axis=0)
    found = positives > 0
    if not found.any():
        return [0.5] * truth.shape[1]
    common = best_threshold(scores[:, found].ravel(), truth[:, found].ravel(), aim)
    own = np.array([best_threshold(scores[:, i], truth[:, i], aim) if found[i] else 0.5 for i in range(truth.shape[1])])
    own = np.where(own > 1, common, own)
    trust = positives / (positives + SHRINKAGE)
    return np.where(found, own * trust + common * (1 - trust), 0.5).tolist()


def best_threshold(scores: np.ndarray, truth: np.ndarray, aim: Aim = BEST_F1) -> float:
    """Return the best threshold for scores [N] and truth [N] with a positive in it.

    The highest F1, of equals the highest threshold; the lowest threshold of the precision aimed at, or NEVER; the highest of the
    recall aimed at.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits, named = scores[order], np.cumsum(truth[order]), np.arange(1, len(scores) + 1)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    if aim.metric == "f1":
        best = ends[(2 * hits / (named + truth.sum()))[ends].argmax()]
    else:
        measured = hits / (named if aim.metric == "precision" else truth.sum())
        reached = ends[measured[ends] >= (aim.value or 0.0)]
        if not len(reached):
            return NEVER
        best = reached[-1 if aim.metric == "precision" else 0]
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)
