"""How a run's scores become labels: thresholds for another aim, and what its validation rows promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from labeler.errors import BadInputError, UsageError
from labeler.evaluation import (
    BEST_F1,
    Aim,
    Predictions,
    Promise,
    fit_thresholds,
    promise,
    read_predictions,
    settle,
    without_parents,
)
from labeler.records import LabelSet, read_label_set
from labeler.runs import read_fitted
from labeler.taxonomy import taxonomy_of

if TYPE_CHECKING:
    from labeler.runs import Run

VALIDATION = "validation.jsonl"


class Rule(NamedTuple):
    """What makes labels of logits: the labels in their order, thresholds (None: one label a row), and the temperature.

    folder: where the model is kept, and what it said of its validation rows.
    """

    folder: Path
    label_set: LabelSet
    thresholds: list[float] | None
    temperature: float


Decided = TypeVar("Decided", "Run", Rule)


def rule_of(run: Run) -> Rule:
    """Return the rule by which the run labels."""
    return Rule(run.folder, run.label_set, run.thresholds, run.temperature)


def read_rule(folder: Path) -> Rule:
    """Return the rule by which the run or exported model in `folder` labels."""
    return Rule(folder, read_label_set(folder), *read_fitted(folder))


def validation_predictions(run: Run | Rule) -> Predictions:
    """Return what the run said of the validation split when it was trained, decided with the thresholds it has now.

    Raises BadInputError for a run that an older labeler trained, which kept none.
    """
    if not (run.folder / VALIDATION).is_file():
        raise BadInputError(
            f"{run.folder}: no {VALIDATION} in it, an older labeler trained it; train it again with `labeler train --force`"
        )
    taxonomy = taxonomy_of(run.label_set)
    kept = without_parents(taxonomy, read_predictions(run.folder / VALIDATION, taxonomy.names))
    scores, predicted = settle(taxonomy, kept.scores, run.thresholds)
    return kept._replace(scores=scores, predicted=predicted)


def aimed(run: Decided, aim: Aim | None) -> Decided:
    """Return the run with thresholds for the aim, fitted on its validation rows; as it is without an aim.

    Raises UsageError for a run with one label a row, which needs no thresholds.
    """
    if aim in (None, BEST_F1):
        return run
    if run.label_set.task == "single":
        raise UsageError(
            f"--aim {aim}: {run.folder} gives one label a row, that with the highest score, and needs no thresholds; to "
            "leave the unsure rows to a person there is `labeler predict --min-precision`"
        )
    found = validation_predictions(run)
    return run._replace(thresholds=fit_thresholds(found.scores, found.truth, aim))


def promised(run: Run | Rule, precision: float) -> Promise:
    """Return the threshold above which the run's labels are right in the share `precision`, by its validation rows."""
    return promise(validation_predictions(run), precision)
