"""What a model learns from pairs without labels: VisualBERT's two objectives, and ALBEF's three.

Both put heads on a model that `labeler.fitting.pretext` throws away again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase

from labeler.end_to_end import reader
from labeler.layers import LogitScale, Projection, Streams, masked_mean
from labeler.losses import contrastive_loss, distillation_loss, shared_targets

MASKED_SHARE, INITIAL_STD = 0.15, 0.02  # BERT's
IGNORED = -100  # the target of a word that is not to be guessed, as in transformers
# Li et al. 2021, section 3.5 and 4.1: decay and weight of the momentum model, width of the space that both sides share
MOMENTUM, DISTILLED, SHARED_WIDTH = 0.995, 0.4, 256


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


def keys_in(batch: Tensor) -> Tensor:
    """Return [B] numbers that are equal where the values of a batch [B, ...] are."""
    return torch.unique(batch.detach().flatten(1), dim=0, return_inverse=True)[1]


def right_for(texts: Tensor, pictures: Tensor) -> Tensor:
    """Return targets [B, B] as `labeler.losses.shared_targets`: frames of a clip and captions of a picture are no negatives.

    texts [B, T] int64 and pictures [B, ...], visual tokens or pixels, are zero where there is nothing. Batches are sorted by
    length, so that pairs of one text meet in a batch more often than others.
    """
    return shared_targets(keys_in(texts), keys_in(pictures))


def swap_pictures(has_both: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Return whose picture each pair gets, [B], and [B] float: 1 where it is its own, or as good by `same` [B, B] bool.

    Half of those that have both a text and a picture, has_both [B], get the picture of the next of that half; where the
    half is a single pair, it keeps its own.
    """
    source = torch.arange(len(has_both), device=has_both.device)
    able = source[has_both]
    half = able[torch.randperm(len(able), device=able.device)[: len(able) // 2]]
    if len(half) > 1:
        source[half] = half.roll(1)
    return source, same[torch.arange(len(source), device=source.device), source].float()


class WordHead(nn.Module):
    """BERT's head for words: the embeddings themselves are the last layer's weights. Devlin et al. 2019, "BERT", 3.1."""

    special: Tensor

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        """Make a head for the words of `tokenizer`, which `model` reads; special tokens are never hidden."""
        super().__init__()
        table = reader(model).get_input_embeddings().weight
        words, self.width = table.shape
        self.mask_token_id = cast(int, tokenizer.mask_token_id)
        special = torch.zeros(words, dtype=torch.bool)
        special[tokenizer.all_special_ids] = True
        self.register_buffer("special", special, persistent=False)
        first = nn.Linear(self.width, self.width)
        nn.init.normal_(first.weight, std=INITIAL_STD)
        nn.init.zeros_(first.bias)
        self.transform = nn.Sequential(first, nn.GELU(), nn.LayerNorm(self.width))
        self.bias = nn.Parameter(torch.zeros(words))

    def hide(self, input_ids: Tensor, text_mask: Tensor) -> Masked:
        """Return the texts with hidden words."""
        return mask_words(input_ids, text_mask & ~self.special[input_ids], self.mask_token_id, len(self.special))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Return logits [M, W] of W words for hidden [M, D]; table [W, D] holds the word embeddings."""
        return functional.linear(self.transform(hidden), table, self.bias).float()


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [M, W] for targets [M]; 0 where there is none."""
    return functional.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)


def mean_matching(logits: Tensor, own: Tensor) -> Tensor:
    """Return the mean loss of logits [M] for own [M] float, 1 where text and picture are of one pair; 0 where there is none."""
    return functional.binary_cross_entropy_with_logits(logits, own, reduction="sum") / max(len(own), 1)


class Objectives(nn.Module):
    """A model with the heads that VisualBERT's pretraining needs: a batch (`labeler.batches`) in, two losses and their sum out.

        half of the pairs get another pair's picture -> which are they?                     (sigmoid)
        15 % of the words of all pairs are hidden     -> which were they, where picture and words belong together?  (softmax)

    Li et al. 2019, "VisualBERT", section 3.3.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        """Put heads on `model`, which gives its two streams by `streams`, or on such a model behind its image tower."""
        super().__init__()
        self.model = model
        self.new_weights = ("words.", "matching.", *(f"model.{name}" for name in model.new_weights))
        self.tower_weights = tuple(f"model.{name}" for name in getattr(model, "tower_weights", ()))
        self.words = WordHead(model, tokenizer)
        self.matching = nn.Linear(self.words.width, 1)

    def begin_step(self) -> None:
        """Do nothing: what is not trained here does not change."""

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_mask: Tensor,
        visual_tokens: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, and of it `words` (nats a hidden word) and `matching` (nats a pair)."""
        pictures = pixels if visual_tokens is None else visual_tokens * visual_mask.unsqueeze(-1)
        if visual_tokens is None:
            visual_tokens, visual_mask = self.model.see(pixels, visual_mask)
        has_both = text_mask.any(dim=1) & visual_mask.any(dim=1)
        same = right_for(input_ids * text_mask, cast(Tensor, pictures)) > 0
        source, own = swap_pictures(has_both, same)
        visual_tokens, visual_mask = visual_tokens[source], visual_mask[source]
        masked = self.words.hide(input_ids, text_mask)
        model = reader(self.model)
        streams: Streams = model.streams(masked.input_ids, text_mask, visual_tokens, visual_mask)
        guess = (masked.targets != IGNORED) & own.bool()[:, None]  # [B, T]
        logits = self.words(streams.text[guess], model.get_input_embeddings().weight)
        words = mean_loss(logits, masked.targets[guess])
        matching = mean_matching(self.match(streams, text_mask, visual_mask)[has_both], own[has_both])
        return {"loss": words + matching, "words": words.detach(), "matching": matching.detach()}

    def match(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Tensor:
        """Return how much each text and its picture seem to belong together, as logits [B].

        From the product of the two streams' means, element by element, as in ViLBERT (Lu et al. 2019, section 3.2), each
        brought to variance 1: one layer on the two side by side cannot tell what they have in common.
        """
        means = masked_mean(streams.text, text_mask).float(), masked_mean(streams.visual, visual_mask).float()
        text, visual = (functional.layer_norm(mean, mean.shape[1:]) for mean in means)
        return cast(Tensor, self.matching(text * visual)).float().squeeze(1)


class Parts(nn.Module):
    """What ALBEF has twice, trained and as a moving average: the model, projections for the contrastive loss, the word head."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        """Put the heads on `model`, which gives its streams by `apart`, or on such a model behind its image tower."""
        super().__init__()
        self.model, self.words = model, WordHead(model, tokenizer)
        self.text_projection, self.image_projection = (Projection(self.words.width, SHARED_WIDTH) for _ in range(2))

    def embeddings(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return texts [B, S] and pictures [B, S] in the shared space, of the streams before they meet."""
        return (
            self.text_projection(masked_mean(streams.text, text_mask)),
            self.image_projection(masked_mean(streams.visual, visual_mask)),
        )

    def guess(self, masked: Masked, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return logits [M, W] for the M hidden words, with the picture in view."""
        model = reader(self.model)
        text = model.streams(masked.input_ids, text_mask, visual_tokens, visual_mask).text
        return cast(Tensor, self.words(text[masked.targets != IGNORED], model.get_input_embeddings().weight))


class AlignedObjectives(nn.Module):
    """A model with the heads that ALBEF's pretraining needs: a batch in, three losses and their sum out.

        contrast: which text belongs to which picture, before either has seen the other
        matching: does this text belong to this picture, once they have met? The others are hard ones: alike by the contrast
        words:    which words were hidden, with the picture in view?

    A moving average of the weights, the momentum model, gives the embeddings that are looked for, and says what else could be
    right: a part of the targets of contrast and words is what it says. Li et al. 2021, "Align before Fuse", sections 3.2 to 3.4;
    without a queue, which is for more pairs than these, and with the mean word in the place of [CLS].
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase):
        """Put heads on `model`; see `Parts`."""
        super().__init__()
        self.parts, self.scale = Parts(model, tokenizer), LogitScale()
        self.matching = nn.Linear(self.parts.words.width, 1)
        self.momentum = AveragedModel(self.parts, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM)).requires_grad_(False)
        self.new_weights = ("parts.words.", "parts.text_projection.", "parts.image_projection.", "scale.", "matching.",
                            *(f"parts.model.{name}" for name in model.new_weights))  # fmt: skip
        self.tower_weights = tuple(f"parts.model.{name}" for name in getattr(model, "tower_weights", ()))

    def train(self, mode: bool = True) -> AlignedObjectives:
        """Set the mode; the momentum model has no dropout."""
        super().train(mode)
        self.momentum.eval()
        return self

    def begin_step(self) -> None:
        """Let the momentum model follow the weights, once a step, in however many parts its batch is trained on."""
        self.momentum.update_parameters(self.parts)

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_mask: Tensor,
        visual_tokens: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, and of it `words` (nats a hidden word), `matching` and `contrast` (nats a pair)."""
        pictures = cast(Tensor, pixels if visual_tokens is None else visual_tokens * visual_mask.unsqueeze(-1))
        if visual_tokens is None:
            visual_tokens, visual_mask = self.parts.model.see(pixels, visual_mask)
        both = text_mask.any(dim=1) & visual_mask.any(dim=1)
        model, average = reader(self.parts.model), cast(Parts, self.momentum.module)
        masked = self.parts.words.hide(input_ids, text_mask)
        streams = model.apart(input_ids, text_mask, visual_tokens)
        with torch.no_grad():
            theirs = reader(average.model).apart(input_ids, text_mask, visual_tokens)
            soft = average.guess(masked, text_mask, visual_tokens, visual_mask).softmax(dim=1)
            keys = [side[both] for side in average.embeddings(theirs, text_mask, visual_mask)]
        queries = [side[both] for side in self.parts.embeddings(streams, text_mask, visual_mask)]
        right = right_for((input_ids * text_mask)[both], pictures[both])
        contrast = self.contrast(queries, keys, right)
        matching = self.match(streams, text_mask, visual_mask, both, queries, right > 0)
        logits, share = self.parts.guess(masked, text_mask, visual_tokens, visual_mask), self.distilled
        words = (1 - share) * mean_loss(logits, masked.targets[masked.targets != IGNORED])
        if len(logits):
            words = words + share * distillation_loss("single", logits, soft, temperature=1.0)
        parts = {"words": words.detach(), "matching": matching.detach(), "contrast": contrast.detach()}
        return {"loss": words + matching + contrast, **parts}

    @property
    def distilled(self) -> float:
        """Return the share of the targets that the momentum model gives: it grows until 1 / (1 - MOMENTUM) steps are taken."""
        return DISTILLED * min(1.0, float(self.momentum.n_averaged) * (1 - MOMENTUM))

    def contrast(self, queries: list[Tensor], keys: list[Tensor], right: Tensor) -> Tensor:
        """Return the contrastive loss of texts and pictures for those of the momentum model, [N, S] each; 0 where N is 0.

        Equations 1, 2 and 6: the targets are what is `right` [N, N], and in part what the momentum model finds alike.
        """
        (text, image), (their_text, their_image) = queries, keys
        if not len(text):
            return (text.sum() + image.sum()) * 0
        scale = self.scale()
        with torch.no_grad():
            own = (1 - self.distilled) * right
            alike = scale * their_text @ their_image.T
            targets = [own + self.distilled * found.softmax(dim=1) for found in (alike, alike.T)]
        return contrastive_loss(scale * text @ their_image.T, scale * image @ their_text.T, *targets)

    def match(
        self,
        streams: Streams,
        text_mask: Tensor,
        visual_mask: Tensor,
        both: Tensor,
        queries: list[Tensor],
        same: Tensor,
    ) -> Tensor:
        """Return the loss of telling pairs from each text with a hard negative picture and each picture with such a text.

        `same` [N, N] bool: which pictures are right for which texts, and so no negatives; a pair without one is left out.
        """
        told = (~same).any(dim=1)  # `same` is the same in both directions
        rows = both.nonzero().squeeze(1)  # [N]
        if not told.any():
            return streams.text.sum() * 0
        with torch.no_grad():
            alike = self.scale() * queries[0] @ queries[1].T
        if not alike.isfinite().all():  # nothing can be drawn by it; the trainer stops at such a loss
            return streams.text.sum() * torch.nan
        others, pairs = rows[told], torch.stack([hard_negatives(found[told], same[told]) for found in (alike.T, alike)])
        texts = torch.cat([rows, others, rows[pairs[0]]])
        images = torch.cat([rows, rows[pairs[1]], others])
        fused = reader(self.parts.model).fuse(
            Streams(streams.text[texts], streams.visual[images]), text_mask[texts], visual_mask[images]
        )
        logits = self.matching(masked_mean(fused, text_mask[texts])).float().squeeze(1)  # [N + 2 told]
        return mean_matching(logits, (torch.arange(len(texts), device=rows.device) < len(rows)).float())


def hard_negatives(alike: Tensor, same: Tensor) -> Tensor:
    """Return for each row of alike [M, N] a column where `same` [M, N] is False, [M], drawn with the softmax of the row.

    Li et al. 2021, section 3.2, "image-text matching".
    """
    others = alike.float().masked_fill(same, -torch.inf)
    return torch.multinomial(others.softmax(dim=1), 1).squeeze(1)
