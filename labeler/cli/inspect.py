"""`labeler inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("inspect")
@click.argument("dataset", type=options.FOLDER)
@options.as_json
def command(dataset: Path, as_json: bool) -> None:
    """Show what is in a data set: rows, rejects, labels, lengths, duplicates, leaks.

    DATASET is a folder that `labeler ingest` or `labeler preprocess` has written.
    """
    import json

    from labeler.artifacts import BadInputError, verify
    from labeler.profile import described

    manifest = verify(dataset)
    if manifest["stage"] not in ("ingest", "preprocess"):
        raise BadInputError(f"{dataset}: made by `labeler {manifest['stage']}`; expected records or a store")
    path = dataset / "profile.json"
    if not path.is_file():
        raise BadInputError(f"{path}: missing; make it again with `labeler {manifest['stage']} --force`")
    profile = json.loads(path.read_text(encoding="utf-8"))
    click.echo(json.dumps(profile, ensure_ascii=False, indent=2) if as_json else "\n".join(described(profile)))
