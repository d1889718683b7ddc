"""Splits that leak nothing: what belongs together stays in one split, and every split gets its share of every label."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from labeler.records import SPLITS, Split

Key = tuple[str, str]  # a kind (a picture's bytes, its look, the text, the group) and a value


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
    """Return a split for each row: whole groups, each label in its share, sizes in the fractions asked for."""
    return [SPLITS[part] for part in deal_groups(groups, labels, fractions, seed)]


def deal_groups(
    groups: Sequence[int], labels: Sequence[Sequence[str]], fractions: Sequence[float], seed: int
) -> list[int]:
    """Return the number of a part for each row: whole groups, each label in its share, sizes in the fractions asked for.

    The groups that hold the rarest label come first; each goes to the part that lacks that label most, ties
    to the part that lacks rows most. Source: iterative stratification (Sechidis, Tsoumakas and Vlahavas
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
        best = max(range(len(fractions)), key=lambda part: (lacking[part], wanted_rows[part], -part))
        chosen[group] = best
        wanted_rows[best] -= len(rows_of[group])
        for label, count in label_counts[group].items():
            wanted_labels[label][best] -= count
    return [chosen[group] for group in groups]


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


def leaks(keys: Sequence[Iterable[Key]], splits: Sequence[Split]) -> dict[int, set[str]]:
    """Return, for each row outside train that shares a key with a train row, the kinds of keys that it shares."""
    train = {key for row, split in zip(keys, splits, strict=True) if split == "train" for key in row}
    found = {
        number: {kind for kind, value in row if (kind, value) in train}
        for number, (row, split) in enumerate(zip(keys, splits, strict=True))
        if split != "train"
    }
    return {number: kinds for number, kinds in found.items() if kinds}


def leaking(keys: Sequence[Iterable[Key]], splits: Sequence[Split]) -> dict[int, int]:
    """Return the train rows that share a key with a row outside train, and the number of the first such row."""
    held_out: dict[Key, int] = {}
    for number, (row, split) in enumerate(zip(keys, splits, strict=True)):
        if split != "train":
            for key in row:
                held_out.setdefault(key, number)
    shared = {
        number: next((held_out[key] for key in row if key in held_out), None)
        for number, (row, split) in enumerate(zip(keys, splits, strict=True))
        if split == "train"
    }
    return {number: other for number, other in shared.items() if other is not None}
