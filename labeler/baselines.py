"""Baselines that every model has to beat: the majority, and logistic regression on frozen features."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from labeler.evaluation import HEADLINE, Predictions, decide, mean_average_precision, statistics

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: the higher, the less is the fit held back
PROBE_STRENGTHS = (0.0001, 0.001, 0.01)
SCALINGS = {"standardised": False, "unit length, standardised": True}
ITERATIONS = 300
TOLERANCE = 1e-4


class Features(NamedTuple):
    """N rows as frozen towers see them."""

    image: np.ndarray  # [N, Di] float32; zeros where a row has no image
    text: np.ndarray  # [N, Dt] float32; zeros where a row has no text
    truth: np.ndarray  # [N, L] bool


class Baseline(NamedTuple):
    """What a baseline says about the M rows asked for and the V validation rows, and what it took."""

    name: str
    scores: np.ndarray  # [M, L] float64 in 0..1
    validation_scores: np.ndarray  # [V, L] float64 in 0..1
    parameters: int
    train_seconds: float
    settings: dict[str, Any]


class Fit(NamedTuple):
    """One fitted regression: probability(rows [N, D]) = link(rows @ weights + bias)."""

    weights: np.ndarray  # [D, K] for the K labels that vary in train
    bias: np.ndarray  # [K]
    converged: bool


def majority(train: Features, rows: Features, validation: Features | None = None) -> Baseline:
    """Return the share of each label among the training rows as every row's scores.

    For task single the decision is thus the most frequent label. `validation_scores` is [0, L] without `validation`.
    """
    started = time.perf_counter()
    share = train.truth.mean(axis=0)
    count = 0 if validation is None else len(validation.truth)
    scores, validation_scores = (np.tile(share, (n, 1)) for n in (len(rows.truth), count))
    return Baseline("majority", scores, validation_scores, len(share), time.perf_counter() - started, {})


# Several threads gain little here, and on a machine that is busy they wait for each other: 180 s instead of 6 s.
@ThreadpoolController().wrap(limits=1)
def logistic_regression(task: str, train: Features, validation: Features, rows: Features, seed: int = 0) -> Baseline:
    """Return logistic regression on [image, text], standardised by the training rows.

    Task single fits one multinomial model, task multi one model a label. Strength (`STRENGTHS`) and scaling (each
    tower as it is, or brought to unit length first) are those with the best validation accuracy (single) or mean
    average precision (multi), the figures that models are compared by first; of equals the more held back. A label
    that all or none of the training rows carry gets its smoothed share as score, (positives + 1) / (rows + 2), or for
    task single 0. `train_seconds` holds the whole search. Nothing here is random: `seed` is only recorded.
    """
    started = time.perf_counter()
    best, chosen = -1.0, None
    for scaling, unit in SCALINGS.items():
        x_train, x_validation, x_rows = _inputs(unit, train, validation, rows)
        for strength, fit in _fits(task, x_train, train.truth):
            validation_scores = _scores(task, fit, x_validation, train.truth)
            value = _value(task, HEADLINE[task], validation_scores, validation.truth)
            if value > best or chosen is None:
                settings = {"C": strength, "scaling": scaling, "converged": fit.converged}
                best, chosen = value, (fit, _scores(task, fit, x_rows, train.truth), validation_scores, settings)
    assert chosen is not None, "the grid is never empty"
    fit, scores, validation_scores, settings = chosen
    settings |= {
        "chosen_by": HEADLINE[task],
        "validation": best if best >= 0 else None,
        "grid": list(STRENGTHS),
        "seed": seed,
    }
    seconds = time.perf_counter() - started
    return Baseline(
        "logistic-regression", scores, validation_scores, fit.weights.size + fit.bias.size, seconds, settings
    )


class CrossValidated(NamedTuple):
    """What the regression says of every row, each time fitted to the other folds alone."""

    scores: np.ndarray  # [N, L] float64 in 0..1
    log_loss: float  # of these scores, in nats a row (single) or a row and label (multi)
    strength: float  # the C that gave the lowest log loss


@ThreadpoolController().wrap(limits=1)
def cross_validated(task: str, rows: Features, folds: np.ndarray) -> CrossValidated:
    """Return out-of-fold scores of logistic regression on [image, text], each at unit length, standardised.

    `folds` [N] holds the number of each row's fold; at least two differ. Only well held back fits are tried
    (`PROBE_STRENGTHS`), and one strength holds for all folds, that of the lowest log loss: the scores are to be
    probabilities more than right.
    """
    scores = {strength: np.zeros(rows.truth.shape) for strength in PROBE_STRENGTHS}
    for fold in np.unique(folds):
        held_out = folds == fold
        train, others = (Features(*(part[chosen] for part in rows)) for chosen in (~held_out, held_out))
        x_train, x_others = _inputs(True, train, others)
        for strength, fit in _fits(task, x_train, train.truth, PROBE_STRENGTHS):
            scores[strength][held_out] = _scores(task, fit, x_others, train.truth)
    losses = {strength: _log_loss(task, found, rows.truth) for strength, found in scores.items()}
    best = min(losses, key=losses.__getitem__)
    return CrossValidated(scores[best], losses[best], best)


def _log_loss(task: str, scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean negative log-likelihood; no single row may cost more than about 14."""
    likelihood = scores[truth] if task == "single" else np.where(truth, scores, 1 - scores)
    return float(-np.log(np.maximum(likelihood, 1e-6)).mean())


def _inputs(unit: bool, train: Features, *others: Features) -> list[np.ndarray]:
    """Return [N, Di + Dt] float32 for train and each of `others`, scaled by train alone."""
    joined = [np.hstack([_unit(x) if unit else x for x in part[:2]]).astype(np.float32) for part in (train, *others)]
    scaler = StandardScaler().fit(joined[0])
    return [scaler.transform(x) if len(x) else x for x in joined]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows at length 1; a row of zeros stays one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _varying(truth: np.ndarray) -> np.ndarray:
    """Return the numbers of the labels that some rows carry and some do not."""
    return np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))


def _fits(
    task: str, x: np.ndarray, truth: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> Iterator[tuple[float, Fit]]:
    """Yield (strength, fit) from the most held back on; each starts where the one before ended."""
    targets = truth[:, _varying(truth)]
    if not targets.shape[1]:
        yield strengths[0], Fit(np.zeros((x.shape[1], 0), np.float32), np.zeros(0, np.float32), True)
    elif task == "single":
        yield from _multinomial(x, targets.argmax(axis=1), strengths)
    else:
        start = np.zeros((x.shape[1] + 1) * targets.shape[1])
        for strength in strengths:
            fit, start = _one_vs_rest(x, targets, strength, start)
            yield strength, fit


def _multinomial(x: np.ndarray, classes: np.ndarray, strengths: Sequence[float]) -> Iterator[tuple[float, Fit]]:
    """Yield scikit-learn's multinomial fits; with two classes, scores of (-z, z) / 2 stand for its single z."""
    model = LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
            model.set_params(C=strength).fit(x, classes)
        weights, bias = model.coef_.T, model.intercept_
        if len(model.classes_) == 2:
            weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        yield strength, Fit(weights.copy(), bias.copy(), bool((model.n_iter_ < ITERATIONS).all()))


def _one_vs_rest(x: np.ndarray, targets: np.ndarray, strength: float, start: np.ndarray) -> tuple[Fit, np.ndarray]:
    """Return independent binary fits for all columns of targets [N, K], and the flat solution to start the next from.

    Minimises what scikit-learn's LogisticRegression(C=strength) does for each column, sum of log losses +
    |w|^2 / (2 C), in one L-BFGS run over all columns: two matrix products a step where 61 runs take minutes.
    """
    rows, wide = x.shape
    y = targets.astype(np.float32)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(wide + 1, -1)
        z = x @ w[:-1].astype(np.float32) + w[-1].astype(np.float32)  # [N, K]
        error = expit(z) - y
        slope = np.vstack([x.T @ error + w[:-1] / strength, error.sum(axis=0)])
        loss = (np.logaddexp(0, z) - y * z).sum(dtype=np.float64) + (w[:-1] ** 2).sum() / (2 * strength)
        return loss / rows, slope.ravel().astype(np.float64) / rows

    options = {"maxiter": ITERATIONS, "gtol": TOLERANCE, "ftol": 1e-8}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    solution = found.x.reshape(wide + 1, -1).astype(np.float32)
    return Fit(solution[:-1], solution[-1], found.nit < ITERATIONS), found.x


def _scores(task: str, fit: Fit, x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return scores [N, L] for all labels of the training rows' truth."""
    positives, count = truth.sum(axis=0), len(truth)
    share = (positives + 1) / (count + 2) if task == "multi" else positives / count
    scores = np.tile(share.astype(np.float64), (len(x), 1))
    logits = x.astype(np.float64) @ fit.weights + fit.bias
    if task == "multi":
        scores[:, _varying(truth)] = expit(logits)
    elif logits.shape[1]:
        scores[:, _varying(truth)] = softmax(logits, axis=1)
    return scores


def _value(task: str, metric: str, scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the metric, or -1.0 where it is not defined."""
    weights = np.ones((len(truth), 1))
    if task == "multi":
        value = mean_average_precision(scores, truth, weights)[0]
    else:
        predictions = Predictions([], [], truth, scores, decide(task, scores))
        value = statistics(task, predictions, weights, [metric])[metric][0]
    return -1.0 if np.isnan(value) else float(value)


class Probe(NamedTuple):
    """A linear layer fitted to features: logits = (features - center) / scale @ weights + bias."""

    center: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    weights: np.ndarray  # [D, L]
    bias: np.ndarray  # [L]


def linear_probe(
    task: str, features: np.ndarray, truth: np.ndarray, validation: np.ndarray, validation_truth: np.ndarray
) -> Probe:
    """Return the regression of truth [N, L] on standardised features [N, D] that is best on the validation rows.

    Only well held back fits are tried (C up to 0.01), and the one with the lowest log loss is taken: this is a start and no
    end, and a head that fits the training rows too well leaves a model nothing to learn from. A label that all or none of
    the rows carry gets no weights, and the logit of its smoothed share as bias.
    """
    center, scale = features.mean(axis=0), features.std(axis=0)
    # a feature that hardly ever varies must not be blown up: its gradient would drown all others
    scale = np.maximum(scale, max(scale.mean() / 10, 1e-6))
    x, x_validation = (features - center) / scale, (validation - center) / scale
    fits = [fit for _, fit in _fits(task, x, truth, PROBE_STRENGTHS)]
    fit = min(fits, key=lambda fit: _log_loss(task, _scores(task, fit, x_validation, truth), validation_truth))
    share = (truth.sum(axis=0) + 1) / (len(truth) + 2)
    weights, bias = np.zeros((features.shape[1], truth.shape[1])), np.log(share / (1 - share))
    weights[:, _varying(truth)], bias[_varying(truth)] = fit.weights, fit.bias
    return Probe(center, scale, weights, bias)
