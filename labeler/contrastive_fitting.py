"""Fitting two towers by which text belongs to which picture: pairs and their keys, cached steps, validation by recall."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed

from labeler.artifacts import BadInputError, write_json
from labeler.batches import StorePairs
from labeler.embedding import embed_pairs, pair_keys
from labeler.evaluation import mean_recall
from labeler.grad_cache import cached_backward
from labeler.losses import contrastive_loss, shared_targets
from labeler.models import model_module
from labeler.prediction import choose_device
from labeler.records import Split
from labeler.store import Store
from labeler.trainer import (
    PairTrainer,
    Shuffle,
    Watch,
    give_back_freed_memory,
    history_of,
    keep_freed_memory,
    newest_checkpoint,
    training_arguments,
)

if TYPE_CHECKING:
    from labeler.contrastive import PretrainOptions

METRIC = "recall_at_10"


class ContrastiveFit:
    """Two towers being fitted: the data, the model, and whether Ctrl-C has asked it to stop."""

    metric = METRIC
    averaged = None
    report = None

    def __init__(self, model: str, data: Path, options: PretrainOptions, seed: int, device: str):
        """Open the store, build the towers with `seed`, tokenize the pairs of train and validation that are whole.

        Raises BadInputError when there are fewer than two in a split.
        """
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")  # as in `labeler.fitting`
        self.store = Store(data, check=False)  # `pretrain` has just verified it
        self.name, self.seed, self.interrupted, self.step = model, seed, False, 0
        self.options, self.chunk_size = options
        self.losses: list[float] = []  # of the epoch's steps so far
        self.device = choose_device(device)
        set_seed(seed)
        towers = self.store.towers
        self.model: Any
        self.model, self.tokenizer = model_module(model).build_towers(towers["text"]["name"], towers["image"]["width"])
        self.model.to(self.device)
        self.max_tokens = min(self.options.max_text_tokens, self.model.max_text_tokens)
        self.train_pairs, self.validation_pairs = (self.whole_pairs(split) for split in ("train", "validation"))

    def whole_pairs(self, split: Split) -> StorePairs:
        """Return the pairs of a split that have a text and a picture; in the place of labels they have their keys."""
        rows = self.store.rows_of(split)
        rows = rows[self.store.complete(rows)]
        if len(rows) < 2:
            raise BadInputError(
                f"{self.store.folder}: {len(rows)} rows of the {split} split have both a text and a picture; 2 are the least"
            )
        pairs = StorePairs(self.store, rows, self.tokenizer, self.max_tokens)
        pairs.labels = pair_keys(self.store, rows)
        return pairs

    def run(self, folder: Path, *, resume: bool) -> dict[str, Any]:
        """Train in `folder`/trainer, from its newest whole checkpoint with `resume`; return the history."""
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        watch = Watch(cast(Any, self))
        trainer = ContrastiveTrainer(
            self,
            args=training_arguments(folder / "trainer", self.options, self.seed, self.device),
            callbacks=[watch, EarlyStoppingCallback(self.options.patience)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for data
        trainer.remove_callback(ProgressCallback)
        checkpoint = newest_checkpoint(folder / "trainer") if resume else None
        started = time.perf_counter()
        give_back_freed_memory()
        keep_freed_memory()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return history_of(METRIC, trainer.state.log_history) | {
            "train_pairs": len(self.train_pairs),
            "validation_pairs": len(self.validation_pairs),
            "logit_scale": self.model.logit_scale().item(),
            "train_seconds": round(time.perf_counter() - started, 2),
            "pairs_per_second": round(watch.pairs / watch.seconds, 2) if watch.seconds else None,
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "device": str(self.device),
        }

    def validate(self) -> tuple[float, float]:
        """Return loss (all validation pairs as one batch) and recall at 10 on the validation split."""
        pairs = self.validation_pairs
        text, image = embed_pairs(self.model, pairs, self.tokenizer.pad_token_id)
        with torch.no_grad():
            parts = torch.from_numpy(text), torch.from_numpy(image)
            loss = pairs_loss(*parts, self.model.logit_scale().cpu(), torch.from_numpy(pairs.labels)).item()
        return loss, mean_recall(text, image, tuple(pairs.labels.T))

    def save(self, folder: Path, history: dict[str, Any]) -> None:
        """Write the towers and all that is needed to embed with them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)
        write_json(folder / "preprocessor.json", {"max_text_tokens": self.max_tokens, **self.store.towers})


class ContrastiveTrainer(PairTrainer):
    """Trains two towers, a batch's loss over all of its pairs and its graph over one chunk of them."""

    def __init__(self, fit: ContrastiveFit, **options: Any):
        """Train the model of `fit`."""
        super().__init__(cast(Any, fit), fit.model, eval_dataset=cast(Any, fit.validation_pairs), **options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffle:
        # texts of like length together would be each other's negatives in every epoch
        return Shuffle(self.args.train_batch_size, [1] * len(self.fit.train_pairs), self.fit.seed)

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss, its gradient added to the weights'; raises DivergedError when it is NaN or infinite."""
        fit = cast(ContrastiveFit, self.fit)
        model.train()
        chunks = in_chunks(self._prepare_inputs(inputs), fit.chunk_size)
        keys = torch.cat([chunk.pop("labels") for chunk in chunks])

        def embed(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with self.compute_loss_context_manager():  # bf16, if that is asked for
                return tuple(model(**chunk))

        loss = cached_backward(
            chunks, embed, lambda text, image: pairs_loss(text, image, fit.model.logit_scale(), keys)
        )
        fit.losses.append(self.finite(loss).item())
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the validation loss and recall, by the same inference path as every other stage."""
        fit = cast(ContrastiveFit, self.fit)
        loss, metric = fit.validate()
        metrics = {"eval_loss": loss, "eval_metric": metric, "eval_train_loss": float(np.mean(fit.losses))}
        fit.losses.clear()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def pairs_loss(text: Tensor, image: Tensor, logit_scale: Tensor, keys: Tensor) -> Tensor:
    """Return the contrastive loss of pairs with embeddings text and image [B, S]; keys [B, 2]: see `pair_keys`."""
    logits = logit_scale * text @ image.T
    targets = shared_targets(*keys.unbind(dim=1))
    return contrastive_loss(logits, logits.T, targets, targets)


def in_chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Return the batch in chunks of `size` pairs: texts of like length together, each chunk no wider than its longest."""
    order = batch["text_mask"].sum(dim=1).argsort(stable=True)
    chunks = []
    for rows in order.split(size):
        longest = int(batch["text_mask"][rows].sum(dim=1).max())
        chunk = {name: value[rows] for name, value in batch.items()}
        chunks.append(chunk | {name: chunk[name][:, :longest] for name in ("input_ids", "text_mask")})
    return chunks
