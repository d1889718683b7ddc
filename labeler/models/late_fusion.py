"""`late-fusion`: text tower and image tower each on its own, their pooled outputs side by side, a small MLP.

    input_ids      [B, T]          -> text tower -> mean of words [B, D] --+
                                                                           [text; image] -> linear + MLP -> logits
    visual_tokens  [B, V, D_image] -> mean ---------------> [B, D_image] --+

The honest rival of VisualBERT (ConcatBERT in Kiela et al. 2020, "The Hateful Memes Challenge"): the same text tower, fine-tuned
at the same rate, and the same frozen picture, but no word ever sees the picture. So what VisualBERT gains over it, it gains by
fusion, and what this gains over the baselines' logistic regression, which reads the same features, by fine-tuning and the MLP.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labeler.classifier import TextTowerClassifier, TextTowerConfig
from labeler.encoders.text import config_values, load_text_encoder, pretrained_tower, read_words
from labeler.layers import ProbeHead, ZeroLinear, masked_mean, unit, use_fast_dropout
from labeler.models import Building, Built


class Config(TextTowerConfig):
    """The text tower's own config, the width of the visual tokens, and the head's sizes."""

    model_type = "labeler-late-fusion"

    mlp_width: int = 256


class Model(TextTowerClassifier):
    """Two towers and an MLP: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("head.", "mlp.")  # trained at the higher rate

    def __init__(self, config: Config, text: PreTrainedModel | None = None):
        """Take the text tower `text`, or make an untrained one from `config`."""
        super().__init__(config, text)
        use_fast_dropout(self.text)
        widths, labels = (self.text.config.hidden_size, config.visual_width), cast(int, config.num_labels)
        self.head = ProbeHead(widths, labels, config.head_dropout)
        self.mlp = nn.Sequential(
            nn.Linear(sum(widths), config.mlp_width),
            nn.GELU(),
            nn.Dropout(config.head_dropout),
            ZeroLinear(config.mlp_width, labels),
        )
        self.post_init()

    def logits(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return logits [B, L]."""
        features = self.features(input_ids, text_mask, visual_tokens, visual_mask)
        more: Tensor = self.mlp(self.head.standardised(features))  # starts as zeros
        return cast(Tensor, self.head(features)) + more

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, D + D_image]: each tower's mean at length 1, zeros where there is nothing."""
        hidden = read_words(self.text, input_ids, text_mask)  # [B, T, D]
        parts = masked_mean(hidden, text_mask), masked_mean(visual_tokens, visual_mask)
        return torch.cat([unit(part.float()) for part in parts], dim=1)


def build(building: Building) -> Built:
    """Return both towers on the text tower's weights, with its tokenizer."""
    tower = load_text_encoder(building.text_encoder)
    sizes: dict[str, Any] = {
        "tower": config_values(tower),
        "visual_width": building.visual_width,
        "num_labels": len(building.label_set.labels),
    }
    return Built(Model(Config(**sizes), pretrained_tower(tower)), tower.tokenizer)
