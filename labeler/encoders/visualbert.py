"""VisualBERT's starting point: transformers' VisualBertModel with every weight of a BERT-like text tower."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, VisualBertConfig, VisualBertModel

from labeler.encoders.text import BERT_LIKE, TextEncoder, config_value, load_text_encoder, position_offset
from labeler.encoders.weights import EMBEDDED
from labeler.errors import LabelerError

TAKEN_OVER = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
              "hidden_dropout_prob", "max_position_embeddings", "layer_norm_eps")  # fmt: skip
# DistilBERT is BERT with other names and no token types.
DISTILBERT_WEIGHTS = {
    "transformer.layer.": "encoder.layer.",
    ".q_lin.": ".self.query.",
    ".k_lin.": ".self.key.",
    ".v_lin.": ".self.value.",
    ".out_lin.": ".output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}
NEW = (
    "embeddings.visual_token_type_embeddings",
    "embeddings.visual_position_embeddings",
    "embeddings.visual_projection",
)


class Start(NamedTuple):
    """A VisualBertModel to train from, the values for a config like its own, and the tokenizer."""

    visual_bert: VisualBertModel
    config_values: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase


def load_visualbert(text_encoder: str = EMBEDDED, visual_width: int = 1280) -> Start:
    """Return VisualBERT for visual tokens [B, V, visual_width], on the weights of `text_encoder`.

    A `visual_bert` checkpoint keeps its visual embeddings too where their width fits. Otherwise the visual
    token type and position embeddings start as the text's (type 1, position 0), as VisualBERT's authors
    start them, and the projection starts at random.

    Raises LabelerError when the text tower is missing or has a weight that VisualBERT has no place for.
    """
    tower = load_text_encoder(text_encoder)
    if tower.model.config.model_type not in BERT_LIKE:
        raise LabelerError(
            f"{text_encoder}: its layers are not BERT's, and VisualBERT has no place for them; train flava or late-fusion, or "
            f"preprocess with another --text-encoder ({', '.join(BERT_LIKE)})"
        )
    config = visual_config(tower, visual_width)
    visual_bert = VisualBertModel(config, add_pooling_layer=False)
    take_over(visual_bert, tower)
    values = config.to_diff_dict() | {"position_offset": position_offset(tower.model.config)}
    values = {
        key: value
        for key, value in values.items()
        if key not in ("model_type", "architectures", "transformers_version")
    }
    return Start(visual_bert, values, tower.tokenizer)


def visual_config(tower: TextEncoder, visual_width: int) -> VisualBertConfig:
    """Return VisualBERT's config in the size of a text tower."""
    source = tower.model.config
    if source.model_type == "visual_bert" and source.visual_embedding_dim != visual_width:
        raise LabelerError(
            f"{tower.name} takes visual tokens of width {source.visual_embedding_dim}, the image encoder gives {visual_width}; "
            "choose an image encoder of that width (torchvision:resnet50 gives 2048)"
        )
    values = {name: config_value(source, name) for name in TAKEN_OVER} | {"pad_token_id": tower.tokenizer.pad_token_id}
    # Dropout on attention weights, [B, heads, N, N] random numbers a layer, costs time and buys nothing here (docs/LOG.md).
    values["attention_probs_dropout_prob"] = 0.0
    types = max(2, getattr(source, "type_vocab_size", 0))
    return VisualBertConfig(**values, visual_embedding_dim=visual_width, type_vocab_size=types)


@torch.no_grad()
def take_over(visual_bert: VisualBertModel, tower: TextEncoder) -> None:
    """Copy the tower's weights into `visual_bert`; raises LabelerError unless every one finds its place."""
    weights = {name: value for name, value in tower.model.state_dict().items() if not name.startswith("pooler.")}
    types = "embeddings.token_type_embeddings.weight"
    if tower.model.config.model_type == "distilbert":
        weights = {in_berts_words(name): value for name, value in weights.items()}
        weights[types] = torch.zeros(2, tower.model.config.hidden_size)
    if weights[types].shape[0] == 1:  # RoBERTa has one token type
        weights[types] = weights[types].repeat(2, 1)
    missing, unexpected = visual_bert.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.startswith(NEW)]
    if missing or unexpected:
        raise LabelerError(
            f"{tower.name}: its weights are not BERT's (missing {missing[:3]}, left over {unexpected[:3]})"
        )
    if tower.model.config.model_type != "visual_bert":
        embeddings = visual_bert.embeddings
        embeddings.visual_token_type_embeddings.weight.copy_(embeddings.token_type_embeddings.weight)
        embeddings.visual_position_embeddings.weight.copy_(embeddings.position_embeddings.weight)


def in_berts_words(name: str) -> str:
    """Return BERT's name of DistilBERT's weight `name`."""
    for theirs, berts in DISTILBERT_WEIGHTS.items():
        name = name.replace(theirs, berts)
    return name
