"""`labeler index`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("index")
@click.argument("store", type=options.PATH)
@click.option("--model", type=options.PATH, required=True, help="The run that `labeler pretrain` wrote.")
@options.out("The index to write: the vectors of all pictures and texts.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@options.device
@options.force
@options.as_json
def command(store: Path, model: Path, out: Path, batch_size: int, device: str, force: bool, as_json: bool) -> None:
    """Embed the pictures and texts of STORE, all splits, so that `labeler search` finds them."""
    from labeler.searching import index

    result = index(store, model, out, batch_size=batch_size, force=force, device=device)
    pictures, texts = result.counts["pictures"], result.counts["texts"]
    message = options.already(out) if result.already else f"{out}: {pictures} pictures and {texts} texts"
    options.say(message, {"out": out, "already": result.already, **result.counts}, as_json)
