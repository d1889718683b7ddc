"""Contenders: what a report compares. Runs that differ in their seed alone are one, by their mean, or the luckiest would win."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from labeler.evaluation import HEADLINE, SECOND, Predictions, Resampled, compare_means, judge, mean_of, resample
from labeler.evaluation.measuring import COUNTED, bounds_of
from labeler.training_options import TrainOptions

if TYPE_CHECKING:
    from labeler.report.comparison import Model


class Contender(NamedTuple):
    """A baseline, a run, or the runs of one model with several seeds."""

    name: str  # unique in the report
    baseline: bool
    models: list[Model]
    drawn: Resampled  # the mean over its models

    @property
    def predictions(self) -> list[Predictions]:
        """Return what each of its models predicts."""
        return [model.predictions for model in self.models]


def seeds_of(figures: tuple[str, ...], models: list[Model]) -> list[dict[str, Any]]:
    """Return for each model trained with several seeds the mean, standard deviation and range of its metrics.

    Of several runs with one seed, as of a search and of a training with what it found, the first counts; the others are
    `repeated`.
    """
    groups: dict[str, list[Model]] = {}
    for model in models:
        if not model.baseline:
            # runs of earlier versions lack options that came later, and had what is their default now
            settings = asdict(TrainOptions()) | model.metrics["settings"]
            settings.pop("seed", None)
            # the store, the run that it started from, the teachers
            learned = [item["sha256"] for item in model.run.manifest["inputs"]]
            measured = [model.metrics.get("aim") or "f1", model.metrics.get("zero_shot")]
            same = [model.metrics["name"], model.metrics.get("preset"), settings, learned, measured]
            groups.setdefault(json.dumps(same, sort_keys=True), []).append(model)
    several = [group for group in groups.values() if len({model.metrics["seed"] for model in group}) > 1]
    names = [group[0].metrics["name"] for group in several]
    rows = []
    for name, group in zip(names, several, strict=True):
        label = name if names.count(name) == 1 else f"{group[0].name} and others"
        first: dict[int, Model] = {}
        for model in group:
            first.setdefault(model.metrics["seed"], model)
        runs = [model.name for model in first.values()]
        repeated = [model.name for model in group if model.name not in runs]
        row: dict[str, Any] = {"name": label, "runs": runs, "seeds": list(first), "repeated": repeated}
        for metric in figures:
            values: list[Any] = [model.metrics.get(metric) for model in first.values()]
            if None not in values:
                row[metric] = {"mean": mean(values), "sd": stdev(values), "min": min(values), "max": max(values)}
        rows.append(row)
    return rows


def contenders(task: str, models: list[Model], seeds: list[dict[str, Any]]) -> list[Contender]:
    """Return the contenders in table order, where the first of its models stands; `seeds`: see `seeds_of`."""
    of_run = {run: row for row in seeds for run in row["runs"]}
    repeated = {run for row in seeds for run in row["repeated"]}
    groups: dict[str, list[Model]] = {}
    for model in models:
        if model.name in repeated:
            continue
        row = of_run.get(model.name)
        groups.setdefault(f"{row['name']} (mean of {len(row['runs'])} seeds)" if row else model.name, []).append(model)
    wanted = (HEADLINE[task], SECOND[task])
    return [
        Contender(
            name, group[0].baseline, group, mean_of([resample(task, m.predictions, wanted=wanted) for m in group])
        )
        for name, group in groups.items()
    ]


def compared(task: str, found: list[Contender]) -> list[dict[str, Any]]:
    """Return how b differs from a, as `evaluation.compare_means` does, for all pairs of contenders, judged over all of them."""
    pairs = [
        {"a": a.name, "b": b.name} | compare_means(task, a.predictions, b.predictions, (a.drawn, b.drawn))
        for a, b in combinations(found, 2)
    ]
    judge(pairs)
    return pairs


def entry(task: str, one: Contender) -> dict[str, Any]:
    """Return what `comparison.json` says of a contender: its name, its runs' names, its headline metric with the interval."""
    headline = HEADLINE[task]
    groups = len(set(one.predictions[0].groups))
    bounds = bounds_of(one.drawn, headline, groups, headline in COUNTED)
    figures = {headline: one.drawn.estimate[headline], f"{headline}_ci95": bounds}
    if len(one.models) == 1:
        figures = {key: one.models[0].metrics.get(key) for key in figures}
    return {"name": one.name, "baseline": one.baseline, "runs": [model.name for model in one.models], **figures}
