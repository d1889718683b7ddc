"""`labeler report`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=options.PATH)
@click.option("--out", type=options.PATH, default=Path("report"), show_default=True, help="The folder to write.")
@options.split
@click.option("--explain", type=click.IntRange(0, 50), default=6, show_default=True, metavar="N",
              help="Show for N pairs which words and regions drove the best run's label; 0 for none.")  # fmt: skip
@options.device
@options.force
@options.as_json
def command(
    runs: tuple[Path, ...], out: Path, split: str, explain: int, device: str, force: bool, as_json: bool
) -> None:
    """Compare evaluated RUNS on the same rows: index.html, data.html, comparison.json, .md and .csv.

    Every figure has its interval, every pair of models a paired test; the baselines stand in the table.
    """
    from labeler.report import report

    comparison = report(list(runs), out, split=split, explain=explain, force=force, device=device)
    lines = [
        *(f"  {row['name']:20} {options.headline(row)}" for row in comparison["models"]),
        *comparison.get("cautions", []),  # one of before has none
        comparison["answer"],
    ]
    lines += [claim["text"] for claim in comparison["against_baseline"]]
    options.say("\n".join([*lines, f"report: {out / 'index.html'}"]), comparison, as_json)
