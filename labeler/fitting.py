"""Fitting a model by transformers' Trainer: our inference path for validation, two learning rates, no hidden NaN."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from labeler.artifacts import BadInputError, LabelerError, write_json
from labeler.averaging import AveragedWeights
from labeler.baselines import linear_probe
from labeler.batches import DroppedModalities, StorePairs, collate, label_targets
from labeler.evaluation import Predictions, decide, fit_thresholds, statistics
from labeler.losses import TrainingLoss, labelling_loss
from labeler.models import Building, model_module
from labeler.prediction import choose_device, logits, model_outputs, scores_of
from labeler.store import Store
from labeler.training_options import METRICS, TrainOptions

log = logging.getLogger("labeler")


class Fit:
    """One model being fitted: the data, the model, and whether Ctrl-C has asked it to stop."""

    def __init__(self, model: str, data: Path, options: TrainOptions, seed: int, device: str):
        """Open the store, build the model from its towers with `seed`, and tokenize train and validation."""
        # oneDNN keeps what it has prepared for 1,024 shapes; every length of text is another: 200 MB an epoch
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
        self.store = Store(data, check=False)  # `train` has just verified it
        self.task = self.store.label_set.task
        self.options, self.seed, self.interrupted, self.step = options, seed, False, 0
        self.losses: list[float] = []  # of the epoch's steps so far
        self.averaged: AveragedWeights | None = None
        self.device = choose_device(device)
        train_rows, validation_rows = self.store.rows_of("train"), self.store.rows_of("validation")
        texts = [self.store.rows["text"][row] or "" for row in train_rows]
        set_seed(seed)
        module = model_module(model)
        towers = self.store.towers
        self.model, self.tokenizer = module.build(
            Building(self.store.label_set, towers["text"]["name"], towers["image"]["width"], texts,
                     n_coattn=options.n_coattn, coattention=options.coattention, coattn_place=options.coattn_place,
                     vocabulary=options.vocabulary)
        )  # fmt: skip
        self.model.to(self.device)
        names = self.store.label_set.names
        self.model.config.id2label = dict(enumerate(names))
        self.model.config.label2id = {name: number for number, name in enumerate(names)}
        self.max_tokens = min(options.max_text_tokens, getattr(self.model, "max_text_tokens", options.max_text_tokens))
        self.train_pairs = StorePairs(self.store, train_rows, self.tokenizer, self.max_tokens)
        self.validation_pairs = StorePairs(self.store, validation_rows, self.tokenizer, self.max_tokens)
        self.loss = TrainingLoss(options, self.task, self.store.truth(train_rows))
        full = sum(length == self.max_tokens for length in self.train_pairs.lengths)
        if full:
            log.info("%d of %d texts reach %d tokens; what lies beyond is cut (--max-text-tokens)",
                     full, len(self.train_pairs), self.max_tokens)  # fmt: skip

    def run(self, folder: Path, *, resume: bool) -> dict[str, Any]:
        """Train in `folder`/trainer, from its newest whole checkpoint with `resume`; return the history."""
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        watch = Watch(self)
        trainer = LabelTrainer(
            self,
            args=training_arguments(folder / "trainer", self.options, self.seed, self.device),
            callbacks=[watch, EarlyStoppingCallback(self.options.patience)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for data
        trainer.remove_callback(ProgressCallback)
        checkpoint = newest_checkpoint(folder / "trainer") if resume else None
        if checkpoint:
            log.info("going on from %s", checkpoint.name)
        started = time.perf_counter()
        if not checkpoint:
            self.start_head()
        if self.options.ema:
            self.averaged = AveragedWeights(self.model, self.options.ema, checkpoint)
        give_back_freed_memory()
        keep_freed_memory()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - started
        return self.history(trainer.state.log_history) | {
            "train_seconds": round(seconds, 2),
            "pairs_per_second": round(watch.pairs / watch.seconds, 2) if watch.seconds else None,
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "device": str(self.device),
        }

    def start_head(self) -> None:
        """Fit the head as a linear probe on what the untrained model gives; one without `features` keeps its own."""
        if not hasattr(self.model, "features"):
            return
        parts, padding = (self.train_pairs, self.validation_pairs), self.tokenizer.pad_token_id
        features = [model_outputs(self.model, part, padding, self.model.features, "fitting the head") for part in parts]
        truths, head = [self.store.truth(part.rows) for part in parts], self.model.head
        with torch.no_grad():
            head.start_absence(torch.from_numpy(features[0]).to(self.device))
            features = [head.filled(torch.from_numpy(part).to(self.device)).cpu().numpy() for part in features]
        probe = linear_probe(self.task, features[0], truths[0], features[1], truths[1])
        probe = probe._replace(bias=probe.bias + self.loss.shift().numpy())
        head.start_from(*(torch.from_numpy(np.asarray(values, dtype=np.float32)) for values in probe))
        log.info("head fitted on the untrained model: validation %s %.4f", METRICS[self.task], self.validate()[1])

    def history(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the learning curve from the Trainer's log: one item an epoch and one a logged step."""
        logged = ("step", "epoch", "loss", "learning_rate")
        steps: list[dict[str, Any]] = [
            {name: entry.get(name) for name in logged} for entry in entries if "loss" in entry
        ]
        epochs: list[dict[str, Any]] = []
        for entry in entries:
            if "eval_loss" in entry:
                epochs.append({"epoch": len(epochs) + 1, "train_loss": entry["eval_train_loss"],
                               "validation_loss": entry["eval_loss"], "validation_metric": entry["eval_metric"]})  # fmt: skip
        best = max(range(len(epochs)), key=lambda epoch: epochs[epoch]["validation_metric"], default=-1)
        return {"metric": METRICS[self.task], "best_epoch": best + 1, "epochs": epochs, "steps": steps,
                "train_pairs": len(self.train_pairs), "validation_pairs": len(self.validation_pairs)}  # fmt: skip

    def validate(self) -> tuple[float, float, np.ndarray]:
        """Return loss, metric and scores [N, L] on the validation split."""
        model = self.averaged.model if self.averaged else self.model
        values = logits(model, self.validation_pairs, self.tokenizer.pad_token_id)
        truth = self.store.truth(self.validation_pairs.rows)
        loss = labelling_loss(torch.from_numpy(values), torch.from_numpy(label_targets(truth, self.task))).item()
        scores = scores_of(self.task, values)
        nobody = [""] * len(truth)
        predictions = Predictions(nobody, nobody, truth, scores, decide(self.task, scores))
        return loss, float(statistics(self.task, predictions, np.ones((len(truth), 1)))[METRICS[self.task]][0]), scores

    def save(self, folder: Path, history: dict[str, Any]) -> None:
        """Write the trained model and all that is needed to label with it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)
        write_json(folder / "preprocessor.json", {"max_text_tokens": self.max_tokens, **self.store.towers})
        (folder / "labels.json").write_text(self.store.label_set.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if self.task == "multi":
            _, _, scores = self.validate()
            thresholds = fit_thresholds(scores, self.store.truth(self.validation_pairs.rows))
            write_json(folder / "thresholds.json", {"fitted_on": "validation", "thresholds": thresholds})


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
            compute_loss_func=None if fit.options.plain_loss else self.chosen_loss,
            **options,
        )

    def chosen_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss that the options ask for, in place of the model's own."""
        return self.fit.loss(outputs.logits, labels)

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
        """Return the step's loss; raises LabelerError when it is NaN or infinite, before the weights are changed by it."""
        loss = super().training_step(*arguments, **options)
        if not torch.isfinite(loss):
            raise LabelerError(
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
