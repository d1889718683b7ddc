"""Contrastive models as they were published (CLIP, SigLIP and their kin): two towers that zero-shot labels can be read from.

    input_ids [B, T]       -> text half  -> text embedding  [B, S], length 1 -+
                                                                              cosine * scale with what stands for each label
    pixels    [B, 3, H, W] -> image half -> image embedding [B, S], length 1 -+

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; Zhai et al. 2023, "Sigmoid Loss for
Language Image Pre-Training". Differences: a picture is stretched to the size that the model takes, as for every tower here, and
not cropped; and of SigLIP, whose sigmoid looks at each label alone, the labels' cosines share one softmax.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from labeler.encoders.image import input_of, normalised
from labeler.encoders.pretrained import load_transformers, quiet
from labeler.encoders.text import no_words
from labeler.encoders.weights import from_folder_or_hub
from labeler.errors import LabelerError
from labeler.layers import unit
from labeler.models.clip import Embeddings

# what config.json may say; siglip2's fixed sizes are siglip there
KINDS = ("clip", "chinese_clip", "metaclip_2", "siglip")
PADDED = ("siglip",)  # trained on texts padded to their full length, without a mask
ADVICE = "take a run of `labeler pretrain clip`, or a folder with a copy of it"


class PublishedTowers(nn.Module):
    """A published model's two halves: a batch with `pixels` (see `labeler.batches`) in, `Embeddings` out."""

    def __init__(self, model: Any, pad_token_id: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        """Take transformers' `model`, texts for which are padded with `pad_token_id`; pictures: see `ImageEncoder`."""
        super().__init__()
        self.model, self.pad_token_id, self.size, self.mean, self.std = model, pad_token_id, size, mean, std
        self.max_text_tokens: int = model.config.text_config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return cast(torch.device, self.model.device)

    def logit_scale(self) -> Tensor:
        """Return what cosines are multiplied by."""
        return cast(Tensor, self.model.logit_scale.exp())

    def embed_texts(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return where texts [B, T] lie, [B, S] at length 1; zeros for those that are missing."""
        present = text_mask.any(dim=1)
        mask = (text_mask | ~present.unsqueeze(1)).long()  # softmax over no token at all would be NaN
        if self.model.config.model_type in PADDED:
            missing = self.max_text_tokens - input_ids.shape[1]
            # the tokenizer's padding, which config.json may not name
            found = self.model.get_text_features(functional.pad(input_ids, (0, missing), value=self.pad_token_id))
        else:
            found = self.model.get_text_features(input_ids, attention_mask=mask)
        return unit(found.pooler_output) * present.unsqueeze(1)

    def forward(self, input_ids: Tensor, text_mask: Tensor, pixels: Tensor, visual_mask: Tensor) -> Embeddings:
        """Return the embeddings of a batch, the text's only where there is no picture.

        These towers learned which text belongs to which picture, and never how near two texts are: cosines of texts are of
        another size, and would drown what the picture says.
        """
        seen = visual_mask.any(dim=1)
        text = self.embed_texts(input_ids, text_mask & ~seen.unsqueeze(1))
        image = torch.zeros_like(text)
        if seen.any():
            shown = normalised(pixels[seen], self.mean, self.std)
            image[seen] = unit(self.model.get_image_features(pixel_values=shown).pooler_output)
        return Embeddings(text, image)


class Published(NamedTuple):
    """A published model that was opened: its towers and the tokenizer of its texts."""

    towers: PublishedTowers
    tokenizer: PreTrainedTokenizerBase


def load_published(name: str) -> Published:
    """Return the model in the folder `name`, or of that name on a hub, with `hf:` before it or not.

    Raises LabelerError: of another kind than KINDS, weights missing or left over, no tokenizer, or not here and the hub out of
    reach (within 10 s).
    """
    expected = "a transformers folder with model, tokenizer and image processor"
    return from_folder_or_hub(name, "zero-shot", partial(_load, name), expected, ADVICE)


def _load(name: str, source: str, local: bool) -> Published:
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **where)
    if config.model_type not in KINDS:
        raise LabelerError(f"{name}: a {config.model_type!r} model; expected one of {', '.join(KINDS)}")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        processor = AutoImageProcessor.from_pretrained(source, **where)
    if no_words(tokenizer) or tokenizer.pad_token_id is None:
        raise LabelerError(f"{name}: no tokenizer beside the model; copy the tokenizer's files there")
    model = load_transformers(name, source, config, local=local, left_over=())
    towers = PublishedTowers(model, cast(int, tokenizer.pad_token_id), *input_of(name, processor))
    return Published(towers, tokenizer)
