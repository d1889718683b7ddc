"""`labeler evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options


@click.command("evaluate")
@click.argument("run", type=options.FOLDER)
@click.option("--data", "store", type=options.FOLDER, required=True, help="The store that `labeler preprocess` wrote.")
@options.split
@options.aim
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@options.device
@options.force
@options.as_json
def command(
    run: Path, store: Path, split: Any, aim: Any, batch_size: int, device: str, force: bool, as_json: bool
) -> None:
    """Measure RUN, the majority class and a logistic regression on the same held-out pairs.

    Writes predictions-SPLIT.jsonl and metrics-SPLIT.json into RUN; every figure has its 95% interval.
    --aim is for several labels a row.
    """
    from labeler.scoring import evaluate

    result = evaluate(run, store, split=split, aim=aim, batch_size=batch_size, force=force, device=device)
    rows = [*result.metrics["baselines"], result.metrics]
    lines = [*([options.already(run)] if result.already else []), f"{run}: {split} split, n = {result.metrics['n']}"]
    lines += [f"  {row['name']:20} {options.headline(row)}" for row in rows]
    if "parents" in result.metrics:
        lines += [f"  {result.metrics['name'] + ', parents':20} {options.headline(result.metrics['parents'])}"]
    options.say("\n".join(lines), result.metrics, as_json)
