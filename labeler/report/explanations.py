"""Why the best run gives its labels: which pairs are explained, and what explains them, found again by the next report."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from labeler.artifacts import (
    Input,
    Recipe,
    adding,
    already_made,
    input_of,
    read_json,
    read_manifest,
    sha256_json,
    write_json,
)
from labeler.errors import BadInputError, LockedError
from labeler.evaluating import refuse_mismatch
from labeler.evaluation import Predictions, right_rows
from labeler.explaining.explanation import (
    Explanation,
    Region,
    explain_pairs,
    explanation_of,
    open_run,
    stored_subjects,
    strongest,
)
from labeler.explaining.heat_maps import heat_map
from labeler.inspection import named
from labeler.pictures.images import decode_image
from labeler.report.comparison import Model
from labeler.report.pictures import confidence, data_uri, examples_of
from labeler.store import Store

log = logging.getLogger("labeler")

FILE, MANIFEST = "explanations.json", "manifest-explanations.json"
BUDGET = 2_000_000  # characters of base64 on the whole page
STRONGEST = 10  # rows of an item's table
TOKENS = 6  # whose attention is drawn token by token
BOXES_SIDE = 96  # pixels of the heat map of a detector's boxes


class Asked(NamedTuple):
    """A row to explain: why it is shown, its number, and the number of the label that is explained."""

    why: str
    row: int
    label: int


class Explained(NamedTuple):
    """What was explained, in the order asked for; a sentence where nothing could be."""

    asked: list[Asked]
    found: list[Explanation]
    missing: str | None = None


def asked_rows(task: str, predictions: Predictions, count: int) -> list[Asked]:
    """Return `count` rows, fewer where there are no more: confident mistakes, other mistakes, correct ones, a third of each.

    Rows are drawn by a fixed seed. Where mistakes are too few, correct ones fill their places, and the reverse.
    """
    right = right_rows(predictions)
    order = np.argsort(-confidence(task, predictions), kind="stable")
    wrong, correct = order[~right[order]], np.random.default_rng(0).permutation(np.flatnonzero(right))
    n_correct = min(len(correct), max(count // 3, count - len(wrong)))
    n_sure = min(len(wrong), -(-(count - n_correct) // 2))
    others = np.random.default_rng(0).permutation(wrong[n_sure:])[: max(count - n_correct - n_sure, 0)]
    chosen = (
        ("one of the most confident mistakes", wrong[:n_sure]),
        ("a mistake, drawn at random", np.sort(others)),
        ("right, drawn at random", np.sort(correct[:n_correct])),
    )
    return [Asked(why, int(row), asked_label(task, predictions, int(row))) for why, rows in chosen for row in rows]


def asked_label(task: str, predictions: Predictions, row: int) -> int:
    """Return the label that is predicted; for task multi the one that is most off, or that of a right row with the top score."""
    truth, predicted, scores = predictions.truth[row], predictions.predicted[row], predictions.scores[row]
    if task == "single":
        return int(predicted.argmax())
    wrong = truth != predicted
    if wrong.any():
        return int(np.where(wrong, np.where(predicted, scores, 1 - scores), -1.0).argmax())
    return int(np.where(truth, scores, scores - 1).argmax())


def explain_rows(best: Model, task: str, out: Path, count: int, force: bool, device: str) -> Explained:
    """Return explanations of `count` rows of the best run's split; those that the folder `out` holds are not made again.

    Writes `explanations.json` with a manifest of its own to `out`. Where the run or its store cannot be used any more,
    nothing is written and the sentence says why.
    """
    asked = asked_rows(task, best.predictions, count)
    if not asked:
        return Explained([], [])
    store = best.run.store
    items = [[best.predictions.ids[one.row], best.run.names[one.label]] for one in asked]
    try:
        stored = read_manifest(store, "preprocess")
        if stored["content_sha256"] != best.run.measured_on:
            raise BadInputError(f"{store}: not the store any more that {best.run.folder} was measured on")
        inputs = (input_of(best.run.folder, best.run.manifest), Input(str(store), stored["content_sha256"]))
        recipe = Recipe("report", inputs, {"items": sha256_json(items), "n": len(items)})
        if force or not already_made(out, recipe, MANIFEST):
            values = made(best, items, device)
            with adding(out, recipe, MANIFEST) as folder:
                write_json(folder / FILE, values)
    except LockedError:
        raise
    except (BadInputError, OSError) as error:
        log.warning("explanations are left out: %s", error)
        return Explained(asked, [], f"Explanations are left out: {error}.")
    values = read_json(out / FILE)
    return Explained(asked, [explanation_of(one, None) for one in values])


def made(best: Model, items: list[list[str]], device: str) -> list[dict[str, Any]]:
    """Return why the run gives each of `items`, (id, label), its score, as JSON can hold it."""
    run, store = open_run(best.run.folder, device), Store(best.run.store, check=False)
    refuse_mismatch(run, store)
    subjects = stored_subjects(run, store, [identity for identity, _ in items])
    pairs = zip(tqdm(subjects, desc="explaining", unit="pair", disable=None), items, strict=True)
    return [explain_pairs(run, [subject], label)[0].as_json() for subject, (_, label) in pairs]


def explained_cards(best: Model, explained: Explained) -> list[dict[str, Any]]:
    """Return what the page shows of each explanation: the pair, marked words, heat maps, numbers, co-attention both ways."""
    if not explained.found:
        return []
    examples, _ = examples_of(best.run.store, best.run.measured_on, {one.id for one in explained.found})
    predictions, names, budget, found = best.predictions, best.run.names, BUDGET, []
    for asked, one in zip(explained.asked, explained.found, strict=True):
        uri, budget = data_uri(examples.get(one.id), budget)
        found.append({
            "why": asked.why,
            "one": one,
            "truth": named(predictions.truth[asked.row], names),
            "predicted": named(predictions.predicted[asked.row], names),
            "right": bool(right_rows(predictions)[asked.row]),
            "words": marked_words(one),
            "cut": bool(one.words) and bool((one.text or "")[one.words[-1].end :].strip()),
            "picture": uri and {"uri": uri, "size": picture_size(examples[one.id].image), "heat": heat_uri(one)},
            "strongest": strongest(one, STRONGEST),
            "attention": attention(one) if one.maps and one.maps[-1].text_to_visual.size else None,
        })  # fmt: skip
    return found


def marked_words(one: Explanation) -> list[dict[str, Any]]:
    """Return each word with the text before it, and its weight as a share, -1 to 1, of the strongest word's."""
    most = max((abs(word.weight) for word in one.words), default=0.0) or 1.0
    ends = [0, *(word.end for word in one.words)]
    return [
        {"before": (one.text or "")[end : word.start], "text": word.text, "share": round(word.weight / most, 3)}
        for end, word in zip(ends, one.words, strict=False)
    ]


def picture_size(picture: bytes) -> tuple[int, int]:
    """Return a picture's width and height."""
    return decode_image(picture).size


def heat_uri(one: Explanation, most: float | None = None) -> str:
    """Return the heat map as a data: URI, a pixel for each cell of the grid: the browser stretches it over the picture."""
    size = (BOXES_SIDE, BOXES_SIDE) if one.grid is None else one.grid.shape[::-1]
    buffer = io.BytesIO()
    heat_map(one, size, most).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def attention(one: Explanation) -> dict[str, Any]:
    """Return what the last co-attention block attends to, both ways: the mean over all tokens, and token by token.

    {blocks, looks_at: heat map of what the text attends to, most and equal: its largest share and that of even attention, tokens:
    those of the text with the picture's attention and how that differs from even, each: of the TOKENS that the picture
    attends to most, heat maps of both ways}. Colours are full at twice the even share, and at none.
    """
    to_picture, to_text = one.maps[-1]  # [T, V], [V, T]
    looked_at = to_text.mean(axis=0)
    chosen = np.sort(np.argsort(-looked_at, kind="stable")[:TOKENS])

    def drawn(shares: np.ndarray, even: float) -> str:
        return heat_uri(with_weights(one, shares / even - 1), 1.0)

    regions, tokens = 1 / to_picture.shape[1], 1 / len(one.tokens)
    return {
        "blocks": len(one.maps),
        "looks_at": drawn(to_picture.mean(axis=0), regions),
        "most": float(to_picture.mean(axis=0).max()),
        "equal": regions,
        "tokens": [(token, float(value), round(min(float(value / tokens - 1), 1.0), 3))
                   for token, value in zip(one.tokens, looked_at, strict=True)],
        "each": [(one.tokens[n], drawn(to_picture[n], regions), drawn(to_text[:, n], tokens)) for n in chosen],
    }  # fmt: skip


def with_weights(one: Explanation, weights: np.ndarray) -> Explanation:
    """Return the explanation with other weights [V] of the picture's tokens, class tokens first."""
    if one.grid is None:
        regions = [Region(region.box, float(weight)) for region, weight in zip(one.regions, weights, strict=True)]
        return one._replace(regions=regions)
    return one._replace(grid=weights[len(one.class_tokens) :].reshape(one.grid.shape))
