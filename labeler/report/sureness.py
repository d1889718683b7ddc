"""How sure the runs are and how right: reliability, risk and coverage, promises of precision, for the page."""

from __future__ import annotations

from typing import Any

from labeler.report.charts import Series, line_chart
from labeler.report.comparison import Model


def sureness(models: list[Model], best: Model) -> dict[str, Any] | None:
    """Return charts and tables of the runs that were measured so, None without any.

    The reliability diagram is the best run's, before and after its temperature; of the others there are the figures.
    """
    runs = [model for model in models if not model.baseline and "calibration" in model.metrics]
    curves = [model for model in runs if model.metrics["abstention"]["points"]]
    if not curves:
        return None
    shown = best if best in curves else curves[0]
    calibration = shown.metrics["calibration"]
    lines = []
    for name, when in (("as trained", "before"), (f"temperature {calibration['temperature']:.2f}", "after")):
        bins = calibration[when]["bins"]
        points = [(found["confidence"], found["accuracy"]) for found in bins]
        lines.append(Series(name, points, counts=[found["n"] for found in bins]))
    risks = [
        Series(model.name, [(point["coverage"], point["risk"]) for point in model.metrics["abstention"]["points"]])
        for model in curves
    ]
    return {
        "name": shown.name,
        "calibration": calibration,
        "charts": [
            line_chart(f"Reliability of {shown.name}", lines, "score", shares=True, diagonal=True),
            line_chart(
                "Risk–coverage curve: wrong among the surest",
                risks,
                "coverage: share of labels given",
                shares=True,
            ),
        ],
        "runs": [(model.name, model.metrics["calibration"], model.metrics["abstention"]["aurc"]) for model in runs],
        "promises": [(model.name, one) for model in curves for one in model.metrics["abstention"]["promises"]],
        "curves": [(model.name, model.metrics["abstention"]["points"]) for model in curves],
    }
