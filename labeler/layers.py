"""Layers with two users or more: the fused VisualBERT encoder, pooling, the head, and what contrastive losses need."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import VisualBertModel
from transformers.modeling_layers import GradientCheckpointingLayer

from labeler.self_attention import SelfAttention


class Streams(NamedTuple):
    """The two streams: text [B, T, D] and visual [B, V, D]."""

    text: Tensor
    visual: Tensor


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [B, D] of hidden [B, N, D] where mask [B, N] is True; zeros where nothing is."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [B, N, 1]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


class FastDropout(nn.Module):
    """Dropout with eight times fewer random numbers on a CPU, where one thread draws them: a byte decides each element.

    The probability is rounded to a 256th, and what is kept is scaled by just that. Srivastava et al. 2014.
    """

    def __init__(self, p: float):
        """Zero each element with probability `p`, from 0 up to 1."""
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """Return the probability, for the model's printed form."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x with elements zeroed and the rest scaled up; x itself outside of training."""
        dropped = round(self.p * 256)
        if not (self.training and dropped):
            return x
        if x.device.type != "cpu" or dropped == 256:
            return functional.dropout(x, self.p, training=True)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        kept = torch.empty_like(x, requires_grad=False)
        # written as numbers of x's kind: as truth values first, they would take ten times as long to turn into those
        torch.ge(words.view(torch.uint8)[: x.numel()].view(x.shape), dropped, out=kept)
        return x * kept.mul_(256 / (256 - dropped))  # half the time of masked_fill


def use_fast_dropout(module: nn.Module) -> None:
    """Put FastDropout in the place of every nn.Dropout inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, FastDropout(child.p))


def transformer_layers(module: nn.Module) -> list[Any]:
    """Return all transformer layers inside `module`; co-attention blocks are none."""
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def checkpoint_activations(module: nn.Module) -> int:
    """Let all transformer layers inside `module` be worked out again in the backward pass; return how many there are.

    Only what goes into a layer is kept, not what is in it. Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    layers = transformer_layers(module)
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    return len(layers)


class FusedEncoder(nn.Module):
    """VisualBERT's one stream over [text; visual], opened at its fusion point.

    Li et al. 2019, "VisualBERT: A Simple and Performant Baseline for Vision and Language"; transformers'
    `VisualBertModel` holds the weights.
    """

    def __init__(self, visual_bert: VisualBertModel, position_offset: int = 0):
        """Take a VisualBertModel; text positions start at `position_offset` (RoBERTa's start behind its padding's)."""
        super().__init__()
        self.embeddings = visual_bert.embeddings
        self.encoder = visual_bert.encoder
        use_fast_dropout(self)
        for layer in transformer_layers(self):
            layer.attention.self = SelfAttention(layer.attention.self)
        self.position_offset = position_offset

    def embed(self, input_ids: Tensor, visual_tokens: Tensor) -> Streams:
        """Return the streams before the encoder, from input_ids [B, T] and visual_tokens [B, V, D_image]."""
        sizes = [input_ids.shape[1], visual_tokens.shape[1]]
        positions = torch.arange(sizes[0], device=input_ids.device).unsqueeze(0) + self.position_offset  # [1, T]
        embedded = self.embeddings(input_ids, position_ids=positions, visual_embeds=visual_tokens)  # [B, T + V, D]
        return Streams(*embedded.split(sizes, dim=1))

    def forward(
        self,
        streams: Streams,
        text_mask: Tensor,
        visual_mask: Tensor,
        blocks: Mapping[int, Sequence[nn.Module]] | None = None,
    ) -> Streams:
        """Return the streams after the encoder; a token attends where text_mask [B, T] and visual_mask [B, V] are True.

        Where `blocks` has a layer's number, counted from 0, those blocks take and give back the streams before it.
        """
        sizes = [streams.text.shape[1], streams.visual.shape[1]]
        bias = attention_bias(text_mask, visual_mask).to(streams.text.dtype)
        hidden = torch.cat(streams, dim=1)
        for number, layer in enumerate(self.encoder.layer):
            for block in (blocks or {}).get(number, ()):
                hidden = torch.cat(block(Streams(*hidden.split(sizes, dim=1)), text_mask, visual_mask), dim=1)
            hidden = layer(hidden, bias)[0]
        return Streams(*hidden.split(sizes, dim=1))


def attention_bias(text_mask: Tensor, visual_mask: Tensor, *, together: bool = True) -> Tensor:
    """Return what is added to every attention logit, [B, 1, 1, T + V]: next to minus infinity where a mask is False.

    With `together` the picture's tokens weigh as much as one word together: 49 of them, untrained, would drown a title.
    """
    mask = torch.cat([text_mask, visual_mask], dim=1)  # [B, T + V], in the order of the tokens
    tokens = visual_mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
    weight = -tokens.float().log() if together else torch.zeros_like(tokens, dtype=torch.float)
    visual_bias = weight.expand_as(visual_mask)  # [B, V]
    bias = torch.cat([torch.zeros_like(text_mask, dtype=visual_bias.dtype), visual_bias], dim=1)
    return bias.masked_fill(~mask, torch.finfo(torch.bfloat16).min)[:, None, None, :]


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it adds to a residual starts as nothing."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def unit(x: Tensor) -> Tensor:
    """Return x [..., D] at length 1; zeros stay zeros."""
    return functional.normalize(x, dim=-1, eps=1e-6)


class ProbeHead(nn.Module):
    """Logits from pooled features: standardised, dropout, one linear layer that can start as a fitted linear probe.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution": from a
    random head, the first steps spoil what the towers know; a head that is fitted first leaves it in place.

    The features are parts side by side, such as one of the text and one of the picture. A part that is all zeros is
    missing, and a learned vector stands in its place. It starts as the mean of what is there, which says nothing for any label.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, widths: tuple[int, ...], labels: int, dropout: float):
        """Make a head for features that are parts of `widths` side by side, and `labels` labels."""
        super().__init__()
        self.widths = widths
        self.absence = nn.Parameter(torch.zeros(sum(widths)))
        self.register_buffer("center", torch.zeros(sum(widths)))
        self.register_buffer("scale", torch.ones(sum(widths)))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(sum(widths), labels)

    @torch.no_grad()
    def start_absence(self, features: Tensor) -> None:
        """Start what stands for a missing part as the mean of that part in features [N, D], where it is there."""
        parts = features.split(self.widths, dim=1)
        means = [part.sum(0) / part.any(dim=1).sum().clamp(min=1) for part in parts]
        self.absence.copy_(torch.cat(means))

    @torch.no_grad()
    def start_from(self, center: Tensor, scale: Tensor, weights: Tensor, bias: Tensor) -> None:
        """Take over a probe: center [D], scale [D], weights [D, L], bias [L]."""
        self.center.copy_(center)
        self.scale.copy_(scale)
        self.classifier.weight.copy_(weights.T)
        self.classifier.bias.copy_(bias)

    def filled(self, features: Tensor) -> Tensor:
        """Return features [B, D] with what is learned in the place of missing parts."""
        parts = zip(features.split(self.widths, dim=1), self.absence.split(self.widths), strict=True)
        return torch.cat(
            [torch.where((part != 0).any(dim=1, keepdim=True), part, absent) for part, absent in parts], dim=1
        )

    def standardised(self, features: Tensor) -> Tensor:
        """Return features [B, D] filled and in the probe's units."""
        return (self.filled(features) - self.center) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, L] for features [B, D]."""
        return self.classifier(self.dropout(self.standardised(features)))


def fused_features(streams: Streams, text_mask: Tensor, visual_mask: Tensor, visual_tokens: Tensor) -> Tensor:
    """Return [B, 2 D + D_image]: the means of both streams and of what the image tower gave, each at length 1.

    The mean over words is how MiniLM was trained to be read (Reimers and Gurevych 2019). What is missing gives zeros.
    """
    parts = [
        masked_mean(streams.text, text_mask),
        masked_mean(streams.visual, visual_mask),
        masked_mean(visual_tokens, visual_mask),
    ]
    return torch.cat([unit(part.float()) for part in parts], dim=1)


class Projection(nn.Linear):
    """One linear layer into the space that texts and pictures share, at length 1; zeros, for what is missing, stay zeros."""

    def __init__(self, width: int, shared_width: int):
        """Project features of `width`; without a bias, as in CLIP."""
        super().__init__(width, shared_width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings [B, D_shared] float32, each of length 1, for features [B, D]."""
        return unit(super().forward(features).float())


class LogitScale(nn.Module):
    """What cosine similarities are multiplied by to be logits: one over a learned temperature, at most 100.

    It starts at 1 / 0.07 and is learned as its logarithm. Radford et al. 2021, section 2.5. The limit holds back the value and
    not the gradient, so that a scale that has reached it can come down again.
    """

    MAXIMUM = 100.0

    def __init__(self, start: float = 1 / 0.07):
        """Start at `start`."""
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        """Return the scale, a number; NaN stays NaN."""
        excess = (self.log.detach() - math.log(self.MAXIMUM)).clamp(min=0)
        return (self.log - excess).exp()
