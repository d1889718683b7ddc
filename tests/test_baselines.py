"""Baselines against scikit-learn and against what must hold for any of them."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, log_loss

from labeler import baselines
from labeler.baselines import PROBE_STRENGTHS, STRENGTHS, Features, linear_probe, logistic_regression, majority
from labeler.evaluation import HEADLINE


def make(
    task: str, rows: int, labels: int = 4, seed: int = 0, wide: tuple[int, int] = (24, 12), signal: float = 1.0
) -> Features:
    """Return rows whose labels can be told from image and text together better than from one of them."""
    random, world = np.random.default_rng([seed, 1]), np.random.default_rng(9)
    hidden = random.normal(size=(rows, 6))
    image, text = (
        hidden[:, side] @ world.normal(size=(4, n)) for side, n in ((slice(0, 4), wide[0]), (slice(2, 6), wide[1]))
    )
    logits = 2 * hidden @ world.normal(size=(6, labels))
    if task == "single":
        truth = np.arange(labels) == (logits + random.gumbel(size=logits.shape)).argmax(axis=1)[:, None]
    else:
        truth = random.random(logits.shape) < 1 / (1 + np.exp(2 - logits))
    noisy = [(signal * tower + random.normal(size=tower.shape)).astype(np.float32) * 5 for tower in (image, text)]
    return Features(*noisy, truth)


def parts(task: str, **settings) -> list[Features]:
    """Return training, validation and test rows."""
    return [make(task, rows, seed=seed, **settings) for rows, seed in ((300, 0), (120, 1), (150, 2))]


@pytest.fixture(autouse=True)
def no_warnings():
    """No warning leaks out of a baseline."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("task", ["single", "multi"])
def test_majority_gives_each_row_the_training_shares(task):
    train, validation, rows = parts(task)
    found = majority(train, rows, validation)
    assert found.name == "majority"
    assert found.scores.shape == (150, 4)
    assert found.validation_scores.shape == (120, 4)
    assert np.allclose(found.scores, train.truth.mean(axis=0))
    assert majority(train, rows).validation_scores.shape == (0, 4)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_logistic_regression_beats_the_majority_and_each_tower_alone(task):
    train, validation, rows = parts(task)

    def value(*given: Features) -> float:
        return baselines._value(task, HEADLINE[task], logistic_regression(task, *given).scores, given[2].truth)

    whole = value(train, validation, rows)
    blind = [[part._replace(**{tower: np.zeros((len(part.truth), 1), np.float32)}) for part in (train, validation, rows)]
             for tower in ("image", "text")]  # fmt: skip
    assert whole > max(value(*given) for given in blind)
    assert whole > baselines._value(task, HEADLINE[task], majority(train, rows).scores, rows.truth) + 0.1


@pytest.mark.parametrize("task", ["single", "multi"])
def test_strength_and_scaling_are_those_best_on_validation(task):
    train, validation, rows = parts(task)
    found = logistic_regression(task, train, validation, rows, seed=3)
    values = {}
    for name, unit in baselines.SCALINGS.items():
        x, x_validation = baselines._inputs(unit, train, validation)
        for strength, fit in baselines._fits(task, x, train.truth):
            scores = baselines._scores(task, fit, x_validation, train.truth)
            values[strength, name] = baselines._value(task, HEADLINE[task], scores, validation.truth)
    assert found.settings["validation"] == pytest.approx(max(values.values()))
    assert values[found.settings["C"], found.settings["scaling"]] == pytest.approx(max(values.values()))
    if task == "multi":
        assert found.settings["validation"] == pytest.approx(
            average_precision_score(validation.truth, found.validation_scores)
        )
    else:
        pair = validation.truth.argmax(axis=1), found.validation_scores.argmax(axis=1)
        assert found.settings["validation"] == pytest.approx(accuracy_score(*pair))
    assert found.settings["seed"] == 3
    assert found.settings["converged"] in (True, False)
    assert found.train_seconds > 0


def test_one_run_over_all_labels_finds_scikit_learns_solution():
    train, _, rows = parts("multi")
    x, x_rows = baselines._inputs(False, train, rows)
    for strength, fit in baselines._fits("multi", x, train.truth):
        scores = baselines._scores("multi", fit, x_rows, train.truth)
        for i in range(4):
            model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.astype(float), train.truth[:, i])
            assert scores[:, i] == pytest.approx(model.predict_proba(x_rows)[:, 1], abs=0.01)


@pytest.mark.parametrize("labels", [2, 4])
def test_single_scores_are_scikit_learns_probabilities(labels):
    train, _, rows = parts("single", labels=labels)
    x, x_rows = baselines._inputs(False, train, rows)
    for strength, fit in baselines._fits("single", x, train.truth):
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.astype(float), train.truth.argmax(axis=1))
        scores = baselines._scores("single", fit, x_rows, train.truth)
        assert scores.sum(axis=1) == pytest.approx(np.ones(150))
        assert scores == pytest.approx(model.predict_proba(x_rows), abs=0.01)


def test_labels_that_all_or_none_carry_get_their_smoothed_share():
    train, validation, rows = parts("multi")
    train.truth[:, 1], train.truth[:, 2] = True, False
    found = logistic_regression("multi", train, validation, rows)
    assert np.all(found.scores[:, 1] == 301 / 302)
    assert np.all(found.scores[:, 2] == 1 / 302)
    assert np.ptp(found.scores[:, 0]) > 0.1
    train.truth[:] = False
    nothing = logistic_regression("multi", train, validation, rows)
    assert np.all(nothing.scores == 1 / 302)
    assert nothing.parameters == 0


def test_a_class_that_training_lacks_gets_zero_and_one_class_alone_gets_one():
    train, validation, rows = parts("single")
    train.truth[train.truth[:, 3]] = [True, False, False, False]
    found = logistic_regression("single", train, validation, rows)
    assert np.all(found.scores[:, 3] == 0)
    assert found.scores.sum(axis=1) == pytest.approx(np.ones(150))
    train.truth[:] = [False, True, False, False]
    found = logistic_regression("single", train, validation, rows)
    assert found.scores[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_test_rows_play_no_part_and_nothing_is_random(task):
    train, validation, rows = parts(task)
    first = logistic_regression(task, train, validation, rows, seed=0)
    changed = rows._replace(image=rows.image[:7] * 100, text=rows.text[:7], truth=~rows.truth[:7])
    second = logistic_regression(task, train, validation, changed, seed=0)
    assert np.array_equal(first.validation_scores, second.validation_scores)
    assert first.settings == second.settings
    assert np.array_equal(first.scores, logistic_regression(task, train, validation, rows, seed=1).scores)


def test_rows_without_a_picture_and_features_that_never_vary_are_no_trouble():
    train, validation, rows = parts("single")
    for part in (train, validation, rows):
        part.image[::3] = 0
        part.text[:, 0] = 7
    found = logistic_regression("single", train, validation, rows)
    assert np.isfinite(found.scores).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    empty = Features(rows.image[:0], rows.text[:0], rows.truth[:0])
    assert logistic_regression("single", train, validation, empty).scores.shape == (0, 4)


def test_an_unfinished_fit_is_told_by_the_settings_and_not_by_a_warning(monkeypatch):
    monkeypatch.setattr(baselines, "ITERATIONS", 1)
    for task in ("single", "multi"):
        assert logistic_regression(task, *parts(task)).settings["converged"] is False


def test_inputs_are_left_as_they_are():
    given = parts("single")
    before = [[values.copy() for values in part] for part in given]
    logistic_regression("single", *given)
    for part, copy in zip(given, before, strict=True):
        assert all(np.array_equal(values, old) for values, old in zip(part, copy, strict=True))


def test_many_labels_and_wide_features_take_seconds():
    train, validation, rows = (
        make("multi", n, labels=61, seed=s, wide=(320, 96)) for n, s in ((700, 0), (150, 1), (150, 2))
    )
    started = time.perf_counter()
    found = logistic_regression("multi", train, validation, rows)
    assert time.perf_counter() - started < 30
    assert found.settings["C"] in STRENGTHS
    assert found.parameters == 61 * 417


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_heads_start_is_the_probe_of_the_lowest_validation_loss(task, monkeypatch):
    train, validation, _ = parts(task)
    joined = [np.hstack([part.image, part.text]) for part in (train, validation)]
    losses, biases = [], []

    def probe():
        return linear_probe(task, joined[0], train.truth, joined[1], validation.truth)

    chosen = probe()
    for strength in PROBE_STRENGTHS:
        monkeypatch.setattr(baselines, "PROBE_STRENGTHS", (strength,))
        one = probe()
        logits = (joined[1] - one.center) / one.scale @ one.weights + one.bias
        if task == "single":
            losses.append(log_loss(validation.truth.argmax(axis=1), softmax(logits, axis=1)))
        else:
            losses.append(np.mean([log_loss(*pair) for pair in zip(validation.truth.T, expit(logits).T, strict=True)]))
        biases.append(one.bias)
    assert len(set(losses)) == len(losses)
    np.testing.assert_allclose(chosen.bias, biases[int(np.argmin(losses))], atol=1e-3)
