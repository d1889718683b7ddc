"""Splits that leak nothing: what belongs together stays in one split, and every split gets its share of every label.

Everything here is arrays over rows, so that a million rows take a second and a few dozen megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from labeler.values import SPLITS

# {kind: [N] uint64}: what two rows must not share across splits (a picture's bytes or look, the text, the group), as
# numbers that are equal where the things are; 0 where a row has none.
Keys = Mapping[str, np.ndarray]
TRAIN = SPLITS.index("train")
LONG_RUN = 64


class RowLabels(NamedTuple):
    """The labels of N rows: `codes` [M] int, one row's after another's, and `counts` [N] int, how many each row has."""

    codes: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Return [M] int: the row of each code."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of(self, chosen: np.ndarray) -> RowLabels:
        """Return the labels of the rows where `chosen` [N] bool is True."""
        return RowLabels(self.codes[np.repeat(chosen, self.counts)], self.counts[chosen])


def group_rows(keys: Keys, rows: int) -> np.ndarray:
    """Return [N] int64: each row's group, which is the number of the group's first row.

    Rows that share a key, directly or through others, share a group.
    """
    pairs = [shared_pairs(values) for values in keys.values()]
    a, b = (
        (np.concatenate(ends) for ends in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int), np.zeros(0, int))
    )
    return components(a, b, rows)


def components(a: np.ndarray, b: np.ndarray, rows: int) -> np.ndarray:
    """Return [N] int64: the first row of everything that the pairs (a, b) join with each row."""
    groups = np.arange(rows)
    if not len(a):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    touched = np.unique(np.concatenate([a, b]))
    edges = np.searchsorted(touched, a), np.searchsorted(touched, b)
    _, component = connected_components(coo_array((np.ones(len(a), np.int8), edges), shape=[len(touched)] * 2), False)
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    groups[touched] = touched[first[which]]
    return groups


def shared_pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers (a, b), enough of them to join all rows of equal values; 0 equals nothing."""
    rows = repeated(values)
    order = rows[np.argsort(values[rows], kind="stable")]
    same = values[order[1:]] == values[order[:-1]]
    return order[:-1][same], order[1:][same]


def repeated(values: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows whose value is another row's too, in order; 0 equals nothing."""
    ordered = np.sort(values[values != 0])  # in half the time of argsort, and mostly few values are left
    return np.flatnonzero(places(values, ordered[1:][ordered[1:] == ordered[:-1]]) >= 0)


def split_groups(groups: np.ndarray, labels: RowLabels, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Return [N] int8, places in `fractions`: whole groups, each label in its share, sizes in the fractions asked for.

    `groups` are those of `group_rows`: each is the number of its first row.

    The groups that hold the rarest label come first; each goes to the part that lacks that label most, ties
    to the part that lacks rows most. Source: iterative stratification (Sechidis, Tsoumakas and Vlahavas
    2011, algorithm 1), over groups in place of rows.
    """
    first = groups == np.arange(len(groups))
    members = (np.cumsum(first) - 1)[groups]
    sizes = np.bincount(members)
    owner, code, count = labels_of_groups(members, labels)
    totals = np.bincount(labels.codes) if len(labels.codes) else np.zeros(0, int)
    starts = np.searchsorted(owner, np.arange(len(sizes) + 1))
    rarest = rarest_labels(starts, code, totals)
    rank = np.unique(np.append(totals, len(groups) + 1), return_inverse=True)[1]  # the last: of groups without labels
    order = sorted_by(rank[rarest], sizes.max(initial=0) - sizes, shuffled(len(sizes), seed))

    wanted = [[total * share for share in fractions] for total in totals.tolist()]
    wanted_rows = [len(groups) * share for share in fractions]
    chosen = np.zeros(len(order), np.int8)  # in that order
    # most groups of most data are one row with one label, and come in long runs: those are dealt out at once
    alone = np.where((sizes == 1) & (np.diff(starts) == 1), rarest, -1)[order]
    bounds = [0, *(np.flatnonzero(np.diff(alone)) + 1).tolist(), len(alone)]
    code, count, starts = code.tolist(), count.tolist(), starts.tolist()
    for begin, end in pairwise(bounds):
        if end - begin >= LONG_RUN and alone[begin] >= 0:
            chosen[begin:end] = dealt(wanted[alone[begin]], wanted_rows, end - begin)
            continue
        for place, group in enumerate(order[begin:end].tolist(), begin):
            label = rarest[group]
            best = most_lacking(wanted[label] if label >= 0 else wanted_rows, wanted_rows)
            chosen[place] = best
            wanted_rows[best] -= int(sizes[group])
            for entry in range(starts[group], starts[group + 1]):
                wanted[code[entry]][best] -= count[entry]
    found = np.empty_like(chosen)
    found[order] = chosen
    return found[members]


def sorted_by(first: np.ndarray, second: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return `np.lexsort((last, second, first))` of integers, the first two not negative, where no two of `last` are equal.

    A third of the time where the first two are small: NumPy sorts such integers by their digits.
    """
    both = first * (second.max(initial=0) + 1) + second
    order = np.argsort(last)
    small = both.max(initial=0) < 2**16
    return order[np.argsort((both.astype(np.uint16) if small else both)[order], kind="stable")]


def most_lacking(lacking: list[float], wanted_rows: list[float]) -> int:
    """Return the part that lacks most; of those that lack as much the one that lacks most rows, then the first."""
    most = max(lacking)
    best = lacking.index(most)
    if lacking.count(most) > 1:
        best = max((part for part in range(len(lacking)) if lacking[part] == most), key=wanted_rows.__getitem__)
    return best


def dealt(lacking: list[float], wanted_rows: list[float], rows: int) -> np.ndarray:
    """Return [rows] int, `most_lacking` for rows of one label each; `lacking` and `wanted_rows` are lessened by them.

    A part lacks one less with every row that it gets, whatever the others get: sorting all that they will ever lack
    gives the order in which they are served. (A float less a whole number is exact.)
    """
    highest = np.cumsum(sorted(lacking, reverse=True))
    level = ((highest - rows) / np.arange(1, len(lacking) + 1)).max()  # what the parts will lack in the end
    served = [min(rows, max(0, int(lack - level) + 2)) for lack in lacking]  # at most
    part = np.repeat(np.arange(len(lacking)), served)
    before = np.concatenate([np.arange(count) for count in served])
    order = np.lexsort((part, before - np.array(wanted_rows)[part], before - np.array(lacking)[part]))
    chosen = part[order[:rows]]
    for best, count in enumerate(np.bincount(chosen).tolist()):
        lacking[best] -= count
        wanted_rows[best] -= count
    return chosen


def labels_of_groups(members: np.ndarray, labels: RowLabels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, sorted by group, each (group, label code, number of its rows with that label) that occurs."""
    number = int(labels.codes.max(initial=0)) + 1
    pairs = members[labels.rows] * number + labels.codes
    count = np.ones(len(pairs), int)
    if (pairs[1:] <= pairs[:-1]).any():  # else each row is a group
        pairs, count = np.unique(pairs, return_counts=True)
    return pairs // number, pairs % number, count


def rarest_labels(starts: np.ndarray, code: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return [G] int: the rarest label of each group, -1 for a group without labels."""
    order = np.argsort(totals, kind="stable")  # from rare to frequent
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    some = starts[1:] > starts[:-1]
    rarest = np.full(len(some), -1)
    if some.any():
        rarest[some] = order[np.minimum.reduceat(place[code], starts[:-1][some])]
    return rarest


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return [count] uint64 in an order that the seed decides, the same with every version of NumPy.

    Source: SplitMix64 (Steele, Lea and Flood 2014).
    """
    with np.errstate(over="ignore"):
        value = (np.arange(count, dtype=np.uint64) + np.uint64(seed % 2**32 << 32)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def leaks(keys: Keys, splits: np.ndarray) -> dict[str, np.ndarray]:
    """Return {kind: [N] bool}: the rows outside train that share a key of that kind with a train row."""
    return sharing(keys, splits != TRAIN, splits == TRAIN)


def sharing(keys: Keys, some: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Return {kind: [N] bool}: the rows of `some` [N] bool that share a key of that kind with one of `others` [N] bool."""
    found = {}
    for kind, values in keys.items():
        rows = repeated(values)
        ours, theirs = rows[some[rows]], rows[others[rows]]
        found[kind] = np.zeros(len(some), bool)
        found[kind][ours] = places(values[ours], np.sort(values[theirs])) >= 0
    return found


def leaking(keys: Keys, splits: np.ndarray) -> np.ndarray:
    """Return [N] int64: for train rows that share a key with a row outside train, the first such row; else -1."""
    train, others = np.flatnonzero(splits == TRAIN), np.flatnonzero(splits != TRAIN)
    found = np.full(len(splits), -1)
    for values in keys.values():
        order = others[np.argsort(values[others], kind="stable")]
        place = places(values[train], values[order])
        hit = (place >= 0) & (found[train] < 0)
        found[train[hit]] = order[place[hit]]
    return found


def places(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return the first place of each of `values` in the array `ordered`, -1 for what is not there and for 0."""
    if not len(ordered):
        return np.full(len(values), -1)
    place = np.searchsorted(ordered, values)
    there = (values != 0) & (ordered[place.clip(max=len(ordered) - 1)] == values)
    return np.where(there, place, -1)
