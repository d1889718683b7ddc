"""What the fusion models share: a batch in, features, logits out. Their files hold what they do not share.

`Classifier` is any of them; `FusedClassifier` one whose words and visual tokens start in VisualBERT's embeddings,
`TextTowerClassifier` one whose words go through a text tower first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, VisualBertConfig, VisualBertModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from labeler.encoders.text import position_offset, untrained_tower
from labeler.layers import FusedEncoder, ProbeHead, ZeroLinear
from labeler.losses import labelling_loss


class Classifier(PreTrainedModel):
    """A model of `labeler.models`: a batch (see `labeler.batches`) in, logits [B, L] out.

    One that gives `features` and has a `head` over them starts from a fitted linear probe (`labeler.layers.ProbeHead`).
    """

    main_input_name = "input_ids"
    head: ProbeHead

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_tokens: Tensor,
        visual_mask: Tensor,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits [B, L], and the loss where labels are given."""
        logits = self.logits(input_ids, text_mask, visual_tokens, visual_mask)
        return SequenceClassifierOutput(loss=None if labels is None else labelling_loss(logits, labels), logits=logits)

    def logits(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return logits [B, L]: what the head makes of the features."""
        features: Callable[..., Tensor] = self.features  # type: ignore[assignment]  # a model's own
        return cast(Tensor, self.head(features(input_ids, text_mask, visual_tokens, visual_mask)))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):  # transformers starts every linear layer at random
            init.zeros_(module.weight)


class FusedConfig(VisualBertConfig):
    """VisualBertConfig, where text positions start, and the dropout before the head."""

    position_offset: int = 0
    head_dropout: float = 0.5


class FusedClassifier(Classifier):
    """A model over VisualBERT's embeddings and layers."""

    base_model_prefix = "fused"

    def __init__(self, config: FusedConfig, visual_bert: VisualBertModel | None = None):
        """Take the encoder of `visual_bert`, or make an untrained one from `config`."""
        super().__init__(config)
        self.fused = FusedEncoder(
            visual_bert or VisualBertModel(config, add_pooling_layer=False), config.position_offset
        )

    @property
    def max_text_tokens(self) -> int:
        """Return how many text tokens the position embeddings reach."""
        return self.config.max_position_embeddings - self.config.position_offset

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings, which `labeler.explaining.attribution` integrates over."""
        return self.fused.embeddings.word_embeddings


class TextTowerConfig(PreTrainedConfig):
    """The text tower's own config, the width of the visual tokens, and the dropout before the head."""

    tower: dict[str, Any] | None = None
    visual_width: int = 1280
    head_dropout: float = 0.5


class TextTowerClassifier(Classifier):
    """A model over a text tower."""

    def __init__(self, config: TextTowerConfig, text: PreTrainedModel | None = None):
        """Take the text tower `text`, or make an untrained one from `config`."""
        super().__init__(config)
        self.text = text or untrained_tower(cast("dict[str, Any]", config.tower))

    @property
    def max_text_tokens(self) -> int:
        """Return how many text tokens the position embeddings reach."""
        return text_positions(self.text)

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings, which `labeler.explaining.attribution` integrates over."""
        return self.text.get_input_embeddings()


def text_positions(tower: PreTrainedModel) -> int:
    """Return how many tokens a text tower's position embeddings reach."""
    positions: int = tower.config.max_position_embeddings
    return positions - position_offset(tower.config)
