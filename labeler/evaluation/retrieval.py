"""Retrieval: how well texts find their pictures and pictures their texts, in a space that both share."""

from __future__ import annotations

from typing import Any

import numpy as np

from labeler.evaluation.bootstrap import Resampled, draw_weights, left_out_weights
from labeler.evaluation.measuring import bounds_of

DEPTHS = (1, 5, 10)
RECALLS = tuple(f"recall_at_{depth}" for depth in DEPTHS)
DIRECTIONS = ("text_to_image", "image_to_text")
FEW = 100  # pairs of which a recall at 10 says too little
TOGETHER = 1024  # rows of similarities held at once


def ranks(queries: np.ndarray, gallery: np.ndarray, right: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return [N] int: the place of the best right one of the gallery in each query's order, 1 for the first.

    queries and gallery [N, S] are embeddings of length 1, row n of one belonging to row n of the other; `right` are two arrays
    of keys [N]: rows that have one of them in common are right for each other too, and never count as wrong ones before the
    right one. A wrong one that is just as near counts as nearer, so that an embedding that is the same for all gains nothing.
    """
    found = []
    for start in range(0, len(queries), TOGETHER):
        rows = slice(start, start + TOGETHER)
        similarity = queries[rows] @ gallery.T  # [n, N]
        same = np.zeros(similarity.shape, dtype=bool)
        for keys in right:
            same |= keys[rows, None] == keys
        best = np.where(same, similarity, -np.inf).max(axis=1, keepdims=True)
        found.append(1 + (~same & (similarity >= best)).sum(axis=1))
    return np.concatenate(found)


def measure_retrieval(
    text: np.ndarray, image: np.ndarray, right: tuple[np.ndarray, np.ndarray], groups: list[str], seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:  # fmt: skip
    """Return recall at 1, 5 and 10 and the median rank, in both directions, with 95 % intervals (BCa over groups), for JSON.

    text and image [N, S] are the pairs' embeddings of length 1; `right`: see `ranks`. `chance` is the recall of a random order
    with one right picture a text.
    """
    found: dict[str, Any] = {"n": len(text), "chance": {f"recall_at_{k}": min(k / len(text), 1.0) for k in DEPTHS}}
    for direction, queries, gallery in zip(DIRECTIONS, (text, image), (image, text), strict=True):
        places = ranks(queries, gallery, right)
        ones = np.ones((len(places), 1))
        resampled = Resampled(
            {name: float(values[0]) for name, values in over(places, ones).items()},
            concatenated(over(places, weights) for weights in draw_weights(groups, seed, draws)),
            concatenated(over(places, weights) for weights in left_out_weights(groups, seed)),
        )
        found[direction] = dict(resampled.estimate) | {
            f"{name}_ci95": bounds_of(resampled, name, len(set(groups)), name in RECALLS) for name in resampled.estimate
        }
    return found


def over(places: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return {metric: [D]} of ranks [N] with weights [N, D]."""
    order = np.argsort(places, kind="stable")
    weights, total = weights[order], weights.sum(axis=0)
    # of a single group nothing is left when it is left out
    found = {f"recall_at_{k}": (weights * (places[order, None] <= k)).sum(axis=0) / np.where(total, total, np.nan)
             for k in DEPTHS}  # fmt: skip
    middle = (np.cumsum(weights, axis=0) * 2 >= total).argmax(axis=0)
    return found | {"median_rank": places[order][middle].astype(float)}


def concatenated(parts: Any) -> dict[str, np.ndarray]:
    """Return the values of all parts, one after another."""
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}


def metric_for(pairs: int) -> str:
    """Return the metric that a run of `labeler pretrain` is chosen by on so many validation pairs.

    Of few pairs any order finds most among the first ten.
    """
    return RECALLS[-1] if pairs >= FEW else "mean_reciprocal_rank"


def retrieved(text: np.ndarray, image: np.ndarray, right: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the metric that `metric_for` names, the mean of both directions; see `ranks`."""
    both = np.concatenate([ranks(text, image, right), ranks(image, text, right)])
    return float((both <= DEPTHS[-1]).mean() if metric_for(len(text)) == RECALLS[-1] else (1 / both).mean())
