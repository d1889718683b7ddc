"""`labeler preprocess`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("preprocess")
@click.argument("records", type=options.PATH)
@options.out("The store to write.")
@click.option("--preset", type=click.Choice(["embedded", "hub", "flava"]), default="embedded", show_default=True,
              help="embedded: towers that came with the installation; hub: VisualBERT's own; flava: FLAVA's own.")  # fmt: skip
@click.option("--text-encoder", help="A transformers folder or a hub's name of BERT or its kin, in the preset's place.")
@click.option("--image-encoder", help="A folder (transformers, timm, torchvision), torchvision:NAME, timm:NAME, a hub's "
                                      "OWNER/NAME, or regions:DETECTOR, in the preset's place.")  # fmt: skip
@click.option("--visual-tokens", type=click.IntRange(min=1), metavar="N",
              help="Average the grid to N tokens, such as 16 of 49: faster to train on, a little less accurate.")  # fmt: skip
@click.option("--allow-unknown-words", is_flag=True,
              help="Go on where the text encoder cannot read the texts; resnet-gru makes a vocabulary of its own.")  # fmt: skip
@options.force
@options.as_json
def command(
    records: Path,
    out: Path,
    preset: str,
    text_encoder: str | None,
    image_encoder: str | None,
    visual_tokens: int | None,
    allow_unknown_words: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make the store that training reads, from what `labeler ingest` wrote.

    Every picture is decoded once and shown once to the frozen image tower; its visual tokens are a column of the
    store, a Lance dataset.
    """
    from labeler.encoders.weights import PRESETS
    from labeler.preprocessing import preprocess

    towers = PRESETS[preset]
    text, image = text_encoder or towers.text, image_encoder or towers.image
    result = preprocess(records, out, text_encoder=text, image_encoder=image, visual_tokens=visual_tokens,
                        allow_unknown_words=allow_unknown_words, force=force)  # fmt: skip
    done = options.already(out) if result.already else f"{out}: {result.rows} pairs"
    options.say(done, {"out": out, "already": result.already, "rows": result.rows}, as_json)
