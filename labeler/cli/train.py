"""`labeler train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options


@click.command("train")
@click.argument("model")
@click.argument("store", type=options.FOLDER)
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
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="auto: bf16 where the processor has it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same arguments.")
@options.seed
@options.device
@options.force
@options.as_json
def command(
    model: str, store: Path, out: Path, resume: bool, seed: int, device: str, force: bool, as_json: bool, **given: Any
) -> None:
    """Train MODEL on the train split of STORE, keep the epoch that is best on the validation split.

    MODEL is resnet-gru, visualbert or visualbert-coattn. The test split is not read. Ctrl-C saves a checkpoint;
    --resume goes on from it. Curves: `tensorboard --logdir RUN/tensorboard`.
    """
    from labeler.training import train
    from labeler.training_options import options_for

    result = train(model, store, out, options_for(model, given), seed=seed, resume=resume, force=force, device=device)
    history = result.history
    best = history["epochs"][history["best_epoch"] - 1]
    lines = [
        *([options.already(out)] if result.already else []),
        f"{out}: best epoch {history['best_epoch']} of {len(history['epochs'])}, validation {history['metric']} "
        f"{best['validation_metric']:.4f}; {history['train_seconds']:.0f} s, {history['pairs_per_second']} pairs/s",
    ]
    options.say("\n".join(lines), {"out": out, "already": result.already, **history}, as_json)
