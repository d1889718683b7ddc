"""Fitting a model: the data, the model and its head's start, validation by our inference path, and what is kept of it."""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from labeler.artifacts import read_json, write_json
from labeler.baselines import linear_probe
from labeler.batches import StorePairs, label_targets
from labeler.decisions import VALIDATION
from labeler.embedding import refuse_other_pictures
from labeler.encoders.weights import recorded_tower
from labeler.end_to_end import EndToEnd, reader
from labeler.errors import BadInputError, UsageError
from labeler.evaluation import fit_temperature, fit_thresholds, predictions_of, scores_of, statistics, write_named
from labeler.fitting import workers
from labeler.fitting.arguments import training_arguments, use_bf16
from labeler.fitting.averaging import AveragedWeights
from labeler.fitting.checkpoints import Progress, newest_checkpoint, writing
from labeler.fitting.distillation import ZeroShotTeacher, refuse_idle, teachers_say
from labeler.fitting.pretext import check_pretext, learn_pretext, read_pretraining
from labeler.fitting.sharding import ShardedTrainer
from labeler.fitting.trainer import (
    LabelTrainer,
    history_of,
)
from labeler.fitting.watching import Watch
from labeler.inference import choose_device, logits, model_outputs
from labeler.layers import checkpoint_activations
from labeler.losses import TrainingLoss, labelling_loss
from labeler.memory import give_back_freed_memory, keep_few_shapes, keep_freed_memory
from labeler.models import Building, Built, constant, model_module
from labeler.pixels import Pixels, stored_pixels
from labeler.store import Store
from labeler.taxonomy import taxonomy_of
from labeler.training_options import METRICS, TrainOptions

NAMED = 10  # labels that no train row carries
HEAD_PAIRS = 20_000  # that the head is fitted to before training, at most

log = logging.getLogger("labeler")


class Fit:
    """One model being fitted: the data, the model, and whether Ctrl-C has asked it to stop."""

    def __init__(
        self,
        model: str,
        data: Path,
        options: TrainOptions,
        seed: int,
        device: str,
        teachers: Sequence[Path | ZeroShotTeacher] = (),
        report: Callable[[int, float], None] | None = None,
        save_minutes: float = math.inf,
        init: Path | None = None,
        shard: bool = False,
    ):
        """Open the store, build the model from its towers with `seed`, tokenize train and validation, ask the teachers.

        `report` is called after each epoch with its number and its validation metric. In epochs that take longer than
        `save_minutes`, a checkpoint is saved each time that they have passed. With `shard` the model is divided among
        the workers (see `labeler.fitting.sharding`).
        """
        keep_few_shapes()
        # a training before this one (--seeds, tune) is a ring of objects, which holds its weights until Python looks for such
        gc.collect()
        give_back_freed_memory()
        self.store = Store(data, check=False)  # `train` has just verified it
        self.task = self.store.label_set.task
        self.metric = METRICS[self.task]
        self.name, self.options, self.seed, self.interrupted, self.step = model, options, seed, False, 0
        self.teachers, self.report, self.shard = teachers, report, shard
        self.progress, self.save_seconds = Progress(), 60 * save_minutes
        self.averaged: AveragedWeights | None = None
        self.device = choose_device(device)
        refuse_idle(teachers, self.store)
        labelled_rows, validation_rows = learned_from(self.store, bool(teachers)), chosen_by(self.store)
        train_rows = self.store.rows_of("train", unlabelled=True) if teachers else labelled_rows
        self.model: Any  # one of `labeler.models`, or EndToEnd around it
        self.model, self.tokenizer = self.built(init)
        self.max_tokens = min(options.max_text_tokens, getattr(self.model, "max_text_tokens", options.max_text_tokens))
        self.pixels: Pixels | None = None
        if options.finetune_image:
            from labeler.encoders.image import recorded_image_encoder  # no other training needs timm

            self.model = EndToEnd(self.model, recorded_image_encoder(self.store.towers["image"], data))
            self.pixels = stored_pixels(self.store, self.model.encoder.size)
        self.model.to(self.device)
        self.train_pairs, self.validation_pairs = (
            StorePairs(self.store, rows, self.tokenizer, self.max_tokens, self.pixels)
            for rows in (train_rows, validation_rows)
        )
        self.loss = TrainingLoss(options, self.task, self.store.truth(labelled_rows))
        if options.pretrain:
            check_pretext(self)
        if teachers:
            self.train_pairs.soft_targets = teachers_say(
                teachers, self.store, train_rows, options.teacher_temperature, self.device
            )
        self.say_what_is_cut()

    def say_what_is_cut(self) -> None:
        """Say how many texts are longer than what is read of them, and where less is read than was asked for."""
        limited = self.max_tokens < self.options.max_text_tokens
        if limited:
            log.warning("the text encoder reads %d tokens at most, --max-text-tokens or not", self.max_tokens)
        if full := sum(length == self.max_tokens for length in self.train_pairs.lengths):
            log.info("%d of %d texts reach %d tokens; what lies beyond is cut%s", full, len(self.train_pairs), self.max_tokens,
                     "" if limited else " (--max-text-tokens)")  # fmt: skip

    def built(self, init: Path | None) -> Built:
        """Return the untrained model, from the run `init` where there is one, and its tokenizer."""
        options, towers = self.options, self.store.towers
        if "unknown_share" in towers["text"] and "vocabulary" not in constant(self.name, "TUNING"):
            raise BadInputError(
                f"{self.store.folder}: its text encoder cannot read {towers['text']['unknown_share']:.0%} of the texts' tokens, "
                f"and {self.name} reads by it; train resnet-gru --vocabulary character, or preprocess with another --text-encoder"
            )
        if init:
            refuse_other_pictures(init, read_json(init / "preprocessor.json")["image"], self.store)
        text_encoder = towers["text"]["name"]
        if not init and "vocabulary" not in constant(self.name, "TUNING"):  # else it is not read
            text_encoder = recorded_tower(towers["text"], "text", self.store.folder)
        texts = [self.store.rows["text"][row] or "" for row in self.store.rows_of("train")]
        set_seed(self.seed)
        built: Built = model_module(self.name).build(
            Building(self.store.label_set, text_encoder, towers["image"]["width"], texts,
                     n_coattn=options.n_coattn, coattention=options.coattention, coattn_place=options.coattn_place,
                     vocabulary=options.vocabulary, init=init)
        )  # fmt: skip
        model: Any = built.model
        names = self.store.label_set.names
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
        if options.freeze:
            freeze_below_head(model, self.name)
        if options.activation_checkpointing and not checkpoint_activations(model):
            raise UsageError(f"{self.name} has no transformer layers; leave out --activation-checkpointing")
        return built

    def run(self, folder: Path, *, resume: bool) -> dict[str, Any]:
        """Train in `folder`/trainer, from its newest whole checkpoint with `resume`; return the history."""
        self.progress = Progress()
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        trainer = (ShardedTrainer if self.shard else LabelTrainer)(
            self,
            args=training_arguments(folder / "trainer", self.options, self.seed, self.device),
            callbacks=[Watch(self)],
        )
        checkpoint = newest_checkpoint(folder / "trainer") if resume else None
        if checkpoint:
            log.info("going on from %s", checkpoint.name)
        pretraining = folder / "trainer" / "pretraining"
        if self.options.pretrain and not checkpoint:
            with self.every_train_pair():
                learn_pretext(self, pretraining, resume=resume)
            self.interrupted = workers.from_first(self.interrupted)
            if self.interrupted:
                return {}
        first = workers.is_first()
        if not checkpoint and first:  # the others get its weights
            self.start_head()
        if self.options.ema and first:
            self.averaged = AveragedWeights(self.model, self.options.ema, checkpoint)
        give_back_freed_memory()
        keep_freed_memory()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        # bf16 ends here: temperature, thresholds and promises are fitted to the scores that `predict` gives, in float32
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        history = history_of(self.metric, trainer.state.log_history)
        if not self.interrupted:
            self.tell_if_worse(history)
        history |= {"train_pairs": len(self.train_pairs), "validation_pairs": len(self.validation_pairs)}
        if self.options.pretrain:
            history["pretraining"] = read_pretraining(pretraining)
        return history | {
            "train_seconds": round(self.progress.elapsed, 2),
            "pairs_per_second": round(self.progress.pairs / self.progress.seconds, 2),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "device": str(self.device),
            "workers": workers.count(),
            "sharded": self.shard,
        }

    @contextmanager
    def every_train_pair(self) -> Iterator[None]:
        """Let the train pairs be all of the split, those that nobody has labelled too."""
        own, rows = self.train_pairs, self.store.rows_of("train", unlabelled=True)
        if len(rows) > len(own):
            self.train_pairs = StorePairs(self.store, rows, self.tokenizer, self.max_tokens, self.pixels)
        try:
            yield
        finally:
            self.train_pairs = own

    def start_head(self) -> None:
        """Fit the head as a linear probe on what the untrained model gives; one without `features` keeps its own.

        It is a start and no end: it is fitted in the precision of the training, and of more than HEAD_PAIRS pairs so many are
        drawn, whose features take half a gigabyte.
        """
        model = reader(self.model)
        if not hasattr(model, "features"):
            return
        parts = [pairs.drawn(HEAD_PAIRS, self.seed) for pairs in (self.train_pairs, self.validation_pairs)]
        padding = self.tokenizer.pad_token_id
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16(self.options.precision, self.device)):
            features = [
                model_outputs(self.model, part, padding, self.model.features, "fitting the head") for part in parts
            ]
        truths = [self.store.truth(part.rows) for part in parts]
        head = model.head
        with torch.no_grad():
            head.start_absence(torch.from_numpy(features[0]).to(self.device))
            features = [head.filled(torch.from_numpy(part).to(self.device)).cpu().numpy() for part in features]
        probe = linear_probe(self.task, features[0], truths[0], features[1], truths[1])
        probe = probe._replace(bias=probe.bias + self.loss.shift().numpy())
        head.start_from(*(torch.from_numpy(np.asarray(values, dtype=np.float32)) for values in probe))
        self.progress.at_start = self.validate()[1]
        log.info("head fitted on the untrained model: validation %s %.4f", self.metric, self.progress.at_start)

    def tell_if_worse(self, history: dict[str, Any]) -> None:
        """Warn where training has made worse what the head began with."""
        best = max((epoch["validation_metric"] for epoch in history["epochs"]), default=math.inf)
        if self.progress.at_start is not None and best < self.progress.at_start:
            log.warning(
                "no epoch is as good as the fitted head before training (validation %s %.4f, %.4f at best): try lower rates, "
                "or --freeze, which trains the head alone", self.metric, self.progress.at_start, best,
            )  # fmt: skip

    def validation_logits(self) -> np.ndarray:
        """Return logits [N, L] on the validation split."""
        model = self.averaged.model if self.averaged else self.model
        return logits(model, self.validation_pairs, self.tokenizer.pad_token_id)

    def validate(self) -> tuple[float, float]:
        """Return loss and metric on the validation split."""
        values, metric = self.validation_logits(), self.metric
        rows = self.validation_pairs.rows
        predictions = predictions_of(self.store, rows, scores_of(self.task, values), None)
        targets = label_targets(predictions.truth, self.task)
        loss = labelling_loss(torch.from_numpy(values), torch.from_numpy(targets)).item()
        return loss, float(statistics(self.task, predictions, np.ones((len(rows), 1)), [metric])[metric][0])

    def save(self, folder: Path, history: dict[str, Any]) -> None:
        """Write the trained model and all that is needed to label with it."""
        towers = self.store.towers
        with writing(folder):
            if isinstance(self.model, EndToEnd):
                self.model.save(folder)
                towers = towers | {"image": towers["image"] | {"fine_tuned": True}}
            else:
                self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)
        write_json(folder / "preprocessor.json", {"max_text_tokens": self.max_tokens, **towers})
        (folder / "labels.json").write_text(self.store.label_set.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self.save_decisions(folder)

    def save_decisions(self, folder: Path) -> None:
        """Write what turns logits into scores and labels, all fitted on the validation split, and what it makes of that."""
        values, rows, taxonomy = self.validation_logits(), self.validation_pairs.rows, taxonomy_of(self.store.label_set)
        truth, thresholds = self.store.truth(rows), None
        temperature = fit_temperature(self.task, values, truth)
        write_json(folder / "calibration.json", {"fitted_on": "validation", "temperature": temperature})
        scores = scores_of(self.task, values, temperature)
        if self.task == "multi":
            thresholds = fit_thresholds(taxonomy.scores(scores), truth)
            write_json(folder / "thresholds.json", {"fitted_on": "validation", "thresholds": thresholds})
        write_named(folder / VALIDATION, taxonomy, predictions_of(self.store, rows, scores, thresholds))


def learned_from(store: Store, taught: bool) -> np.ndarray:
    """Return the train rows that somebody has labelled; say which labels none of them carries.

    Raises BadInputError where they carry too few labels to tell any apart, unless teachers label others (`taught`).
    """
    rows, names = store.rows_of("train"), store.label_set.names
    carried = store.truth(rows).any(axis=0)
    least = 2 if store.label_set.task == "single" else 1
    if carried.sum() < least and not taught:
        found = "one label alone" if carried.any() else "no label"
        raise BadInputError(f"{store.folder}: the rows of the train split carry {found}, so that there is nothing to learn; "
                            "label others, or let ingest draw the splits")  # fmt: skip
    lacking = [names[number] for number in np.flatnonzero(~carried)]
    if lacking:
        log.warning("%s: no train row carries %d of the %d labels, which cannot be learned: %s%s", store.folder, len(lacking),
                    len(names), ", ".join(lacking[:NAMED]), ", ..." if len(lacking) > NAMED else "")  # fmt: skip
    return rows


def chosen_by(store: Store) -> np.ndarray:
    """Return the validation rows; raises BadInputError where none of them carries a label."""
    rows = store.rows_of("validation")
    if store.truth(rows).any():
        return rows
    raise BadInputError(f"{store.folder}: no row of the validation split carries a label, so that no epoch can be chosen by it; "
                        "label some, or let ingest draw the splits")  # fmt: skip


def freeze_below_head(model: Any, name: str) -> None:
    """Let the head alone be trained; raises UsageError for a model that has none apart from the rest."""
    if not hasattr(model, "head"):
        raise UsageError(f"{name} has no head apart from the rest, all of which starts untrained; leave out --freeze")
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith("head."))
