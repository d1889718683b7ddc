"""The comparison: every model on the same rows, every pair tested, and the answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import SCHEMA_VERSION, sha256_file
from labeler.errors import BadInputError
from labeler.evaluation import ANSWERS, BEST_F1, HEADLINE, Predictions
from labeler.model_card import aimed_at
from labeler.report.contenders import compared, contenders, entry, seeds_of
from labeler.report.runs import MeasuredRun, read_rows

METRICS = {
    "single": ("accuracy", "balanced_accuracy", "weighted_f1", "macro_f1", "auroc",
               "top_2_accuracy", "top_3_accuracy", "top_5_accuracy"),
    "multi": ("mean_average_precision", "micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "auroc"),
}  # fmt: skip
COSTS = ("parameters", "trainable_parameters", "train_seconds", "pairs_per_second", "evaluate_pairs_per_second")
BASELINES = ("majority", "logistic-regression")
SAME = 1e-3  # scores of a baseline that was fitted twice differ less
STRONGEST = "logistic-regression"
WORDS = {"accuracy": "accuracy", "mean_average_precision": "mean average precision"}


class Model(NamedTuple):
    """One row of the table: a run, or a baseline that was measured with a run."""

    name: str  # unique in the report
    baseline: bool
    run: MeasuredRun
    metrics: dict[str, Any]
    predictions: Predictions


def collect(runs: list[MeasuredRun]) -> list[Model]:
    """Return the baselines in a fixed order, each distinct one once, then the runs in the order given.

    Raises BadInputError when a predictions file is damaged or not the one that the metrics are from, or for other rows.
    """
    found: list[tuple[bool, MeasuredRun, dict[str, Any], Predictions]] = []
    seen = set()
    baselines = [(run, metrics) for run in runs for metrics in run.metrics["baselines"]]
    for run, metrics in sorted(baselines, key=_baseline_order):
        key = (metrics["name"], aimed(run), sha256_file(run.folder / metrics["predictions"]))
        if key in seen:
            continue
        seen.add(key)
        rows = read_rows(run, metrics["predictions"], metrics["n"])
        if not any(key[:2] == (one["name"], aimed(other)) and _same_scores(rows, before)
                   for _, other, one, before in found):  # fmt: skip
            found.append((True, run, metrics, rows))
    for run in runs:
        predictions = f"predictions-{run.metrics['data']['split']}.jsonl"
        found.append((False, run, run.metrics, read_rows(run, predictions, run.metrics["n"])))
    _, first, _, expected = found[0]
    for _, run, metrics, rows in found[1:]:
        if rows.ids != expected.ids:
            raise BadInputError(
                f"{run.folder}: its predictions of {metrics['name']} are for other rows than those in {first.folder}; only what "
                f"is measured on the same rows can be compared: type `labeler evaluate {run.folder} --data {run.store} --force`"
            )
    names = _unique([(metrics["name"], run) for _, run, metrics, _ in found])
    return [Model(name, *parts) for name, parts in zip(names, found, strict=True)]


def aimed(run: MeasuredRun) -> str:
    """Return what the thresholds of a run's figures were fitted for."""
    return run.metrics.get("aim") or str(BEST_F1)


def _same_scores(one: Predictions, other: Predictions) -> bool:
    """Return whether two fits of a baseline are the same: with labels in another order, sums differ in their last digits."""
    return one.scores.shape == other.scores.shape and np.allclose(one.scores, other.scores, rtol=0, atol=SAME)


def _baseline_order(pair: tuple[MeasuredRun, dict[str, Any]]) -> int:
    name = pair[1]["name"]
    return BASELINES.index(name) if name in BASELINES else len(BASELINES)


def _unique(pairs: list[tuple[str, MeasuredRun]]) -> list[str]:
    """Return the names, each made unique by the run folder's name or, where that is not enough, its path."""
    names = [name for name, _ in pairs]
    for suffix in (lambda run: run.folder.name, lambda run: str(run.folder)):
        twice = {name for name in names if names.count(name) > 1}
        names = [
            f"{plain} ({suffix(run)})" if name in twice else name
            for name, (plain, run) in zip(names, pairs, strict=True)
        ]
    return names


def compare_models(runs: list[MeasuredRun], models: list[Model]) -> dict[str, Any]:
    """Return what `comparison.json` holds: the data, a row for each model, all pairs of contenders, seeds, the answer.

    `seeds` has the mean and the standard deviation for each model that was trained more than once, and measured, with nothing but
    another seed. Such runs are one of the `contenders`, by their mean; `comparisons` say how b differs from a (see
    `evaluation.compare_means`), judged over all pairs of these.
    """
    first = runs[0].metrics
    task = first["task"]
    figures = (*METRICS[task], *([ANSWERS] if any(ANSWERS in model.metrics for model in models) else []))
    seeds = seeds_of(figures, models)
    found = contenders(task, models, seeds)
    result = {
        "schema_version": SCHEMA_VERSION,
        "data": {key: first["data"][key] for key in ("name", "sha256", "split")} | {"n": first["n"]},
        "task": task,
        "models": [_row(task, figures, model) for model in models],
        "contenders": [entry(task, one) for one in found],
        "comparisons": compared(task, found),
        "cautions": cautions(models) + told_repeats(seeds),
        "seeds": seeds,
    }
    return result | {"answer": answer(result), "against_baseline": against_baseline(result)}


def _row(task: str, figures: tuple[str, ...], model: Model) -> dict[str, Any]:
    metrics, run = model.metrics, model.run.metrics
    row = {
        "name": model.name,
        "run": str(model.run.folder),
        "preset": None if metrics["name"] == "majority" else run.get("preset"),
        "baseline": model.baseline,
        "seed": None if model.baseline else run["seed"],
        "n": metrics["n"],
    }
    for metric in figures:
        row |= {metric: metrics.get(metric), f"{metric}_ci95": metrics.get(f"{metric}_ci95")}
    if "parents" in metrics:
        row["parents"] = {
            key: metrics["parents"].get(key) for metric in METRICS[task] for key in (metric, f"{metric}_ci95")
        }
    row |= {key: metrics.get(key) for key in COSTS}
    return row | {"best_epoch": metrics.get("best_epoch"), "modalities": metrics.get("modalities"),
                  "retrieval": metrics.get("retrieval")}  # fmt: skip


def ranked(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the contenders from the best down, by accuracy or mean average precision; equals in table order."""
    headline = HEADLINE[comparison["task"]]
    return sorted(comparison["contenders"], key=lambda one: -(one[headline] or 0.0))


def trained(comparison: dict[str, Any], models: list[Model]) -> list[Model]:
    """Return the runs, no baseline, from the best contender's down; of one model's seeds the best first, repeated ones last."""
    headline = HEADLINE[comparison["task"]]
    places = {run: place for place, one in enumerate(ranked(comparison)) for run in one["runs"]}
    runs = [model for model in models if not model.baseline]
    return sorted(runs, key=lambda model: (places.get(model.name, len(places)), -model.metrics[headline]))


def pair(comparison: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    """Return how b differs from a: delta, ci95, mcnemar_p, p_holm, verdict, rows_needed; for either order of the two."""
    key = f"delta_{HEADLINE[comparison['task']]}"
    for found in comparison["comparisons"]:
        if {found["a"], found["b"]} == {a, b}:
            break
    else:
        raise AssertionError(f"{a} and {b} are not compared")
    result = {"delta": found[key]} | {
        name: found[name] for name in ("ci95", "mcnemar_p", "p_holm", "verdict", "rows_needed")
    }
    if found["a"] == a:
        return result
    turned = {"better": "worse", "worse": "better"}.get(found["verdict"], found["verdict"])
    bounds = found["ci95"] and [-found["ci95"][1], -found["ci95"][0]]
    return result | {"delta": -found[key], "ci95": bounds, "verdict": turned}


def told_repeats(seeds: list[dict[str, Any]]) -> list[str]:
    """Return which runs are in no mean, since one of the same seed is."""
    return [
        f"{', '.join(row['repeated'])}: of a seed that another run of {row['name']} has; the mean counts each seed once."
        for row in seeds
        if row["repeated"]
    ]


def cautions(models: Sequence[Any]) -> list[str]:
    """Return what is to be known of some models' figures before they are compared."""
    own = [model for model in models if not model.baseline]
    lines = [
        f"{model.name}: {model.metrics['data']['caution']}." for model in own if "caution" in model.metrics["data"]
    ]
    aims = {model.name: model.metrics.get("aim") or "f1" for model in own}
    if len(set(aims.values())) > 1:
        told = ", ".join(f"{name} {aim}" for name, aim in aims.items())
        lines.append(
            f"Thresholds were fitted for different aims ({told}): what hangs on them, F1 first, cannot be compared."
        )
    elif own and (aim := aimed_at(own[0].metrics)):
        lines.append(f"{aim}.")
    return lines


def answer(comparison: dict[str, Any]) -> str:
    """Return in one or two sentences which model is best, by how much, and whether that can be told from luck."""
    headline, data = HEADLINE[comparison["task"]], comparison["data"]
    best, *rest = ranked(comparison)
    value = f"{WORDS[headline]} {percent(best[headline])}{_between(best[f'{headline}_ci95'])}"
    if not rest:
        return (
            f"{best['name']} reaches {value} on {data['n']} {data['split']} rows. There is nothing to compare it with."
        )
    found = pair(comparison, rest[0]["name"], best["name"])
    if found["delta"] == 0:
        return (
            f"{best['name']} and {rest[0]['name']} are level at the top of {len(rest) + 1} models on {data['n']} "
            f"{data['split']} rows: {value}."
        )
    luck = "more than luck explains" if found["verdict"] == "better" else "a difference that cannot be told from luck"
    return (
        f"{best['name']} is the best of {len(rest) + 1} models on {data['n']} {data['split']} rows: {value}. That is "
        f"{abs(100 * found['delta']):.1f} points above {rest[0]['name']}, the next: {luck} ({evidence(found)})."
    )


def against_baseline(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each contender that is no baseline whether it beats the strongest logistic regression.

    Each is {name, baseline, beats, text, ...pair}.
    """
    baselines = [model for model in ranked(comparison) if model["baseline"] and model["name"].startswith(STRONGEST)]
    rows: list[dict[str, Any]] = []
    for model in comparison["contenders"] if baselines else []:
        if model["baseline"]:
            continue
        other = baselines[0]["name"]
        found = pair(comparison, other, model["name"])
        words = {"better": "beats", "worse": "is worse than", "cannot tell": "is not shown to beat"}[found["verdict"]]
        text = f"{model['name']} {words} {other}: {points(found['delta'])} points ({evidence(found)})."
        rows.append(
            {"name": model["name"], "baseline": other, "beats": found["verdict"] == "better", "text": text} | found
        )
    return rows


def evidence(found: dict[str, Any]) -> str:
    """Return the interval of a difference and its corrected p in words, and how many rows would tell where these cannot."""
    bounds = found["ci95"]
    text = f"95 % interval {points(bounds[0])} to {points(bounds[1])} points" if bounds else "no interval"
    text += f", p\u00a0{p_value(found['p_holm'])}"
    return f"{text}; about {round_up(found['rows_needed'])} rows would tell" if found["rows_needed"] else text


def round_up(number: int) -> str:
    """Return a number rounded up to two digits: 2,314 as "2,400"."""
    step = 10 ** max(len(str(number)) - 2, 0)
    return f"{-(-number // step) * step:,}"


def _between(bounds: list[float] | None) -> str:
    return f" (95 % interval {100 * bounds[0]:.1f} to {percent(bounds[1])})" if bounds else ""


def percent(value: float | None) -> str:
    """Return a fraction as "78.0 %", None as a dash."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def points(value: float | None) -> str:
    """Return a difference of fractions in percentage points with its sign: "+2.4", "−1.2", "0.0"."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def p_value(value: float | None) -> str:
    """Return "= 0.031" or "< 0.001" (with no-break spaces), None as a dash."""
    if value is None:
        return "–"
    return "<\u00a00.001" if value < 0.001 else f"=\u00a0{value:.3f}"
