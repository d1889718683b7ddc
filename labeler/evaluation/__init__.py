"""Evaluation: predictions, thresholds, metrics with intervals, and paired comparisons. Imports no torch."""

from labeler.evaluation.abstention import Promise, kept, kept_promise, promise, risk_coverage
from labeler.evaluation.bootstrap import Resampled, mean_of, resample
from labeler.evaluation.calibration import fit_temperature, reliability, scores_of, scores_of_logits
from labeler.evaluation.comparing import compare, compare_means, differences, judge
from labeler.evaluation.measuring import figure, measure
from labeler.evaluation.metrics import ANSWERS, HEADLINE, SECOND, statistics
from labeler.evaluation.predictions import (
    Predictions,
    decide,
    of_parents,
    predictions_of,
    read_predictions,
    right_rows,
    round_scores,
    rows_of,
    settle,
    vqa_accuracy,
    with_parents,
    without_parents,
    write_named,
    write_predictions,
)
from labeler.evaluation.ranking import average_precision, mean_average_precision
from labeler.evaluation.retrieval import measure_retrieval, metric_for, retrieved
from labeler.evaluation.thresholds import BEST_F1, NEVER, Aim, aim_of, fit_thresholds

__all__ = [
    "ANSWERS",
    "BEST_F1",
    "HEADLINE",
    "NEVER",
    "SECOND",
    "Aim",
    "Predictions",
    "Promise",
    "Resampled",
    "aim_of",
    "average_precision",
    "compare",
    "compare_means",
    "decide",
    "differences",
    "figure",
    "fit_temperature",
    "fit_thresholds",
    "judge",
    "kept",
    "kept_promise",
    "mean_average_precision",
    "mean_of",
    "measure",
    "measure_retrieval",
    "metric_for",
    "of_parents",
    "predictions_of",
    "promise",
    "read_predictions",
    "reliability",
    "resample",
    "retrieved",
    "right_rows",
    "risk_coverage",
    "round_scores",
    "rows_of",
    "scores_of",
    "scores_of_logits",
    "settle",
    "statistics",
    "vqa_accuracy",
    "with_parents",
    "without_parents",
    "write_named",
    "write_predictions",
]
