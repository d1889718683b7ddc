"""Fusion models: one a file; the file's name, with hyphens, is the model's name.

Such a file holds a config class (`Config`), the module (`Model`: a batch in, logits [B, L] out) and
`build(task: Building) -> Model`. Adding a model is adding a file; the tests of all models take it up.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from labeler.artifacts import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from labeler.records import LabelSet


class Building(NamedTuple):
    """What a model is built from.

    label_set: the labels; text_encoder: the text tower's name; visual_width: D_image of the visual tokens;
    texts: the training texts (for a vocabulary of one's own); n_coattn: blocks of co-attention.
    """

    label_set: LabelSet
    text_encoder: str
    visual_width: int
    texts: list[str]
    n_coattn: int = 1


class Built(NamedTuple):
    """A model ready to be trained, and the tokenizer that makes its input."""

    model: object
    tokenizer: PreTrainedTokenizerBase


def model_names() -> list[str]:
    """Return the names of all models."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(file.stem.replace("_", "-") for file in files)


def model_module(name: str) -> ModuleType:
    """Return the module of the model `name`; raises UsageError naming the closest one when there is none."""
    names = model_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown model {name!r}; {hint} There are: {', '.join(names)}".replace("  ", " "))
    return importlib.import_module(f"labeler.models.{name.replace('-', '_')}")
