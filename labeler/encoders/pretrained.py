"""Models of transformers and torchvision with their published weights: every weight is accounted for, no code comes with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedModel

from labeler.encoders.weights import from_hub
from labeler.errors import BadInputError, LabelerError

# What may be left over in the files, since nothing here reads it, by how its name begins. Anything else is an error.
LEFT_OVER = {
    "cls.": "what BERT and VisualBERT guess words and matching sentences with in their pretraining",
    "lm_head.": "what RoBERTa and BEiT guess masked parts with",
    "vocab_": "what DistilBERT guesses words with",
    "generator_": "what ELECTRA's generator guesses words with",
    "discriminator_predictions.": "what ELECTRA finds replaced words with",
    "decoder.": "what draws masked parts of a picture",
    "mask_token": "what stands for a masked part of a picture",
    "embeddings.mask_token": "the same",
    "classifier.": "a head for classes",
    "pre_classifier.": "the layer before it in DistilBERT",
    "cls_classifier.": "DeiT's head on the class token",
    "distillation_classifier.": "DeiT's head on the distillation token",
    "qa_outputs.": "a head for answers in a text",
    "text_model.": "the text half of CLIP and its kin",
    "text_projection.": "from it to the space that both halves share",
    "visual_projection.": "from the pictures' half to that space",
    "logit_scale": "the temperature in that space",
    "logit_bias": "SigLIP's bias there",
    "pooler.": "one vector for the whole; the towers are read before it",
}
# What may be missing in them: a head of one task has often been saved without it.
MISSING = ("pooler.",)


Model = TypeVar("Model", bound=PreTrainedModel)


def load_transformers(
    name: str, source: str, config: Any, *, local: bool, left_over: Collection[str] = LEFT_OVER.keys()
) -> PreTrainedModel:
    """Return transformers' model of `config` with the weights at `source`, a folder or a hub's name, in float32.

    Weights are safetensors or a `pytorch_model.bin`, which is read without running what a pickle may hold.

    Raises LabelerError unless every weight has its place, or its name begins as one of `left_over` or MISSING.
    """
    with quiet():
        model, found = AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, local_files_only=local, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    prefix = f"{model.base_model_prefix}."
    problems = {"missing": (found["missing_keys"], MISSING), "left over": (found["unexpected_keys"], tuple(left_over))}
    for problem, (keys, allowed) in problems.items():
        unknown = sorted(key for key in keys if not key.removeprefix(prefix).startswith(allowed))
        if unknown:
            shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise LabelerError(
                f"{name}: {len(unknown)} weights {problem} ({shown}); is config.json the one that belongs to these weights?"
            )
    return model.eval()


def load_model(kind: type[Model], folder: Path, name: str, stage: str) -> Model:
    """Return a model of ours from the folder that `labeler STAGE` wrote.

    Raises BadInputError when it lacks weights of today's model `name` or has others.
    """
    loader: Any = kind
    with quiet():
        model, loading = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if strange := sorted({*loading["unexpected_keys"], *(key for key, *_ in loading["mismatched_keys"])}):
        raise BadInputError(
            f"{folder}: {name} has no place for its weights ({', '.join(strange[:3])}), they are of another architecture or of a "
            f"newer labeler; use the run as it was written, or make it again with `labeler {stage} --force`"
        )
    if missing := sorted(loading["missing_keys"]):
        raise BadInputError(
            f"{folder}: weights that {name} has now are not in it ({', '.join(missing[:3])}), an older labeler made it; make it "
            f"again with `labeler {stage} --force`"
        )
    return cast(Model, model)


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers say nothing: what it reports about weights is either expected or an error of ours."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def load_torchvision(name: str, weights: Any, build: Callable[[dict[str, Any]], nn.Module]) -> nn.Module:
    """Return what `build` makes of torchvision's published `weights`, from its cache or the network; see `from_hub`."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    model = from_hub(
        name, "image",
        lambda: build(torch.load(cached, map_location="cpu", weights_only=True)),
        lambda: build(weights.get_state_dict(progress=False, check_hash=True)),
        weights.url,
    )  # fmt: skip
    assert isinstance(model, nn.Module)
    return model
