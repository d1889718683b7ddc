"""`labeler explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options

MOST = 8  # words and regions in the table
MARKS = ((0.6, "++", "--"), (0.25, "+", "-"))
COLOURS = ((0.6, (230, 97, 1), (46, 104, 191)), (0.25, (253, 184, 99), (146, 180, 230)))


@click.command("explain")
@click.argument("run", type=options.PATH)
@click.argument("item", required=False)
@click.option("--data", "store", type=options.PATH, help="The store with ITEM [default: that RUN was trained on].")
@click.option("--image", type=options.PATH, help="A picture's file, in place of ITEM; alone or with --text.")
@click.option("--text", help="A text, in place of ITEM; alone or with --image.")
@click.option("--label", metavar="NAME", help="Explain this label [default: those that RUN gives].")
@click.option(
    "--out", type=options.PATH, metavar="FILE.png", help="Draw it: a heat map over the picture, shaded words."
)
@click.option("--force", is_flag=True, help="Replace FILE.png whoever wrote it.")
@options.device
@options.as_json
def command(
    run: Path, item: str | None, store: Path | None, image: Path | None, text: str | None, label: str | None,
    out: Path | None, force: bool, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Show which words and which regions of the picture drove the label that RUN gives to ITEM, a pair's id in a store.

    Weights are integrated gradients: what each word and region adds to the label's logit, from a baseline that says
    nothing. Words for the label stand between + or ++, those against it between - or --; a terminal shows colours.
    """
    from labeler.errors import BadInputError, UsageError

    given = image is not None or text is not None
    if given == (item is not None) or (given and store is not None):
        raise UsageError("give a pair's id as ITEM, and perhaps --data STORE; or --image FILE, --text TEXT or both")
    if force and out is None:
        raise UsageError("--force replaces the file of --out; leave it out, or add --out FILE.png")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):  # before the model is at work
        raise BadInputError(f"{out}: cannot be written; --out takes a file in a folder that is there")
    from labeler.pictures.images import frame_of

    if out is not None and image is not None and out.resolve() == frame_of(image)[0].resolve():
        raise UsageError(f"--out {out}: the picture itself, which the heat map would replace; choose another --out")
    if out is not None and out.suffix.lower() not in ("", ".png"):
        raise UsageError(f"--out {out}: what is drawn is a PNG; name it {out.with_suffix('.png').name}")
    from labeler.explaining.explanation import explain_given, explain_item
    from labeler.explaining.heat_maps import is_heat_map, write_heat_maps
    from labeler.replacing import refuse_to_replace

    if out is not None and not force:
        refuse_to_replace(out, is_heat_map, "explain")

    if item is None:
        found = explain_given(run, image, text, label=label, device=device)
    else:
        found = explain_item(run, item, data=store, label=label, device=device)
    if out is not None:
        write_heat_maps(found, out)
    if as_json:
        options.say("", [explanation.as_json() for explanation in found], printed_as_json=True)
    else:
        colour = has_colours()
        click.echo("\n\n".join(shown(explanation, colour) for explanation in found), color=colour)
    if out is not None:
        options.tell(f"drawn: {out}")


def has_colours() -> bool:
    """Return whether standard output is a terminal whose user wants colours."""
    import os
    import sys

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def shown(explanation: Any, colour: bool) -> str:
    """Return an explanation as lines for a terminal."""
    from labeler.explaining.explanation import strongest

    parts = [options.harmless(f"{explanation.id}: {explanation.label} {explanation.score:.3f}")]
    if explanation.words:
        parts.append(marked(explanation, colour))
    if explanation.grid is not None:
        most = abs(explanation.grid).max() or 1.0
        rows = ["".join(cell(value / most, colour) for value in row) for row in explanation.grid]
        parts.append("\n".join(f"  {row}" for row in rows))
    parts.append("\n".join(f"  {weight:+7.3f}  {name}" for weight, name in strongest(explanation, MOST)))
    gain = explanation.logit - explanation.baseline_logit
    parts.append(
        f"logit {explanation.logit:.3f}, {gain:+.3f} from a pair that says nothing: text {explanation.text_sum:+.3f}, picture "
        f"{explanation.picture_sum:+.3f}, error {explanation.error:.3f} ({explanation.steps} steps)"
    )
    return "\n\n".join(part for part in parts if part)


def marked(explanation: Any, colour: bool) -> str:
    """Return the text with its words coloured, or between signs, by weight."""
    text, end, parts = options.harmless(explanation.text or ""), 0, []
    most = max(abs(word.weight) for word in explanation.words) or 1.0
    for word in explanation.words:
        parts += [text[end : word.start], painted(options.harmless(word.text), word.weight / most, colour)]
        end = word.end
    return "".join([*parts, text[end:]])


def painted(word: str, share: float, colour: bool) -> str:
    """Return a word as its share, -1 to 1, of the strongest word's weight has it."""
    if colour:
        found: Any = picked(share, COLOURS)
        return click.style(word, bg=found, fg="black") if found else word
    sign = picked(share, MARKS) or ""
    return f"{sign}{word}{sign}"


def cell(share: float, colour: bool) -> str:
    """Return a cell of the picture's grid, three characters wide."""
    if colour:
        found: Any = picked(share, COLOURS)
        return click.style("   ", bg=found) if found else " · "
    return f"{picked(share, MARKS) or '.':3}"


def picked(share: float, choices: tuple[tuple[float, Any, Any], ...]) -> Any:
    """Return what stands in `choices` for a share: the first whose bound it reaches, by its sign; None below all."""
    return next((pro if share > 0 else con for bound, pro, con in choices if abs(share) >= bound), None)
