"""`labeler export-tasks`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("export-tasks")
@click.argument("source", type=options.PATH)
@options.out("The file to write; the labelling interface gets the same name with .xml.")
@click.option("--image-folder", default="", metavar="FOLDER",
              help="Where the pictures lie below Label Studio's LOCAL_FILES_DOCUMENT_ROOT; of several inputs of predict "
                   "the folder that holds them all [default: in it].")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace both files whoever wrote them.")
@options.as_json
@click.pass_context
def command(context: click.Context, source: Path, out: Path, image_folder: str, force: bool, as_json: bool) -> None:
    """Write SOURCE as tasks that Label Studio imports, and the interface to label them with.

    SOURCE is the jsonl that `labeler predict` wrote, whose labels become predictions; or the records that `labeler
    ingest` wrote (the folder or its records.jsonl), whose labels become annotations. Items with an error are left out
    and counted, and the exit code is 4.
    """
    from labeler.export_tasks import export_tasks

    result = export_tasks(source, out, image_folder=image_folder, force=force)
    message = (
        f"{out}: {result.tasks} tasks, {result.errors} items with an error left out\n  interface: {result.interface}"
    )
    options.say(message, {"out": out, **result._asdict()}, as_json)
    context.exit(4 if result.errors else 0)
