"""transformers' Trainer for labels: our sampler, our learning rates, our validation, no hidden NaN."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from labeler.artifacts import remove
from labeler.batches import DrawnPairs, DroppedModalities, DroppedTokens, Pair, collate
from labeler.end_to_end import AugmentedPictures, EndToEnd, augmentation
from labeler.errors import DivergedError, LabelerError
from labeler.fitting import workers
from labeler.fitting.checkpoints import Progress, prune, seal, unseal, what_is_wrong, writing
from labeler.memory import give_back_freed_memory, lacks_memory
from labeler.training_options import TrainOptions

if TYPE_CHECKING:
    from labeler.fitting.fit import Fit

LENGTHS = 4  # texts are padded to multiples of it in training

log = logging.getLogger("labeler")


class PairTrainer(Trainer):
    """transformers' Trainer with our sampler, our rates, whole checkpoints, and a stop at the first loss that is no number."""

    in_parts = "which changes no gradient"  # to train on a batch in parts

    def __init__(self, fit: Fit, model: nn.Module, **options: Any):
        """Train `model`, which is that of `fit` or holds it, on the training pairs."""
        self.fit = fit
        # in how many parts a batch is trained on, and the present one's share of its loss
        self.parts, self.share = 1, 1.0
        self.drawn = drawn_from(fit)
        super().__init__(
            model=model,
            train_dataset=cast(Any, [fit.train_pairs, *self.drawn][-1]),
            data_collator=partial(collated, fit),
            **options,
        )
        self.remove_callback(PrinterCallback)  # standard output is for data
        self.remove_callback(ProgressCallback)
        self.loss_is_scaled_for_ga = True  # a batch is a step

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # Trainer's own strategy finds lengths only in items that are dictionaries.
        return Shuffle(self.fit.options.batch_size, self.fit.train_pairs.lengths, self.fit.seed, self.drawn)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches, or this worker's part of each."""
        if workers.count() == 1:
            return super().get_train_dataloader()
        self.order = Shuffle(self.fit.options.batch_size, self.fit.train_pairs.lengths, self.fit.seed, self.drawn)
        self.dealt = workers.OwnPart(self.order, self.fit.options.batch_size)
        return DataLoader(cast(Any, self.train_dataset), batch_sampler=self.dealt, collate_fn=self.data_collator)

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if workers.count() > 1:
            self.order.set_epoch(options["epoch"])
            self.batches, self.first_step = self.dealt.batches(), options["epoch"] * len(self.dealt)
        super()._run_epoch(*arguments, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with the higher rate for the model's new weights, and no decay for biases and norms."""
        if self.optimizer is None:
            trained = cast(nn.Module, self.model)
            decayed = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(trained, self.fit.options, decayed)
            self.optimizer = torch.optim.AdamW(groups, lr=self.fit.options.learning_rate, fused=True)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss, and note it; raises DivergedError when it is no number, before it changes the weights."""
        loss = workers.mean(self.step_in_parts(model, inputs))
        value = loss.item()
        if not np.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {self.state.global_step + 1}; training stopped, the last good checkpoint is "
                "kept: try a lower --learning-rate and --new-learning-rate, or --precision fp32"
            )
        progress = self.fit.progress
        progress.losses.append(value)
        progress.unlogged += value
        progress.pairs += len(inputs["input_ids"]) * workers.count()
        return loss

    def step_in_parts(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a batch, its gradients added up; one that memory does not hold is halved, and halved again.

        The parts' gradients add up to the batch's, where a row's loss does not hang on the others.
        Raises LabelerError when memory does not hold a single pair.
        """
        pairs = len(inputs["input_ids"])
        while True:
            self.begin_try()
            try:
                losses = []
                for rows in torch.arange(pairs).chunk(self.parts):
                    part = {name: value[rows[0] : rows[-1] + 1] for name, value in inputs.items()}
                    self.share = self.share_of(part, inputs) * self.workers_share(inputs)
                    losses.append(super().training_step(model, part))
                return torch.stack(losses).sum()
            except (RuntimeError, MemoryError) as error:
                if workers.count() > 1 or not lacks_memory(error):
                    raise
            self.parts *= 2
            if self.parts >= 2 * pairs:
                raise LabelerError("out of memory with a batch of one pair; lower --max-text-tokens")
            log.warning("out of memory: batches are trained on in %d parts from here on, %s", self.parts, self.in_parts)
            model.zero_grad()
            give_back_freed_memory()

    def begin_try(self) -> None:
        """Forget what was noted of a batch by a try that memory did not suffice for."""

    def share_of(self, part: dict[str, Any], batch: dict[str, Any]) -> float:
        """Return what share of a batch's mean loss a part's has."""
        return self.mass(part["labels"]) / self.mass(batch["labels"])

    def workers_share(self, inputs: dict[str, Any]) -> float:
        """Return what this worker's mean loss counts where gradients are the mean of all workers'."""
        if workers.count() == 1:
            return 1.0
        batch = self.batches[self.state.global_step - self.first_step]
        if not workers.own_part(batch):
            return 0.0
        everyone = torch.from_numpy(self.fit.train_pairs.labels[batch])
        return workers.count() * self.mass(inputs["labels"]) / self.mass(everyone)

    def mass(self, labels: Tensor) -> float:
        """Return what the summed losses of rows with these labels are divided by."""
        return len(labels)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return what the batch, or the part of it, adds to the loss."""
        return cast(Tensor, super().compute_loss(model, inputs, *arguments, **options)) * self.share

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log, and give the mean loss since the last line that had one, in a run that went on too."""
        progress = self.fit.progress
        if "loss" in logs:
            logs["loss"] = progress.unlogged / (self.state.global_step - progress.logged_at)
            progress.unlogged, progress.logged_at = 0.0, self.state.global_step
        super().log(logs, *arguments, **options)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, checkpoint: Any, *arguments: Any) -> Any:
        begun = super()._init_training_state(max_steps, steps, epochs, checkpoint, *arguments)
        if checkpoint:
            self.fit.progress = Progress.load(Path(checkpoint))
        if self.state.best_global_step:  # a path from where the command was called first
            self.state.best_model_checkpoint = str(self.checkpoint(self.state.best_global_step))
        return begun

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint's folder after `step`."""
        return Path(str(self.args.output_dir)) / f"checkpoint-{step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.checkpoint(self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)
        if workers.is_first():
            unseal(folder)
        workers.wait()
        try:
            with writing(folder):
                if workers.is_first():
                    self.save_rest(folder)
                super()._save_checkpoint(model, trial)
                workers.wait()
                if workers.is_first():
                    seal(folder)
        except LabelerError:
            remove(folder)
            raise
        if workers.is_first():
            prune(folder.parent)
        workers.wait()

    def save_rest(self, folder: Path) -> None:
        """Write what the Trainer does not know of into the checkpoint."""
        self.fit.progress.save(folder)


class ValidatingTrainer(PairTrainer):
    """Validates after each epoch, stops when patience is over, and ends with the best epoch's weights."""

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, *arguments: Any) -> Any:
        begun = super()._init_training_state(max_steps, steps, epochs, *arguments)
        return (epochs, 0) if self.patience_is_over() else begun

    def patience_is_over(self) -> bool:
        """Return whether so many epochs have passed since the best that training stops."""
        metrics = [entry["eval_metric"] for entry in self.state.log_history if "eval_metric" in entry]
        return (
            bool(metrics)
            and len(metrics) - 1 - int(np.argmax(np.nan_to_num(metrics, nan=-1))) >= self.fit.options.patience
        )

    def best_checkpoint(self) -> Path:
        """Return the best epoch's checkpoint; raises LabelerError where it is no longer whole."""
        best = Path(str(self.state.best_model_checkpoint))
        if problem := what_is_wrong(best):
            raise LabelerError(f"{best}: damaged since it was written ({problem}); --resume goes on from a whole one")
        return best

    def _load_best_model(self) -> None:
        best = self.best_checkpoint()
        super()._load_best_model()
        if self.fit.averaged:
            self.fit.averaged.load(best)
            self.fit.model.load_state_dict(self.fit.averaged.model.state_dict())

    def validate(self) -> tuple[float, float]:
        """Return the validation loss and metric, which the first worker works out."""
        result: tuple[float, float] = workers.from_first(self.fit.validate() if workers.is_first() else None)
        return result

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the validation loss and metric, by the same inference path as every other stage."""
        loss, metric = self.validate()
        if not np.isfinite(loss):  # before the epoch's checkpoint would be written
            raise DivergedError(
                f"the validation loss is {loss} after step {self.state.global_step}; training stopped, the last good checkpoint "
                "is kept: try a lower --learning-rate and --new-learning-rate, or --precision fp32"
            )
        metrics = {
            "eval_loss": loss,
            "eval_metric": metric,
            "eval_train_loss": float(np.mean(self.fit.progress.losses)),
        }
        self.fit.progress.losses.clear()
        self.log(dict(metrics))
        self.control.should_training_stop |= self.patience_is_over()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class LabelTrainer(ValidatingTrainer):
    """Trains a model for its labels, with our validation."""

    def __init__(self, fit: Fit, **options: Any):
        """Train what `fit` holds."""
        loss = None if fit.options.plain_loss and not fit.teachers else self.chosen_loss
        super().__init__(fit, fit.model, eval_dataset=fit.validation_pairs, compute_loss_func=loss, **options)

    def mass(self, labels: Tensor) -> float:
        """Return the sum of the labels' weights; with teachers, who weigh no labels, how many there are.

        The parts of a batch then count for as much as they are, all together for 1; class weights act within each.
        """
        return len(labels) if self.fit.teachers else self.fit.loss.mass(labels)

    def chosen_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss that the options ask for, in place of the model's own."""
        return self.fit.loss(outputs.logits, labels, self.soft_targets)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the batch's loss; the teachers' probabilities are for it alone, the model never sees them."""
        self.soft_targets = inputs.pop("soft_targets", None)
        return super().compute_loss(model, inputs, *arguments, **options)

    def save_rest(self, folder: Path) -> None:
        """Write the averaged weights too."""
        super().save_rest(folder)
        if self.fit.averaged:
            self.fit.averaged.save(folder)


def drawn_from(fit: Fit) -> list[DrawnPairs]:
    """Return the data sets that put what is otherwise each epoch on the train pairs; the last of them is trained on."""
    options = fit.options
    found: list[Any] = [fit.train_pairs]
    if isinstance(fit.model, EndToEnd) and options.augment != "none":
        found.append(AugmentedPictures(found[-1], augmentation((fit.model.encoder.size,) * 2), fit.seed))
    if options.modality_dropout:
        found.append(DroppedModalities(found[-1], options.modality_dropout, fit.seed))
    if options.visual_token_dropout:
        found.append(DroppedTokens(found[-1], options.visual_token_dropout, fit.seed))
    return found[1:]


def collated(fit: Fit, pairs: list[Pair]) -> dict[str, Tensor]:
    """Return the batch of `pairs`, padded to one of few lengths: for each shape oneDNN writes code of its own."""
    longest = max(1, *(len(pair.input_ids) for pair in pairs))
    return collate(pairs, fit.tokenizer.pad_token_id, min(-(-longest // LENGTHS) * LENGTHS, fit.max_tokens))


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
