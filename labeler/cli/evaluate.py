"""`labeler evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labeler.cli import options
from labeler.errors import UsageError


@click.command("evaluate")
@click.argument("run", type=options.PATH)
@click.option("--data", "store", type=options.PATH, required=True, help="The store that `labeler preprocess` wrote.")
@options.split
@options.aim
@click.option("--zero-shot", is_flag=True, help="RUN is one of `labeler pretrain`: measure labels it was never taught.")
@options.describe
@options.template
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@options.device
@options.force
@options.as_json
def command(
    run: Path,
    store: Path,
    split: Any,
    aim: Any,
    zero_shot: bool,
    describe: Path | None,
    templates: tuple[str, ...],
    batch_size: int,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Measure RUN, the majority class and a logistic regression on the same held-out pairs.

    Writes predictions-SPLIT.jsonl and metrics-SPLIT.json into RUN; every figure has its 95% interval.
    --aim is for several labels a row. --zero-shot also says how well texts and pictures find each other.
    """
    from labeler.evaluating import ZeroShotOptions, evaluate
    from labeler.zero_shot import read_phrases

    if (describe or templates) and not zero_shot:
        raise UsageError("--describe and --template are for --zero-shot")
    asked = ZeroShotOptions(read_phrases(describe) if describe else None, templates) if zero_shot else None
    result = evaluate(
        run, store, split=split, aim=aim, batch_size=batch_size, force=force, device=device, zero_shot=asked
    )
    rows = [*result.metrics["baselines"], result.metrics]
    lines = [*([options.already(run)] if result.already else []), f"{run}: {split} split, n = {result.metrics['n']}"]
    lines += [f"  {row['name']:20} {options.headline(row)}" for row in rows]
    if "parents" in result.metrics:
        lines += [f"  {result.metrics['name'] + ', parents':20} {options.headline(result.metrics['parents'])}"]
    lines += [f"  {line}" for line in options.retrieval_lines(result.metrics.get("retrieval"))]
    options.say("\n".join(lines), result.metrics, as_json)
