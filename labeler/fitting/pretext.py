"""`train --pretrain`: a store's own pairs, without their labels, by the objectives of `labeler.fitting.objectives`.

The embedded towers have never seen the other's output; this is where they can learn to, before any label is looked at. Only the
train split is read. What is learned besides the model, the heads of the objectives, is thrown away.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import set_seed

from labeler.artifacts import read_json, write_json
from labeler.end_to_end import reader
from labeler.errors import BadInputError, UsageError
from labeler.fitting import workers
from labeler.fitting.arguments import training_arguments
from labeler.fitting.checkpoints import Progress, newest_checkpoint
from labeler.fitting.objectives import AlignedObjectives, Objectives
from labeler.fitting.trainer import PairTrainer
from labeler.fitting.watching import Watch
from labeler.memory import keep_freed_memory

if TYPE_CHECKING:
    from labeler.fitting.fit import Fit

log = logging.getLogger("labeler")

TOLD = "pretraining.json"


class PretextTrainer(PairTrainer):
    """Trains the objectives; of each step the parts of the loss are noted.

    Negatives, and the pictures that are swapped, are a batch's own: trained on in parts, each has those of its part alone.
    """

    in_parts = "where each pair has fewer others to be told from: the loss is no longer that of whole batches"

    def begin_try(self) -> None:
        """Note the parts of the loss anew."""
        self.terms: dict[str, Any] = {}

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
        """Return the loss, and note its parts; labels are not shown to the model."""
        outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", "soft_targets")})
        loss: Tensor = outputs.pop("loss")
        for name, value in outputs.items():
            self.terms[name] = self.terms.get(name, 0.0) + self.share * value
        return loss * self.share

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss, and note its parts in its place."""
        cast("Objectives | AlignedObjectives", self.model).begin_step()
        loss = super().training_step(*arguments, **options)
        self.fit.progress.losses[-1] = {name: value.item() for name, value in self.terms.items()}
        return loss


class PretextWatch(Watch):
    """Says after each epoch how well words are guessed and pictures told apart."""

    name = "pretraining"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say the epoch's mean losses."""
        super().on_epoch_end(args, state, control, **kwargs)
        losses = self.fit.progress.losses
        if not self.is_over(args, state) or not losses:
            return
        means = {name: float(np.mean([step[name] for step in losses])) for name in losses[0]}
        losses.clear()
        state.log_history.append(
            {"epoch": round(state.epoch)} | {f"{name}_loss": value for name, value in means.items()}
        )
        self.bar.clear()
        epoch = f"{round(state.epoch)}/{args.num_train_epochs}"
        log.info("pretraining epoch %s: %s", epoch, ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
        self.bar.refresh()


def check_pretext(fit: Fit) -> None:
    """Raise UsageError where the model has no fusion to pretrain or the tokenizer no mask; BadInputError without any text."""
    if not hasattr(reader(fit.model), "streams"):
        raise UsageError(
            f"{fit.name} has no fused streams to pretrain; leave out --pretrain, or train visualbert, visualbert-coattn, "
            "flava or albef"
        )
    if fit.tokenizer.mask_token_id is None:
        raise UsageError(
            "the text encoder's tokenizer has no mask token, so words cannot be hidden; leave out --pretrain"
        )
    if not any(fit.store.rows["text"][row] for row in fit.store.rows_of("train", unlabelled=True)):
        raise BadInputError("no train row has a text, so there are no words to hide; leave out --pretrain")


def learn_pretext(fit: Fit, folder: Path, *, resume: bool) -> None:
    """Pretrain the model of `fit` for `options.pretrain` epochs, with checkpoints in `folder`.

    With `resume` it goes on from the newest whole checkpoint; from one of the last step it takes the weights alone. The
    random state is that of the seed afterwards, whichever way it went.
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent.parent / "tensorboard" / "pretraining")
    set_seed(fit.seed)
    kind = AlignedObjectives if hasattr(reader(fit.model), "apart") else Objectives
    objectives = kind(fit.model, fit.tokenizer).to(fit.device)
    epochs: dict[str, Any] = {
        "num_train_epochs": fit.options.pretrain,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
    }
    trainer = PretextTrainer(
        fit,
        objectives,
        args=training_arguments(folder, fit.options, fit.seed, fit.device, **epochs),
        callbacks=[PretextWatch(fit)],
    )
    if workers.count() > 1 and workers.is_first():
        log.warning("pretraining on %d workers: each takes a pair's negatives from its part of a batch, %s", workers.count(),
                    trainer.in_parts)  # fmt: skip
    checkpoint = newest_checkpoint(folder) if resume else None
    if checkpoint:
        log.info("going on from %s of pretraining", checkpoint.name)
    keep_freed_memory()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not fit.interrupted:
        curve = [entry for entry in trainer.state.log_history if "words_loss" in entry]
        write_json(folder / TOLD, {"epochs": curve, "seconds": round(fit.progress.elapsed, 2)})
    fit.progress = Progress(started=fit.progress.started)
    set_seed(fit.seed)


def read_pretraining(folder: Path) -> dict[str, Any]:
    """Return what pretraining left in `folder` to be told in the history: each epoch's losses, and the seconds."""
    return cast("dict[str, Any]", read_json(folder / TOLD))
