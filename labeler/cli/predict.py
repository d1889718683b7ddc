"""`labeler predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.artifacts import UsageError
from labeler.cli import options


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=options.FOLDER)
@click.option(
    "--model",
    type=options.FOLDER,
    required=True,
    help="The run that `labeler train` wrote; with --zero-shot `labeler pretrain`.",
)
@click.option("--out", default="-", show_default=True, help="The file to write; - is standard output.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="[default: by the file's name, else jsonl]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--zero-shot", metavar="LABELS",
              help="Labels that MODEL, a run of `labeler pretrain`, was never taught: joy,anger or signs=flag|road sign,animals "
                   "or a JSON file {label: phrases}.")  # fmt: skip
@options.template
@options.aim
@click.option(
    "--min-precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Give only labels of which at least the share P is right, by the validation split; mark the other items `review`.",
)
@options.mapping
@click.option("--allow-outside", is_flag=True, help="Read pictures outside the input's folder.")
@options.device
@click.pass_context
def command(
    context: click.Context, inputs: tuple[Path, ...], model: Path, out: str, form: str | None, batch_size: int, zero_shot: str |
    None, templates: tuple[str, ...], aim: Any, min_precision: float | None, mapping: dict[str, str], allow_outside: bool,
    device: str,
) -> None:  # fmt: skip
    """Label INPUTS: folders (pictures with .txt sidecars or a metadata.jsonl), pictures, jsonl or csv files.

    One line an item, in the order of the input: {"id", "image", "text", "labels", "scores", "model", "error"}.
    With --min-precision there is "review" too: true where a label was found but not surely enough to be given.
    A label that has a parent brings it. An item that cannot be read has an error and no labels, the rest goes on, and the
    exit code is 4.
    """
    from labeler.labelling import predict
    from labeler.zero_shot import parse_prompts

    if templates and zero_shot is None:
        raise UsageError("--template is for --zero-shot")
    prompts = None if zero_shot is None else parse_prompts(zero_shot, templates)

    target = None if out == "-" else Path(out)
    result = predict(inputs, model, target, format=form, batch_size=batch_size, device=device, mapping=mapping,
                     allow_outside=allow_outside, aim=aim, min_precision=min_precision, prompts=prompts)  # fmt: skip
    review = f", {result.review} for review" if min_precision else ""
    click.echo(f"{out}: {result.items} items, {result.errors} with an error{review}", err=True)
    context.exit(4 if result.errors else 0)
