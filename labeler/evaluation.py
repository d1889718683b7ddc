"""Evaluation: predictions on disk, thresholds, metrics with intervals, and paired comparisons.

A metric is one function of weighted rows. With every weight 1 it is the metric itself; with the
weights of a bootstrap draw it is the metric of that draw, so an estimate and its interval cannot
come from different definitions. Rows that share a group are always drawn together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from labeler.artifacts import BadInputError, write_text
from labeler.taxonomy import Taxonomy

HEADLINE = {"single": "accuracy", "multi": "mean_average_precision"}
SECOND = {"single": "weighted_f1", "multi": "micro_f1"}
COUNTED = ("accuracy", "subset_accuracy")
# Macro averages of rare labels rise when rows are drawn twice. In a simulation (20 labels, 300 rows, 3 to 90 positives)
# the percentile interval of mean average precision covered the truth in 30 % of cases, the reflected one in 86 %.
REFLECTED = ("macro_f1", "mean_average_precision", "balanced_accuracy")
FEW_POSITIVES = 5
SHRINKAGE = 5.0  # best of 0 to 40 on unseen rows, in simulations with 150 and 300 rows to fit on; at 1,000 none matters
CELLS = 2_000_000  # rows x draws held at once: 16 MB of weights


class Predictions(NamedTuple):
    """What a model said about N rows and L labels, beside what is true."""

    ids: list[str]
    groups: list[str]  # rows with the same group are not independent of each other
    truth: np.ndarray  # [N, L] bool
    scores: np.ndarray  # [N, L] float64 in 0..1
    predicted: np.ndarray  # [N, L] bool


def round_scores(scores: np.ndarray) -> np.ndarray:
    """Return `scores` as float64 with 6 decimals: the values that a predictions file holds."""
    return np.round(np.asarray(scores, dtype=np.float64), 6)


def decide(task: str, scores: np.ndarray, thresholds: list[float] | None = None) -> np.ndarray:
    """Return the labels that scores [N, L] stand for, as bool [N, L].

    Task single: the highest score, the first of equals. Task multi: each score that reaches its label's
    threshold (0.5 where no thresholds are given). Give rounded scores, or a file read back may decide otherwise.
    """
    if task == "multi":
        return scores >= (0.5 if thresholds is None else np.asarray(thresholds))
    return np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]


def settle(
    taxonomy: Taxonomy, scores: np.ndarray, thresholds: list[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded scores [N, L] and the labels [N, L] bool that a model's `scores` stand for.

    Task multi: a parent's score is the highest of its own and its children's, and a label that is chosen brings its
    parent, whatever the parent's threshold is.
    """
    rounded = round_scores(scores)
    if taxonomy.task == "single":
        return rounded, decide("single", rounded)
    consistent = taxonomy.scores(rounded)
    return consistent, taxonomy.flags(decide("multi", consistent, thresholds))


def with_parents(taxonomy: Taxonomy, predictions: Predictions) -> Predictions:
    """Return predictions for L labels as predictions for all M names of the taxonomy, in its order."""
    truth, predicted = taxonomy.flags(predictions.truth), taxonomy.flags(predictions.predicted)
    return predictions._replace(truth=truth, scores=taxonomy.scores(predictions.scores), predicted=predicted)


def without_parents(taxonomy: Taxonomy, predictions: Predictions) -> Predictions:
    """Return the predictions for L labels that `with_parents` was called with."""
    truth, predicted = taxonomy.own_flags(predictions.truth), taxonomy.own_flags(predictions.predicted)
    return predictions._replace(truth=truth, scores=taxonomy.own_scores(predictions.scores), predicted=predicted)


def of_parents(taxonomy: Taxonomy, predictions: Predictions) -> tuple[list[str], Predictions]:
    """Return the names at the top of the taxonomy, and predictions for L labels as predictions for these."""
    whole, tops = with_parents(taxonomy, predictions), taxonomy.tops
    return [taxonomy.names[top] for top in tops], Predictions(*whole[:2], *(part[:, tops] for part in whole[2:]))


def rows_of(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Return the predictions for `rows`, given by their numbers."""
    ids, groups = ([names[row] for row in rows] for names in predictions[:2])
    return Predictions(ids, groups, *(values[rows] for values in predictions[2:]))


def write_predictions(path: Path, names: list[str], predictions: Predictions) -> None:
    """Write one JSON line a row: id, group, truth and predicted as label names, scores by label."""
    rows = zip(
        *predictions[:2], predictions.truth, round_scores(predictions.scores), predictions.predicted, strict=True
    )
    lines = []
    for row_id, group, truth, scores, predicted in rows:
        line = {
            "id": row_id,
            "group": group,
            "truth": [names[i] for i in np.flatnonzero(truth)],
            "predicted": [names[i] for i in np.flatnonzero(predicted)],
            "scores": dict(zip(names, scores.tolist(), strict=True)),
        }
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def read_predictions(path: Path, names: list[str]) -> Predictions:
    """Return what `write_predictions` wrote.

    Raises BadInputError, with the file and the line, when the file is missing, a line is not such a row, its labels
    are not `names`, a score is not a number in 0..1, or an id comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: no readable predictions file; run `labeler evaluate` again") from error
    rows, seen = [], set()
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        try:
            rows.append(_row(line, names))
            if rows[-1][0] in seen:
                raise ValueError(f"the id {rows[-1][0]!r} comes a second time")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BadInputError(
                f"{path}:{number}: not a row of predictions ({reason}); run `labeler evaluate` again"
            ) from error
        seen.add(rows[-1][0])
    ids, groups, truth, scores, predicted = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    shape = (len(rows), len(names))
    flags = [np.array(values, dtype=bool).reshape(shape) for values in (truth, predicted)]
    return Predictions(list(ids), list(groups), flags[0], np.array(scores, dtype=np.float64).reshape(shape), flags[1])


def _row(line: str, names: list[str]) -> tuple[str, str, list[bool], list[float], list[bool]]:
    """Return id, group, truth, scores, predicted of one line; raises what `read_predictions` catches."""
    row = json.loads(line)
    scores = row["scores"]
    if scores.keys() != set(names):
        raise ValueError(f"scores for {sorted(scores)}, expected {sorted(names)}")
    values = [float(scores[name]) for name in names]
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError("a score is not in 0..1")
    unknown = {*row["truth"], *row["predicted"]} - set(names)
    if unknown or not isinstance(row["id"], str) or not isinstance(row["group"], str):
        raise ValueError(f"unknown labels {sorted(unknown)}" if unknown else "id and group are not both text")
    return row["id"], row["group"], [n in row["truth"] for n in names], values, [n in row["predicted"] for n in names]


def fit_thresholds(scores: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return for each label the threshold to decide with, fitted on validation rows [N, L].

    A label's own threshold maximises its F1 and lies midway between two neighbouring scores. With few positives
    that maximum is mostly chance, so it is drawn toward the common threshold that maximises micro-F1 over all
    labels: `own * n / (n + 5) + common * 5 / (n + 5)` for n positives. A label without any gets 0.5.
    """
    positives = truth.sum(axis=0)
    found = positives > 0
    if not found.any():
        return [0.5] * truth.shape[1]
    common = _best_threshold(scores[:, found].ravel(), truth[:, found].ravel())
    own = np.array([_best_threshold(scores[:, i], truth[:, i]) if found[i] else 0.5 for i in range(truth.shape[1])])
    trust = positives / (positives + SHRINKAGE)
    return np.where(found, own * trust + common * (1 - trust), 0.5).tolist()


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the highest F1 for scores [N] and truth [N]; of equals the highest threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(ranked) + 1) + truth.sum())
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    best = ends[f1[ends].argmax()]
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one label's average precision in each column of row weights: [N], [N], [N, D] -> [D].

    Rows with equal scores enter together, as in scikit-learn's average_precision_score. NaN where no positive has
    weight.
    """
    if not truth.any():
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-scores, kind="stable")
    ranked, positives = scores[order], np.flatnonzero(truth[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1
    # Only blocks of equal scores with a positive in them count; what lies between two of them is summed at once.
    ends = ends[np.unique(np.searchsorted(ends, positives, side="right"))]
    starts = np.append(0, ends[:-1])
    drawn = np.cumsum(np.add.reduceat(weights[order[: ends[-1]]], starts, axis=0), axis=0)  # [blocks, D]
    hits = np.add.reduceat(weights[order[positives]], np.searchsorted(positives, starts), axis=0)
    precision = np.cumsum(hits, axis=0) / np.maximum(drawn, np.finfo(float).tiny)
    return _ratio((hits * precision).sum(axis=0), hits.sum(axis=0))


def statistics(task: str, predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return every metric in each column of the row weights [N, D], as {metric: [D]}; NaN where it is not defined.

    Macro averages go over the labels that occur in the (weighted) truth. F1 is 2 TP / (positives + predicted). A row
    without labels for which none is predicted has a sample F1 of 1.
    """
    truth, predicted = predictions.truth, predictions.predicted
    hits, support, claimed = (x.T.astype(float) @ weights for x in (truth & predicted, truth, predicted))  # [L, D]
    f1 = np.where(support > 0, _ratio(2 * hits, support + claimed), np.nan)
    total = weights.sum(axis=0)
    right = (truth == predicted).all(axis=1).astype(float) @ weights
    if task == "single":
        return {
            "accuracy": _ratio(right, total),
            "balanced_accuracy": _mean(_ratio(hits, support)),
            "weighted_f1": _ratio((np.nan_to_num(f1) * support).sum(axis=0), total),
            "macro_f1": _mean(f1),
        }
    claims = (truth.sum(axis=1) + predicted.sum(axis=1))[:, None]
    row_f1 = np.where(claims > 0, _ratio(2 * (truth & predicted).sum(axis=1)[:, None], claims), 1.0)[:, 0]
    return {
        "micro_f1": _ratio(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
        "macro_f1": _mean(f1),
        "sample_f1": _ratio(row_f1 @ weights, total),
        "mean_average_precision": mean_average_precision(predictions.scores, truth, weights),
        "subset_accuracy": _ratio(right, total),
    }


def mean_average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of `average_precision` over the labels with a positive: [N, L], [N, L], [N, D] -> [D]."""
    return _mean(np.stack([average_precision(scores[:, i], truth[:, i], weights) for i in range(truth.shape[1])]))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def _draws(groups: list[str], seed: int, draws: int) -> Iterator[np.ndarray]:
    """Yield bootstrap weights [N, D] until D adds up to `draws`: how often each row's group was drawn."""
    names, group_of_row = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    size = max(1, CELLS // max(len(groups), 1))
    for first in range(0, draws, size):
        count = min(size, draws - first)
        drawn = random.integers(0, len(names), (count, len(names))) + np.arange(count)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, len(names))
        yield np.ascontiguousarray(times.T[group_of_row], dtype=np.float64)


def resample(task: str, predictions: Predictions, seed: int = 0, draws: int = 2000) -> dict[str, np.ndarray]:
    """Return {metric: [draws]}: every metric of every bootstrap draw of groups.

    The same groups and seed give the same draws, so two models' results on the same rows are paired.
    """
    parts = [statistics(task, predictions, weights) for weights in _draws(predictions.groups, seed, draws)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(metric: str, estimate: float, values: np.ndarray) -> list[float] | None:
    """Return the 95 % interval [low, high] from bootstrap values: percentile, or reflected for macro averages.

    None when there is nothing to tell from: an undefined estimate, or fewer than half of the draws defined.
    """
    known = values[~np.isnan(values)]
    if np.isnan(estimate) or len(known) * 2 < len(values):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    if metric in REFLECTED:
        low, high = 2 * estimate - high, 2 * estimate - low
    return [float(min(low, estimate)), float(max(high, estimate))]


def measure(task: str, names: list[str], predictions: Predictions, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Return the metrics of `predictions`, ready for JSON: fractions in 0..1, None with a reason in `notes`.

    Every metric of `statistics` with its 95 % interval as `<metric>_ci95` (bootstrap of `draws` draws of groups),
    `n` rows, `groups`, `per_class`, and for task single `confusion` (rows are the truth).
    """
    truth, predicted = predictions.truth, predictions.predicted
    result: dict[str, Any] = {"n": len(predictions.ids), "groups": len(set(predictions.groups))}
    notes: list[str] = []
    result |= _estimates(task, predictions, seed, draws, notes)
    result["per_class"] = _per_class(task, names, predictions)
    if task == "single":
        assert (np.stack([truth, predicted]).sum(axis=2) == 1).all(), "task single: one label a row"
        result["confusion"] = (truth.T.astype(int) @ predicted.astype(int)).tolist()
    support, claimed = truth.sum(axis=0), predicted.sum(axis=0)
    rare = (support > 0) & (support < FEW_POSITIVES)
    for found, text in (
        (support == 0, "no row carries these labels; recall and F1 are null, and macro averages leave them out"),
        ((claimed == 0) & (support > 0), "never predicted; precision is null, F1 is 0"),
        (rare, f"fewer than {FEW_POSITIVES} rows carry these labels; their values are mostly chance"),
    ):
        if found.any():
            notes.append(f"{text}: {', '.join(names[i] for i in np.flatnonzero(found))}")
    return result | {"notes": notes}


def _estimates(task: str, predictions: Predictions, seed: int, draws: int, notes: list[str]) -> dict[str, Any]:
    """Return {metric: value, metric_ci95: interval}, adding to `notes` why one of them is None."""
    result: dict[str, Any] = {}
    found = statistics(task, predictions, np.ones((len(predictions.ids), 1)))
    drawn = resample(task, predictions, seed, draws) if predictions.ids else {}
    for metric, (estimate,) in found.items():
        known = not np.isnan(estimate)
        result[metric] = float(estimate) if known else None
        result[f"{metric}_ci95"] = bounds = None if not known else _bounds(metric, estimate, drawn[metric], predictions)
        if not known:
            reason = "no row carries a label" if predictions.ids else "the split holds no row"
            notes.append(f"{metric}: not defined, {reason}")
        elif bounds is None:
            notes.append(f"{metric}: no interval, the bootstrap draws do not differ (every row alike, or one group)")
    return result


def _bounds(metric: str, estimate: float, drawn: np.ndarray, predictions: Predictions) -> list[float] | None:
    """Return the interval of a metric within 0..1; where all draws are equal, exact for 0 or 1 and else None."""
    groups = len(set(predictions.groups))
    if np.nanmax(drawn) - np.nanmin(drawn) > 1e-12:
        found = interval(metric, estimate, drawn)
        return found and [max(found[0], 0.0), min(found[1], 1.0)]
    if metric not in COUNTED or groups < 2:
        return None
    exact = binomtest(round(estimate * groups), groups).proportion_ci(0.95, method="exact")
    return [float(exact.low), float(exact.high)]


def _per_class(task: str, names: list[str], predictions: Predictions) -> list[dict[str, Any]]:
    """Return for each label its precision, recall, F1 and counts; for task multi its average precision too."""
    truth, predicted = predictions.truth, predictions.predicted
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        hits, support, claimed = (int(x[:, i].sum()) for x in (truth & predicted, truth, predicted))
        row: dict[str, Any] = {
            "label": name,
            "precision": hits / claimed if claimed else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + claimed) if support else None,
            "support": support,
            "predicted": claimed,
        }
        if task == "multi":
            found = average_precision(predictions.scores[:, i], truth[:, i], np.ones((len(truth), 1)))[0]
            row["average_precision"] = float(found) if support else None
        rows.append(row)
    return rows


def compare(
    task: str,
    a: Predictions,
    b: Predictions,
    seed: int = 0,
    draws: int = 2000,
    resampled: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Return how b differs from a on the same rows: differences (b - a), 95 % intervals, exact test, verdict.

    The interval is a bootstrap of groups with the same draws for both (`resampled`: what `resample` gave for a and for
    b, where the caller has it). Task single adds McNemar's exact two-sided test on the rows that one of them alone has
    right; it takes rows as independent. The verdict on b is "better" or "worse" when the interval excludes 0 and
    the test, where there is one, gives p < 0.05; else "cannot tell". The test matters where few rows differ:
    there a bootstrap interval is too narrow.

    Raises BadInputError when the rows are none, or not the same in the same order with the same truth.
    """
    if a.ids != b.ids or a.groups != b.groups or not a.ids or not np.array_equal(a.truth, b.truth):
        raise BadInputError(
            f"only predictions for the same rows can be compared: {len(a.ids)} and {len(b.ids)} rows, "
            f"{_first_difference(a, b)}; evaluate both on one store with `labeler evaluate RUN --data STORE`"
        )
    one = np.ones((len(a.ids), 1))
    before, after = statistics(task, a, one), statistics(task, b, one)
    drawn_a, drawn_b = resampled or (resample(task, a, seed, draws), resample(task, b, seed, draws))
    result: dict[str, Any] = {}
    for metric, key in ((HEADLINE[task], "ci95"), (SECOND[task], f"delta_{SECOND[task]}_ci95")):
        delta = float(after[metric][0] - before[metric][0])
        result[f"delta_{metric}"] = None if np.isnan(delta) else delta
        result[key] = interval(metric, delta, drawn_b[metric] - drawn_a[metric])
    result |= _mcnemar(a, b) if task == "single" else {"mcnemar_p": None}
    return result | {"verdict": _verdict(result["ci95"], result["mcnemar_p"])}


def _first_difference(a: Predictions, b: Predictions) -> str:
    for row, (one, other) in enumerate(zip(a.ids, b.ids, strict=False), start=1):
        if one != other:
            return f"row {row} is {one!r} in one and {other!r} in the other"
    return "with the same ids but another truth or group" if a.ids == b.ids and a.ids else "one ends before the other"


def _mcnemar(a: Predictions, b: Predictions) -> dict[str, Any]:
    """Return the rows that only one has right, and McNemar's exact p (1.0 without such rows)."""
    right_a, right_b = ((p.truth == p.predicted).all(axis=1) for p in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"mcnemar_p": float(p), "only_a_right": only_a, "only_b_right": only_b}


def _verdict(bounds: list[float] | None, p: float | None) -> str:
    if bounds is None or bounds[0] <= 0 <= bounds[1] or (p is not None and p >= 0.05):
        return "cannot tell"
    return "better" if bounds[0] > 0 else "worse"
