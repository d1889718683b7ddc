"""`visualbert-coattn`: VisualBERT with co-attention at its fusion point.

    text   [B, T, D] --+-- co-attention --+-- text'   [B, T, D] --+
                       |  (n blocks, each |                        [text'; visual'] -> encoder -> mean of each -> logits
    visual [B, V, D] --+   way its mask)  +-- visual' [B, V, D] --+

The words attend the picture's tokens and the picture's tokens attend the words, before the one stream begins. Lu et
al. 2016 ("Hierarchical Question-Image Co-Attention") and 2019 ("ViLBERT"). The blocks are part of the model: built
once, saved, trained. Their output projections start at zero, so at the first step this is VisualBERT to the last
digit, and whatever they come to do is learned.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel, VisualBertConfig, VisualBertModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from labeler.encoders.visualbert import load_visualbert
from labeler.layers import CoAttention, FusedEncoder, ProbeHead, ZeroLinear, fused_features
from labeler.losses import labelling_loss
from labeler.models import Building, Built


class Config(VisualBertConfig):
    """VisualBertConfig, where text positions start, the dropout before the head, and the number of co-attention blocks."""

    model_type = "labeler-visualbert-coattn"

    position_offset: int = 0
    head_dropout: float = 0.5
    n_coattn: int = 1


class Model(PreTrainedModel):
    """VisualBERT with co-attention and a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    base_model_prefix = "fused"
    main_input_name = "input_ids"
    new_weights = (
        "fused.embeddings.visual_",
        "fused.visual_weight",
        "coattention.",
        "head.",
    )  # trained at the higher rate

    def __init__(self, config: Config, visual_bert: VisualBertModel | None = None):
        """Take the encoder of `visual_bert`, or make an untrained one from `config`."""
        super().__init__(config)
        visual_bert = visual_bert or VisualBertModel(config, add_pooling_layer=False)
        self.fused = FusedEncoder(visual_bert, config.position_offset)
        self.coattention = nn.ModuleList(
            CoAttention(
                config.hidden_size, config.num_attention_heads, config.intermediate_size, config.hidden_dropout_prob
            )
            for _ in range(config.n_coattn)
        )
        widths = config.hidden_size, config.hidden_size + config.visual_embedding_dim
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    @property
    def max_text_tokens(self) -> int:
        """Return how many text tokens the position embeddings reach."""
        return self.config.max_position_embeddings - self.config.position_offset

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):  # transformers starts every linear layer at random
            init.zeros_(module.weight)

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_tokens: Tensor,
        visual_mask: Tensor,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits [B, L], and the loss where labels are given."""
        logits = self.head(self.features(input_ids, text_mask, visual_tokens, visual_mask))
        return SequenceClassifierOutput(loss=None if labels is None else labelling_loss(logits, labels), logits=logits)

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, 2 D + D_image]."""
        streams = self.fused.embed(input_ids, visual_tokens)
        for block in self.coattention:
            streams = block(streams, text_mask, visual_mask)
        streams = self.fused(streams, text_mask, visual_mask)
        return fused_features(streams, text_mask, visual_mask, visual_tokens)


def build(task: Building) -> Built:
    """Return VisualBERT on the text tower's weights with `n_coattn` fresh blocks, and its tokenizer."""
    start = load_visualbert(task.text_encoder, task.visual_width)
    config = Config(**{**start.config_values, "num_labels": len(task.label_set.labels), "n_coattn": task.n_coattn})
    return Built(Model(config, start.visual_bert), start.tokenizer)
