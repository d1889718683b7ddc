"""Layers with two users or more: co-attention, the fused VisualBERT encoder, pooling and the head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import VisualBertModel


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
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))  # half the time of masked_fill


def use_fast_dropout(module: nn.Module) -> None:
    """Put FastDropout in the place of every nn.Dropout inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, FastDropout(child.p))


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
        self.position_offset = position_offset

    def embed(self, input_ids: Tensor, visual_tokens: Tensor) -> Streams:
        """Return the streams before the encoder, from input_ids [B, T] and visual_tokens [B, V, D_image]."""
        sizes = [input_ids.shape[1], visual_tokens.shape[1]]
        positions = torch.arange(sizes[0], device=input_ids.device).unsqueeze(0) + self.position_offset  # [1, T]
        embedded = self.embeddings(input_ids, position_ids=positions, visual_embeds=visual_tokens)  # [B, T + V, D]
        return Streams(*embedded.split(sizes, dim=1))

    def forward(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Streams:
        """Return the streams after the encoder; a token attends where text_mask [B, T] and visual_mask [B, V] are True."""
        fused = torch.cat([streams.text, streams.visual], dim=1)
        mask = torch.cat([text_mask, visual_mask], dim=1)  # [B, T + V], in the order of the tokens
        # The picture's tokens weigh as much as one word together: 49 of them, untrained, would drown a title.
        tokens = visual_mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
        visual_bias = -tokens.log().expand_as(visual_mask)  # [B, V]
        bias = torch.cat([torch.zeros_like(text_mask, dtype=visual_bias.dtype), visual_bias], dim=1)
        bias = bias.masked_fill(~mask, torch.finfo(torch.bfloat16).min)[:, None, None, :]  # [B, 1, 1, T + V]
        hidden = self.encoder(fused, attention_mask=bias.to(fused.dtype)).last_hidden_state
        return Streams(*hidden.split([streams.text.shape[1], streams.visual.shape[1]], dim=1))


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it adds to a residual starts as nothing."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class CrossAttention(nn.Module):
    r"""Multi-head attention from one stream to the other.

        queries [B, N, D] --q--> [B, H, N, d] --+
                                                softmax(q k' / sqrt(d), masked) v --> [B, N, D] --output--> [B, N, D]
        context [B, M, D] -k,v-> [B, H, M, d] --+

    The output projection starts at zero: until it is trained the layer gives zeros, and the model around
    it is the model without it. Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        """Make `heads` heads over streams of `width`; raises ValueError unless heads divide width."""
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = ZeroLinear(width, width)

    def forward(self, queries: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Return [B, N, D] for queries [B, N, D], context [B, M, D] and context_mask [B, M] (True = real).

        A row whose context is masked out as a whole attends to nothing and gets the output of zeros.
        """
        query, key, value = (
            self._split(self.query(queries)),
            self._split(self.key(context)),
            self._split(self.value(context)),
        )
        nothing = ~context_mask.any(dim=1)  # [B]
        # softmax over no key at all would be NaN; such rows see every key here and are zeroed below
        mask = (context_mask | nothing.unsqueeze(1))[:, None, None, :]  # [B, 1, 1, M]
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended = attended.masked_fill(nothing[:, None, None, None], 0.0)
        merged = attended.transpose(1, 2).flatten(2)  # [B, H, N, d] -> [B, N, D]
        return self.output(merged)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, N, D] -> [B, H, N, d]


class CoAttentionStream(nn.Module):
    """One stream's half of a co-attention block: attend the other stream, then a feed-forward layer, each as a residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        """Make the layers; `hidden` is the feed-forward layer's width."""
        super().__init__()
        self.query_norm, self.context_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = CrossAttention(width, heads, dropout)
        self.feed_in, self.feed_out = nn.Linear(width, hidden), ZeroLinear(hidden, width)
        self.dropout = FastDropout(dropout)

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """Return own [B, N, D] after it has attended other [B, M, D] under other_mask [B, M]."""
        attended = self.attention(self.query_norm(own), self.context_norm(other), other_mask)
        own = own + self.dropout(attended)
        return own + self.dropout(self.feed_out(functional.gelu(self.feed_in(self.feed_norm(own)))))


class CoAttention(nn.Module):
    """A co-attention block: each stream's queries attend the other stream's keys and values, under the other's mask.

    Lu et al. 2019, "ViLBERT", figure 2b. There LayerNorm follows each residual; here it precedes each layer,
    because only then does a block whose output projections are zero change nothing at all.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.1):
        """Make one half for each stream."""
        super().__init__()
        self.text = CoAttentionStream(width, heads, hidden, dropout)
        self.visual = CoAttentionStream(width, heads, hidden, dropout)

    def forward(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams; both halves read the streams as they came in."""
        return Streams(
            self.text(streams.text, streams.visual, visual_mask),
            self.visual(streams.visual, streams.text, text_mask),
        )


def unit(x: Tensor) -> Tensor:
    """Return x [..., D] at length 1; zeros stay zeros."""
    return functional.normalize(x, dim=-1, eps=1e-6)


class ProbeHead(nn.Module):
    """Logits from pooled features: standardised, dropout, one linear layer that can start as a fitted linear probe.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution": from a
    random head, the first steps spoil what the towers know; a head that is fitted first leaves it in place.

    The features are parts side by side, one of the text and one of the picture. A part that is all zeros is missing, and a
    learned vector stands in its place. It starts as the mean of what is there, which says nothing for any label.
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
        return torch.cat([torch.where(part.any(dim=1, keepdim=True), part, absent) for part, absent in parts], dim=1)

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
