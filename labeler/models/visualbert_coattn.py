"""`visualbert-coattn`: VisualBERT with co-attention before its encoder, or between the encoder's layers.

    text   [B, T, D] --+-- co-attention --+-- text'   [B, T, D] --+
                       |  (n blocks, each |                        [text'; visual'] -> encoder -> mean of each -> logits
    visual [B, V, D] --+   way its mask)  +-- visual' [B, V, D] --+

The words attend the picture's tokens and the picture's tokens attend the words. Three kinds of block
(`labeler.coattention`): `vilbert` (Lu et al. 2019), `seed` (bare attention, swapped) and `hieco` (Lu et
al. 2016). The blocks are part of the model: built once, saved, trained. The output projections of `vilbert` and `hieco`
start at zero, so at the first step this is VisualBERT to the last digit, and whatever they come to do is learned; `seed`
has no way around its attention and starts elsewhere.

They stand `before` the one stream begins, as drawn; or `between` the encoder's layers, which n blocks cut into n + 1 runs
as equal as can be. Of six layers: one block behind the third; two behind the second and the fourth; four behind the
first, second, fourth and fifth. There the one stream is split, goes through the block and is joined again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from transformers import VisualBertModel

from labeler.classifier import FusedClassifier, FusedConfig
from labeler.coattention import AffinityAttention, CoAttention, SwappedAttention
from labeler.encoders.visualbert import load_visualbert
from labeler.errors import UsageError
from labeler.layers import ProbeHead, Streams, fused_features
from labeler.models import COATTN_PLACES, Building, Built, check_choice

TRAINING = {"n_coattn": 1, "coattention": "vilbert", "coattn_place": "before"}
TUNING = {"n_coattn": (1, 2), "coattention": ["vilbert", "seed", "hieco"], "coattn_place": ["before", "between"]}


class Config(FusedConfig):
    """VisualBertConfig, where text positions start, the dropout before the head; number, kind and place of the blocks."""

    model_type = "labeler-visualbert-coattn"

    n_coattn: int = 1
    coattention: str = "vilbert"  # what runs have that were saved before there was a choice, like the place
    coattn_place: str = "before"


class Model(FusedClassifier):
    """VisualBERT with co-attention and a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("fused.embeddings.visual_", "coattention.", "head.")  # trained at the higher rate

    def __init__(self, config: Config, visual_bert: VisualBertModel | None = None):
        """Take the encoder of `visual_bert`, or make an untrained one from `config`.

        Raises UsageError for a kind or place of blocks that there is not, or more blocks than places between layers.
        """
        super().__init__(config, visual_bert)
        block = BLOCKS[check_choice("co-attention", config.coattention, BLOCKS)]
        self.depths = depths(config)
        self.coattention = nn.ModuleList(block(config) for _ in range(config.n_coattn))
        widths = config.hidden_size, config.hidden_size + config.visual_embedding_dim
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, 2 D + D_image]."""
        streams = self.streams(input_ids, text_mask, visual_tokens, visual_mask)
        return fused_features(streams, text_mask, visual_mask, visual_tokens)

    def streams(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Streams:
        """Return both streams after the encoder: text [B, T, D], visual [B, V, D]."""
        blocks: dict[int, list[nn.Module]] = {}
        for depth, block in zip(self.depths, self.coattention, strict=True):
            blocks.setdefault(depth, []).append(block)
        return self.fused(self.fused.embed(input_ids, visual_tokens), text_mask, visual_mask, blocks)


BLOCKS: dict[str, Callable[[Config], nn.Module]] = {
    "vilbert": lambda config: CoAttention(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.hidden_dropout_prob
    ),
    "seed": lambda config: SwappedAttention(config.hidden_size, config.num_attention_heads, config.hidden_dropout_prob),
    "hieco": lambda config: AffinityAttention(config.hidden_size, config.hidden_dropout_prob),
}


def depths(config: Config) -> list[int]:
    """Return how many of the encoder's layers come before each block; raises UsageError as `Model` does."""
    count, layers = config.n_coattn, config.num_hidden_layers
    if check_choice("place of co-attention", config.coattn_place, COATTN_PLACES) == "before":
        return [0] * count
    if count >= layers:
        raise UsageError(
            f"--n-coattn is {count}, but between the text tower's {layers} layers is room for {layers - 1}; give at most "
            "that, or --coattn-place before"
        )
    return [round(number * layers / (count + 1)) for number in range(1, count + 1)]


def build(building: Building) -> Built:
    """Return VisualBERT on the text tower's weights with `n_coattn` fresh blocks, and its tokenizer."""
    start = load_visualbert(building.text_encoder, building.visual_width)
    blocks = {"n_coattn": building.n_coattn, "coattention": building.coattention, "coattn_place": building.coattn_place}
    config = Config(**{**start.config_values, "num_labels": len(building.label_set.labels), **blocks})
    return Built(Model(config, start.visual_bert), start.tokenizer)
