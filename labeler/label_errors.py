"""Likely label errors: rows that a regression which never saw them would label otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from labeler.baselines import CrossValidated, Features, cross_validated
from labeler.rows.splits import RowLabels, split_groups
from labeler.taxonomy import Taxonomy

FOLDS = 5
LEARNED = 0.01  # by so much the regression has to lower the log loss of the labels' frequencies to be listened to
# Which of cleanlab's filters found most of the planted errors at the same precision (docs/LOG.md): as many rows as are
# estimated to be wrong, the least likely first; for several labels what is confidently another value than given, or most
# missing labels stay hidden behind given ones.
FILTERS = {"single": "low_self_confidence", "multi": "confident_learning"}


class LabelError(NamedTuple):
    """A row whose labels are likely wrong."""

    row: int
    suggested: np.ndarray  # [L] bool: the labels that the regression would give
    score: float  # in 0..1: how likely the given labels are, by the one most in doubt


class Judged(NamedTuple):
    """What was found: the errors, most likely first, and how."""

    errors: list[LabelError]
    not_judged: np.ndarray  # [L] bool: labels that too few groups carry, or, of several a row, that all rows do
    probe: CrossValidated
    frequencies: float  # the log loss of scores that say no more than how frequent each label is

    @property
    def guessed(self) -> bool:
        """Return whether the regression hardly knows more than that, so that what it doubts says nothing."""
        return self.probe.log_loss > (1 - LEARNED) * self.frequencies


def find_label_errors(
    task: str, rows: Features, groups: Sequence[int], seed: int = 0, taxonomy: Taxonomy | None = None
) -> Judged:
    """Return the rows with likely label errors, by confident learning on cross-validated scores.

    The least likely labels come first; for task multi, given labels that look wrong and missing ones take turns.
    Rows of one group (copies of a picture or a text) lie in one fold, so that none vouches for another. A label that
    fewer than FOLDS groups carry is not judged: its rows would look wrong because the regression hardly knows it. Nor is,
    for task multi, one that all rows carry.

    With a `taxonomy` no suggestion has a label without its parent.

    `groups` holds a number for each row; at least FOLDS differ. `seed` decides the folds.

    Source: Northcutt, Jiang and Chuang (2021), as in cleanlab; for task multi each label is judged by itself.
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    carried = RowLabels(np.nonzero(rows.truth)[1], rows.truth.sum(axis=1))
    folds = split_groups(first[members], carried, [1 / FOLDS] * FOLDS, seed)
    probe = cross_validated(task, rows, folds)
    numbers = np.asarray(groups)
    not_judged = np.array([len(np.unique(numbers[carries])) < FOLDS for carries in rows.truth.T])
    if task == "multi":
        not_judged |= rows.truth.all(axis=0)
    doubted = _doubted(task, rows.truth, probe.scores) & ~not_judged
    if task == "single":
        best = probe.scores.argmax(axis=1)
        suggested = np.arange(rows.truth.shape[1]) == best[:, None]
        doubted &= ~suggested
    else:
        suggested = rows.truth ^ doubted
        if taxonomy:
            suggested = taxonomy.flags(suggested)
            doubted = suggested != rows.truth
    likelihood = np.where(rows.truth, probe.scores, 1 - probe.scores)
    order = _order(likelihood, [doubted & rows.truth, doubted & ~rows.truth])
    scores = np.where(doubted, likelihood, np.inf).min(axis=1)
    return Judged([LabelError(row, suggested[row], float(scores[row])) for row in order], not_judged, probe,
                  log_loss_of_shares(task, rows.truth))  # fmt: skip


def log_loss_of_shares(task: str, truth: np.ndarray) -> float:
    """Return the log loss, as in `CrossValidated`, of each label's share in truth [N, L] as every row's score."""
    shares = truth.mean(axis=0)
    if task == "single":
        return float(scipy.special.entr(shares).sum())
    return float((scipy.special.entr(shares) + scipy.special.entr(1 - shares)).mean())


def _order(likelihood: np.ndarray, kinds: list[np.ndarray]) -> list[int]:
    """Return the rows of the cells [N, L] in `kinds`, each kind's least likely first, the kinds taking turns.

    A given label can look a thousand times less likely than a missing one ever does, so that one list would hide those.
    """
    places = np.full(likelihood.shape, np.inf)
    for cells in kinds:
        places[cells] = likelihood[cells].argsort(kind="stable").argsort()
    first = places.min(axis=1)
    return [int(row) for row in np.argsort(first, kind="stable") if np.isfinite(first[row])]


def _doubted(task: str, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return [N, L] bool: which labels of which rows are likely wrong; for task single only given ones."""
    # one process: Lance does not survive a fork
    if task == "single":
        from cleanlab.filter import find_label_issues

        return truth & find_label_issues(truth.argmax(axis=1), scores, filter_by=FILTERS[task], n_jobs=1)[:, None]
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    doubted = np.zeros_like(truth)
    # cleanlab compares rows that carry a label with others that do not
    varied = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    if len(varied):
        carried = [np.flatnonzero(row).tolist() for row in truth[:, varied]]
        doubted[:, varied] = find_multilabel_issues_per_class(
            carried, scores[:, varied], filter_by=FILTERS[task], n_jobs=1
        )
    return doubted
