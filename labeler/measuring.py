"""Measuring on a store: every figure of predictions of its rows, and the baselines on its frozen features."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from labeler.artifacts import Input, Recipe, already_made, check_free, making, write_json
from labeler.errors import BadInputError, LockedError
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
BASELINES = "baselines"  # the folder in which they are made where nothing can be written beside the store
WAIT_SECONDS = 1.0
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


def measuring_arguments(split: Split, aim: Aim | None) -> dict[str, Any]:
    """Return what a manifest records of how a split is measured."""
    return {
        "split": split,
        "aim": str(aim or BEST_F1),
        "modalities": list(MODALITIES),
        "baselines_chosen_by": HEADLINE,
        "intervals": "BCa",
    }


def learned_from(store: Any, run: Path, trained: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the store that baselines learn from, None where there is none, and what is to be said of it.

    It is `store`, of which nothing is said, or where that lacks rows to learn from the one that `run` was trained on.
    """
    from labeler.store import Store

    if lacking(store) is None:
        return store, None
    given = trained["inputs"][0]
    nothing = "there are no baselines: the store that it was trained on"
    try:
        other = Store(found_again(run, given), check=False)
    except BadInputError:
        return None, f"{nothing} is not there any more"
    reason = differs(other, store, given["sha256"])
    if reason:
        return None, f"{nothing}, {other.folder}, {reason}"
    return other, f"the baselines learned from {other.folder}"


def differs(other: Any, store: Any, sha256: str) -> str | None:
    """Return why baselines for `store` cannot learn from the store `other`, which had that content; None where they can."""
    if other.sha256 != sha256:
        return "has changed since"
    if features_of(other) != features_of(store):
        return "holds other features, of other encoders"
    if other.label_set.names != store.label_set.names:
        return "has other labels"
    split = lacking(other)
    return split and f"has no {split} rows"


def lacking(store: Any) -> str | None:
    """Return the first of the splits that baselines learn from in which the store has no row with a label, or None."""
    splits = {store.rows["split"][row] for row in np.flatnonzero(store.labelled)}
    return next((split for split in SPLITS[:2] if split not in splits), None)


def features_of(store: Any) -> dict[str, Any]:
    """Return what decides what a store's features mean: its towers, without what they say of this store's texts."""
    text = {name: value for name, value in store.towers["text"].items() if name != "unknown_share"}
    return store.towers | {"text": text}


def make_baselines(store: Any, split: Split, aim: Aim | None, fitted_on: Any, work: Path) -> Path:
    """Return the artifact with both baselines' figures and predictions on the split, made beside the store if need be.

    They learn from the train and validation rows of `fitted_on`. Where another process is making them, it is waited for; where
    nothing can be written beside the store, they are made in the folder `work`.
    """
    out = store.folder.with_name(f"{store.folder.name}-baselines-{split}")
    inputs = dict.fromkeys((Input(str(store.folder), store.sha256), Input(str(fitted_on.folder), fitted_on.sha256)))
    recipe = Recipe("baselines", tuple(inputs), measuring_arguments(split, aim) | labels_of(store))
    while not already_made(out, recipe):
        try:
            check_free(out, recipe.stage)
        except LockedError:
            log.info("%s: another labeler process is making it; waiting", out)
            time.sleep(WAIT_SECONDS)
            continue
        except BadInputError:
            out = work / BASELINES
            log.info(
                "nothing can be kept beside %s, so that the next evaluation fits its baselines again", store.folder
            )
        with suppress(LockedError), making(out, recipe) as folder:
            fit_baselines(store, split, aim, fitted_on, folder)
    return out


def fit_baselines(store: Any, split: Split, aim: Aim | None, fitted_on: Any, folder: Path) -> None:
    """Write both baselines' figures on the split, `baselines.json`, and their predictions into `folder`."""
    from labeler.baselines import Features, logistic_regression, majority

    log.info("fitting the baselines on the frozen features")
    parts = []
    for part, source in ((SPLITS[0], fitted_on), (SPLITS[1], fitted_on), (split, store)):
        rows = source.rows_of(part)
        image, text = source.features(rows)
        parts.append(Features(image, text, source.truth(rows)))
    task, rows = store.label_set.task, store.rows_of(split)
    entries = []
    for fitted in (majority(parts[0], parts[2], parts[1]), logistic_regression(task, *parts)):
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
