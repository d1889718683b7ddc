"""`flava`: a text encoder and an image encoder each on its own, and a multimodal encoder over what both give.

    input_ids      [B, T]          -> text encoder -> linear -> text   [B, T, D] --+
                                                      CLS token        [B, 1, D] --+-- multimodal encoder -> logits
    visual_tokens  [B, V, D_image] -----------------> linear -> visual [B, V, D] --+

Singh et al. 2022, "FLAVA: A Foundational Language And Vision Alignment Model"; transformers' `FlavaMultimodalModel` holds the
multimodal encoder. Padding of the text is masked there too; transformers' own FlavaModel masks it only where it is told to, and
FLAVA's authors never did.

With `facebook/flava-full` as both towers all of it is pretrained, and what the multimodal encoder gives is FLAVA's to the last
digit. With any other text tower (`embedded`: MiniLM and EfficientNet-Lite0) the multimodal encoder is new, half as deep as the
text tower. There is a way around each of its layers, so that at first what the towers say comes through; the projection of the
words starts as the identity, and the picture's tokens weigh as much as one word together (`labeler.layers.attention_bias`).

Difference from the paper: beside the CLS token, which a new encoder has taught nothing, the head reads the mean of the fused
words and the mean of the image tower's own tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import FlavaModel, FlavaMultimodalConfig, FlavaMultimodalModel, PreTrainedModel

from labeler.classifier import TextTowerClassifier, TextTowerConfig
from labeler.encoders.flava import FLAVA_TEXTS
from labeler.encoders.text import (
    config_value,
    config_values,
    load_text_encoder,
    pretrained_tower,
    read_words,
)
from labeler.errors import LabelerError
from labeler.layers import ProbeHead, Streams, attention_bias, masked_mean, unit, use_fast_dropout
from labeler.models import Building, Built


class Config(TextTowerConfig):
    """The text tower's own config and the multimodal encoder's, the visual tokens' width, whether fusion is pretrained."""

    model_type = "labeler-flava"

    fusion: dict[str, Any] | None = None
    pretrained_fusion: bool = False


class Model(TextTowerClassifier):
    """FLAVA with a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config

    def __init__(self, config: Config, text: PreTrainedModel | None = None):
        """Take the text tower `text`, or make an untrained one from `config`."""
        super().__init__(config, text)
        if self.text.config.model_type == FLAVA_TEXTS:  # whose encoders hand on what they have before their last norm
            self.text.layernorm = nn.Identity()
        self.fusion = FlavaMultimodalModel(
            FlavaMultimodalConfig(**cast("dict[str, Any]", config.fusion)), add_pooling_layer=False
        )
        width = self.fusion.config.hidden_size
        self.text_to_fusion = nn.Linear(self.text.config.hidden_size, width)
        self.image_to_fusion = nn.Linear(config.visual_width, width)
        use_fast_dropout(self)
        widths = width, width, config.visual_width
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    @property
    def new_weights(self) -> tuple[str, ...]:
        """Return how the names begin of weights that start at random, which are trained at the higher rate."""
        return ("head.",) if self.config.pretrained_fusion else ("fusion.", "image_to_fusion.", "head.")

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, 2 D + D_image]: the mean fused word, CLS, the image tower's mean, each at length 1.

        What is missing gives zeros; CLS does so where either is missing.
        """
        hidden = self.fused(input_ids, text_mask, visual_tokens, visual_mask)
        both = text_mask.any(dim=1, keepdim=True) & visual_mask.any(dim=1, keepdim=True)  # [B, 1]
        words = streams_of(hidden, text_mask).text
        parts = masked_mean(words, text_mask), hidden[:, 0] * both, masked_mean(visual_tokens, visual_mask)
        return torch.cat([unit(part.float()) for part in parts], dim=1)

    def streams(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams after the multimodal encoder: text [B, T, D], visual [B, V, D]."""
        return streams_of(self.fused(input_ids, text_mask, visual_tokens, visual_mask), text_mask)

    def fused(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the multimodal encoder gives of [CLS; text; visual], [B, 1 + T + V, D]; it has no positions of its own."""
        cls = self.fusion.cls_token.expand(input_ids.shape[0], -1, -1)
        text = self.text_to_fusion(read_words(self.text, input_ids, text_mask))
        hidden = torch.cat([cls, text, self.image_to_fusion(visual_tokens)], dim=1)
        mask = torch.cat([torch.ones_like(text_mask[:, :1]), text_mask], dim=1)
        bias = attention_bias(mask, visual_mask, together=not self.config.pretrained_fusion).to(hidden.dtype)
        hidden = self.fusion.encoder(hidden, attention_mask=bias).last_hidden_state
        return cast(Tensor, self.fusion.layernorm(hidden))


def streams_of(hidden: Tensor, text_mask: Tensor) -> Streams:
    """Return text [B, T, D] and visual [B, V, D] of hidden [B, 1 + T + V, D]."""
    end = 1 + text_mask.shape[1]
    return Streams(hidden[:, 1:end], hidden[:, end:])


def build(building: Building) -> Built:
    """Return FLAVA as it was released where the text tower is its own, else a new multimodal encoder on the text tower.

    Raises LabelerError when released FLAVA is given visual tokens of another width than its own.
    """
    tower = load_text_encoder(building.text_encoder)
    released = tower.flava
    if released and released.image_hidden_size != building.visual_width:
        raise LabelerError(
            f"{tower.name} takes visual tokens of width {released.image_hidden_size}, the image encoder gives "
            f"{building.visual_width}; preprocess with --image-encoder {tower.name}"
        )
    sizes: dict[str, Any] = {
        "tower": config_values(tower),
        "fusion": released.multimodal_model.config.to_diff_dict() if released else fusion_sizes(tower.model.config),
        "pretrained_fusion": released is not None,
        "visual_width": building.visual_width,
        "num_labels": len(building.label_set.labels),
    }
    model = Model(Config(**sizes), pretrained_tower(tower))
    if released:
        take_fusion(model, released)
    else:
        nn.init.eye_(model.text_to_fusion.weight)
    return Built(model, tower.tokenizer)


def fusion_sizes(text: Any) -> dict[str, Any]:
    """Return the sizes of a new multimodal encoder on a text tower of config `text`: as wide, and half as deep, as in FLAVA."""
    heads, layers, dropout = (
        config_value(text, name) for name in ("num_attention_heads", "num_hidden_layers", "hidden_dropout_prob")
    )
    return {
        "hidden_size": text.hidden_size,
        "num_hidden_layers": max(1, layers // 2),
        "num_attention_heads": heads,
        "intermediate_size": 4 * text.hidden_size,
        "hidden_dropout_prob": dropout,
    }


def take_fusion(model: Model, released: FlavaModel) -> None:
    """Give `model` the multimodal encoder of released FLAVA, and the projections into it."""
    weights = released.multimodal_model.state_dict()
    model.fusion.load_state_dict({name: value for name, value in weights.items() if not name.startswith("pooler.")})
    model.text_to_fusion.load_state_dict(released.text_to_mm_projection.state_dict())
    model.image_to_fusion.load_state_dict(released.image_to_mm_projection.state_dict())
