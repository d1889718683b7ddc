"""Fitting two towers by which text belongs to which picture: pairs and their keys, cached steps, validation by recall."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from labeler.artifacts import write_json
from labeler.batches import StorePairs
from labeler.embedding import embed_pairs, pair_keys
from labeler.encoders.weights import recorded_tower
from labeler.errors import BadInputError, LabelerError
from labeler.evaluation import metric_for, retrieved
from labeler.fitting.arguments import training_arguments
from labeler.fitting.checkpoints import Progress, newest_checkpoint
from labeler.fitting.grad_cache import cached_backward
from labeler.fitting.trainer import (
    Shuffle,
    ValidatingTrainer,
    history_of,
)
from labeler.fitting.watching import Watch
from labeler.inference import choose_device
from labeler.losses import contrastive_loss, shared_targets
from labeler.memory import give_back_freed_memory, keep_few_shapes, keep_freed_memory, lacks_memory
from labeler.models import model_module
from labeler.store import Store
from labeler.training_options import SAVE_MINUTES
from labeler.values import Split

if TYPE_CHECKING:
    from labeler.pretraining import PretrainOptions

log = logging.getLogger("labeler")

RANKED = 20_000  # validation pairs, ranked in 4 s on two cores; the time grows with their square


class ContrastiveFit:
    """Two towers being fitted: the data, the model, and whether Ctrl-C has asked it to stop."""

    averaged = None
    report = None

    def __init__(self, model: str, data: Path, options: PretrainOptions, seed: int, device: str):
        """Open the store, build the towers with `seed`, tokenize the pairs of train and validation that are whole.

        Raises BadInputError when there are fewer than two in a split.
        """
        keep_few_shapes()
        self.store = Store(data, check=False)  # `pretrain` has just verified it
        self.name, self.seed, self.interrupted, self.step = model, seed, False, 0
        self.options, self.chunk_size = options
        self.progress, self.save_seconds = Progress(), 60 * SAVE_MINUTES
        self.device = choose_device(device)
        set_seed(seed)
        towers = self.store.towers
        self.model: Any
        text_encoder = recorded_tower(towers["text"], "text", self.store.folder)
        self.model, self.tokenizer = model_module(model).build_towers(text_encoder, towers["image"]["width"])
        self.model.to(self.device)
        self.max_tokens = min(self.options.max_text_tokens, self.model.max_text_tokens)
        self.train_pairs, self.validation_pairs = (self.whole_pairs(split) for split in ("train", "validation"))
        self.metric = metric_for(len(self.validation_pairs))

    def whole_pairs(self, split: Split) -> StorePairs:
        """Return the pairs of a split that have a text and a picture; in the place of labels they have their keys."""
        rows = self.store.rows_of(split, unlabelled=True)
        rows = rows[self.store.complete(rows)]
        if split == "validation" and len(rows) > RANKED:  # every one is compared with every other after each epoch
            log.info("%d of the %d validation pairs are looked at after each epoch", RANKED, len(rows))
            rows = np.sort(np.random.default_rng(0).choice(rows, RANKED, replace=False))
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
        self.progress = Progress()
        trainer = ContrastiveTrainer(
            self,
            args=training_arguments(folder / "trainer", self.options, self.seed, self.device),
            callbacks=[Watch(cast(Any, self))],
        )
        checkpoint = newest_checkpoint(folder / "trainer") if resume else None
        give_back_freed_memory()
        keep_freed_memory()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return history_of(self.metric, trainer.state.log_history) | {
            "train_pairs": len(self.train_pairs),
            "validation_pairs": len(self.validation_pairs),
            "logit_scale": self.model.logit_scale().item(),
            "train_seconds": round(self.progress.elapsed, 2),
            "pairs_per_second": round(self.progress.pairs / self.progress.seconds, 2),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "device": str(self.device),
        }

    def validate(self) -> tuple[float, float]:
        """Return loss, in batches as large as those of training, and `metric` among all pairs of the validation split."""
        pairs = self.validation_pairs
        text, image = embed_pairs(self.model, pairs, self.tokenizer.pad_token_id)
        parts = [torch.from_numpy(part).split(self.options.batch_size) for part in (text, image, pairs.labels)]
        total = 0.0
        with torch.no_grad():
            scale = self.model.logit_scale().cpu()
            for texts, images, keys in zip(*parts, strict=True):
                total += len(keys) * pairs_loss(texts, images, scale, keys).item()
        return total / len(pairs), retrieved(text, image, tuple(pairs.labels.T))

    def save(self, folder: Path, history: dict[str, Any]) -> None:
        """Write the towers and all that is needed to embed with them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)
        write_json(folder / "preprocessor.json", {"max_text_tokens": self.max_tokens, **self.store.towers})


class ContrastiveTrainer(ValidatingTrainer):
    """Trains two towers, a batch's loss over all of its pairs and its graph over one chunk of them."""

    def __init__(self, fit: ContrastiveFit, **options: Any):
        """Train the model of `fit`."""
        super().__init__(cast(Any, fit), fit.model, eval_dataset=cast(Any, fit.validation_pairs), **options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffle:
        # texts of like length together would be each other's negatives in every epoch
        return Shuffle(self.args.train_batch_size, [1] * len(self.fit.train_pairs), self.fit.seed)

    def step_in_parts(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a batch, its gradients added up over its chunks; these are halved where memory does not hold one.

        Raises LabelerError when it does not hold a chunk of a single pair.
        """
        fit = cast(ContrastiveFit, self.fit)
        model.train()
        batch = self._prepare_inputs(inputs)
        while True:
            try:
                return self.step_in_chunks(model, in_chunks(batch, fit.chunk_size))
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
            fit.chunk_size = min(fit.chunk_size, len(batch["input_ids"])) // 2
            if not fit.chunk_size:
                raise LabelerError("out of memory with a chunk of one pair; lower --batch-size or --max-text-tokens")
            log.warning(
                "out of memory: batches go in chunks of %d pairs from here on, which changes no loss; --chunk-size %d "
                "does so from the start", fit.chunk_size, fit.chunk_size,
            )  # fmt: skip
            model.zero_grad()
            give_back_freed_memory()

    def step_in_chunks(self, model: Any, chunks: list[dict[str, Tensor]]) -> Tensor:
        """Return the loss of a batch in chunks, its gradients added up."""
        scale = cast(ContrastiveFit, self.fit).model.logit_scale
        keys = torch.cat([chunk.pop("labels") for chunk in chunks])

        def embed(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with self.compute_loss_context_manager():  # bf16, if that is asked for
                return tuple(model(**chunk))

        return cached_backward(chunks, embed, lambda text, image: pairs_loss(text, image, scale(), keys))


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
