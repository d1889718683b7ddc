"""`labeler inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("inspect")
@click.argument("dataset", type=options.PATH)
@options.force
@options.as_json
def command(dataset: Path, force: bool, as_json: bool) -> None:
    """Show what is in a data set: labels, lengths, duplicates, leaks; of a store, suspicious pictures and label errors.

    DATASET is a folder that `labeler ingest` or `labeler preprocess` has written. What takes a while, pictures and label
    errors, is looked for once and kept in DATASET-quality, with a line for every row found.
    """
    import json

    from labeler.artifacts import read_manifest, verify
    from labeler.errors import BadInputError, UsageError
    from labeler.inspection import inspect, read_profile
    from labeler.rows.profile import profile_lines

    stage = read_manifest(dataset)["stage"]
    if stage not in ("ingest", "preprocess", "inspect"):
        raise BadInputError(f"{dataset}: made by `labeler {stage}`; expected records or a store")
    if force and stage != "preprocess":
        raise UsageError(f"--force is for a store, of which what was found is kept; {dataset} is none; leave it out")
    if stage == "preprocess":
        profile = inspect(dataset, force=force).profile
    else:
        verify(dataset)
        profile = read_profile(dataset)
    lines = map(options.harmless, profile_lines(profile))
    click.echo(json.dumps(profile, ensure_ascii=False, indent=2) if as_json else "\n".join(lines))
