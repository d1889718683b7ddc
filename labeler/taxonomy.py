"""A taxonomy: labels in a tree of two levels. A child brings its parent, and no score says otherwise.

What a model says of its L labels and what is shown of all M names (the labels, and parents that no pair carries itself)
are turned into each other here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.errors import BadInputError
from labeler.records import LabelSet, Task, refuse_deep
from labeler.values import RowError, clean_text, closest

FORM = 'expected a JSON object, {"child": "parent"} or {"parent": ["child"]}'


class Taxonomy(NamedTuple):
    """Which of M names is which one's parent: first parents that no pair carries itself, then a model's L labels in order.

    Task `single`: labels exclude each other, so that a parent is as likely as its children (and it alone) together. Task
    `multi`: a parent is at least as likely as each of its children; pairs carry it, and M = L. Without `pairs`
    nothing is changed.
    """

    task: Task
    names: list[str]
    labels: int
    pairs: list[tuple[int, int]]  # (child, parent): places in `names`

    @property
    def apart(self) -> bool:
        """Return whether a pair's own label is told apart from the parent that it brings."""
        return self.task == "single" and bool(self.pairs)

    @property
    def tops(self) -> list[int]:
        """Return the places of the names that have no parent."""
        children = {child for child, _ in self.pairs}
        return [place for place in range(len(self.names)) if place not in children]

    def scores(self, own: np.ndarray) -> np.ndarray:
        """Return the scores [N, M] of all names for those of the labels [N, L]: no child's is above its parent's."""
        if self.task == "multi":
            return self._up(own, np.maximum)
        return shares(self._up(own, np.add)) if self.pairs else own

    def flags(self, own: np.ndarray) -> np.ndarray:
        """Return which names [N, M] bool the labels [N, L] bool are: a child brings its parent."""
        return self._up(own, np.logical_or)

    def own_scores(self, scores: np.ndarray) -> np.ndarray:
        """Return the labels' scores [N, L] that `scores` was called with; for `multi` its result."""
        return shares(self._down(scores, np.subtract)) if self.pairs else scores

    def own_flags(self, flags: np.ndarray) -> np.ndarray:
        """Return the labels [N, L] bool that `flags` was called with; for `multi` its result."""
        return self._down(flags, np.greater)

    def _up(self, own: np.ndarray, join: Any) -> np.ndarray:
        found = np.hstack([np.zeros((len(own), len(self.names) - self.labels), own.dtype), own])
        for child, parent in self.pairs:
            found[:, parent] = join(found[:, parent], found[:, child])
        return found

    def _down(self, values: np.ndarray, part: Any) -> np.ndarray:
        found = values.copy()
        for child, parent in self.pairs if self.task == "single" else []:
            found[:, parent] = part(found[:, parent], found[:, child])
        return found[:, len(self.names) - self.labels :]


def shares(values: np.ndarray) -> np.ndarray:
    """Return sums or differences of scores with 6 decimals as scores with 6 decimals again, in 0..1."""
    return np.round(values, 6).clip(0.0, 1.0)


def taxonomy_of(label_set: LabelSet) -> Taxonomy:
    """Return the taxonomy of a label set."""
    names = [*label_set.parents, *label_set.names]
    places = {name: place for place, name in enumerate(names)}
    pairs = [(places[label.name], places[label.parent]) for label in label_set.labels if label.parent is not None]
    return Taxonomy(label_set.task, names, len(label_set.labels), pairs)


def read_taxonomy(path: Path | None) -> dict[str, str]:
    """Return {child: parent} as the JSON file has it, or {} where there is no file.

    Its object holds "child": "parent" or "parent": ["child", ...], names cleaned as labels are. Raises BadInputError
    where it is none, a child has two parents or is its own, or where there are more than two levels.
    """
    if path is None:
        return {}
    try:  # objects as tuples of pairs: a key that comes twice is a child with two parents
        given = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=tuple)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not readable as JSON ({error}); {FORM}") from error
    if not isinstance(given, tuple):
        raise BadInputError(f"{path}: {FORM}")
    parents: dict[str, str] = {}
    for key, value in given:
        for pair in [(child, key) for child in value] if isinstance(value, list) else [(key, value)]:
            child, parent = (label_name(path, part) for part in pair)
            if parents.setdefault(child, parent) != parent:
                raise BadInputError(
                    f"{path}: {child!r} has two parents, {parents[child]!r} and {parent!r}; keep one of them"
                )
    if not parents:
        raise BadInputError(f"{path}: no label in it; {FORM}")
    try:
        refuse_deep(parents)
    except ValueError as error:
        raise BadInputError(f"{path}: {error}") from None
    return parents


def label_name(path: Path, value: Any) -> str:
    """Return a name in the file `path`, cleaned as labels are; raises BadInputError where it can be no label."""
    try:
        name = clean_text(value, "label") if isinstance(value, str) else None
    except RowError as error:
        raise BadInputError(f"{path}: {error}") from None
    if name is None:
        raise BadInputError(f"{path}: {str(value)[:80]!r} is no label; {FORM}")
    return name


def refuse_strangers(
    path: Path,
    parents: Mapping[str, str],
    task: Task,
    carried: Collection[str],
    allowed: Collection[str] | None,
    file: Path | None,
) -> None:
    """Raise BadInputError, naming the closest label, where a name in the taxonomy `path` is no label.

    Children must be `carried` by rows, or `allowed`: in the vocabulary `file`, where one was given. Parents must too, but
    for task `single` without a vocabulary, where they may be names of their own.
    """
    known = {*carried, *(allowed or ())}
    where = f"in {file}" if file else "a label of the data"
    for child, parent in parents.items():
        if child not in known:
            raise BadInputError(f"{path}: {child!r} is not {where}{closest(child, known)}; correct it, or leave it out")
        if parent not in known and (task == "multi" or allowed is not None):
            add = f"add it to {file}" if file else "allow it by --labels FILE with all labels, it too, one a line"
            # it is none of its own children
            others = known - {name for name, above in parents.items() if above == parent}
            raise BadInputError(
                f"{path}: {parent!r}, the parent of {child!r}, is not {where}{closest(parent, others)}; correct it, or {add}"
            )
