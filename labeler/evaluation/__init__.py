"""Evaluation: predictions, thresholds, metrics with intervals, and paired comparisons. Imports no torch."""

from labeler.evaluation.bootstrap import interval, resample
from labeler.evaluation.comparing import compare
from labeler.evaluation.measuring import measure
from labeler.evaluation.metrics import HEADLINE, SECOND, average_precision, mean_average_precision, statistics
from labeler.evaluation.predictions import (
    Predictions,
    decide,
    of_parents,
    read_predictions,
    round_scores,
    rows_of,
    settle,
    with_parents,
    without_parents,
    write_predictions,
)
from labeler.evaluation.thresholds import fit_thresholds

__all__ = [
    "HEADLINE",
    "SECOND",
    "Predictions",
    "average_precision",
    "compare",
    "decide",
    "fit_thresholds",
    "interval",
    "mean_average_precision",
    "measure",
    "of_parents",
    "read_predictions",
    "resample",
    "round_scores",
    "rows_of",
    "settle",
    "statistics",
    "with_parents",
    "without_parents",
    "write_predictions",
]
