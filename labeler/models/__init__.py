"""Fusion models: one a file; the file's name, with hyphens, is the model's name.

Such a file holds a config class (`Config`), the module (`Model`: a batch in, logits [B, L] out) and
`build(building: Building) -> Model`. Adding a model is adding a file; the tests of all models take it up.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from labeler.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedTokenizerBase

    from labeler.records import LabelSet

COATTENTIONS = ("vilbert", "seed", "hieco")
COATTN_PLACES = ("before", "between")


class Building(NamedTuple):
    """What a model is built from.

    label_set: the labels; text_encoder: the text tower's name; visual_width: D_image of the visual tokens;
    texts: the training texts (for a vocabulary of one's own); n_coattn: blocks of co-attention; coattention: their
    kind, of COATTENTIONS; coattn_place: where they stand, of COATTN_PLACES; vocabulary: what a vocabulary of one's own
    holds, `word` or `character`; init: the run of `labeler pretrain` to start from, for models that can.
    """

    label_set: LabelSet
    text_encoder: str
    visual_width: int
    texts: list[str]
    n_coattn: int = 1
    coattention: str = "vilbert"
    coattn_place: str = "before"
    vocabulary: str = "word"
    init: Path | None = None


class Built(NamedTuple):
    """A model ready to be trained, and the tokenizer that makes its input."""

    model: object
    tokenizer: PreTrainedTokenizerBase


def model_names() -> list[str]:
    """Return the names of all models."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(file.stem.replace("_", "-") for file in files)


def check_name(name: str) -> str:
    """Return `name`; raises UsageError naming the closest one when there is no such model."""
    return check_choice("model", name, model_names())


def check_choice(kind: str, name: str, names: Collection[str]) -> str:
    """Return `name`; raises UsageError naming what is near of `names` when it is none of them."""
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown {kind} {name!r}; {hint}There are: {', '.join(names)}")


def training_defaults(name: str) -> dict[str, Any]:
    """Return the constant TRAINING of a model's file: the training options that are its own; {} where it has none."""
    return constant(name, "TRAINING")


def constant(name: str, wanted: str) -> dict[str, Any]:
    """Return a constant of a model's file, {} where it has none.

    It is read from the source, since importing the file imports torch, which a stage with nothing to do can spare.
    """
    source = (Path(__file__).parent / f"{check_name(name).replace('-', '_')}.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == wanted:
            return cast("dict[str, Any]", ast.literal_eval(statement.value))
    return {}


def model_module(name: str) -> ModuleType:
    """Return the module of the model `name`, made known to transformers' AutoConfig and AutoModel.

    Raises UsageError naming the closest one when there is none.
    """
    module = importlib.import_module(f"labeler.models.{check_name(name).replace('-', '_')}")
    from transformers import AutoConfig, AutoModel

    AutoConfig.register(module.Config.model_type, module.Config, exist_ok=True)
    AutoModel.register(module.Config, module.Model, exist_ok=True)
    return module
