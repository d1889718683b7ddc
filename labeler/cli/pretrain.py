"""`labeler pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options


@click.command("pretrain")
@click.argument("model")
@click.argument("store", type=options.PATH)
@options.out("The run to write: both towers, tokenizer, history.")
@click.option("--epochs", type=int, help="At most so many passes over the train split [default: the model's].")
@click.option("--batch-size", type=int, help="Pairs among which a text must find its picture [default: the model's].")
@click.option(
    "--chunk-size", type=int, help="Pairs whose graph is in memory at once; batches may be larger [default: 256]."
)
@click.option("--learning-rate", type=float, help="Of pretrained weights [default: the model's].")
@click.option("--new-learning-rate", type=float, help="Of weights that start at random [default: the model's].")
@click.option("--warmup", type=float, help="Share of the steps in which the rates rise [default: 0.1].")
@click.option("--weight-decay", type=float, help="AdamW's [default: 0.01].")
@click.option("--patience", type=int, help="Epochs without a better validation recall before stopping.")
@click.option("--max-text-tokens", type=int, help="Longer texts are cut [default: 64].")
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="auto: bf16 where the processor has it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same arguments.")
@options.seed
@options.device
@options.force
@options.as_json
def command(
    model: str, store: Path, out: Path, resume: bool, seed: int, device: str, force: bool, as_json: bool, **given: Any
) -> None:
    """Train MODEL on which text belongs to which picture, without labels; keep the epoch with the best validation recall.

    MODEL is clip. Of STORE, the train pairs are read that have a text and a picture; the test split is not. Then: `labeler
    train clip STORE --init RUN`, `labeler predict --zero-shot`, `labeler index`.
    """
    from labeler.pretraining import pretrain, pretrain_options

    result = pretrain(
        model, store, out, pretrain_options(model, given), seed=seed, resume=resume, force=force, device=device
    )
    options.say(
        "\n".join(options.trained_lines(result)), {"out": out, "already": result.already, **result.history}, as_json
    )
