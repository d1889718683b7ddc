"""Options that several commands share, and how commands say what they did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Any], Any]
FOLDER = click.Path(path_type=Path)

force: Decorator = click.option("--force", is_flag=True, help="Make it again even if it is already made.")
as_json: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
seed: Decorator = click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides everything that is random."
)
device: Decorator = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
split: Decorator = click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True
)


def out(text: str) -> Decorator:
    """Return the --out option with its help."""
    return click.option("--out", type=FOLDER, required=True, help=text)


def parse_map(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return {ours: theirs} for `--map ours=theirs`; raises click.BadParameter where it cannot be."""
    from labeler.records import ALIASES

    pairs = [value.partition("=") for value in values]
    for ours, sign, theirs in pairs:
        if ours not in ALIASES or not sign or not theirs:
            raise click.BadParameter(f"expected ours=theirs, with ours one of {', '.join(ALIASES)}")
    return {ours: theirs for ours, _, theirs in pairs}


def parse_encoding(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return an encoding's normal name; raises click.BadParameter where there is no such encoding."""
    from labeler.sources.text import known_encoding

    try:
        return value and known_encoding(value)
    except LookupError:
        raise click.BadParameter(f"{value!r} is no text encoding; try utf-8, gb18030, cp1252, ...") from None


mapping: Decorator = click.option(
    "--map", "mapping", multiple=True, callback=parse_map, metavar="OURS=THEIRS",
    help="Take our field (id, image, text, labels, split, group) from the field THEIRS; repeatable.",
)  # fmt: skip


def parse_aim(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Return what thresholds are to be fitted for, None where nothing is given."""
    if value is None:
        return None
    from labeler.evaluation import aim_of

    return aim_of(value)


aim: Decorator = click.option(
    "--aim", callback=parse_aim, metavar="AIM",
    help="Fit thresholds, on the validation split, for f1, precision=0.95 or recall=0.9 [default: f1].",
)  # fmt: skip


def say(message: str, result: Any, printed_as_json: bool) -> None:
    """Say what was done: a sentence on standard error, or `result` as JSON on standard output."""
    if printed_as_json:
        click.echo(json.dumps(result, ensure_ascii=False, indent=2, default=str))
    else:
        click.echo(message, err=True)


def already(folder: Path) -> str:
    """Return the sentence for a stage with nothing to do."""
    return f"{folder}: already made from the same inputs (--force makes it again)"


def headline(row: dict[str, Any]) -> str:
    """Return a model's first figures, the leading one with its interval."""
    first, others = "accuracy", ["weighted_f1", "macro_f1"]
    if first not in row:
        first, others = "mean_average_precision", ["micro_f1", "macro_f1"]
    parts = [f"{first.replace('_', ' ')} {row[first]:.3f} {interval(row[first + '_ci95'])}"]
    if "vqa_accuracy" in row:
        others.insert(0, "vqa_accuracy")
    return "  ".join(parts + [f"{name.replace('_', ' ')} {row[name]:.3f}" for name in others])


def interval(bounds: list[float] | None) -> str:
    """Return a 95% interval in brackets, nothing where there is none."""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
