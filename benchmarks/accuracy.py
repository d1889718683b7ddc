"""Accuracy of every model on held-out pairs: three seeds, paired differences with intervals.

    python -m benchmarks.accuracy [clipart-category clipart-tags openclipart-category openclipart-tags mvsa-single meld-emotion]
                                  [--models visualbert,flava] [--seeds 3]
    python -m benchmarks.accuracy tables

Results are kept in `benchmarks/results/`, a file a data set; runs that are already made are not made again. openclipart (all
3,385 drawings, of which `data/clipart` is a part), mvsa-single and meld-emotion (text alone, the official splits) are read from
the folder that LABELER_DATA names (it holds openclipart/data.jsonl, mvsa_single/train.jsonl and meld/) and left out elsewhere.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from labeler.artifacts import read_json, versions, write_json
from labeler.evaluating import evaluate
from labeler.evaluation import HEADLINE, SECOND, Resampled, differences, mean_of, read_predictions, resample
from labeler.ingestion import IngestOptions, ingest
from labeler.preprocessing import preprocess
from labeler.training import train
from labeler.training_options import options_for

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet-gru", "late-fusion", "visualbert", "visualbert-coattn", "flava", "albef")
# the differences that matter: each model from logistic regression, what fusion and co-attention add, and the other ways to fuse
COMPARED = [("logistic-regression", model) for model in MODELS]
COMPARED += [("late-fusion", "visualbert"), ("visualbert", "visualbert-coattn")]
COMPARED += [("visualbert", model) for model in ("flava", "albef")]


class DataSet(NamedTuple):
    """One data set to measure on; splits are drawn by `labeler ingest` with seed 0."""

    name: str
    source: Path
    label: str | None


class Trial(NamedTuple):
    """One row of a table: its name, the model, and the settings in place of the model's own."""

    name: str
    model: str
    given: dict[str, Any]


def data_sets() -> list[DataSet]:
    """Return the data sets that are at hand."""
    clipart = ROOT / "data" / "clipart" / "pairs.jsonl"
    found = [DataSet("clipart-category", clipart, "category"), DataSet("clipart-tags", clipart, "tags")]
    elsewhere = Path(os.environ.get("LABELER_DATA", "/nonexistent"))
    drawings = elsewhere / "openclipart" / "data.jsonl"
    found += [DataSet("openclipart-category", drawings, "category"), DataSet("openclipart-tags", drawings, "tags")]
    found.append(DataSet("mvsa-single", elsewhere / "mvsa_single" / "train.jsonl", "label"))
    found.append(DataSet("meld-emotion", elsewhere / "meld", "emotion"))
    return [data_set for data_set in found if data_set.source.exists()]


def several(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Return the names of an option's list with commas; they have to be among those of its default value."""
    known, chosen = str(parameter.get_default(context)).split(","), value.split(",")
    for name in chosen:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return chosen


@click.command()
@click.argument("wanted", nargs=-1)
@click.option("--models", callback=several, default=",".join(MODELS), show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
def main(wanted: tuple[str, ...], models: list[str], seeds: int) -> None:
    """Measure the data sets `wanted` (all of them by default) and print a table for each; `tables` prints what is kept."""
    if wanted == ("tables",):
        for path in sorted(RESULTS.glob("*.json")):
            print(table(read_json(path)))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    here = {data_set.name: data_set for data_set in data_sets()}
    if strange := [name for name in wanted if name not in here]:
        raise click.BadParameter(f"{strange[0]!r} is none of {', '.join(here)}")
    trials = [Trial(model, model, {}) for model in models]
    for name in wanted or here:
        target = RESULTS / f"{name}.json"
        print(table(measure(name, stored(here[name]), trials, range(seeds), COMPARED, target)), flush=True)


def stored(data_set: DataSet, split: str = "auto") -> Path:
    """Return the data set's store, in a folder of its own under LABELER_BENCH; made if need be, with its splits by `split`."""
    work = Path(os.environ.get("LABELER_BENCH", ROOT / "checkpoints" / "bench")) / data_set.name
    ingest([data_set.source], work / "records", IngestOptions(label=data_set.label, split=split))
    preprocess(work / "records", work / "store")
    return work / "store"


def measure(
    name: str,
    store: Path,
    trials: list[Trial],
    seeds: Iterable[int],
    compared: list[tuple[str, str]],
    target: Path,
) -> dict[str, Any]:
    """Return the results of all trials with all seeds, written to `target` after every run so that a stop loses nothing.

    Runs lie beside the store, named after trial and seed; those that are already made are found. `compared` holds the
    names (a, b) whose difference b minus a is taken.
    """
    runs: list[tuple[str, Path]] = []
    result: dict[str, Any] = {}
    for seed in seeds:
        for trial in trials:
            run = store.parent / f"{trial.name}-{seed}"
            train(trial.model, store, run, options_for(trial.model, trial.given), seed=seed)
            evaluate(run, store)
            runs.append((trial.name, run))
            result = summary(name, runs, compared)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, result)
    return result


def summary(name: str, runs: list[tuple[str, Path]], compared: list[tuple[str, str]]) -> dict[str, Any]:
    """Return means over seeds with paired differences, for what has been run so far."""
    metrics = [read_json(run / "metrics-test.json") for _, run in runs]
    task, first = metrics[0]["task"], runs[0][1]
    names = tuple(label["name"] for label in read_json(first / "labels.json")["labels"])
    models: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for entry in metrics[0]["baselines"]:
        models[entry["name"]] = [(entry, first / entry["predictions"])]
    for (model, run), entry in zip(runs, metrics, strict=True):
        models.setdefault(model, []).append((entry, run / "predictions-test.jsonl"))
    draws = {model: mean_of([resampled(task, names, path) for _, path in items]) for model, items in models.items()}
    figures = [HEADLINE[task], SECOND[task], "macro_f1"]
    return {
        "data": metrics[0]["data"] | {"n": metrics[0]["n"], "store": None},
        "name": name,
        "task": task,
        "versions": versions(),
        "models": [row(model, [entry for entry, _ in items], figures) for model, items in models.items()],
        "comparisons": [difference(task, a, b, draws) for a, b in compared if {a, b} <= models.keys()],
    }


@functools.cache
def resampled(task: str, names: tuple[str, ...], path: Path) -> Resampled:
    """Return the metrics of the predictions in `path` on bootstrap draws, the same of the same rows."""
    return resample(task, read_predictions(path, list(names)), wanted=(HEADLINE[task], SECOND[task]))


def row(model: str, entries: list[dict[str, Any]], figures: list[str]) -> dict[str, Any]:
    """Return one model's means over seeds."""
    values = {figure: [entry[figure] for entry in entries] for figure in figures}
    return {
        "name": model,
        "seeds": len(entries),
        **{figure: round(float(np.mean(value)), 4) for figure, value in values.items()},
        "by_seed": {figure: [round(item, 4) for item in value] for figure, value in values.items()},
        "parameters": entries[0]["parameters"],
        "settings": entries[0]["settings"],
        "train_seconds": [entry["train_seconds"] for entry in entries],
        "pairs_per_second": [entry.get("pairs_per_second") for entry in entries],
    }


def difference(task: str, a: str, b: str, draws: dict[str, Resampled]) -> dict[str, Any]:
    """Return b minus a, averaged over seeds, with a 95 % interval over the drawn groups."""
    found = differences(draws[b].minus(draws[a]), *(metrics := (HEADLINE[task], SECOND[task])))
    intervals = ("ci95", f"delta_{metrics[1]}_ci95")
    return {"a": a, "b": b} | {
        metric: {
            "delta": round(found[f"delta_{metric}"], 4),
            "ci95": found[key] and [round(edge, 4) for edge in found[key]],
        }
        for metric, key in zip(metrics, intervals, strict=True)
    }


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
            f"{item[name]['delta']:+.3f} "
            + ("[{:+.3f}, {:+.3f}]".format(*item[name]["ci95"]) if item[name]["ci95"] else "–")
            for name in figures[:2]
        ]
        lines.append(f"| {item['b']} - {item['a']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
