"""Accuracy of every model on held-out pairs: three seeds, paired differences with intervals.

    python -m benchmarks.accuracy [clipart-category clipart-tags mvsa-single]
    python -m benchmarks.accuracy tables

Results are kept in `benchmarks/results/`, a file a data set; runs that are already made are not made again. mvsa-single
is read from the folder that LABELER_DATA names (it holds mvsa_single/train.jsonl) and is left out where that is not set.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import versions, write_json
from labeler.evaluation import HEADLINE, SECOND, Predictions, read_predictions, resample
from labeler.ingestion import IngestOptions, ingest
from labeler.preprocessing import preprocess
from labeler.scoring import evaluate
from labeler.training import train
from labeler.training_options import options_for

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet-gru", "late-fusion", "visualbert", "visualbert-coattn")
SEEDS = (0, 1, 2)


class DataSet(NamedTuple):
    """One data set to measure on; splits are drawn by `labeler ingest` with seed 0."""

    name: str
    source: Path
    label: str | None


def data_sets() -> list[DataSet]:
    """Return the data sets that are at hand."""
    clipart = ROOT / "data" / "clipart" / "pairs.jsonl"
    found = [DataSet("clipart-category", clipart, "category"), DataSet("clipart-tags", clipart, "tags")]
    elsewhere = Path(os.environ.get("LABELER_DATA", "/nonexistent")) / "mvsa_single" / "train.jsonl"
    return found + ([DataSet("mvsa-single", elsewhere, "label")] if elsewhere.is_file() else [])


def main(wanted: list[str]) -> None:
    """Measure the data sets `wanted` (all of them by default) and print a table for each; `tables` prints what is kept."""
    if wanted == ["tables"]:
        for path in sorted(RESULTS.glob("*.json")):
            print(table(json.loads(path.read_text(encoding="utf-8"))))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Path(os.environ.get("LABELER_BENCH", ROOT / "checkpoints" / "bench"))
    for data_set in data_sets():
        if not wanted or data_set.name in wanted:
            print(table(measure(data_set, work / data_set.name)), flush=True)


def measure(data_set: DataSet, work: Path) -> dict[str, Any]:
    """Return the data set's results, written after every run so that a stop loses nothing."""
    ingest([data_set.source], work / "records", IngestOptions(label=data_set.label))
    preprocess(work / "records", work / "store")
    runs: list[Path] = []
    result: dict[str, Any] = {}
    for seed in SEEDS:
        for model in MODELS:
            run = work / f"{model}-{seed}"
            train(model, work / "store", run, options_for(model), seed=seed)
            evaluate(run, work / "store")
            runs.append(run)
            result = summary(data_set.name, runs)
            RESULTS.mkdir(exist_ok=True)
            write_json(RESULTS / f"{data_set.name}.json", result)
    return result


def summary(name: str, runs: list[Path]) -> dict[str, Any]:
    """Return means over seeds with paired differences, for what has been run so far."""
    metrics = [json.loads((run / "metrics-test.json").read_text(encoding="utf-8")) for run in runs]
    task = metrics[0]["task"]
    names = [label["name"] for label in json.loads((runs[0] / "labels.json").read_text(encoding="utf-8"))["labels"]]
    models: dict[str, list[tuple[dict[str, Any], Predictions]]] = {}
    for entry in metrics[0]["baselines"]:
        models[entry["name"]] = [(entry, read_predictions(runs[0] / entry["predictions"], names))]
    for run, entry in zip(runs, metrics, strict=True):
        models.setdefault(entry["name"], []).append((entry, read_predictions(run / "predictions-test.jsonl", names)))
    draws = {model: mean_draws(task, [predictions for _, predictions in items]) for model, items in models.items()}
    figures = [HEADLINE[task], SECOND[task], "macro_f1"]
    return {
        "data": metrics[0]["data"] | {"n": metrics[0]["n"], "store": None},
        "name": name,
        "task": task,
        "versions": versions(),
        "models": [row(model, [entry for entry, _ in items], figures) for model, items in models.items()],
        "comparisons": [difference(task, a, b, draws, models) for a, b in pairs(list(models))],
    }


def pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the comparisons that matter: each with logistic regression, and what fusion and co-attention add."""
    yield from (("logistic-regression", name) for name in names if name in MODELS)
    if {"late-fusion", "visualbert"} <= set(names):
        yield "late-fusion", "visualbert"
    if "visualbert-coattn" in names:
        yield "visualbert", "visualbert-coattn"


def mean_draws(task: str, seeds: list[Predictions]) -> dict[str, np.ndarray]:
    """Return each metric's bootstrap draws [D], averaged over seeds; all use the same draws of the same groups."""
    drawn = [resample(task, predictions) for predictions in seeds]
    return {metric: np.mean([one[metric] for one in drawn], axis=0) for metric in drawn[0]}


def row(model: str, entries: list[dict[str, Any]], figures: list[str]) -> dict[str, Any]:
    """Return one model's means over seeds."""
    values = {figure: [entry[figure] for entry in entries] for figure in figures}
    return {
        "name": model,
        "seeds": len(entries),
        **{figure: round(float(np.mean(value)), 4) for figure, value in values.items()},
        "by_seed": {figure: [round(item, 4) for item in value] for figure, value in values.items()},
        "parameters": entries[0]["parameters"],
        "train_seconds": [entry["train_seconds"] for entry in entries],
        "pairs_per_second": [entry.get("pairs_per_second") for entry in entries],
    }


def difference(task: str, a: str, b: str, draws: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Return b minus a, averaged over seeds, with a 95% interval over the drawn groups."""
    result: dict[str, Any] = {"a": a, "b": b}
    for metric in (HEADLINE[task], SECOND[task]):
        values = draws[b][metric] - draws[a][metric]
        means = [np.mean([entry[metric] for entry, _ in models[name]]) for name in (a, b)]
        low, high = np.percentile(values, [2.5, 97.5])
        result[metric] = {
            "delta": round(float(means[1] - means[0]), 4),
            "ci95": [round(float(low), 4), round(float(high), 4)],
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    figures = [HEADLINE[result["task"]], SECOND[result["task"]], "macro_f1"]
    lines = [f"### {result['name']}: {result['data']['n']} test pairs", "",
             "| model | seeds | " + " | ".join(name.replace("_", " ") for name in figures) + " | each seed |",
             "|---|---|" + "---|" * (len(figures) + 1)]  # fmt: skip
    for model in result["models"]:
        by_seed = ", ".join(f"{value:.3f}" for value in model["by_seed"][figures[0]])
        lines.append(
            f"| {model['name']} | {model['seeds']} | "
            + " | ".join(f"{model[name]:.3f}" for name in figures)
            + f" | {by_seed} |"
        )
    lines += [
        "",
        "| difference | " + " | ".join(name.replace("_", " ") for name in figures[:2]) + " |",
        "|---|---|---|",
    ]
    for item in result["comparisons"]:
        cells = [
            f"{item[name]['delta']:+.3f} [{item[name]['ci95'][0]:+.3f}, {item[name]['ci95'][1]:+.3f}]"
            for name in figures[:2]
        ]
        lines.append(f"| {item['b']} - {item['a']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
