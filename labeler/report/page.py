"""The page and the Markdown: what the templates show, put together from the comparison and the runs."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labeler.artifacts import neutral
from labeler.evaluation import ANSWERS, HEADLINE
from labeler.model_card import cell
from labeler.report.charts import Series, axis_of, line_chart
from labeler.report.comparison import METRICS, Model, evidence, p_value, pair, percent, points, ranked
from labeler.report.pictures import cards, sections
from labeler.report.runs import Run
from labeler.report.sureness import sureness

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "weighted_f1": "Weighted F1",
    "macro_f1": "Macro F1",
    "mean_average_precision": "Mean average precision",
    "micro_f1": "Micro F1",
    "sample_f1": "Sample F1",
    "subset_accuracy": "Subset accuracy",
    ANSWERS: "VQA accuracy",
}
COLUMNS = {
    "single": ("weighted_f1", "macro_f1"),
    "multi": ("micro_f1", "macro_f1", "sample_f1", "subset_accuracy"),
}
FREQUENT = 8


def environment() -> Environment:
    """Return the templates' environment: everything from outside is escaped, an unknown name is an error."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": percent,
        "points": points,
        "p_value": p_value,
        "evidence": evidence,
        "count": count,
        "duration": duration,
        "speed": speed,
        "bounds": bounds,
        "point_bounds": point_bounds,
        "cell": cell,
        "decimals": decimals,
    }
    return found


def count(value: float | None) -> str:
    """Return 23453211 as "23.5 M", 1350 as "1,350", None as a dash."""
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def decimals(value: float | None) -> str:
    """Return a number with three decimals, None as a dash."""
    return "–" if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Return seconds as "0.4 s", "312 s" (up to 10 minutes) or "1 h 02 min", None as a dash."""
    if seconds is None:
        return "–"
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def speed(value: float | None) -> str:
    """Return pairs a second with two significant digits or more, None as a dash."""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def bounds(interval: list[float] | None) -> str:
    """Return an interval of fractions as "72.8–83.2", None as a dash."""
    return "–" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def point_bounds(interval: list[float] | None) -> str:
    """Return an interval of differences as "−1.2 to +6.0", None as a dash."""
    return "–" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def render_markdown(comparison: dict[str, Any]) -> str:
    """Return the answer, the table and the comparisons as Markdown."""
    found = environment()
    found.autoescape = False  # Markdown; names go through the filter `cell`
    return found.get_template("comparison.md.j2").render(_basics(comparison)).rstrip() + "\n"


def render_csv(comparison: dict[str, Any]) -> str:
    """Return a line for each model, in table order: figures as fractions with intervals, the difference to the row above."""
    metrics = METRICS[comparison["task"]] + _answered(comparison)
    ends = [f"{metric}_{end}" for metric in metrics for end in ("low", "high")]
    costs = ("parameters", "train_seconds", "pairs_per_second")
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["name", "baseline", "seed", "n", *metrics, *ends, "difference", "p", "verdict", *costs])
    for row in _basics(comparison)["rows"]:
        bounds = [end for metric in metrics for end in row[f"{metric}_ci95"] or (None, None)]
        above = row["above"] or {"delta": None, "p_holm": None, "verdict": None}
        values = [row[name] for name in ("baseline", "seed", "n", *metrics)]
        table.writerow([neutral(row["name"]), *values, *bounds, above["delta"], above["p_holm"], above["verdict"],
                        *(row[cost] for cost in costs)])  # fmt: skip
    return file.getvalue()


def render_page(comparison: dict[str, Any], runs: list[Run], models: list[Model]) -> str:
    """Return the page as one HTML document that loads nothing."""
    order = [model["name"] for model in ranked(comparison)]
    by_name = {model.name: model for model in models}
    best_run, *others = sorted((m for m in models if not m.baseline), key=lambda model: order.index(model.name))
    rivals = others or [by_name[name] for name in order if by_name[name].baseline]
    shown, missing = cards(best_run.run, sections(comparison["task"], best_run, rivals[0] if rivals else None))
    names = best_run.run.names
    html = (
        environment()
        .get_template("index.html.j2")
        .render(
            _basics(comparison),
            best_run=best_run.name,
            curves=_curves(models),
            confusions=[_confusion(model, names) for model in (best_run, *(m for m in models if m is not best_run))]
            if comparison["task"] == "single"
            else [],
            per_class=_per_class(best_run, models, names),
            notes=[(model.name, note) for model in models for note in model.metrics.get("notes", [])],
            sure=sureness(models, best_run),
            sections=shown,
            missing=missing,
            how=[_how(model) for model in models],
            commands=_commands(runs, comparison["data"]["split"]),
        )
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate in a text must not stop the report


def _basics(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return what both templates show: the comparison, with the row above and the interval's axis for each model."""
    headline = HEADLINE[comparison["task"]]
    rows: list[dict[str, Any]] = []
    for model in comparison["models"]:
        above = pair(comparison, rows[-1]["name"], model["name"]) if rows else None
        rows.append(model | {"above": above, "is_best": model[headline] == ranked(comparison)[0][headline]})
    intervals = [row[f"{headline}_ci95"] or [row[headline], row[headline]] for row in rows]
    return {
        "comparison": comparison,
        "rows": rows,
        "headline": headline,
        "columns": COLUMNS[comparison["task"]] + _answered(comparison),
        "parent_columns": COLUMNS[comparison["task"]],
        "metrics": METRICS[comparison["task"]] + _answered(comparison),
        "titles": TITLES,
        "axis": axis_of(intervals),
        "modalities": [row for row in rows if row["modalities"]],
        "parents": [row for row in rows if "parents" in row],
        "retrieval": [row for row in rows if row.get("retrieval")],
    }


def _answered(comparison: dict[str, Any]) -> tuple[str, ...]:
    """Return the figure that only rows with answers to a question have."""
    return (ANSWERS,) if ANSWERS in comparison["models"][0] else ()


def _curves(models: list[Model]) -> dict[str, Any] | None:
    """Return the learning curves of the runs that recorded some: two charts and the numbers; None without any."""
    recorded = [(model.name, model.run.history) for model in models if not model.baseline and model.run.history]
    recorded = [(name, history) for name, history in recorded if history and history.get("epochs")]
    if not recorded:
        return None
    metric = TITLES.get(recorded[0][1]["metric"], recorded[0][1]["metric"])
    charts = []
    for title, key, marked in (
        ("Training loss", "train_loss", False),
        (f"Validation {metric.lower().replace(' f1', ' F1')}", "validation_metric", True),
    ):
        series = [
            Series(
                name,
                [(float(e["epoch"]), float(e[key])) for e in history["epochs"] if e.get(key) is not None],
                history.get("best_epoch") if marked else None,
            )
            for name, history in recorded
        ]
        if any(line.points for line in series):
            charts.append(line_chart(title, series))
    return {"charts": charts, "runs": recorded, "metric": metric}


def _confusion(model: Model, names: list[str]) -> dict[str, Any]:
    """Return the confusion matrix with a shade in 0..1 (share of its row) for each cell, and the commonest mistakes."""
    counts = np.array(model.metrics["confusion"])
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    rows = [
        {
            "label": names[i],
            "total": int(totals[i]),
            "cells": [(int(n), round(float(s), 3)) for n, s in zip(counts[i], shares[i], strict=True)],
        }
        for i in range(len(names))
    ]
    mistakes = np.where(np.eye(len(names), dtype=bool), 0, counts)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:FREQUENT]
    frequent = [
        (names[i // len(names)], names[i % len(names)], int(mistakes.flat[i])) for i in order if mistakes.flat[i]
    ]
    return {"name": model.name, "labels": names, "rows": rows, "frequent": frequent}


def _per_class(best: Model, models: list[Model], names: list[str]) -> dict[str, Any]:
    """Return the best run's values for each label, with the F1 of the other models beside them."""
    others = [model for model in models if model is not best]
    rows = [
        best.metrics["per_class"][i] | {"others": [model.metrics["per_class"][i]["f1"] for model in others]}
        for i in range(len(names))
    ]
    return {"rows": rows, "others": [model.name for model in others]}


def _how(model: Model) -> dict[str, Any]:
    """Return how a model came to be: {name, baseline, folder, values: [(what, value)]}."""
    values: dict[str, Any] = {"run": str(model.run.folder), "preset": model.run.metrics.get("preset")}
    said: dict[str, Any] = {}
    if not model.baseline:
        manifest, said = model.run.manifest, model.run.manifest["arguments"]
        paths = [item["path"] for item in manifest["inputs"]]  # the store, then the teachers
        values |= {"seed": model.metrics["seed"], "trained on": paths.pop(0)}
        values |= {"started from": paths.pop(0)} if said.get("init") else {}
        values |= {"teachers": paths} if paths else {}
        values |= {"artifact sha256": manifest["content_sha256"], "versions": manifest["versions"]}
        values |= {f"argument {key}": value for key, value in said.items()}
    values |= {key: value for key, value in model.metrics["settings"].items() if said.get(key) != value}
    return {"name": model.name, "baseline": model.baseline, "values": [(key, _plain(v)) for key, v in values.items()]}


def _commands(runs: list[Run], split: str) -> list[str]:
    """Return what to type to make the report again."""
    evaluate = [["labeler", "evaluate", str(run.folder), "--data", str(run.store), "--split", split] for run in runs]
    return [
        shlex.join(words)
        for words in (*evaluate, ["labeler", "report", *(str(r.folder) for r in runs), "--split", split])
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "–"
    return value if isinstance(value, str) else json.dumps(value)
