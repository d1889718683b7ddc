"""How a model is trained: the settings, and each model's own defaults. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from labeler.artifacts import LabelerError
from labeler.models import training_defaults

METRICS = {"single": "macro_f1", "multi": "mean_average_precision"}


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained; every field is recorded in the manifest. A model's file may hold other defaults.

    learning_rate: of pretrained weights; new_learning_rate: of weights that start at random; patience: epochs
    without a better validation metric before training stops; precision: `bf16`, `fp32`, or `auto` (bf16 where the
    processor has instructions for it).
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    new_learning_rate: float = 2.5e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int = 2
    max_text_tokens: int = 64
    n_coattn: int = 1
    precision: str = "auto"


def options_for(model: str, given: dict[str, Any] | None = None) -> TrainOptions:
    """Return the model's own defaults with what was `given` in their place; a value of None counts as not given.

    Raises LabelerError naming the option and what it takes when a value is out of range.
    """
    chosen = {key: value for key, value in (given or {}).items() if value is not None}
    options = replace(TrainOptions(), **(training_defaults(model) | chosen))
    for name in ("epochs", "batch_size", "learning_rate", "new_learning_rate", "patience", "max_text_tokens"):
        if not getattr(options, name) > 0:
            raise LabelerError(f"{name.replace('_', '-')} is {getattr(options, name)}, expected more than 0")
    if options.n_coattn < 0 or not 0 <= options.warmup < 1:
        raise LabelerError("n-coattn must be 0 or more, warmup a share of the steps from 0 up to 1")
    return options
