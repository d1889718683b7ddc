"""`labeler predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options
from labeler.errors import UsageError


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=options.PLACE)
@click.option("--model", type=options.PATH, required=True,
              help="The run that `labeler train` wrote, or its export; with --zero-shot `labeler pretrain`.")  # fmt: skip
@click.option(
    "--out", type=options.TARGET, default="-", show_default=True, help="The file to write; - is standard output."
)
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
@options.encoding
@options.image_folder
@click.option("--keep", multiple=True, metavar="FIELD", help="Carry this field of each row into its line; repeatable.")
@click.option("--allow-missing-image", is_flag=True, help="Label a row whose picture is not there by its text.")
@click.option("--allow-outside", is_flag=True, help="Read pictures outside the input's folder.")
@click.option("--runtime", type=click.Choice(["auto", "native", "onnx", "openvino"]), default="auto", show_default=True,
              help="native is PyTorch; auto the fastest with equal labels.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "int8", "bf16", "fp32"]), default="auto", show_default=True,
              help="fp32: every score within 0.001 of PyTorch's; auto: what was fastest with equal labels.")  # fmt: skip
@options.device
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="ray: by several processes, on one machine or many, with the same lines.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Ray's processes [default: one a GPU, or one a machine].")
@click.option("--ray-address", help="The Ray cluster to use [default: one on this machine, started for this].")
@click.option("--force", is_flag=True, help="Label everything again, and replace FILE whoever wrote it.")
@click.pass_context
def command(
    context: click.Context, inputs: tuple[Path | str, ...], model: Path, out: Path | str, form: str | None, batch_size: int,
    zero_shot: str | None, templates: tuple[str, ...], aim: Any, min_precision: float | None, mapping: dict[str, str],
    encoding: str | None, image_folder: Path | None, keep: tuple[str, ...], allow_missing_image: bool, allow_outside: bool,
    runtime: str, precision: Any, device: str, force: bool, engine: str, workers: int | None, ray_address: str | None,
) -> None:  # fmt: skip
    """Label INPUTS: folders (pictures with .txt sidecars or a metadata.jsonl), pictures, tables, all that `ingest` reads.

    INPUTS and the output may be s3://BUCKET/KEY; AWS_ENDPOINT_URL names another server than Amazon's.

    One line an item, in the order of the input: {"id", "image", "text", "labels", "scores", "model", "error"}.
    With several INPUTS there is "source", the file or folder that an item is from; --keep adds fields of your own.
    With --min-precision there is "review" too: true where a label was found but not surely enough to be given.
    A label that has a parent brings it. An item that cannot be read has an error and no labels, the rest goes on, and the
    exit code is 4.

    What is cut off goes on where it was when the same command is given again. Where FILE was written by the same model with the
    same options, only what is new or has changed is labelled. A file that something else wrote, or that was changed since, is
    replaced with --force alone.
    """
    import signal

    from labeler.predicting import predict
    from labeler.zero_shot import parse_prompts

    if templates and zero_shot is None:
        raise UsageError("--template is for --zero-shot")
    prompts = None if zero_shot is None else parse_prompts(zero_shot, templates)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    target = None if out == Path("-") else out
    result = predict(inputs, model, target, format=form, batch_size=batch_size, device=device, runtime=runtime,
                     precision=precision, mapping=mapping, encoding=encoding,
                     image_folder=image_folder, keep=keep,
                     allow_missing_image=allow_missing_image, allow_outside=allow_outside, aim=aim,
                     min_precision=min_precision, force=force, engine=engine, workers=workers,
                     ray_address=ray_address, prompts=prompts)  # fmt: skip
    review = f", {result.review} for review" if min_precision else ""
    kept = f"; {result.items - result.kept} labelled, {result.kept} kept from before" if result.kept else ""
    dropped = f", {result.dropped} of other items dropped" if result.dropped else ""
    options.tell(f"{out}: {result.items} items, {result.errors} with an error{review}{kept}{dropped}")
    context.exit(4 if result.errors else 0)
