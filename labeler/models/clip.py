"""`clip`: a text tower and an image tower that give a text and its picture the same place in one space.

    input_ids      [B, T]          -> text tower -> mean of words -> projection -> text embedding  [B, S], length 1
    visual_tokens  [B, V, D_image] -> mean, layer norm -----------> projection -> image embedding [B, S], length 1

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". `labeler pretrain` trains both by
which text belongs to which picture, without labels (`labeler.pretraining`); `labeler train` puts a head on them. Differences from
the paper: the image tower is frozen, what is learned of pictures is their projection; words are read by their mean, as MiniLM was
trained to be; and the shared space starts as the text tower's own (the text projection as the identity), since texts of one
meaning are near each other there before the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init

from labeler.artifacts import verify
from labeler.classifier import Classifier, TextTowerConfig, text_positions
from labeler.encoders.pretrained import load_model
from labeler.encoders.text import (
    config_values,
    load_text_encoder,
    pretrained_tower,
    read_words,
    untrained_tower,
)
from labeler.errors import BadInputError
from labeler.layers import LogitScale, ProbeHead, Projection, masked_mean, unit, use_fast_dropout
from labeler.models import Building, Built

# what `labeler pretrain` starts from; the training options of `labeler train` are those of every model
PRETRAINING = {"epochs": 6, "batch_size": 256, "learning_rate": 5e-5, "new_learning_rate": 3e-3, "patience": 3}


class Config(TextTowerConfig):
    """The text tower's own config, the width of the visual tokens and of the shared space, and the dropouts."""

    model_type = "labeler-clip"

    shared_width: int = 384
    image_dropout: float = 0.3


class Embeddings(NamedTuple):
    """Where texts and pictures lie in the shared space: [B, S] each, of length 1; zeros for what is missing."""

    text: Tensor
    image: Tensor


class TwoTowers(PreTrainedModel):
    """Both towers and the logit scale, without a head: what `labeler pretrain` trains and keeps."""

    config_class = Config
    main_input_name = "input_ids"
    new_weights = ("image_projection.", "logit_scale.")  # trained at the higher rate

    def __init__(self, config: Config, text: PreTrainedModel | None = None):
        """Take the text tower `text`, or make an untrained one from `config`."""
        super().__init__(config)
        self.text = text or untrained_tower(cast("dict[str, Any]", config.tower))
        use_fast_dropout(self.text)
        self.text_projection = Projection(self.text.config.hidden_size, config.shared_width)
        self.image_dropout = nn.Dropout(config.image_dropout)
        self.image_projection = Projection(config.visual_width, config.shared_width)
        self.logit_scale = LogitScale()
        self.post_init()

    @property
    def max_text_tokens(self) -> int:
        """Return how many text tokens the position embeddings reach."""
        return text_positions(self.text)

    def forward(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Embeddings:
        """Return the embeddings of a batch (see `labeler.batches`)."""
        text = self.embed_texts(input_ids, text_mask)
        return Embeddings(text, self.embed_pictures(pooled(visual_tokens, visual_mask)))

    def embed_texts(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return the embeddings [B, S] of texts [B, T]."""
        words = masked_mean(read_words(self.text, input_ids, text_mask), text_mask)
        return cast(Tensor, self.text_projection(words))

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return the embeddings [B, S] of `pooled` pictures [B, D_image]."""
        normed = functional.layer_norm(pictures, (self.config.visual_width,))  # zeros stay zeros
        return cast(Tensor, self.image_projection(self.image_dropout(normed)))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.text_projection:
            init.copy_(module.weight, torch.eye(*module.weight.shape))


class Model(Classifier):
    """Both towers and a head for labels: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("head.", "towers.image_projection.")  # trained at the higher rate

    def __init__(self, config: Config, towers: TwoTowers | None = None):
        """Take `towers`, or make untrained ones from `config`."""
        super().__init__(config)
        self.towers = towers or TwoTowers(config)
        self.towers.logit_scale.requires_grad_(False)  # labels do not see it
        widths = config.shared_width, config.shared_width + config.visual_width
        self.head = ProbeHead(widths, cast(int, config.num_labels), config.head_dropout)
        self.post_init()

    @property
    def max_text_tokens(self) -> int:
        """Return how many text tokens the position embeddings reach."""
        return self.towers.max_text_tokens

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings, which `labeler.explaining.attribution` integrates over."""
        return self.towers.text.get_input_embeddings()

    def features(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the head reads, [B, 2 S + D_image]: both embeddings and the mean visual token; zeros if missing."""
        embeddings = self.towers(input_ids, text_mask, visual_tokens, visual_mask)
        return torch.cat([*embeddings, pooled(visual_tokens, visual_mask)], dim=1)


def pooled(visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
    """Return the mean of the visual tokens [B, D_image] at length 1; zeros where there is no picture."""
    return unit(masked_mean(visual_tokens, visual_mask).float())


def build_towers(text_encoder: str, visual_width: int) -> tuple[TwoTowers, PreTrainedTokenizerBase]:
    """Return towers that have never seen each other, on the text tower's weights, and its tokenizer."""
    tower = load_text_encoder(text_encoder)
    sizes = {
        "tower": config_values(tower),
        "visual_width": visual_width,
        "shared_width": tower.model.config.hidden_size,
    }
    return TwoTowers(Config(**sizes), pretrained_tower(tower)), tower.tokenizer


def load_towers(folder: Path) -> tuple[TwoTowers, PreTrainedTokenizerBase]:
    """Return the towers of a run of `labeler pretrain` that the caller has verified, and their tokenizer."""
    return load_model(TwoTowers, folder, "clip", "pretrain"), AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )


def build(building: Building) -> Built:
    """Return a head on the towers of the run `building.init`, or on embedded ones that have never seen each other.

    Raises BadInputError when `building.init` is no run of `labeler pretrain`, damaged, or of other pictures than the store.
    """
    if building.init:
        verify(building.init, "pretrain")
        towers, tokenizer = load_towers(building.init)
        if towers.config.visual_width != building.visual_width:
            raise BadInputError(
                f"{building.init}: its pictures are {towers.config.visual_width} numbers wide, the store's "
                f"{building.visual_width}; preprocess with its image encoder, or pretrain on this store"
            )
    else:
        towers, tokenizer = build_towers(building.text_encoder, building.visual_width)
    config = Config(**{**towers.config.to_dict(), "num_labels": len(building.label_set.labels)})
    return Built(Model(config, towers), tokenizer)
