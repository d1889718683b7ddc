"""transformers' Trainer for labels: our sampler, two learning rates, our validation, no hidden NaN; checkpoints and memory."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from labeler.artifacts import BadInputError, DivergedError
from labeler.batches import DroppedModalities, collate
from labeler.training_options import METRICS, TrainOptions

if TYPE_CHECKING:
    from labeler.fitting import Fit

log = logging.getLogger("labeler")


class LabelTrainer(Trainer):
    """transformers' Trainer with our sampler, our two rates, our validation, and a stop at the first loss that is no number."""

    def __init__(self, fit: Fit, **options: Any):
        """Train what `fit` holds."""
        self.fit = fit
        probability = fit.options.modality_dropout
        self.dropped = DroppedModalities(fit.train_pairs, probability, fit.seed) if probability else None
        super().__init__(
            model=fit.model,
            train_dataset=self.dropped or fit.train_pairs,
            eval_dataset=fit.validation_pairs,
            data_collator=lambda pairs: collate(pairs, fit.tokenizer.pad_token_id),
            compute_loss_func=None if fit.options.plain_loss and not fit.teachers else self.chosen_loss,
            **options,
        )

    def chosen_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss that the options ask for, in place of the model's own."""
        return self.fit.loss(outputs.logits, labels, self.soft_targets)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the batch's loss; the teachers' probabilities are for it alone, the model never sees them."""
        self.soft_targets = inputs.pop("soft_targets", None)
        return super().compute_loss(model, inputs, *arguments, **options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # Trainer's own strategy finds lengths only in items that are dictionaries.
        return Shuffle(self.args.train_batch_size, self.fit.train_pairs.lengths, self.fit.seed, self.dropped)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.fit.averaged:  # before the rest, so that a checkpoint that is whole has them
            self.fit.averaged.save(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.fit.averaged:
            self.fit.averaged.load(Path(str(self.state.best_model_checkpoint)))
            self.fit.model.load_state_dict(self.fit.averaged.model.state_dict())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with the higher rate for the model's new weights, and no decay for biases and norms."""
        if self.optimizer is None:
            groups = parameter_groups(
                self.fit.model, self.fit.options, set(self.get_decay_parameter_names(self.fit.model))
            )
            self.optimizer = torch.optim.AdamW(groups, lr=self.fit.options.learning_rate, fused=True)
        return self.optimizer

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss; raises DivergedError when it is NaN or infinite, before the weights are changed by it."""
        loss = super().training_step(*arguments, **options)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; training stopped, the last good checkpoint is "
                "kept: try a lower --learning-rate and --new-learning-rate, or --precision fp32"
            )
        self.fit.losses.append(loss.item())
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the validation loss and metric, by the same inference path as every other stage."""
        loss, metric, _ = self.fit.validate()
        metrics = {"eval_loss": loss, "eval_metric": metric, "eval_train_loss": float(np.mean(self.fit.losses))}
        self.fit.losses.clear()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Shuffle(Sampler[int]):
    """Pairs of like length together, in an order that seed and epoch decide: a resumed epoch goes on in its own order."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int, dropped: DroppedModalities | None = None):
        """Order pairs of `lengths`; `dropped` is told the epoch too."""
        self.generator, self.seed, self.epoch, self.dropped = torch.Generator(), seed, 0, dropped
        self.order = LengthGroupedSampler(batch_size, lengths=lengths, generator=self.generator)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; the Trainer calls this before each."""
        self.epoch = epoch
        if self.dropped:
            self.dropped.set_epoch(epoch)

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """Return the epoch's order."""
        self.generator.manual_seed(1000 * self.seed + self.epoch)
        return iter(self.order)


class Watch(TrainerCallback):
    """Draws the progress bar, says a line an epoch, measures training apart from validation, passes Ctrl-C on."""

    def __init__(self, fit: Fit):
        """Watch `fit`."""
        self.fit, self.pairs, self.seconds = fit, 0, 0.0
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started, self.first = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, validation and saving are not training; leave out the validation of an epoch cut short."""
        if self.fit.interrupted and state.global_step % (state.max_steps // args.num_train_epochs):
            control.should_evaluate = control.should_save = False
        self.seconds += time.perf_counter() - self.started
        give_back_freed_memory()  # or validation and saving would come on top of what the largest batch took
        steps = state.global_step - self.first
        self.pairs += min(steps * args.train_batch_size, len(self.fit.train_pairs))

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
        epoch, name = round(state.epoch), METRICS[self.fit.task]
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


def parameter_groups(model: PreTrainedModel, options: TrainOptions, decayed: set[str]) -> list[dict[str, Any]]:
    """Return the optimizer's groups: pretrained and new weights, each with and without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(
                (name.startswith(cast("tuple[str, ...]", model.new_weights)), name in decayed), []
            ).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.new_learning_rate if new else options.learning_rate,
            "weight_decay": options.weight_decay if decay else 0.0,
        }
        for (new, decay), parameters in groups.items()
    ]


def training_arguments(folder: Path, options: TrainOptions, seed: int, device: torch.device) -> TrainingArguments:
    """Return the Trainer's settings."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        bf16=use_bf16(options.precision, device),
        use_cpu=device.type == "cpu",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # with 1, the Trainer ends by removing all but the best, what Ctrl-C has just saved too
        load_best_model_at_end=True,
        metric_for_best_model="eval_metric",
        greater_is_better=True,
        logging_steps=5,
        logging_nan_inf_filter=False,  # on by default, and then a NaN loss is logged as 0
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=device.type != "cpu",
        disable_tqdm=True,
        seed=seed,
    )


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
