"""What the page shows label by label: the confusion matrix, F1 of every model, and where there are too many labels, some."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from labeler.report.charts import dot_chart
from labeler.report.comparison import Model

CONFUSED, LISTED, DRAWN = 40, 200, 30  # labels in the matrix, the table and the chart
FREQUENT = 8
OTHERS = "all others"


def most_frequent(counts: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers of the `most` labels with the highest counts, in label order; of equals the first."""
    return np.sort(np.argsort(-counts, kind="stable")[:most])


def confusion(model: Model, names: list[str]) -> dict[str, Any]:
    """Return the confusion matrix with a shade in 0..1 (share of its row) for each cell, and the commonest mistakes.

    Of more than CONFUSED labels it has the most frequent ones; the others are one row and one column.
    """
    truth, predicted = model.predictions.truth, model.predictions.predicted
    pairs = Counter(zip(truth.argmax(axis=1).tolist(), predicted.argmax(axis=1).tolist(), strict=True))
    shown = most_frequent(truth.sum(axis=0), CONFUSED)
    places = {int(label): place for place, label in enumerate(shown)}
    labels = [names[label] for label in shown]
    if len(shown) < len(names):
        labels.append(OTHERS)
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for (one, other), number in pairs.items():
        counts[places.get(one, len(shown)), places.get(other, len(shown))] += number
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    rows = [
        {
            "label": labels[i],
            "total": int(totals[i]),
            "cells": [(int(n), round(float(s), 3)) for n, s in zip(counts[i], shares[i], strict=True)],
        }
        for i in range(len(labels))
    ]
    mistakes = sorted((-number, *pair) for pair, number in pairs.items() if pair[0] != pair[1])[:FREQUENT]
    frequent = [(names[one], names[other], -number) for number, one, other in mistakes]
    return {"name": model.name, "labels": labels, "rows": rows, "frequent": frequent, "shown": len(shown)}


def per_class(best: Model, models: list[Model], names: list[str]) -> dict[str, Any]:
    """Return the best run's values for each label with the F1 of the others beside them, and a chart of all these F1.

    Of more than LISTED labels the table has the most frequent ones, of more than DRAWN the chart.
    """
    others = [model for model in models if model is not best]
    support = best.predictions.truth.sum(axis=0)
    values = [model.metrics["per_class"] for model in models]
    rows = [
        best.metrics["per_class"][i] | {"others": [model.metrics["per_class"][i]["f1"] for model in others]}
        for i in most_frequent(support, LISTED)
    ]
    drawn = sorted(most_frequent(support, DRAWN).tolist(), key=lambda label: (-support[label], label))
    chart = dot_chart([names[i] for i in drawn], [(model.name, [one[i]["f1"] for i in drawn])
                                                  for model, one in zip(models, values, strict=True)])  # fmt: skip
    return {"rows": rows, "others": [model.name for model in others], "chart": chart, "count": len(names)}
