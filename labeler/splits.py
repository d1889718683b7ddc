"""Splits that leak nothing: what belongs together stays in one split, and every split gets its share of every label."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from labeler.records import SPLITS, Split


def group_rows(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return a group number for each row: rows that share a key, directly or through others, share a group.

    Args:
        keys: for each row the things that no other split may hold (picture hashes, text, the user's group).
    """
    parents = list(range(len(keys)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[Hashable, int] = {}
    for row, row_keys in enumerate(keys):
        for key in row_keys:
            a, b = root(first.setdefault(key, row)), root(row)
            parents[max(a, b)] = min(a, b)
    return [root(row) for row in range(len(keys))]


def split_groups(
    groups: Sequence[int], labels: Sequence[Sequence[str]], fractions: Sequence[float], seed: int
) -> list[Split]:
    """Return a split for each row: whole groups, each label in its share, sizes in the fractions asked for.

    The groups that hold the rarest label come first; each goes to the split that lacks that label most, ties
    to the split that lacks rows most. Source: iterative stratification (Sechidis, Tsoumakas and Vlahavas
    2011, algorithm 1), over groups in place of rows.
    """
    rows_of = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    label_counts = {group: Counter(label for row in rows for label in labels[row]) for group, rows in rows_of.items()}
    totals = Counter(label for row_labels in labels for label in row_labels)
    wanted_labels = {label: [count * share for share in fractions] for label, count in totals.items()}
    wanted_rows = [len(groups) * share for share in fractions]
    chosen: dict[int, int] = {}

    for group in ordered_groups(label_counts, rows_of, totals, seed):
        rarest = min(label_counts[group], key=lambda label: (totals[label], label), default=None)
        lacking = wanted_labels[rarest] if rarest is not None else wanted_rows
        best = max(range(len(fractions)), key=lambda split: (lacking[split], wanted_rows[split], -split))
        chosen[group] = best
        wanted_rows[best] -= len(rows_of[group])
        for label, count in label_counts[group].items():
            wanted_labels[label][best] -= count
    return [SPLITS[chosen[group]] for group in groups]


def ordered_groups(
    label_counts: dict[int, Counter[str]], rows_of: dict[int, list[int]], totals: Counter[str], seed: int
) -> list[int]:
    """Return the groups, those with the rarest label first, large before small, chance deciding the rest."""
    order = sorted(rows_of)
    random.Random(seed).shuffle(order)

    def rarity(group: int) -> tuple[int, int]:
        rarest = min((totals[label] for label in label_counts[group]), default=sum(totals.values()) + 1)
        return rarest, -len(rows_of[group])

    return sorted(order, key=rarity)


def leaks(groups: Sequence[int], splits: Sequence[Split]) -> int:
    """Return how many rows outside train share a group with a train row."""
    train = {group for group, split in zip(groups, splits, strict=True) if split == "train"}
    return sum(split != "train" and group in train for group, split in zip(groups, splits, strict=True))
