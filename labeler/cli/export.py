"""`labeler export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options


@click.command("export")
@click.argument("run", type=options.PATH)
@options.out("The folder to write: graphs, tokenizer, labels, figures of the check, card.")
@click.option(
    "--format", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="What is written."
)
@click.option("--int8", is_flag=True, help="Let the image tower compute in 8 bits; needs --data.")
@click.option("--visual-tokens", type=int, metavar="N", help="Average the tower's grid to N tokens; needs --data.")
@click.option("--data", "store", type=options.PATH,
              help="The run's store: check on its validation pairs.")  # fmt: skip
@options.force
@options.as_json
def command(
    run: Path,
    out: Path,
    form: str,
    int8: bool,
    visual_tokens: int | None,
    store: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write RUN in a form that `labeler predict` starts and runs faster, without PyTorch.

    Nothing is written where scores differ from PyTorch's by more than 0.001. --int8 and --visual-tokens are faster still
    and change scores; nothing is written where the accuracy on the validation split falls below its interval.
    """
    from labeler.exporting import export

    result = export(run, out, int8=int8, visual_tokens=visual_tokens, data=store, force=force)
    lines = [*([options.already(out)] if result.already else []), f"{out}: checked on {result.checks['pairs']} pairs"]
    lines += [line(name, found) for name, found in result.checks["ways"].items()]
    options.say("\n".join(lines), result.checks, as_json)


def line(name: str, found: dict[str, Any]) -> str:
    """Return what one way to run the export gives."""
    metrics = [key for key in found if f"{key}_ci95" in found]
    measured = [
        f"  {key.replace('_', ' ')} {found[key]:.3f} {options.interval(found[f'{key}_ci95'])}" for key in metrics
    ]
    return (
        f"  {name:13} {found['pairs_per_second']:6.1f} pairs/s  largest difference {found['largest_difference']:.1e}  "
        f"same labels {found['same_labels']:.1%}" + "".join(measured)
    )
