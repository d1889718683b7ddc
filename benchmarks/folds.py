"""Accuracy over five folds of a data set: every pair is a test pair once, none shares a picture, text or group with a train pair.

    python -m benchmarks.folds [--data mvsa-single] [--seeds 3] [--models late-fusion,visualbert] [--fold 1]

Each fold has a store (`labeler ingest --split 2/5`), validation rows and a logistic regression on the frozen features of its
own, and the default settings. Runs that are already made are found. The predictions of the five folds are joined; intervals and
differences are taken over all pairs, as if one model had made them. With `--fold` they are those of one fold alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.accuracy import COMPARED, MODELS, RESULTS, DataSet, data_sets, difference, row, several, stored, table
from labeler.artifacts import read_json, versions, write_json
from labeler.evaluating import evaluate
from labeler.evaluation import HEADLINE, SECOND, Predictions, Resampled, mean_of, read_predictions, resample
from labeler.training import train
from labeler.training_options import options_for

FOLDS = 5


def joined(parts: list[Predictions]) -> Predictions:
    """Return the folds' predictions as one; a group lies in one fold, and its name is told apart by the fold's number."""
    groups = [f"{number}/{group}" for number, part in enumerate(parts) for group in part.groups]
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("truth", "scores", "predicted"))
    return Predictions([name for part in parts for name in part.ids], groups, *arrays)


def summary(name: str, runs: dict[str, list[list[Path]]]) -> dict[str, Any]:
    """Return means over seeds with paired differences; `runs` holds for each model and seed its runs, one a fold."""
    first = next(iter(runs.values()))[0]
    metrics = [read_json(run / "metrics-test.json") for run in first]
    task, labels = metrics[0]["task"], read_json(first[0] / "labels.json")["labels"]
    names = [label["name"] for label in labels]
    figures = [HEADLINE[metrics[0]["task"]], SECOND[metrics[0]["task"]], "macro_f1"]
    files = {entry["name"]: [[run / entry["predictions"] for run in first]] for entry in metrics[0]["baselines"]}
    files |= {
        model: [[run / "predictions-test.jsonl" for run in fold] for fold in seeds] for model, seeds in runs.items()
    }
    models: dict[str, Any] = {}
    draws: dict[str, Resampled] = {}
    for model, seeds in files.items():
        entries, drawn = [], []
        for paths in seeds:
            drawn.append(resample(task, joined([read_predictions(path, names) for path in paths])))
            entries.append({figure: drawn[-1].estimate[figure] for figure in figures} | about(model, paths))
        models[model] = entries
        draws[model] = mean_of(drawn)
    return {
        "data": {"n": sum(entry["n"] for entry in metrics), "folds": len(first)},
        "name": name,
        "task": task,
        "versions": versions(),
        "models": [row(model, entries, figures) for model, entries in models.items()],
        "comparisons": [difference(task, a, b, draws) for a, b in COMPARED if {a, b} <= models.keys()],
    }


def about(model: str, paths: list[Path]) -> dict[str, Any]:
    """Return size, settings and speed of a model's runs, one a fold, of which the predictions are given."""
    found = [read_json(path.parent / "metrics-test.json") for path in paths]
    entries = [next((base for base in one["baselines"] if base["name"] == model), one) for one in found]
    return {"parameters": entries[0]["parameters"], "settings": entries[0]["settings"],
            "train_seconds": round(sum(entry["train_seconds"] for entry in entries), 1),
            "pairs_per_second": entries[0].get("pairs_per_second")}  # fmt: skip


@click.command()
@click.option("--data", type=click.Choice([data_set.name for data_set in data_sets()]), default="mvsa-single")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--models", callback=several, default=",".join(MODELS), show_default=True)
@click.option("--fold", type=click.IntRange(1, FOLDS), help="One fold alone, as fold-NUMBER-DATA.json [default: all].")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where folds-DATA.json is written.")
def main(data: str, seeds: int, models: list[str], fold: int | None, results: Path) -> None:
    """Train what is missing, write folds-DATA.json after every seed, print the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    [data_set] = [found for found in data_sets() if found.name == data]
    numbers = range(fold or 1, (fold or FOLDS) + 1)
    name = f"fold-{fold}-{data}" if fold else f"folds-{data}"
    stores = [stored(fold_of(data_set, number), f"{number}/{FOLDS}") for number in numbers]
    runs: dict[str, list[list[Path]]] = {}
    for seed in range(seeds):
        for model in models:
            runs.setdefault(model, []).append([fitted(model, store, seed) for store in stores])
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / f"{name}.json", summary(name, runs))
    print(table(summary(name, runs)))


def fold_of(data_set: DataSet, number: int) -> DataSet:
    """Return the data set under the name of one of its folds."""
    return data_set._replace(name=f"{data_set.name}-fold-{number}")


def fitted(model: str, store: Path, seed: int) -> Path:
    """Return the run of `model` on one fold's store, trained and evaluated if need be."""
    run = store.parent / f"{model}-{seed}"
    train(model, store, run, options_for(model), seed=seed)
    evaluate(run, store)
    return run


if __name__ == "__main__":
    main()
