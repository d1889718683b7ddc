"""Options that several commands share, and how commands say what they did."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click

from labeler.errors import BadInputError

Decorator = Callable[[Any], Any]
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class PlaceType(click.ParamType):
    """A path of this machine, also as file://PATH, as a Path; a URL as the string that it is, since a Path would change it."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path | str:
        """Return the place that was given."""
        if str(value).startswith("file://"):
            return Path(unquote(str(value).removeprefix("file://")))
        return value if "://" in str(value) else Path(value)


class TargetType(PlaceType):
    """The place of a file to write."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path | str:
        """Return the place that was given; raises BadInputError for a folder's, which a Path would not be."""
        if str(value).endswith("/"):
            raise BadInputError(f"{value}: a folder; --out takes the file to write")
        return super().convert(value, parameter, context)


PATH = click.Path(path_type=Path)
PLACE, TARGET = PlaceType(), TargetType()

force: Decorator = click.option("--force", is_flag=True, help="Make it again even if it is already made.")
as_json: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
seed: Decorator = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Decides everything that is random."
)
device: Decorator = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
split: Decorator = click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True
)


def out(text: str) -> Decorator:
    """Return the --out option with its help."""
    return click.option("--out", type=PATH, required=True, help=text)


describe: Decorator = click.option(
    "--describe", type=PATH, metavar="FILE",
    help='JSON, {"label": ["phrase", ...]}: what zero-shot labels are known by [default: their names].',
)  # fmt: skip

template: Decorator = click.option(
    "--template", "templates", multiple=True, metavar="TEXT",
    help="What a zero-shot label is put into, such as 'a drawing of {}'; repeatable, their mean counts.",
)  # fmt: skip


def parse_map(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return {ours: theirs} for `--map ours=theirs`, `label` for `labels` too; raises click.BadParameter where it cannot be."""
    from labeler.records import ALIASES

    found: dict[str, str] = {}
    for value in values:
        ours, sign, theirs = value.partition("=")
        ours = "labels" if ours == "label" else ours
        if ours not in ALIASES or not sign or not theirs:
            raise click.BadParameter(f"expected ours=theirs, with ours one of {', '.join(ALIASES)}")
        if found.setdefault(ours, theirs) != theirs:
            raise click.BadParameter(f"{ours} is taken from one field, not from {found[ours]!r} and {theirs!r}")
    return found


def parse_once(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Return the value of an option; raises click.BadParameter where it is given several, of which all but one would be lost."""
    if len(set(values)) > 1:
        raise click.BadParameter(f"expected once, not with {' and '.join(map(repr, values))}")
    return values[0] if values else None


def parse_encoding(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return an encoding's normal name; raises click.BadParameter where there is no such encoding."""
    from labeler.sources.text import known_encoding

    try:
        return value and known_encoding(value)
    except LookupError:
        raise click.BadParameter(f"{value!r} is no text encoding; try utf-8, gb18030, cp1252, ...") from None


encoding: Decorator = click.option(
    "--encoding", callback=parse_encoding,
    help="Of csv files and sidecars, such as gb18030 [default: UTF-8, or else what the bytes look like].",
)  # fmt: skip

mapping: Decorator = click.option(
    "--map", "mapping", multiple=True, callback=parse_map, metavar="OURS=THEIRS",
    help="Take our field (id, image, text, label, split, group) from the field THEIRS; repeatable.",
)  # fmt: skip


image_folder: Decorator = click.option(
    "--image-folder", type=PATH, metavar="DIR",
    help="Where the pictures lie that rows name [default: the folder of the rows' file].",
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
        tell(message)


def tell(message: str) -> None:
    """Say something on standard error; with --quiet nothing of it but the lines that warn."""
    if not logging.getLogger("labeler").isEnabledFor(logging.INFO):
        message = "\n".join(line.strip() for line in message.splitlines() if line.lstrip().startswith("warning: "))
    if message:
        click.echo(message, err=True)


def already(folder: Path) -> str:
    """Return the sentence for a stage with nothing to do."""
    return f"{folder}: already made from the same inputs (--force makes it again)"


def harmless(text: str) -> str:
    """Return a text with a sign in place of each character that would steer the terminal or turn the reading direction."""
    return "".join("\ufffd" if STEERING.match(sign) else sign for sign in text)


def headline(row: dict[str, Any]) -> str:
    """Return a model's first figures, the leading one with its interval."""
    first, others = "accuracy", ["weighted_f1", "macro_f1"]
    if first not in row:
        first, others = "mean_average_precision", ["micro_f1", "macro_f1"]
    parts = [f"{first.replace('_', ' ')} {figure(row[first])} {interval(row[first + '_ci95'])}".rstrip()]
    if "vqa_accuracy" in row:
        others.insert(0, "vqa_accuracy")
    return "  ".join(parts + [f"{name.replace('_', ' ')} {figure(row[name])}" for name in others])


def figure(value: float | None) -> str:
    """Return a figure with three digits, a dash where it is not defined."""
    return "–" if value is None else f"{value:.3f}"


def interval(bounds: list[float] | None) -> str:
    """Return a 95% interval in brackets, nothing where there is none."""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""


def retrieval_lines(retrieval: dict[str, Any] | None) -> list[str]:
    """Return how well texts and pictures find each other, a line a direction; nothing where it was not measured."""
    if not retrieval:
        return []
    lines = []
    for direction, words in (("text_to_image", "text to picture"), ("image_to_text", "picture to text")):
        figures = retrieval[direction]
        recall = "  ".join(
            f"recall@{k} {figures[f'recall_at_{k}']:.3f} {interval(figures[f'recall_at_{k}_ci95'])}" for k in (1, 5, 10)
        )
        lines.append(f"{words:20} {recall}  median rank {figures['median_rank']:.0f} of {retrieval['n']}")
    return lines


def trained_lines(result: Any) -> list[str]:
    """Return what is said of a run that was trained."""
    history = result.history
    best = history["epochs"][history["best_epoch"] - 1]
    return [
        *([already(result.out)] if result.already else []),
        f"{result.out}: best epoch {history['best_epoch']} of {len(history['epochs'])}, validation {history['metric']} "
        f"{best['validation_metric']:.4f}; {history['train_seconds']:.0f} s, {history['pairs_per_second']} pairs/s",
    ]
