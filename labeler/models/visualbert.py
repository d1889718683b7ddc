"""`visualbert`: one transformer over the words and the picture's tokens side by side.

    input_ids      [B, T]         -> embeddings -> text   [B, T, D] --+
                                                                      [text; visual] -> encoder -> mean of each -> logits
    visual_tokens  [B, V, D_image] -> projection -> visual [B, V, D] -+

Li et al. 2019, "VisualBERT: A Simple and Performant Baseline for Vision and Language". The encoder starts from a
BERT-like text tower, every weight of it; only the projection of the visual tokens and the head are new.
Differences from the paper: visual tokens are a grid unless the image encoder is a detector (`regions:`), and the
head reads the mean of each stream instead of [CLS], which MiniLM was never trained to be read by.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers import VisualBertModel

from labeler.classifier import FusedClassifier, FusedConfig
from labeler.encoders.visualbert import load_visualbert
from labeler.layers import ProbeHead, Streams, fused_features
from labeler.models import Building, Built

TRAINING = {"visual_token_dropout": 0.5}


class Config(FusedConfig):
    """VisualBertConfig, where text positions start, and the dropout before the head."""

    model_type = "labeler-visualbert"


class Model(FusedClassifier):
    """VisualBERT with a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("fused.embeddings.visual_", "head.")  # trained at the higher rate

    def __init__(self, config: Config, visual_bert: VisualBertModel | None = None):
        """Take the encoder of `visual_bert`, or make an untrained one from `config`."""
        super().__init__(config, visual_bert)
        widths = config.hidden_size, config.hidden_size + config.visual_embedding_dim
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, 2 D + D_image]."""
        streams = self.streams(input_ids, text_mask, visual_tokens, visual_mask)
        return fused_features(streams, text_mask, visual_mask, visual_tokens)

    def streams(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams after the encoder: text [B, T, D], visual [B, V, D]."""
        return self.fused(self.fused.embed(input_ids, visual_tokens), text_mask, visual_mask)


def build(building: Building) -> Built:
    """Return VisualBERT on the text tower's weights, with its tokenizer."""
    start = load_visualbert(building.text_encoder, building.visual_width)
    config = Config(**{**start.config_values, "num_labels": len(building.label_set.labels)})
    return Built(Model(config, start.visual_bert), start.tokenizer)
