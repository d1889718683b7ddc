"""The page and the Markdown: what the templates show, put together from the comparison and the runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labeler.evaluation import ANSWERS, HEADLINE, kept_promise
from labeler.model_card import cell
from labeler.report.charts import Series, axis_of, line_chart
from labeler.report.comparison import METRICS, Model, evidence, p_value, pair, percent, points, ranked, trained
from labeler.report.explanations import Explained, explained_cards
from labeler.report.labels import confusion, per_class
from labeler.report.making import commands, how
from labeler.report.pictures import cards, sections
from labeler.report.runs import MeasuredRun
from labeler.report.sureness import sureness
from labeler.values import neutral, writable

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "weighted_f1": "Weighted F1",
    "macro_f1": "Macro F1",
    "mean_average_precision": "Mean average precision",
    "micro_f1": "Micro F1",
    "sample_f1": "Sample F1",
    "subset_accuracy": "Subset accuracy",
    "auroc": "AUROC",
    "top_2_accuracy": "Top-2 accuracy",
    "top_3_accuracy": "Top-3 accuracy",
    "top_5_accuracy": "Top-5 accuracy",
    ANSWERS: "VQA accuracy",
}
COLUMNS = {
    "single": ("weighted_f1", "macro_f1"),
    "multi": ("micro_f1", "macro_f1", "sample_f1", "subset_accuracy"),
}


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
        "kept_promise": kept_promise,
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


def render_page(
    comparison: dict[str, Any],
    runs: list[MeasuredRun],
    models: list[Model],
    explained: Explained,
    errors: dict[str, Any],
) -> str:
    """Return the page as one HTML document that loads nothing; errors: see `data_page.first_errors`."""
    by_name = {model.name: model for model in models}
    best_run, *others = trained(comparison, models)
    rivals = others or [by_name[row["name"]] for row in ranked(comparison) if row["baseline"]]
    shown, missing = cards(best_run.run, sections(comparison["task"], best_run, rivals[0] if rivals else None))
    names = best_run.run.names
    html = (
        environment()
        .get_template("index.html.j2")
        .render(
            _basics(comparison),
            best_run=best_run.name,
            curves=_curves(models),
            confusions=[confusion(model, names) for model in (best_run, *(m for m in models if m is not best_run))]
            if comparison["task"] == "single"
            else [],
            per_class=per_class(best_run, models, names),
            notes=[(model.name, note) for model in models for note in model.metrics.get("notes", [])],
            sure=sureness(models, best_run),
            sections=shown,
            missing=missing,
            explained=explained_cards(best_run, explained),
            errors=errors,
            unexplained=explained.missing,
            how=[how(model) for model in models],
            commands=commands(runs, comparison["data"]["split"], len(explained.asked)),
        )
    )
    return writable(html)  # a lone surrogate in a text must not stop the report


def _basics(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return what both templates show: the comparison, with the row above and the interval's axis for each model."""
    headline = HEADLINE[comparison["task"]]
    rows: list[dict[str, Any]] = []
    names, highest = {one["name"] for one in comparison["contenders"]}, ranked(comparison)[0][headline]
    best = {run for one in comparison["contenders"] if one[headline] == highest for run in one["runs"]}
    for model in comparison["models"]:
        # one of several seeds is not compared by itself
        both = bool(rows) and {rows[-1]["name"], model["name"]} <= names
        above = pair(comparison, rows[-1]["name"], model["name"]) if both else None
        rows.append(model | {"above": above, "is_best": model["name"] in best})
    intervals = [row[f"{headline}_ci95"] or [row[headline], row[headline]] for row in rows]
    alone = [row for row in rows if row["modalities"]]
    return {
        "comparison": comparison,
        "rows": rows,
        "headline": headline,
        "columns": COLUMNS[comparison["task"]] + _answered(comparison),
        "parent_columns": COLUMNS[comparison["task"]],
        "metrics": [name for name in METRICS[comparison["task"]] if any(row[name] is not None for row in rows)]
        + list(_answered(comparison)),
        "titles": TITLES,
        "axis": axis_of(intervals),
        "modalities": alone,
        "modality_axis": alone
        and axis_of(
            [
                row["modalities"][one][f"{headline}_ci95"] or [row["modalities"][one][headline] or 0.0] * 2
                for row in alone
                for one in row["modalities"]
            ]
        ),
        "parents": [row for row in rows if "parents" in row],
        "retrieval": [row for row in rows if row.get("retrieval")],
    }


def _answered(comparison: dict[str, Any]) -> tuple[str, ...]:
    """Return the figure that only rows with answers to a question have."""
    return (ANSWERS,) if ANSWERS in comparison["models"][0] else ()


def _curves(models: list[Model]) -> dict[str, Any] | None:
    """Return the learning curves of runs that recorded some: charts, those of one metric together, and the numbers; or None."""
    found = [(model.name, model.run.history) for model in models if not model.baseline and model.run.history]
    recorded = [(name, history) for name, history in found if history and history.get("epochs")]
    if not recorded:
        return None
    metrics = list(dict.fromkeys(history["metric"] for _, history in recorded))
    charts = []
    for metric in metrics:
        some = [(name, history) for name, history in recorded if history["metric"] == metric]
        kind = f" ({_titled(metric)})" if len(metrics) > 1 else ""  # losses of labels and of pairs are not alike
        charts += [_curve(f"Training loss{kind}", some, "train_loss", marked=False),
                   _curve(f"Validation {_titled(metric)}", some, "validation_metric", marked=True)]  # fmt: skip
    named = [(name, history, _titled(history["metric"])) for name, history in recorded]
    return {"charts": [chart for chart in charts if chart], "runs": named}


def _curve(title: str, recorded: list[tuple[str, Any]], key: str, *, marked: bool) -> Any:
    """Return a chart of what each epoch of some runs recorded as `key`, the epoch that was kept `marked`; None without values."""
    series = [
        Series(
            name,
            [(float(e["epoch"]), float(e[key])) for e in history["epochs"] if e.get(key) is not None],
            history.get("best_epoch") if marked else None,
        )
        for name, history in recorded
    ]
    return line_chart(title, series) if any(line.points for line in series) else None


def _titled(metric: str) -> str:
    """Return a metric's name inside a title."""
    return TITLES.get(metric, metric.replace("_at_", "@").replace("_", " ")).lower().replace(" f1", " F1")
