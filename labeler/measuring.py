"""Measuring on a store: every figure of predictions of its rows, and the baselines on its frozen features."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from labeler.artifacts import Input, Recipe, already_made, making, write_json
from labeler.errors import BadInputError
from labeler.evaluation import (
    BEST_F1,
    HEADLINE,
    Aim,
    Predictions,
    fit_thresholds,
    measure,
    of_parents,
    predictions_of,
    settle,
    write_named,
)
from labeler.inputs import found_again
from labeler.records import read_label_set
from labeler.taxonomy import taxonomy_of
from labeler.values import SPLITS, Split

log = logging.getLogger("labeler")
MODALITIES = ("both", "text", "image")


def measured(store: Any, predictions: Predictions) -> dict[str, Any]:
    """Return every figure with its interval."""
    return measure(store.label_set.task, store.label_set.names, predictions)


def measured_parents(store: Any, predictions: Predictions) -> dict[str, Any]:
    """Return `parents`: every figure with each label taken for its parent; nothing for task multi, where it is a label too."""
    taxonomy = taxonomy_of(store.label_set)
    if taxonomy.task == "multi" or not taxonomy.pairs:
        return {}
    return {"parents": measure(taxonomy.task, *of_parents(taxonomy, predictions))}


def labels_of(store: Any) -> dict[str, Any]:
    """Return what a manifest records of the labels, where they are not the store's own."""
    own = read_label_set(store.folder)
    return {} if own.names == store.label_set.names else {"labels": store.label_set.names}


def asked(split: Split, aim: Aim | None) -> dict[str, Any]:
    """Return what a manifest records of how a split is measured."""
    return {
        "split": split,
        "aim": str(aim or BEST_F1),
        "modalities": list(MODALITIES),
        "baselines_chosen_by": HEADLINE,
        "intervals": "BCa",
    }


def learned_from(store: Any, run: Path, trained: dict[str, Any]) -> Any:
    """Return the store that baselines learn from: `store`, the one that `run` was trained on where it lacks rows, or None."""
    from labeler.store import Store

    def has_rows(found: Any) -> bool:
        splits = [found.rows["split"][row] for row in np.flatnonzero(found.labelled)]
        return {"train", "validation"} <= set(splits)

    if has_rows(store):
        return store
    given = trained["inputs"][0]
    try:
        other = Store(found_again(run, given), check=False)
    except BadInputError:
        return None
    same = (
        other.towers == store.towers
        and other.sha256 == given["sha256"]
        and other.label_set.names == store.label_set.names
    )
    return other if same and has_rows(other) else None


def make_baselines(store: Any, split: Split, aim: Aim | None = None, fitted_on: Any = None) -> Path:
    """Return the artifact with both baselines' figures and predictions on the split, made beside the store if need be.

    They learn from the train and validation rows of `fitted_on`, by default the store's own.
    """
    fitted_on = fitted_on or store
    out = store.folder.with_name(f"{store.folder.name}-baselines-{split}")
    inputs = dict.fromkeys((Input(str(store.folder), store.sha256), Input(str(fitted_on.folder), fitted_on.sha256)))
    recipe = Recipe("baselines", tuple(inputs), asked(split, aim) | labels_of(store))
    if already_made(out, recipe):
        return out
    from labeler.baselines import Features, logistic_regression, majority

    log.info("fitting the baselines on the frozen features")
    parts = []
    for part, source in ((SPLITS[0], fitted_on), (SPLITS[1], fitted_on), (split, store)):
        rows = source.rows_of(part)
        image, text = source.features(rows)
        parts.append(Features(image, text, source.truth(rows)))
    task, rows = store.label_set.task, store.rows_of(split)
    entries = []
    with making(out, recipe) as folder:
        for fitted in (majority(task, parts[0], parts[2], parts[1]), logistic_regression(task, *parts)):
            thresholds = None
            if task == "multi":
                validation_scores, _ = settle(taxonomy_of(store.label_set), fitted.validation_scores)
                thresholds = fit_thresholds(validation_scores, parts[1].truth, aim or BEST_F1)
            predictions = predictions_of(store, rows, fitted.scores, thresholds)
            file = f"baseline-{fitted.name}-{split}.jsonl"
            write_named(folder / file, taxonomy_of(store.label_set), predictions)
            entries.append({"name": fitted.name, "parameters": fitted.parameters, "settings": fitted.settings,
                            "train_seconds": round(fitted.train_seconds, 2), "predictions": file}
                           | measured(store, predictions) | measured_parents(store, predictions))  # fmt: skip
        write_json(folder / "baselines.json", entries)
    return out
