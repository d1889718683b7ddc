"""Thresholds to decide with, fitted on validation rows."""

from __future__ import annotations

import numpy as np

SHRINKAGE = 5.0  # best of 0 to 40 on unseen rows, in simulations with 150 and 300 rows to fit on; at 1,000 none matters


def fit_thresholds(scores: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return for each label the threshold to decide with, fitted on validation rows [N, L].

    A label's own threshold maximises its F1 and lies midway between two neighbouring scores. With few positives
    that maximum is mostly chance, so it is drawn toward the common threshold that maximises micro-F1 over all
    labels: `own * n / (n + 5) + common * 5 / (n + 5)` for n positives. A label without any gets 0.5.
    """
    positives = truth.sum(axis=0)
    found = positives > 0
    if not found.any():
        return [0.5] * truth.shape[1]
    common = _best_threshold(scores[:, found].ravel(), truth[:, found].ravel())
    own = np.array([_best_threshold(scores[:, i], truth[:, i]) if found[i] else 0.5 for i in range(truth.shape[1])])
    trust = positives / (positives + SHRINKAGE)
    return np.where(found, own * trust + common * (1 - trust), 0.5).tolist()


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the highest F1 for scores [N] and truth [N]; of equals the highest threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(ranked) + 1) + truth.sum())
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    best = ends[f1[ends].argmax()]
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)
