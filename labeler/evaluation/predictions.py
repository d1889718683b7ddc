"""Predictions: what a model said about rows, as labels with parents or without, in memory and as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import write_parts
from labeler.errors import BadInputError
from labeler.taxonomy import Taxonomy, taxonomy_of


class Predictions(NamedTuple):
    """What a model said about N rows and L labels, beside what is true."""

    ids: list[str]
    groups: list[str]  # rows with the same group are not independent of each other
    truth: np.ndarray  # [N, L] bool
    scores: np.ndarray  # [N, L] float64 in 0..1
    predicted: np.ndarray  # [N, L] bool
    # [N] `vqa_accuracy` of what is predicted, NaN without answers; None where no row has any
    agreed: np.ndarray | None = None


class Row(NamedTuple):
    """One row of a predictions file."""

    id: str
    group: str
    truth: np.ndarray  # [L] bool
    scores: np.ndarray  # [L] float64
    predicted: np.ndarray  # [L] bool
    agreed: float | None


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
    truth, scores, predicted = whole.truth[:, tops], whole.scores[:, tops], whole.predicted[:, tops]
    return [taxonomy.names[top] for top in tops], Predictions(whole.ids, whole.groups, truth, scores, predicted)


def predictions_of(store: Any, rows: np.ndarray, scores: np.ndarray, thresholds: list[float] | None) -> Predictions:
    """Return the predictions that scores [N, L] stand for on `rows` of a `labeler.store.Store`."""
    ids, groups = ([store.rows[column][row] for row in rows] for column in ("id", "group"))
    rounded, predicted = settle(taxonomy_of(store.label_set), scores, thresholds)
    return Predictions(ids, groups, store.truth(rows), rounded, predicted, agreement(store, rows, predicted))


def agreement(store: Any, rows: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
    """Return [N] the `vqa_accuracy` of the one label that is predicted [N, L] for each of `rows`; None where none has answers."""
    if store.answers is None:
        return None
    names = [store.label_set.names[number] for number in predicted.argmax(axis=1)]
    found = np.array([vqa_accuracy(name, store.answers[row]) for name, row in zip(names, rows, strict=True)])
    return None if np.isnan(found).all() else found


def vqa_accuracy(answer: str, given: Sequence[str] | None) -> float:
    """Return how far people agree with an answer, from 0 to 1; NaN where nobody was asked.

    min(how many gave it / 3, 1), averaged over all subsets that leave one person out, as in the official evaluation of VQA
    (Antol et al. 2015, "VQA: Visual Question Answering", section 4; https://visualqa.org/evaluation.html) and of TextVQA. Of ten
    people: 1 where four or more gave it, .9 for three, .6 for two, .3 for one. Answers are compared as they stand, without the
    official clean-up of articles and numbers. One person alone is not left out.
    """
    if not given:
        return float("nan")
    count, people = given.count(answer), len(given)
    if people == 1:
        return min(count / 3, 1.0)
    return (count * min((count - 1) / 3, 1.0) + (people - count) * min(count / 3, 1.0)) / people


def write_named(path: Path, taxonomy: Taxonomy, predictions: Predictions) -> None:
    """Write predictions for L labels with the names of labels and parents."""
    write_predictions(path, taxonomy.names, with_parents(taxonomy, predictions))


def rows_of(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Return the predictions for `rows`, given by their numbers."""
    ids, groups = ([names[row] for row in rows] for names in predictions[:2])
    agreed = None if predictions.agreed is None else predictions.agreed[rows]
    truth, scores, predicted = predictions.truth[rows], predictions.scores[rows], predictions.predicted[rows]
    return Predictions(ids, groups, truth, scores, predicted, agreed)


def right_rows(predictions: Predictions) -> np.ndarray:
    """Return which rows have all labels right and no other, [N] bool."""
    right: np.ndarray = (predictions.truth == predictions.predicted).all(axis=1)
    return right


def write_predictions(path: Path, names: list[str], predictions: Predictions) -> None:
    """Write one JSON line a row: id, group, truth and predicted as label names, scores by label; of questions vqa_accuracy."""
    write_parts(path, _lines(names, predictions))


def _lines(names: list[str], predictions: Predictions) -> Iterator[str]:
    """Yield the lines of a predictions file."""
    agreed = [None] * len(predictions.ids) if predictions.agreed is None else predictions.agreed.tolist()
    rows = zip(*predictions[:2], predictions.truth, predictions.scores, predictions.predicted, agreed, strict=True)
    for row_id, group, truth, scores, predicted, agreement in rows:
        line = {
            "id": row_id,
            "group": group,
            "truth": [names[i] for i in np.flatnonzero(truth)],
            "predicted": [names[i] for i in np.flatnonzero(predicted)],
            "scores": dict(zip(names, round_scores(scores).tolist(), strict=True)),
        }
        if agreement is not None:
            line["vqa_accuracy"] = None if np.isnan(agreement) else agreement
        yield json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def read_predictions(path: Path, names: list[str]) -> Predictions:
    """Return what `write_predictions` wrote.

    Raises BadInputError, with the file and the line, when the file is missing, a line is not such a row, its labels
    are not `names`, a score is not a number in 0..1, or an id comes twice.
    """
    rows: list[Row] = []
    try:
        with open(path, encoding="utf-8") as file:
            seen: set[str] = set()
            for number, line in enumerate(file, start=1):
                rows.append(_row(f"{path}:{number}", line.removesuffix("\n"), names, seen))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: no readable predictions file; run `labeler evaluate` again") from error
    ids, groups, truth, scores, predicted, found = zip(*rows, strict=True) if rows else ([], [], [], [], [], [])
    shape = (len(rows), len(names))
    flags = [np.array(values, dtype=bool).reshape(shape) for values in (truth, predicted)]
    numbers = np.array(scores, dtype=np.float64).reshape(shape)
    agreed = np.array(found, dtype=np.float64) if set(found) - {None} else None  # None becomes NaN
    return Predictions(list(ids), list(groups), flags[0], numbers, flags[1], agreed)


def _row(place: str, line: str, names: list[str], seen: set[str]) -> Row:
    """Return one line, and add its id to those `seen`; raises BadInputError, with the place, as `read_predictions` does."""
    try:
        row = _parsed(line, names)
        if row.id in seen:
            raise ValueError(f"the id {row.id!r} comes a second time")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInputError(f"{place}: not a row of predictions ({reason}); run `labeler evaluate` again") from error
    seen.add(row.id)
    return row


def _parsed(line: str, names: list[str]) -> Row:
    """Return one line; raises what `_row` catches."""
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
    chosen = [set(row[key]) for key in ("truth", "predicted")]
    truth, predicted = (np.array([name in some for name in names], dtype=bool) for some in chosen)
    return Row(row["id"], row["group"], truth, np.array(values), predicted, row.get("vqa_accuracy"))
