"""`albef`: words and picture are aligned before they meet, and then the words attend the picture.

    input_ids      [B, T]          -> lower half of the text tower -> text [B, T, D] --+
                                                                       |  contrast     +-> upper half -> mean -> logits
    visual_tokens  [B, V, D_image] -> projection -----------------> visual [B, V, D] --+   (text attends visual)

Li et al. 2021, "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation". The text tower is any
BERT-like one, every weight of it. What the paper pretrains with (contrast, matching with hard negatives, masked words, momentum
distillation) stands in `labeler.fitting.objectives.AlignedObjectives`, and is done on the train pairs before labels are seen.
Differences from the paper: the words attend the picture before each upper layer and not inside of it, so that the text tower's
layers stay whole, and by projections that start at zero, so that at first a text is read as its tower reads it; the head reads
the mean word, as MiniLM was trained to be read, beside the mean of what the image tower gave.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import VisualBertModel

from labeler.classifier import FusedClassifier, FusedConfig
from labeler.coattention import CoAttentionStream
from labeler.encoders.visualbert import load_visualbert
from labeler.layers import ProbeHead, Streams, attention_bias, masked_mean, unit
from labeler.models import Building, Built


class Config(FusedConfig):
    """VisualBertConfig, where text positions start, and the dropout before the head."""

    model_type = "labeler-albef"


class Model(FusedClassifier):
    """ALBEF with a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("fused.embeddings.visual_", "attending.", "head.")  # trained at the higher rate

    def __init__(self, config: Config, visual_bert: VisualBertModel | None = None):
        """Take the layers of `visual_bert`, or make untrained ones from `config`."""
        super().__init__(config, visual_bert)
        self.n_lower = (config.num_hidden_layers + 1) // 2  # layers before fusion
        self.attending = nn.ModuleList(
            CoAttentionStream(
                config.hidden_size, config.num_attention_heads, config.intermediate_size, config.hidden_dropout_prob
            )
            for _ in range(config.num_hidden_layers - self.n_lower)
        )
        widths = config.hidden_size, config.visual_embedding_dim
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, D + D_image]: the mean word and the image tower's mean, each at length 1."""
        streams = self.streams(input_ids, text_mask, visual_tokens, visual_mask)
        parts = masked_mean(streams.text, text_mask), masked_mean(visual_tokens, visual_mask)
        return torch.cat([unit(part.float()) for part in parts], dim=1)

    def streams(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Streams:
        """Return text [B, T, D] after it has attended the picture, and visual [B, V, D], which attends nothing."""
        apart = self.apart(input_ids, text_mask, visual_tokens)
        return Streams(self.fuse(apart, text_mask, visual_mask), apart.visual)

    def apart(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor) -> Streams:
        """Return the streams before they meet: text [B, T, D] after the lower layers, visual [B, V, D]."""
        streams = self.fused.embed(input_ids, visual_tokens)
        return Streams(self.read(streams.text, text_mask), streams.visual)

    def read(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return text [B, T, D] after the lower layers, for embedded words [B, T, D]."""
        bias = self.text_bias(text_mask).to(text.dtype)
        for layer in self.fused.encoder.layer[: self.n_lower]:
            text = layer(text, bias)[0]
        return text

    def fuse(self, streams: Streams, text_mask: Tensor, visual_mask: Tensor) -> Tensor:
        """Return text [B, T, D] after the upper layers, before each of which it attends the picture."""
        text, bias = streams.text, self.text_bias(text_mask).to(streams.text.dtype)
        for attend, layer in zip(self.attending, self.fused.encoder.layer[self.n_lower :], strict=True):
            text = layer(attend(text, streams.visual, visual_mask), bias)[0]
        return text

    @staticmethod
    def text_bias(text_mask: Tensor) -> Tensor:
        """Return what is added to the attention logits of words, [B, 1, 1, T]."""
        return attention_bias(text_mask, text_mask[:, :0])


def build(building: Building) -> Built:
    """Return ALBEF on the text tower's weights, with its tokenizer."""
    start = load_visualbert(building.text_encoder, building.visual_width)
    config = Config(**{**start.config_values, "num_labels": len(building.label_set.labels)})
    return Built(Model(config, start.visual_bert), start.tokenizer)
