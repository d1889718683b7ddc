"""`labeler train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options
from labeler.errors import UsageError


@click.command("train")
@click.argument("model")
@click.argument("store", type=options.PATH)
@options.out("The run to write: weights, tokenizer, labels, history, model card.")
@click.option("--epochs", type=int, help="At most so many passes over the train split [default: the model's].")
@click.option("--batch-size", type=int, help="Pairs a step [default: 32].")
@click.option("--learning-rate", type=float, help="Of pretrained weights [default: the model's].")
@click.option("--new-learning-rate", type=float, help="Of weights that start at random [default: the model's].")
@click.option("--warmup", type=float, help="Share of the steps in which the rates rise [default: 0.1].")
@click.option("--weight-decay", type=float, help="AdamW's [default: 0.01].")
@click.option("--patience", type=int, help="Epochs without a better validation metric before stopping.")
@click.option("--max-text-tokens", type=int, help="Longer texts are cut [default: 64].")
@click.option("--n-coattn", type=int, help="Co-attention blocks of visualbert-coattn [default: 1].")
@click.option("--coattention", metavar="KIND", help="Their kind: vilbert, seed or hieco [default: vilbert].")
@click.option("--coattn-place", metavar="PLACE", help="before the encoder, or between its layers [default: before].")
@click.option("--vocabulary", type=click.Choice(["word", "character"]),
              help="Of resnet-gru; character for Chinese and what else is written without blanks [default: word].")  # fmt: skip
@click.option("--loss", type=click.Choice(["cross-entropy", "focal"]), help="[default: cross-entropy]")
@click.option("--focal-gamma", type=float, help="How much the focal loss plays down what is easy [default: 2].")
@click.option("--class-weights", type=click.Choice(["none", "balanced"]),
              help="balanced: rare labels weigh as much as frequent ones [default: none].")  # fmt: skip
@click.option("--logit-adjustment", type=float, metavar="TAU",
              help="TAU log(label's share) on its logit in training; rare labels are named more often [default: 0].")  # fmt: skip
@click.option(
    "--label-smoothing", type=float, metavar="E", help="Share of each target that goes to all labels [default: 0]."
)
@click.option("--modality-dropout", type=float, metavar="P",
              help="Share of the pairs that go without picture or text, others each epoch [default: 0].")  # fmt: skip
@click.option("--visual-token-dropout", type=float, metavar="P",
              help="Share of each picture's visual tokens left out, others each epoch [default: the model's].")  # fmt: skip
@click.option("--ema", type=float, metavar="DECAY",
              help="Keep the weights' moving average over about 1 / (1 - DECAY) steps [default: 0, none].")  # fmt: skip
@click.option("--pretrain", type=int, metavar="EPOCHS",
              help="First learn hidden words and matching pictures, without labels [default: 0].")  # fmt: skip
@click.option(
    "--finetune-image", is_flag=True, default=None, help="Train the image tower too, from the pictures themselves."
)
@click.option("--image-learning-rate", type=float, help="Its rate [default: 1e-5].")
@click.option("--augment", type=click.Choice(["none", "light"]),
              help="What is done to its training pictures [default: light with --finetune-image].")  # fmt: skip
@click.option("--activation-checkpointing", is_flag=True, default=None,
              help="Keep less in memory in training and work it out again: slower.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="auto: bf16 where the processor has it.")
@click.option("--options", "file", type=options.PATH, metavar="FILE",
              help="JSON with options by name, as `labeler tune` writes it; the command line wins over it.")  # fmt: skip
@click.option("--teacher", "teachers", multiple=True, metavar="RUN",
              help="A run on the same store to learn from, beside the labels; repeatable: the mean of several. zero-shot:RUN, a "
                   "run of `labeler pretrain`, or zero-shot:NAME, a published CLIP or SigLIP (a folder, or a hub's name), labels "
                   "the train pairs that nobody has labelled.")  # fmt: skip
@options.describe
@options.template
@click.option(
    "--teacher-weight", type=float, metavar="W", help="Share of the loss that is the teachers' [default: 0.5]."
)
@click.option("--teacher-temperature", type=float, metavar="T",
              help="Both sides' logits are divided by T; above 1 the unlikely counts more [default: 2].")  # fmt: skip
@click.option("--init", type=options.PATH, metavar="RUN",
              help="Of clip: the run of `labeler pretrain` to start from [default: none].")  # fmt: skip
@click.option("--freeze", is_flag=True, default=None, help="Train the head alone, what is below it stays.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same arguments.")
@click.option("--save-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, metavar="M",
              help="In a long epoch, save a checkpoint every M minutes.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, metavar="N",
              help="Train on N workers by Ray, which divide each batch, with a GPU each where there are as many.")  # fmt: skip
@click.option(
    "--shard", is_flag=True, help="Divide the model among the workers (FSDP), where one cannot hold its training."
)
@click.option("--ray-address", metavar="ADDRESS",
              help="The Ray cluster to train on, whose machines share the folders [default: this machine].")  # fmt: skip
@options.seed
@click.option("--seeds", type=click.IntRange(min=1), metavar="N",
              help="Train N runs, OUT/seed-0 and so on from --seed; those already made are found.")  # fmt: skip
@options.device
@options.force
@options.as_json
def command(
    model: str, store: Path, out: Path, file: Path | None, teachers: tuple[str, ...], describe: Path | None,
    templates: tuple[str, ...], init: Path | None, resume: bool, save_minutes: float, workers: int, shard: bool,
    ray_address: str | None, seed: int, seeds: int | None, device: str, force: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Train MODEL on the train split of STORE, keep the epoch that is best on the validation split.

    MODEL is resnet-gru, late-fusion, visualbert, visualbert-coattn, flava, albef or clip. The test split is not read. Ctrl-C
    saves a checkpoint; --resume goes on from it, and after a kill from the last one. Curves: `tensorboard --logdir
    RUN/tensorboard`.
    """
    from labeler.training import over_seeds, train, train_seeds
    from labeler.training_options import options_for, read_options

    typed = {name: value for name, value in given.items() if value is not None}
    without = sorted(name for name in typed if name.startswith("teacher_"))
    if without and not teachers:
        raise UsageError(f"--{without[0].replace('_', '-')} without a teacher; name one with --teacher RUN")
    chosen = options_for(model, (read_options(file, typed) if file else {}) | typed)
    how: dict[str, Any] = {
        "teachers": parse_teachers(teachers, describe, templates),
        "init": init,
        "resume": resume,
        "force": force,
        "device": device,
        "save_minutes": save_minutes,
        "workers": workers,
        "shard": shard,
        "ray_address": ray_address,
    }
    if seeds is None:
        result = train(model, store, out, chosen, seed=seed, **how)
        options.say(
            "\n".join(options.trained_lines(result)), {"out": out, "already": result.already, **result.history}, as_json
        )
        return
    results = train_seeds(model, store, out, chosen, range(seed, seed + seeds), **how)
    summary = over_seeds(results)
    lines = [line for result in results for line in options.trained_lines(result)]
    spread = "" if summary["sd"] is None else f" ± {summary['sd']:.4f} (standard deviation)"
    lines.append(f"{out}: {seeds} seeds, validation {summary['metric']} {summary['mean']:.4f}{spread}")
    options.say("\n".join(lines), {"out": out, **summary}, as_json)


def parse_teachers(names: tuple[str, ...], describe: Path | None, templates: tuple[str, ...]) -> list[Any]:
    """Return the teachers that `--teacher` names; raises UsageError for descriptions without one of zero-shot labels."""
    from labeler.fitting.distillation import ZeroShotTeacher
    from labeler.zero_shot import read_phrases

    found: list[Any] = []
    for name in names:
        kind, sign, source = name.partition(":")
        if sign and kind == "zero-shot":
            found.append(ZeroShotTeacher(source, read_phrases(describe) if describe else None, templates))
        else:
            found.append(Path(name))
    if (describe or templates) and not any(isinstance(teacher, ZeroShotTeacher) for teacher in found):
        raise UsageError("--describe and --template are for --teacher zero-shot:RUN")
    return found
