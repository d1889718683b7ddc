"""Metrics of the order that scores put rows in, as functions of weighted rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CELLS = 500_000  # rows x columns of weights summed at once: 4 MB, which a processor's cache holds


class Ranked(NamedTuple):
    """One label's N rows in falling order of their scores, cut up to its last positive; both sum weights [N, D] with `@`.

    A block is a run of equal scores with a positive in it; blocks are B, and rows with equal scores enter together.
    """

    pieces: csr_array  # [2 B, N]: in turns the rows between two blocks, and the rows of a block
    hits: csr_array  # [B, N]: the positives of a block


class Sums(NamedTuple):
    """What a label's rows weigh, with the highest scores first."""

    above: np.ndarray  # [B, D] of all rows above a block
    through: np.ndarray  # [B, D] of all rows above a block and in it
    hits: np.ndarray  # [B, D] of the positives in a block
    total: np.ndarray  # [D] of all rows


def rank(scores: np.ndarray, truth: np.ndarray) -> Ranked | None:
    """Return one label's rows in order of their scores: [N], [N] bool; None where no row is positive."""
    if not truth.any():
        return None
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    ordered, positives = scores[order], np.flatnonzero(truth[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    blocks, counts = np.unique(np.searchsorted(ends, positives, side="right"), return_counts=True)
    cuts = np.stack([np.append(0, ends)[blocks], ends[blocks]], axis=1).ravel()
    return Ranked(
        _summing(order[: cuts[-1]], cuts, len(order)), _summing(order[positives], counts.cumsum(), len(order))
    )


def _summing(rows: np.ndarray, ends: np.ndarray, count: int) -> csr_array:
    """Return [len(ends), count]: each line sums those of `rows` that lie between the end before and its own."""
    pointers = np.append(0, ends).astype(np.int32)
    return scipy.sparse.csr_array((np.ones(len(rows)), rows, pointers), shape=(len(ends), count))


def areas(sums: Sums) -> np.ndarray:
    """Return the area under the ROC curve [D]: the chance that a positive scores above a negative, equal scores counted half.

    NaN where no positive or no negative has weight.
    """
    hits, positives = sums.hits, sums.hits.sum(axis=0)
    found = np.cumsum(hits, axis=0)
    above = ((sums.above - (found - hits)) + (sums.through - found)) / 2  # negatives
    negatives = sums.total - positives
    return ratio((hits * (negatives - above)).sum(axis=0), positives * negatives)


def precisions(sums: Sums) -> np.ndarray:
    """Return the average precision [D], as scikit-learn's average_precision_score; NaN where no positive has weight."""
    precision = np.cumsum(sums.hits, axis=0) / np.maximum(sums.through, np.finfo(float).tiny)
    return ratio((sums.hits * precision).sum(axis=0), sums.hits.sum(axis=0))


def over_labels(
    labels: Sequence[Ranked | None], weights: np.ndarray, wanted: Sequence[Callable[[Sums], np.ndarray]]
) -> list[np.ndarray]:
    """Return of each `wanted` function the mean over L labels in each column of row weights [N, D]: [D]; NaN counts for none."""
    parts = [_over_labels(labels, columns, wanted) for columns in _columns(weights)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _over_labels(
    labels: Sequence[Ranked | None], weights: np.ndarray, wanted: Sequence[Callable[[Sums], np.ndarray]]
) -> list[np.ndarray]:
    total, found = weights.sum(axis=0), np.full((len(wanted), len(labels), weights.shape[1]), np.nan)
    for place, label in enumerate(labels):
        if label is not None:
            sums = _sums(label, weights, total)
            for way, values in zip(wanted, found, strict=True):
                values[place] = way(sums)
    return [mean(values) for values in found]


def _columns(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Yield parts of the columns of weights [N, D], of two columns or more: numpy adds up a single one in another order."""
    count = max(1, weights.shape[1] // max(2, CELLS // max(len(weights), 1)))
    for part in np.array_split(np.arange(weights.shape[1]), count):
        yield np.ascontiguousarray(weights[:, part[0] : part[-1] + 1] if count > 1 else weights)


def _sums(label: Ranked, weights: np.ndarray, total: np.ndarray) -> Sums:
    passed = np.cumsum(label.pieces @ weights, axis=0)
    return Sums(passed[0::2], passed[1::2], label.hits @ weights, total)


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one label's `precisions` in each column of row weights: [N], [N], [N, D] -> [D]."""
    return over_labels([rank(scores, truth)], weights, [precisions])[0]


def mean_average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of `average_precision` over the labels with a positive: [N, L], [N, L], [N, D] -> [D]."""
    return over_labels(rank_labels(scores, truth), weights, [precisions])[0]


def rank_labels(scores: np.ndarray, truth: np.ndarray) -> list[Ranked | None]:
    """Return `rank` of each label: [N, L], [N, L] bool."""
    return [rank(*label) for label in zip(scores.T, truth.T, strict=True)]


def ranks_of_truth(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return on which place, from 0, each row's true label stands by its score: [N, L], [N, L] -> [N].

    Of equal scores the first label counts as higher, as in `decide`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(truth, order, axis=1).argmax(axis=1)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
