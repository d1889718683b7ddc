"""Stage `pretrain`: a model learns which text belongs to which picture, from a store's train pairs and without their labels."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from labeler.artifacts import Recipe, already_made, check_free, input_of, read_json, remove
from labeler.errors import UsageError
from labeler.inputs import verified_store
from labeler.model_card import given
from labeler.models import check_name, constant, model_names
from labeler.towers_card import towers_card
from labeler.training import Trained, checkpoints_of, publish_run, run_here
from labeler.training_options import TrainOptions, options_for

CHUNK = 256
READ = ("epochs", "batch_size", "learning_rate", "new_learning_rate", "warmup", "weight_decay", "patience", "max_text_tokens",
        "precision")  # fmt: skip


class PretrainOptions(NamedTuple):
    """How a model is pretrained: the training options of READ, and how many pairs the towers hold the graph of at once."""

    training: TrainOptions
    chunk_size: int = CHUNK

    def arguments(self) -> dict[str, Any]:
        """Return what the manifest records."""
        return {name: getattr(self.training, name) for name in READ} | {"chunk_size": self.chunk_size}


def check_can_pretrain(model: str) -> str:
    """Return `model`; raises UsageError naming those that can be pretrained when it is none of them."""
    able = [name for name in model_names() if constant(name, "PRETRAINING")]
    if check_name(model) not in able:
        raise UsageError(f"{model} has no two towers to pretrain; there are: {', '.join(able)}")
    return model


def pretrain_options(model: str, chosen: Mapping[str, Any] | None = None) -> PretrainOptions:
    """Return the model's own defaults for pretraining with what was `chosen` in their place; None counts as not given.

    Raises UsageError for a model that cannot be pretrained, and for a value out of range.
    """
    chosen = {name: value for name, value in (chosen or {}).items() if value is not None}
    chunk_size = chosen.pop("chunk_size", CHUNK)
    options = options_for(model, constant(check_can_pretrain(model), "PRETRAINING") | chosen)
    if chunk_size < 1 or options.batch_size < 2:
        raise UsageError(
            "chunk-size must be 1 or more, batch-size 2 or more: a text needs a picture that is not its own"
        )
    return PretrainOptions(options, chunk_size)


def pretrain(
    model: str,
    data: Path,
    out: Path,
    options: PretrainOptions | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
) -> Trained:
    """Train the two towers of `model` on the whole train pairs (text and picture) of the store `data`; publish the run `out`.

    No label is read. The weights kept are those of the epoch with the best recall at 10 on the validation split, the mean of both
    directions; the test split is not read. An interrupted run leaves its checkpoints beside `out`; `resume` goes on from there.

    Raises UsageError for a model that cannot be pretrained; BadInputError when `data` is no store, or has too few pairs;
    DivergedError when the loss is no longer a number; InterruptedRun after Ctrl-C, once a checkpoint is written.
    """
    options = options or pretrain_options(model)
    manifest = verified_store(data)
    inputs = (input_of(data, manifest),)
    recipe = Recipe("pretrain", inputs, {"model": check_can_pretrain(model), **options.arguments()}, seed)
    if not force and already_made(out, recipe):
        remove(checkpoints_of(out))  # of a run that was killed when it had just been published
        return Trained(out, True, read_json(out / "history.json"))
    check_free(out, "pretrain")
    from labeler.fitting.contrastive import ContrastiveFit  # torch, only when there is something to train

    fit = ContrastiveFit(model, data, options, seed, device)
    trained = {"arguments": recipe.arguments, "inputs": [item._asdict() for item in inputs], "seed": seed}

    def card(folder: Path) -> str:
        return towers_card(folder, trained, shlex.join(pretrain_command(trained, out)), place=out)

    return Trained(out, False, publish_run(partial(run_here, fit), out, recipe, resume, card))


def pretrain_command(trained: dict[str, Any], out: Path) -> list[str]:
    """Return the words to type to pretrain a run again as `out`, with the options that are not the model's own."""
    arguments = dict(trained["arguments"])
    name = arguments.pop("model")
    words = ["labeler", "pretrain", name, trained["inputs"][0]["path"], "--out", str(out)]
    return [*words, *given(arguments, pretrain_options(name).arguments()), "--seed", str(trained["seed"])]
