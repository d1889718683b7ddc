"""transformers' Trainer for labels: our sampler, our learning rates, our validation, no hidden NaN; checkpoints and memory."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from labeler.artifacts import BadInputError, DivergedError
from labeler.batches import DroppedModalities, collate
from labeler.end_to_end import AugmentedPictures, EndToEnd, augmentation
from labeler.training_options import TrainOptions

if TYPE_CHECKING:
    from labeler.fitting import Fit

log = logging.getLogger("labeler")


class PairTrainer(Trainer):
    """transformers' Trainer with our sampler, our rates, and a stop at the first loss that is no number."""

    def __init__(self, fit: Fit, model: nn.Module, **options: Any):
        """Train `model`, which is that of `fit` or holds it, on the training pairs."""
        self.fit = fit
        pairs: Any = fit.train_pairs
        self.drawn: list[AugmentedPictures | DroppedModalities] = []  # what is otherwise each epoch
        if isinstance(fit.model, EndToEnd) and fit.options.augment != "none":
            pairs = AugmentedPictures(pairs, augmentation((fit.model.encoder.size,) * 2), fit.seed)
            self.drawn.append(pairs)
        if fit.options.modality_dropout:
            pairs = DroppedModalities(pairs, fit.options.modality_dropout, fit.seed)
            self.drawn.append(pairs)
        super().__init__(
            model=model,
            train_dataset=pairs,
            data_collator=lambda pairs: collate(pairs, fit.tokenizer.pad_token_id),
            **options,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # Trainer's own strategy finds lengths only in items that are dictionaries.
        return Shuffle(self.args.train_batch_size, self.fit.train_pairs.lengths, self.fit.seed, self.drawn)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with the higher rate for the model's new weights, and no decay for biases and norms."""
        if self.optimizer is None:
            trained = cast(nn.Module, self.model)
            decayed = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(trained, self.fit.options, decayed)
            self.optimizer = torch.optim.AdamW(groups, lr=self.fit.options.learning_rate, fused=True)
        return self.optimizer

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss; raises DivergedError when it is NaN or infinite, before the weights are changed by it."""
        return self.finite(super().training_step(*arguments, **options))

    def finite(self, loss: Tensor) -> Tensor:
        """Return a step's loss; raises DivergedError when it is NaN or infinite."""
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; training stopped, the last good checkpoint is "
                "kept: try a lower --learning-rate and --new-learning-rate, or --precision fp32"
            )
        return loss


class LabelTrainer(PairTrainer):
    """Trains a model for its labels, with our validation."""

    def __init__(self, fit: Fit, **options: Any):
        """Train what `fit` holds."""
        loss = None if fit.options.plain_loss and not fit.teachers else self.chosen_loss
        super().__init__(fit, fit.model, eval_dataset=fit.validation_pairs, compute_loss_func=loss, **options)

    def chosen_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss that the options ask for, in place of the model's own."""
        return self.fit.loss(outputs.logits, labels, self.soft_targets)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the batch's loss; the teachers' probabilities are for it alone, the model never sees them."""
        self.soft_targets = inputs.pop("soft_targets", None)
        return super().compute_loss(model, inputs, *arguments, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.fit.averaged:  # before the rest, so that a checkpoint that is whole has them
            self.fit.averaged.save(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.fit.averaged:
            self.fit.averaged.load(Path(str(self.state.best_model_checkpoint)))
            self.fit.model.load_state_dict(self.fit.averaged.model.state_dict())

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss, and note it."""
        loss = super().training_step(*arguments, **options)
        self.fit.losses.append(loss.item())
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the validation loss and metric, by the same inference path as every other stage."""
        loss, metric = self.fit.validate()
        metrics = {"eval_loss": loss, "eval_metric": metric, "eval_train_loss": float(np.mean(self.fit.losses))}
        self.fit.losses.clear()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Shuffle(Sampler[int]):
    """Pairs of like length together, in an order that seed and epoch decide: a resumed epoch goes on in its own order."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int, drawn: Sequence[Any] = ()):
        """Order pairs of `lengths`; the data sets `drawn` are told the epoch too."""
        self.generator, self.seed, self.epoch, self.drawn = torch.Generator(), seed, 0, drawn
        self.order = LengthGroupedSampler(batch_size, lengths=lengths, generator=self.generator)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; the Trainer calls this before each."""
        self.epoch = epoch
        for pairs in self.drawn:
            pairs.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """Return the epoch's order."""
        self.generator.manual_seed(1000 * self.seed + self.epoch)
        return iter(self.order)


class Watch(TrainerCallback):
    """Draws the progress bar, says a line an epoch, measures training apart from validation, passes Ctrl-C on."""

    name = "training"

    def __init__(self, fit: Fit):
        """Watch `fit`."""
        self.fit, self.pairs, self.seconds = fit, 0, 0.0
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", disable=None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started, self.first = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, validation and saving are not training; leave out the validation of an epoch cut short."""
        if self.cut_short(args, state):
            control.should_evaluate = control.should_save = False
        self.seconds += time.perf_counter() - self.started
        give_back_freed_memory()  # or validation and saving would come on top of what the largest batch took
        steps = state.global_step - self.first
        self.pairs += min(steps * args.train_batch_size, len(self.fit.train_pairs))

    def cut_short(self, args: Any, state: Any) -> bool:
        """Return whether Ctrl-C has ended the epoch before its last step."""
        return self.fit.interrupted and bool(state.global_step % (state.max_steps // args.num_train_epochs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; after Ctrl-C, save a checkpoint and stop."""
        self.bar.update()
        self.fit.step = state.global_step
        if self.fit.averaged:
            self.fit.averaged.update(self.fit.model)
        if self.fit.interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Say how the epoch went."""
        epoch, name = round(state.epoch), self.fit.metric
        line = (f"epoch {epoch}/{self.fit.options.epochs}: training loss {metrics['eval_train_loss']:.3f}, "
                f"validation loss {metrics['eval_loss']:.3f}, {name} {metrics['eval_metric']:.4f}")  # fmt: skip
        self.bar.clear()
        log.info("%s", line)
        self.bar.refresh()
        if self.fit.report:
            self.fit.report(epoch, metrics["eval_metric"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()


def parameter_groups(model: nn.Module, options: TrainOptions, decayed: set[str]) -> list[dict[str, Any]]:
    """Return the optimizer's groups: pretrained weights, new ones and the image tower's, each with and without weight decay.

    How their names begin tells them apart: `model.new_weights`, and `model.tower_weights` where the tower is trained.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    new_weights = cast("tuple[str, ...]", model.new_weights)
    tower_weights = cast("tuple[str, ...]", getattr(model, "tower_weights", ()))
    for name, parameter in model.named_parameters():
        rate, decay = options.learning_rate, name in decayed
        if name.startswith(new_weights):
            rate = options.new_learning_rate
        elif name.startswith(tower_weights):
            # towers call their norms by many names, but a norm's weights and a bias are vectors in all of them
            rate, decay = options.image_learning_rate, parameter.dim() > 1
        decay = decay and parameter.dim() > 0  # a temperature is none
        if parameter.requires_grad:
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": options.weight_decay if decay else 0.0}
        for (rate, decay), parameters in groups.items()
    ]


def history_of(metric: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the learning curve from the Trainer's log: one item an epoch and one a logged step; the best epoch by `metric`."""
    logged = ("step", "epoch", "loss", "learning_rate")
    steps: list[dict[str, Any]] = [{name: entry.get(name) for name in logged} for entry in entries if "loss" in entry]
    epochs: list[dict[str, Any]] = []
    for entry in entries:
        if "eval_loss" in entry:
            epochs.append({"epoch": len(epochs) + 1, "train_loss": entry["eval_train_loss"],
                           "validation_loss": entry["eval_loss"], "validation_metric": entry["eval_metric"]})  # fmt: skip
    best = max(range(len(epochs)), key=lambda epoch: epochs[epoch]["validation_metric"], default=-1)
    return {"metric": metric, "best_epoch": best + 1, "epochs": epochs, "steps": steps}


def training_arguments(
    folder: Path, options: TrainOptions, seed: int, device: torch.device, **others: Any
) -> TrainingArguments:
    """Return the Trainer's settings, with `others` in the place of ours."""
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "warmup_steps": options.warmup,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "bf16": use_bf16(options.precision, device),
        "use_cpu": device.type == "cpu",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,  # with 1, the Trainer ends by removing all but the best, what Ctrl-C has just saved too
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_metric",
        "greater_is_better": True,
        "logging_steps": 5,
        "logging_nan_inf_filter": False,  # on by default, and then a NaN loss is logged as 0
        "report_to": ["tensorboard"],
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type != "cpu",
        "disable_tqdm": True,
        "seed": seed,
    }
    return TrainingArguments(**(ours | others))


def give_back_freed_memory() -> None:
    """Let the C library give what has been freed back to the system; where it is not glibc, change nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one; where it is not glibc, change nothing.

    By default it gives large blocks back to the system, and every step then pays for zeroed pages anew: a tenth of
    the training time on a CPU, for no smaller peak.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bf16: as asked, or with `auto` where the processor has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks: list[Callable[[], bool]] = [
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return sys.platform == "linux" and any(check() for check in checks)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, None where there is none; says which ones are damaged."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            for file in {path / "model.safetensors", *path.glob("*.safetensors")}:
                with safe_open(file, "pt") as weights:
                    weights.keys()
            torch.load(path / "optimizer.pt", weights_only=True, mmap=True)
            (path / "trainer_state.json").read_text(encoding="utf-8")
            return path
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            log.warning("%s is damaged (%s); trying the one before it", path.name, str(error).splitlines()[0])
    if found:
        raise BadInputError(f"{folder}: no whole checkpoint to resume from; leave out --resume to start again")
    return None
