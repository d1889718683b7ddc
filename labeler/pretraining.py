"""Pretraining on a store's own pairs, without their labels: masked words with the picture in view, and image-text matching.

The two objectives of VisualBERT (Li et al. 2019, section 3.3), at once and in one pass:

    half of the pairs get another pair's picture -> which are they?                     (sigmoid)
    15 % of the words of all pairs are hidden     -> which were they, where picture and words belong together?  (softmax)

The embedded towers have never seen the other's output; this is where they can learn to, before any label is looked at. Only the
train split is read. What is learned besides the model, the two heads here, is thrown away.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, set_seed

from labeler.artifacts import BadInputError, UsageError, write_json
from labeler.checkpoints import Progress, newest_checkpoint
from labeler.end_to_end import reader
from labeler.layers import Streams, masked_mean
from labeler.trainer import PairTrainer, Watch, keep_freed_memory, training_arguments

if TYPE_CHECKING:
    from labeler.fitting import Fit

log = logging.getLogger("labeler")

MASKED_SHARE = 0.15
TOLD = "pretraining.json"
IGNORED = -100  # the target of a word that is not to be guessed, as in transformers


class Masked(NamedTuple):
    """Texts with hidden words: input_ids [B, T], and targets [B, T] with IGNORED where nothing is to be guessed."""

    input_ids: Tensor
    targets: Tensor


def mask_words(input_ids: Tensor, hideable: Tensor, mask_token_id: int, vocabulary: int) -> Masked:
    """Hide each word of input_ids [B, T] where `hideable` [B, T] is True with a probability of MASKED_SHARE.

    Of the hidden ones 80 % become the mask, 10 % another word of the vocabulary, 10 % stay. Devlin et al. 2019, "BERT", 3.1.
    """
    chosen = (torch.rand(input_ids.shape, device=input_ids.device) < MASKED_SHARE) & hideable
    how = torch.rand(input_ids.shape, device=input_ids.device)
    others = torch.randint(vocabulary, input_ids.shape, device=input_ids.device)
    hidden = torch.where(how < 0.8, mask_token_id, torch.where(how < 0.9, others, input_ids))
    return Masked(torch.where(chosen, hidden, input_ids), torch.where(chosen, input_ids, IGNORED))


def swap_pictures(has_both: Tensor) -> tuple[Tensor, Tensor]:
    """Return whose picture each pair gets, [B], and [B] float: 1 where it is the pair's own.

    Half of those that have both a text and a picture, has_both [B], get the picture of the next of that half; where the
    half is a single pair, it keeps its own.
    """
    source = torch.arange(len(has_both), device=has_both.device)
    able = source[has_both]
    half = able[torch.randperm(len(able), device=able.device)[: len(able) // 2]]
    if len(half) > 1:
        source[half] = half.roll(1)
    return source, (source == torch.arange(len(source), device=source.device)).float()


class Objectives(nn.Module):
    """A model with the heads that pretraining needs: a batch (see `labeler.batches`) in, the sum of both losses out."""

    special: Tensor

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        """Put heads on `model`, which gives its two streams by `streams`, or on such a model behind its image tower."""
        super().__init__()
        width, words = model.config.hidden_size, len(reader(model).fused.embeddings.word_embeddings.weight)
        self.model = model
        self.new_weights = ("transform.", "word_bias", "matching.", *(f"model.{name}" for name in model.new_weights))
        self.tower_weights = tuple(f"model.{name}" for name in getattr(model, "tower_weights", ()))
        self.mask_token_id = cast(int, tokenizer.mask_token_id)
        special = torch.zeros(words, dtype=torch.bool)
        special[tokenizer.all_special_ids] = True
        self.register_buffer("special", special, persistent=False)
        # BERT's head for words: the embeddings themselves are the last layer's weights
        first = nn.Linear(width, width)
        nn.init.normal_(first.weight, std=model.config.initializer_range)
        nn.init.zeros_(first.bias)
        self.transform = nn.Sequential(first, nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(words))
        self.matching = nn.Linear(width, 1)

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_mask: Tensor,
        visual_tokens: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, and of it `words` (nats a hidden word) and `matching` (nats a pair)."""
        if visual_tokens is None:
            visual_tokens, visual_mask = self.model.see(pixels, visual_mask)
        has_both = text_mask.any(dim=1) & visual_mask.any(dim=1)
        source, own = swap_pictures(has_both)
        visual_tokens, visual_mask = visual_tokens[source], visual_mask[source]
        masked = mask_words(input_ids, text_mask & ~self.special[input_ids], self.mask_token_id, len(self.special))
        streams: Streams = reader(self.model).streams(masked.input_ids, text_mask, visual_tokens, visual_mask)
        guess = (masked.targets != IGNORED) & own.bool()[:, None]  # [B, T]
        words = self.words_loss(streams.text[guess], masked.targets[guess])
        matching = functional.binary_cross_entropy_with_logits(
            self.match(streams, text_mask, visual_mask)[has_both], own[has_both], reduction="sum"
        ) / has_both.sum().clamp(min=1)
        return {"loss": words + matching, "words": words.detach(), "matching": matching.detach()}

    def match(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Tensor:
        """Return how much each text and its picture seem to belong together, as logits [B].

        From the product of the two streams' means, element by element, as in ViLBERT (Lu et al. 2019, section 3.2), each
        brought to variance 1: one layer on the two side by side cannot tell what they have in common.
        """
        means = masked_mean(streams.text, text_mask).float(), masked_mean(streams.visual, visual_mask).float()
        text, visual = (functional.layer_norm(mean, mean.shape[1:]) for mean in means)
        return cast(Tensor, self.matching(text * visual)).float().squeeze(1)

    def words_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of guessing targets [M] from hidden [M, D]; 0 where nothing was hidden."""
        embeddings = reader(self.model).fused.embeddings.word_embeddings.weight
        logits = functional.linear(self.transform(hidden), embeddings, self.word_bias)
        return functional.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)


class PretrainingTrainer(PairTrainer):
    """Trains the objectives."""

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
        """Return the loss, and note its two parts; labels are not shown to the model."""
        outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", "soft_targets")})
        self.both += self.share * torch.stack([outputs["words"], outputs["matching"]])
        return cast(Tensor, outputs["loss"]) * self.share

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the step's loss, and note its two parts in its place."""
        self.both = torch.zeros(2, device=self.args.device)
        loss = super().training_step(*arguments, **options)
        self.fit.progress.losses[-1] = self.both.tolist()
        return loss


class PretrainingWatch(Watch):
    """Says after each epoch how well words are guessed and pictures told apart."""

    name = "pretraining"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock and say the epoch's mean losses."""
        super().on_epoch_end(args, state, control, **kwargs)
        losses = self.fit.progress.losses
        if not self.is_over(args, state) or not losses:
            return
        words, matching = torch.tensor(losses).mean(dim=0).tolist()
        losses.clear()
        state.log_history.append({"epoch": round(state.epoch), "words_loss": words, "matching_loss": matching})
        self.bar.clear()
        epoch = f"{round(state.epoch)}/{args.num_train_epochs}"
        log.info("pretraining epoch %s: words %.3f, matching %.3f", epoch, words, matching)
        self.bar.refresh()


def check_can_pretrain(fit: Fit) -> None:
    """Raise UsageError where the model has no fusion to pretrain or the tokenizer no mask; BadInputError without any text."""
    if not hasattr(reader(fit.model), "streams"):
        raise UsageError(
            f"{fit.name} has no fused streams to pretrain; leave out --pretrain, or train visualbert or visualbert-coattn"
        )
    if fit.tokenizer.mask_token_id is None:
        raise UsageError(
            "the text encoder's tokenizer has no mask token, so words cannot be hidden; leave out --pretrain"
        )
    if not any(fit.train_pairs.lengths):
        raise BadInputError("no train row has a text, so there are no words to hide; leave out --pretrain")


def pretrain(fit: Fit, folder: Path, *, resume: bool) -> None:
    """Pretrain the model of `fit` for `options.pretrain` epochs, with checkpoints in `folder`.

    With `resume` it goes on from the newest whole checkpoint; from one of the last step it takes the weights alone. The
    random state is that of the seed afterwards, whichever way it went.
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent.parent / "tensorboard" / "pretraining")
    set_seed(fit.seed)
    objectives = Objectives(fit.model, fit.tokenizer).to(fit.device)
    epochs: dict[str, Any] = {
        "num_train_epochs": fit.options.pretrain,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
    }
    trainer = PretrainingTrainer(
        fit,
        objectives,
        args=training_arguments(folder, fit.options, fit.seed, fit.device, **epochs),
        callbacks=[PretrainingWatch(fit)],
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for data
    trainer.remove_callback(ProgressCallback)
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


def told(folder: Path) -> dict[str, Any]:
    """Return what pretraining left in `folder` to be told in the history: each epoch's losses, and the seconds."""
    return cast("dict[str, Any]", json.loads((folder / TOLD).read_text(encoding="utf-8")))
