"""FLAVA as it was released, `facebook/flava-full` on the hub or a folder with a copy: every weight of it is accounted for.

Singh et al. 2022, "FLAVA: A Foundational Language And Vision Alignment Model". Its text encoder and its image encoder are towers
like any other; its multimodal encoder is what the model `flava` goes on with.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoModel, FlavaImageConfig, FlavaImageModel, FlavaModel, FlavaTextConfig, FlavaTextModel

from labeler.encoders.pretrained import load_transformers

# transformers knows them as parts of FLAVA alone; a run holds them by themselves
AutoModel.register(FlavaTextConfig, FlavaTextModel, exist_ok=True)
AutoModel.register(FlavaImageConfig, FlavaImageModel, exist_ok=True)

# what config.json calls it, and its encoders by themselves
FLAVA, FLAVA_TEXTS, FLAVA_IMAGES = "flava", "flava_text_model", "flava_image_model"
LEFT_OVER = {
    "image_codebook.": "what turns pictures into the numbers that are guessed in pretraining",
    "mim_head.": "what guesses masked parts of a picture",
    "mlm_head.": "what guesses hidden words",
    "mmm_image_head.": "what guesses masked parts with the text in view",
    "mmm_text_head.": "what guesses hidden words with the picture in view",
    "itm_head.": "what tells matching pairs from others",
}


def load_flava(name: str, source: str, config: Any, *, local: bool) -> FlavaModel:
    """Return FLAVA with the weights at `source`, a folder or a hub's name, in float32.

    Raises LabelerError unless every weight has its place, or is of a head of its pretraining (LEFT_OVER).
    """
    return cast(FlavaModel, load_transformers(name, source, config, local=local, left_over=LEFT_OVER))
