"""The pairs that a report shows: which rows, in which order, and their pictures as data: URIs."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.errors import BadInputError
from labeler.evaluation import Predictions, right_rows
from labeler.inputs import replaced
from labeler.inspection import named
from labeler.report.comparison import Model
from labeler.report.runs import MeasuredRun

log = logging.getLogger("labeler")

MISTAKES, UNSURE, RANDOM, DISAGREEMENTS = 12, 6, 6, 6
TOP = 3
TEXT_LENGTH = 300
BUDGET = 5_000_000  # characters of base64 on the whole page
SHOWN_TYPES = ("image/jpeg", "image/png", "image/webp")


class Section(NamedTuple):
    """Rows to show under one heading, judged by the models named."""

    title: str
    rows: list[int]
    models: list[Model]


def sections(task: str, best: Model, rival: Model | None) -> list[Section]:
    """Return the rows to show: confident mistakes, unsure and random correct labels, and where two models disagree.

    The choice depends on the predictions alone: of equals the first row, and random rows by a fixed seed.
    """
    predictions = best.predictions
    right = right_rows(predictions)
    sure = confidence(task, predictions)
    order = np.argsort(-sure, kind="stable")
    wrong_rows = [int(row) for row in order if not right[row]][:MISTAKES]
    correct = [int(row) for row in order[::-1] if right[row] and (predictions.truth[row].any())]
    rest = sorted(correct[UNSURE:])
    chosen = np.random.default_rng(0).permutation(len(rest))[:RANDOM]
    found = [
        Section("Most confident mistakes", wrong_rows, [best]),
        Section("Least confident correct labels", correct[:UNSURE], [best]),
        Section("Other correct labels, drawn at random", [rest[i] for i in sorted(chosen)], [best]),
    ]
    if rival:
        other = right_rows(rival.predictions)
        for one, two, rows in ((best, rival, right & ~other), (rival, best, other & ~right)):
            title = f"{one.name} is right, {two.name} is wrong ({int(rows.sum())} rows)"
            found.append(Section(title, np.flatnonzero(rows)[:DISAGREEMENTS].tolist(), [best, rival]))
    return found


def confidence(task: str, predictions: Predictions) -> np.ndarray:
    """Return how sure the model was of each row, [N] in 0..1.

    Task single: the score of the predicted label. Task multi: for a mistake, the most that a wrong label was off (its
    score where it was predicted, 1 - score where it was missed); for a right row its least sure true label's score.
    """
    truth, predicted, scores = predictions.truth, predictions.predicted, predictions.scores
    if task == "single":
        return np.where(predicted, scores, 0.0).max(axis=1)
    off = np.where(truth != predicted, np.where(predicted, scores, 1 - scores), 0.0).max(axis=1)
    return np.where(right_rows(predictions), np.where(truth, scores, 1.0).min(axis=1), off)


def cards(run: MeasuredRun, shown: list[Section]) -> tuple[list[dict[str, Any]], str | None]:
    """Return each section as {title, cards} for the page, and a sentence when pictures are missing, else None."""
    ids = shown[0].models[0].predictions.ids
    examples, missing = examples_of(run.store, run.measured_on, {ids[row] for section in shown for row in section.rows})
    budget = BUDGET
    found: list[dict[str, Any]] = []
    for section in shown:
        items = []
        for row in section.rows:
            example = examples.get(ids[row])
            picture, budget = data_uri(example, budget)
            short = shortened(example.text if example else None)
            said = [_said(model, row, run.names) for model in section.models]
            truth = named(section.models[0].predictions.truth[row], run.names)
            items.append({"id": ids[row], "text": short, "picture": picture, "truth": truth, "models": said})
        found.append({"title": section.title, "cards": items})
    return found, missing


def shortened(text: str | None) -> str | None:
    """Return a text as a card shows it: at most TEXT_LENGTH characters."""
    return text if text is None or len(text) <= TEXT_LENGTH else text[:TEXT_LENGTH] + "…"


def examples_of(store: Path, sha256: str, ids: Iterable[str]) -> tuple[dict[str, Any], str | None]:
    """Return {id: Example} from the store, and why there are none where it cannot be read, or is not of `sha256` any more."""
    from labeler.store import read_examples  # not at the top: Lance is slow to import and `--help` is not

    gone = f"Pictures and texts are left out: the store {store} is not there any more, or cannot be read."
    if not store.is_dir():
        return {}, gone
    if replaced(store, sha256):
        return {}, f"Pictures and texts are left out: {store} is not the store any more that was measured."
    try:
        return read_examples(store, sorted(ids)), None
    except (BadInputError, OSError) as error:
        log.warning("%s", error)
        return {}, gone


def data_uri(example: Any, budget: int) -> tuple[str | None, int]:
    """Return the picture as a data: URI, or None where there is none or it does not fit, and the budget left."""
    if not example or not example.image or example.mime not in SHOWN_TYPES:
        return None, budget
    encoded = base64.b64encode(example.image).decode()
    if len(encoded) > budget:
        return None, budget
    return f"data:{example.mime};base64,{encoded}", budget - len(encoded)


def _said(model: Model, row: int, names: list[str]) -> dict[str, Any]:
    """Return what one model said of one row: {name, right, predicted, top: [(label, score)]}."""
    predictions = model.predictions
    top = np.argsort(-predictions.scores[row], kind="stable")[:TOP]
    return {
        "name": model.name,
        "right": bool(right_rows(predictions)[row]),
        "predicted": named(predictions.predicted[row], names),
        "top": [(names[i], float(predictions.scores[row, i])) for i in top],
    }
