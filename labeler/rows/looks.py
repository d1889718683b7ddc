"""Looks: which pictures are copies of one another, re-encoded, resized or recoloured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labeler.rows.splits import components

NEAR = 0.15  # the share of their gradients that copies may differ in; how it was chosen: docs/LOG.md
BLOCK = 1024


def look_groups(hashes: np.ndarray) -> np.ndarray:
    """Return [N] int64: for each picture the first one that it looks like, directly or through others.

    Args:
        hashes: [N, B] uint8, difference hashes of 8 B bits (`labeler.pictures.images.difference_hash`).
    """
    distinct, which = np.unique(hashes, axis=0, return_inverse=True)
    blocks = [enough(*pairs) for pairs in near_blocks(distinct, NEAR)]
    groups = components(*joint(blocks), len(distinct))[which]
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    return first[member]


def near_pairs(hashes: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers (a, b), a < b, of all hashes whose Jaccard distance is at most `distance`.

    That is the share of the bits set in either that are not set in both. A number of bits would not do: plain backgrounds
    set few, so that drawings of other things differ in fewer bits than a photo and its copy. Every pair is compared, as
    a matrix product: exact, and fast enough for some hundred thousand pictures.
    """
    return joint(list(near_blocks(hashes, distance)))


def near_blocks(hashes: np.ndarray, distance: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of `near_pairs`, those among two blocks of BLOCK hashes at a time."""
    bits = np.unpackbits(hashes, axis=1).astype(np.float32)
    sizes = bits.sum(axis=1)
    for start in range(0, len(bits), BLOCK):
        for other in range(start, len(bits), BLOCK):
            both = bits[start : start + BLOCK] @ bits[other : other + BLOCK].T
            most = sizes[start : start + BLOCK, None] + sizes[None, other : other + BLOCK]
            a, b = np.nonzero((2 - distance) * both >= (1 - distance) * most)
            yield a[a + start < b + other] + start, b[a + start < b + other] + other


def enough(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs that join what the pairs (a, b) do, fewer than there are rows: many copies of one picture have many pairs."""
    rows, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    first = components(places[: len(a)], places[len(a) :], len(rows))
    others = np.flatnonzero(first != np.arange(len(rows)))
    return rows[first[others]], rows[others]


def joint(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return lists of pairs as one."""
    first, second = zip((np.zeros(0, int), np.zeros(0, int)), *pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)
