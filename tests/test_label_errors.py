"""Likely label errors: planted ones are found, copies do not vouch for each other, rare labels are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from labeler.baselines import Features, cross_validated
from labeler.label_errors import FOLDS, find_label_errors

LABELS = 4


def clean(task: str, rows: int = 300, seed: int = 0) -> Features:
    """Return rows whose labels can nearly always be told from image and text together."""
    rng = np.random.default_rng(seed)
    if task == "single":
        truth = np.arange(LABELS) == rng.integers(0, LABELS, rows)[:, None]
    else:
        truth = rng.random((rows, LABELS)) < 0.3
    centres = np.random.default_rng(9).normal(size=(LABELS, 16))
    seen = truth @ centres + rng.normal(0, 0.4, (rows, 16))
    return Features(seen[:, :10].astype(np.float32), seen[:, 10:].astype(np.float32), truth)


def planted(rows: Features, task: str, share: float = 0.05, seed: int = 1) -> tuple[Features, np.ndarray]:
    """Return the rows with that share of them labelled wrong, and which [N]."""
    rng = np.random.default_rng(seed)
    truth, wrong = rows.truth.copy(), np.zeros(len(rows.truth), dtype=bool)
    for row in rng.permutation(len(truth))[: round(share * len(truth))]:
        if task == "single":
            truth[row] = np.roll(truth[row], rng.integers(1, LABELS))
        else:
            truth[row, rng.integers(LABELS)] ^= True
        wrong[row] = True
    return rows._replace(truth=truth), wrong


@pytest.mark.parametrize("task", ["single", "multi"])
def test_planted_errors_are_found_with_the_labels_that_were_there_before(task):
    before = clean(task)
    rows, wrong = planted(before, task)
    judged = find_label_errors(task, rows, range(len(wrong)))
    found = [error.row for error in judged.errors]
    assert len(set(found)) == len(found)
    assert wrong[found].sum() > 0.6 * wrong.sum()
    assert wrong[found].mean() > 0.5
    assert wrong[found[: wrong.sum() // 2]].mean() > 0.9, "the surest come first"
    suggestions = [(error.suggested == before.truth[error.row]).all() for error in judged.errors if wrong[error.row]]
    assert np.mean(suggestions) > 0.85
    assert all(0 <= error.score <= 1 for error in judged.errors)
    assert all((error.suggested != rows.truth[error.row]).any() for error in judged.errors)


def test_missing_labels_stand_among_the_first_as_wrong_ones_do():
    before = clean("multi")
    truth = before.truth.copy()
    missing = np.flatnonzero(truth[:, 0])[:8]
    added = np.flatnonzero(~truth[:, 1])[:8]
    truth[missing, 0], truth[added, 1] = False, True
    first = [error.row for error in find_label_errors("multi", before._replace(truth=truth), range(300)).errors[:16]]
    assert len({*first} & {*missing.tolist()}) >= 4, "by chance it would be none"
    assert len({*first} & {*added.tolist()}) >= 4


def test_copies_do_not_vouch_for_each_other():
    """Ten copies of one row, all labelled wrong, look right to a regression that has seen nine of them."""
    rows = clean("single")
    copies = np.r_[np.arange(300), np.zeros(9, dtype=int)]
    truth = rows.truth[copies]
    wrong = np.r_[0, np.arange(300, 309)]
    truth[wrong] = np.roll(truth[0], 1)
    copied = Features(rows.image[copies], rows.text[copies], truth)
    groups = copies.tolist()
    found = {error.row for error in find_label_errors("single", copied, groups).errors}
    assert found >= set(wrong.tolist())
    apart = {error.row for error in find_label_errors("single", copied, range(309)).errors}
    assert not apart & set(wrong.tolist())


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_label_that_few_groups_carry_is_not_judged(task):
    rows = clean(task)
    rare = np.zeros((300, 1), dtype=bool)
    rare[: FOLDS - 1] = True
    truth = np.hstack([rows.truth & ~rare if task == "single" else rows.truth, rare])
    judged = find_label_errors(task, rows._replace(truth=truth), range(300))
    assert judged.not_judged.tolist() == [False] * LABELS + [True]
    for error in judged.errors:
        assert error.suggested[-1] == truth[error.row, -1] or (task == "single" and error.row >= FOLDS - 1)
        assert task == "multi" or error.row >= FOLDS - 1


@pytest.mark.parametrize("others", [LABELS, 0])
def test_a_label_that_all_rows_carry_is_not_judged(others):
    rows = clean("multi")
    everyone = np.ones((300, 1), dtype=bool)
    rows = rows._replace(truth=np.hstack([rows.truth[:, :others], everyone]))
    judged = find_label_errors("multi", rows, range(300))
    assert judged.not_judged.tolist() == [False] * others + [True]
    assert all(error.suggested[-1] for error in judged.errors)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_regression_that_only_knows_how_frequent_labels_are_is_not_listened_to(task):
    rows = clean(task)
    assert not find_label_errors(task, rows, range(300)).guessed
    shuffled = rows._replace(truth=np.random.default_rng(5).permutation(rows.truth))
    judged = find_label_errors(task, shuffled, range(300))
    assert judged.guessed
    shares = rows.truth.mean(axis=0)
    own = [-np.log(shares[row]).sum() if task == "single" else
           -np.log(np.where(row, shares, 1 - shares)).mean() for row in rows.truth]  # fmt: skip
    assert judged.frequencies == pytest.approx(np.mean(own))


def test_rows_without_any_label_can_be_judged():
    rows = clean("multi")
    rows.truth[:150:5] = False
    assert find_label_errors("multi", rows, range(300)).errors


def test_the_same_seed_finds_the_same():
    rows, _ = planted(clean("single"), "single")
    first, again = (find_label_errors("single", rows, range(300), seed=3) for _ in range(2))
    assert [(e.row, e.score) for e in first.errors] == [(e.row, e.score) for e in again.errors]


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_fold_s_scores_do_not_depend_on_its_labels(task):
    rows = clean(task, 200)
    folds = np.arange(200) % FOLDS
    changed = rows.truth.copy()
    changed[folds == 0] = np.roll(changed[folds == 0], 1, axis=1)
    before, after = (cross_validated(task, rows._replace(truth=truth), folds) for truth in (rows.truth, changed))
    assert before.strength == after.strength
    assert np.allclose(before.scores[folds == 0], after.scores[folds == 0])
    assert not np.allclose(before.scores[folds == 1], after.scores[folds == 1])
    assert before.log_loss < after.log_loss
