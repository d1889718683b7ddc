"""How a model is trained: the settings, each model's own defaults, what a search may try. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labeler.artifacts import read_json
from labeler.errors import BadInputError, UsageError
from labeler.models import COATTENTIONS, COATTN_PLACES, check_choice, constant, model_names, training_defaults

LEAST_TEXT_TOKENS = 3
SAVE_MINUTES = 5.0  # between checkpoints within an epoch
COATTENTION_OPTIONS = ("n_coattn", "coattention", "coattn_place")  # of models whose own defaults name them
METRICS = {"single": "macro_f1", "multi": "mean_average_precision"}
CHOICES = {
    "coattention": COATTENTIONS,
    "coattn_place": COATTN_PLACES,
    "loss": ("cross-entropy", "focal"),
    "class_weights": ("none", "balanced"),
    "vocabulary": ("word", "character"),
    "precision": ("auto", "bf16", "fp32"),
    "augment": ("none", "light"),
}
FROZEN = (
    "--{}: the image tower is frozen and its visual tokens are stored, no picture is seen in training; add --finetune-image, "
    "or leave it out"
)
WITHOUT = {  # what an option makes idle
    "finetune_image": ("visual_token_dropout",),
    "freeze": ("learning_rate", "pretrain", "finetune_image", "image_learning_rate", "augment"),
}
NOTHING_PRETRAINED = "--learning-rate is of pretrained weights, and {} trains none; use --new-learning-rate"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained; every field is recorded in the manifest. A model's file may hold other defaults.

    learning_rate: of pretrained weights; new_learning_rate: of weights that start at random; patience: epochs
    without a better validation metric before training stops; n_coattn, coattention, coattn_place: number, kind and
    place of co-attention blocks, for models that have them; precision: `bf16`, `fp32`, or `auto` (bf16 where the
    processor has instructions for it); vocabulary: of a model that makes its own; loss, class_weights,
    logit_adjustment, label_smoothing, focal_gamma: see `labeler.losses`; modality_dropout: share of the pairs that go
    without their picture or their text in an epoch; visual_token_dropout: share of each picture's visual tokens that are left out
    of a step, see `labeler.batches.DroppedTokens`; ema: decay of the weights' moving average, 0 for none; pretrain:
    epochs without labels before the first with them, see `labeler.fitting.pretext`; finetune_image: train the image tower
    too, with weights of its own in the run, image_learning_rate: its rate, augment: what is done to its training pictures, `none`
    or `light` (`labeler.end_to_end.augmentation`); teacher_weight, teacher_temperature: share of the loss that is the
    teachers', and what logits are divided by in it (`labeler.losses`); freeze: train the head alone, what is below it stays;
    activation_checkpointing: work the layers out again in the backward pass in place of keeping what is in them: less memory, a
    third more time (Chen et al. 2016).

    Raises UsageError for augmentation while the image tower is frozen, and for leaving out visual tokens while it is not.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4
    new_learning_rate: float = 2.5e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int = 2
    max_text_tokens: int = 64
    n_coattn: int = 1
    coattention: str = "vilbert"
    coattn_place: str = "before"
    precision: str = "auto"
    vocabulary: str = "word"
    loss: str = "cross-entropy"
    class_weights: str = "none"
    logit_adjustment: float = 0.0
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    modality_dropout: float = 0.0
    visual_token_dropout: float = 0.0
    ema: float = 0.0
    pretrain: int = 0
    finetune_image: bool = False
    image_learning_rate: float = 1e-5
    augment: str = "none"
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    freeze: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.augment != "none" and not self.finetune_image:
            raise UsageError(FROZEN.format("augment"))
        if self.visual_token_dropout and self.finetune_image:
            raise UsageError(
                "--visual-token-dropout leaves out stored visual tokens, and an image tower that is fine-tuned has none; leave "
                "out --visual-token-dropout, or --finetune-image"
            )

    @property
    def plain_loss(self) -> bool:
        """Return whether the loss is the models' own, with nothing added."""
        return (self.loss, self.class_weights, self.logit_adjustment, self.label_smoothing) == (
            "cross-entropy", "none", 0.0, 0.0)  # fmt: skip


def options_for(model: str, given: dict[str, Any] | None = None) -> TrainOptions:
    """Return the model's own defaults with what was `given` in their place; a value of None counts as not given.

    Raises UsageError naming the option and what it takes when a value is out of range, and, naming the closest, for
    a word that is not among the CHOICES, for co-attention asked of a model that has none, for what a frozen image tower
    cannot have, and for the rate of pretrained weights where none is trained. A tower that is fine-tuned is augmented unless
    `given` says otherwise.
    """
    chosen = {key: value for key, value in (given or {}).items() if value is not None}
    own = training_defaults(model)
    if chosen.get("finetune_image"):
        chosen = {"augment": "light", "visual_token_dropout": 0.0} | chosen
    elif "image_learning_rate" in chosen:
        raise UsageError(FROZEN.format("image-learning-rate"))
    options = replace(TrainOptions(), **(own | chosen))
    if "learning_rate" in chosen and not trains_pretrained(model, options.freeze):
        raise UsageError(NOTHING_PRETRAINED.format("--freeze" if options.freeze else model))
    for name in ("epochs", "batch_size", "learning_rate", "new_learning_rate", "image_learning_rate", "patience",
                 "max_text_tokens"):  # fmt: skip
        if not getattr(options, name) > 0:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(options, name)}, expected more than 0")
    if options.pretrain < 0:
        raise UsageError(f"pretrain is {options.pretrain}, expected 0 epochs or more")
    if options.n_coattn < 0 or not 0 <= options.warmup < 1:
        raise UsageError("n-coattn must be 0 or more, warmup a share of the steps from 0 up to 1")
    for name, choices in CHOICES.items():
        check_choice(f"--{name.replace('_', '-')}", getattr(options, name), choices)
    for name in COATTENTION_OPTIONS:
        if name in chosen and name not in own:
            models = ", ".join(other for other in model_names() if name in training_defaults(other))
            raise UsageError(f"{model} has no co-attention; leave out --{name.replace('_', '-')}, or train {models}")
    for name in ("label_smoothing", "modality_dropout", "visual_token_dropout", "ema"):
        if not 0 <= getattr(options, name) < 1:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(options, name)}, expected from 0 up to 1")
    if options.freeze and (options.finetune_image or options.pretrain):
        raise UsageError(
            "--freeze trains the head alone: leave it out, or --finetune-image and --pretrain, which train the rest"
        )
    if options.vocabulary != "word" and "vocabulary" not in constant(model, "TUNING"):
        raise UsageError(f"{model} reads by its text tower's vocabulary; leave out --vocabulary, or train resnet-gru")
    if options.max_text_tokens < LEAST_TEXT_TOKENS:
        raise UsageError(
            f"max-text-tokens is {options.max_text_tokens}, expected {LEAST_TEXT_TOKENS} or more: two are special"
        )
    if not 0 <= options.weight_decay < float("inf"):
        raise UsageError(f"weight-decay is {options.weight_decay}, expected 0 or more")
    if not 0 <= options.teacher_weight <= 1:
        raise UsageError(f"teacher-weight is {options.teacher_weight}, expected from 0 to 1")
    if not 0 < options.teacher_temperature < float("inf"):
        raise UsageError(f"teacher-temperature is {options.teacher_temperature}, expected more than 0")
    for name in ("logit_adjustment", "focal_gamma"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise UsageError(f"{name.replace('_', '-')} is {getattr(options, name)}, expected 0 or more")
    if options.focal_gamma != TrainOptions().focal_gamma and options.loss != "focal":
        raise UsageError("--focal-gamma is for --loss focal")
    return options


def read_options(path: Path, typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the training options in a JSON file, by name; it may hold any of the fields of `TrainOptions`.

    Those that mean nothing beside what was `typed` are left out: who freezes a model asks for no rate that a search has found.

    Raises BadInputError when the file cannot be read or a value is of the wrong kind; UsageError naming the closest for an
    option that there is not.
    """
    try:
        given = read_json(path)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: no readable JSON ({error}); expected training options by name") from error
    if not isinstance(given, dict):
        raise BadInputError(f'{path}: expected training options by name, for example {{"epochs": 5}}')
    kinds = {name: type(value) for name, value in asdict(TrainOptions()).items()}
    for name, value in given.items():
        kind = kinds[check_choice(f"option in {path}:", name, kinds)]
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise BadInputError(f"{path}: {name} is {value!r}, expected {KINDS[kind]}")
    typed = typed or {}
    idle = {name for option, names in WITHOUT.items() if typed.get(option) for name in names}
    if typed.get("loss", "focal") != "focal":
        idle.add("focal_gamma")
    return {name: kinds[name](value) for name, value in given.items() if name not in idle}


def own_options(model: str, options: TrainOptions) -> dict[str, Any]:
    """Return the options that mean something, by name; `read_options` reads them again.

    Those of co-attention mean something where the model has it, those of the image tower where it is trained, the rate of
    pretrained weights where some are.
    """
    idle = set(COATTENTION_OPTIONS) - training_defaults(model).keys()
    if not trains_pretrained(model, options.freeze):
        idle.add("learning_rate")
    if not options.finetune_image:
        idle |= {"image_learning_rate", "augment"}
    return {name: value for name, value in asdict(options).items() if name not in idle}


def trains_pretrained(model: str, freeze: bool) -> bool:
    """Return whether a training has weights that do not start at random; below a head that is trained alone all stay."""
    return not freeze and constant(model, "TUNING").get("learning_rate", ...) is not None


def search_space(model: str, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what `labeler tune` tries for each option but the `fixed` ones, the model's defaults in the middle or at the edge.

    (low, high): a range, of whole numbers where its ends are; (low, high, "log"): in which factors count; a list: one of it.
    The constant TUNING in a model's file adds options, changes them, or leaves them out (None).
    """
    fixed = fixed or {}
    default = options_for(model)
    space: dict[str, Any] = {
        "learning_rate": (default.learning_rate / 4, default.learning_rate * 4, "log"),
        "new_learning_rate": (default.new_learning_rate / 4, default.new_learning_rate * 4, "log"),
        "epochs": ((default.epochs + 1) // 2, default.epochs * 2),
        "warmup": (0.0, 0.3),
        "weight_decay": (1e-3, 0.1, "log"),
        "label_smoothing": (0.0, 0.2),
        "modality_dropout": (0.0, 0.3),
        "ema": [0.0, 0.9, 0.98],  # the average of about 10 or 50 steps: an epoch of 1,600 pairs has 50
    }
    if default.visual_token_dropout and not fixed.get("finetune_image"):
        space["visual_token_dropout"] = (0.0, 0.75)
    space |= constant(model, "TUNING")
    if not trains_pretrained(model, bool(fixed.get("freeze"))):
        space["learning_rate"] = None
    return {name: values for name, values in space.items() if values is not None and name not in fixed}
