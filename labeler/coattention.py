"""Co-attention: three kinds of block in which words and the picture's tokens attend one another.

Each takes Streams with text_mask [B, T] and visual_mask [B, V] (True = real) and returns Streams of the same shapes. What a
block attends to is asked of its `maps`, which work it out again: the forward pass keeps no weights, so that it stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from labeler.layers import FastDropout, Streams, ZeroLinear


class Maps(NamedTuple):
    """What a block attends to, the mean over its heads: text_to_visual [B, T, V] and visual_to_text [B, V, T].

    Each row sums to 1 over what is not masked, and is 0 elsewhere; zeros in a row of the batch without the other stream.
    """

    text_to_visual: Tensor
    visual_to_text: Tensor


@contextmanager
def recorded_maps(blocks: Iterable[nn.Module]) -> Iterator[list[Maps]]:
    """Yield a list that gets the Maps of each block, in their order, whenever the model that they are part of is called."""
    found: list[Maps] = []

    def record(block: nn.Module, inputs: tuple[Streams, Tensor, Tensor], output: Streams) -> None:
        found.append(block.maps(*inputs))  # type: ignore[operator]

    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class CrossAttention(nn.Module):
    r"""Multi-head attention from one stream to the other.

        queries [B, N, D] --q--> [B, H, N, d] --+
                                                softmax(q k' / sqrt(d), masked) v --> [B, N, D] --output--> [B, N, D]
        context [B, M, D] -k,v-> [B, H, M, d] --+

    The output projection starts at zero unless another is given: until it is trained the layer gives zeros, and
    the model around it is the model without it. Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int, dropout: float, output: nn.Module | None = None):
        """Make `heads` heads over streams of `width`; raises ValueError unless heads divide width."""
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = ZeroLinear(width, width) if output is None else output

    def forward(self, queries: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Return [B, N, D] for queries [B, N, D], context [B, M, D] and context_mask [B, M] (True = real).

        A row whose context is masked out as a whole attends to nothing and gets the output of zeros.
        """
        query = self._split(self.query(queries))
        key = self._split(self.key(context))
        value = self._split(self.value(context))
        nothing = ~context_mask.any(dim=1)  # [B]
        # softmax over no key at all would be NaN; such rows see every key here and are zeroed below
        mask = (context_mask | nothing.unsqueeze(1))[:, None, None, :]  # [B, 1, 1, M]
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended = attended.masked_fill(nothing[:, None, None, None], 0.0)
        merged = attended.transpose(1, 2).flatten(2)  # [B, H, N, d] -> [B, N, D]
        return self.output(merged)

    def weights(self, queries: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Return [B, N, M]: the weights that `forward` attends with, the mean over the heads."""
        query, key = self._split(self.query(queries)), self._split(self.key(context))
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # [B, H, N, M]
        mask = context_mask[:, None, None, :]
        return (logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=-1) * mask).mean(dim=1)

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

    def weights(self, own: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """Return [B, N, M]: what each token of own attends to in other."""
        return self.attention.weights(self.query_norm(own), self.context_norm(other), other_mask)


class CoAttention(nn.Module):
    """`vilbert`: each stream's queries attend the other stream's keys and values, under the other's mask.

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

    def maps(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Maps:
        """Return what each stream attends to in the other."""
        return Maps(
            self.text.weights(streams.text, streams.visual, visual_mask),
            self.visual.weights(streams.visual, streams.text, text_mask),
        )


class SwappedStream(nn.Module):
    """One stream's half of swapped attention: what it reads in the other stream takes its place."""

    def __init__(self, width: int, heads: int, dropout: float):
        """Make queries, keys and values; nothing projects what the heads give."""
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout, output=nn.Identity())
        self.norm = nn.LayerNorm(width)
        self.dropout = FastDropout(dropout)

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """Return what own [B, N, D] reads in other [B, M, D]; own itself in rows where other_mask [B, M] holds nothing."""
        attended = self.dropout(self.norm(self.attention(own, other, other_mask)))
        return torch.where(other_mask.any(dim=1)[:, None, None], attended, own)

    def weights(self, own: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """Return [B, N, M]: what each token of own attends to in other."""
        return self.attention.weights(own, other, other_mask)


class SwappedAttention(nn.Module):
    """`seed`: bare attention with keys and values swapped, and no way around it.

    A `BertBiAttention` as tutorials put it before VisualBERT's encoder. Kept: queries, keys and values of either stream,
    heads merged without an output projection, no residual, no feed-forward layer; LayerNorm and dropout behind
    it, there the embeddings' own, here one for each stream since the embeddings have theirs before. Put right: it is
    built once, trained and saved, where theirs is made anew with random weights in every forward; each stream
    stays in its place under its mask, where the two outputs come back swapped; what is masked is not attended; a row
    without the other stream keeps its own.

    With no residual it cannot start as VisualBERT: from the first step on, the words' places hold what they read in
    the picture and the picture's places what they read in the words. Only rows of text alone, or of a picture alone,
    pass unchanged.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.1):
        """Make one half for each stream; raises ValueError unless heads divide width."""
        super().__init__()
        self.text = SwappedStream(width, heads, dropout)
        self.visual = SwappedStream(width, heads, dropout)

    def forward(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams; both halves read the streams as they came in."""
        return Streams(
            self.text(streams.text, streams.visual, visual_mask),
            self.visual(streams.visual, streams.text, text_mask),
        )

    def maps(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Maps:
        """Return what each stream attends to in the other."""
        return Maps(
            self.text.weights(streams.text, streams.visual, visual_mask),
            self.visual.weights(streams.visual, streams.text, text_mask),
        )


class AffinityAttention(nn.Module):
    r"""`hieco`: attention maps over both streams from one affinity matrix; each stream is told what the other's holds.

        text Q [B, T, D] --+-- C = tanh(Q W_b V'), zero at padding [B, T, V] --+
                           |                                                   |
        visual V [B, V, D]-+   Hq = tanh(Q W_q + C (V W_v)) -> a_q [B, T] -> q = sum of a_q Q -> visual + q P_v
                               Hv = tanh(V W_v + C' (Q W_q)) -> a_v [B, V] -> v = sum of a_v V -> text + v P_t

    Lu et al. 2016, "Hierarchical Question-Image Co-Attention for Visual Question Answering", parallel co-attention,
    equations 3 to 5, on one level: the levels of words, phrases and question have their place in the encoder. There q
    and v go on to the answer; here each is added to every token of the other stream, by a projection without bias that
    starts at zero, so that a fresh block changes nothing. Padding is left out of the sums over C and of both softmaxes.
    A row without a picture adds nothing to its text, one without text nothing to its picture.
    """

    def __init__(self, width: int, dropout: float = 0.1):
        """Make the maps W_b, W_q, W_v and w_hq, w_hv for streams of `width`, without biases as in the paper."""
        super().__init__()
        self.affinity, self.text_map, self.visual_map = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.text_score, self.visual_score = (nn.Linear(width, 1, bias=False) for _ in range(2))
        self.to_text, self.to_visual = (ZeroLinear(width, width, bias=False) for _ in range(2))
        self.dropout = FastDropout(dropout)

    def forward(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams, each with the other's attended vector added to all its tokens."""
        seen_text, seen_visual = self.attended(streams, text_mask, visual_mask)
        return Streams(
            streams.text + self.dropout(self.to_text(seen_visual)).unsqueeze(1),
            streams.visual + self.dropout(self.to_visual(seen_text)).unsqueeze(1),
        )

    def maps(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Maps:
        """Return the paper's a_v for every word and a_q for every visual token: all tokens of a stream are told the same."""
        text, visual = self.attention(streams, text_mask, visual_mask)  # [B, T, 1], [B, V, 1]
        sizes = text.shape[1], visual.shape[1]
        return Maps(
            visual.transpose(1, 2).repeat(1, sizes[0], 1) * text_mask.any(dim=1)[:, None, None],
            text.transpose(1, 2).repeat(1, sizes[1], 1) * visual_mask.any(dim=1)[:, None, None],
        )

    def attended(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the paper's q [B, D] and v [B, D]; zeros in rows where the stream they are read from holds nothing."""
        text, visual = self.attention(streams, text_mask, visual_mask)
        return (text * streams.text).sum(dim=1), (visual * streams.visual).sum(dim=1)

    def attention(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the paper's a_q [B, T, 1] and a_v [B, V, 1]; zeros at padding."""
        text, visual = streams
        real = text_mask.unsqueeze(2) & visual_mask.unsqueeze(1)  # [B, T, V]
        affinity = torch.tanh(text @ self.affinity(visual).transpose(1, 2)) * real
        text_mapped, visual_mapped = self.text_map(text), self.visual_map(visual)
        text_hidden = torch.tanh(text_mapped + affinity @ visual_mapped)  # [B, T, D]
        visual_hidden = torch.tanh(visual_mapped + affinity.transpose(1, 2) @ text_mapped)  # [B, V, D]
        return (
            masked_softmax(self.text_score(text_hidden), text_mask),
            masked_softmax(self.visual_score(visual_hidden), visual_mask),
        )


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax [B, N, 1] of scores [B, N, 1] over the places where mask [B, N] is True; zeros elsewhere."""
    real = mask.unsqueeze(-1)  # [B, N, 1]
    return scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=1) * real
