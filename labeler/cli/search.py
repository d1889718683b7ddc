"""`labeler search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options


@click.command("search")
@click.argument("query")
@click.option("--index", "folder", type=options.PATH, required=True, help="The index that `labeler index` wrote.")
@click.option(
    "--find", type=click.Choice(["pictures", "texts"]), default="pictures", show_default=True, help="What to find."
)
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many to show.")
@click.option("--model", type=options.PATH, help="Where the index's run is [default: where it was then].")
@click.option("--html", type=options.PATH, metavar="FILE", help="Write what was found as a page with the pictures.")
@click.option("--force", is_flag=True, help="Replace the page FILE whoever wrote it.")
@options.device
@options.as_json
def command(
    query: str, folder: Path, find: Any, top: int, model: Path | None, html: Path | None, force: bool, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Find what lies nearest to QUERY: words, or the file of a picture.

    One line each: the cosine, the row's id, its picture where that is not the id, and its text, the nearest first.
    """
    from labeler.errors import BadInputError, UsageError
    from labeler.pictures.images import frame_of
    from labeler.replacing import refuse_to_replace
    from labeler.report.found import is_found_page, render_found
    from labeler.searching import picture_of, search

    if html is not None and (html.is_dir() or not html.parent.is_dir()):  # before the model is at work
        raise BadInputError(f"{html}: cannot be written; --html takes a file in a folder that is there")
    picture = picture_of(query)
    if html is not None and picture is not None and html.resolve() == frame_of(picture)[0].resolve():
        raise UsageError(f"--html {html}: the picture itself, which the page would replace; choose another --html")
    if html is not None and not force:
        refuse_to_replace(html, is_found_page, "search --html", "html")
    found = search(query, folder, find=find, top=top, model=model, device=device)
    hits = found.hits
    if html is not None:
        from labeler.artifacts import write_text

        write_text(html, render_found(query, found))
    if as_json:
        options.say("", [hit._asdict() for hit in hits], True)
    else:
        for hit in hits:
            place = "" if hit.image in (None, hit.id) else f"  {hit.image}"
            line = f"{hit.score:+.3f}  {hit.id}{place}  {hit.text or ''}"
            click.echo(options.harmless(" ".join(line.splitlines())))
    if html is not None:
        options.tell(f"{html}: {len(hits)} {find}")
