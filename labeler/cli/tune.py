"""`labeler tune`."""

from __future__ import annotations

from pathlib import Path

import click

from labeler.cli import options


@click.command("tune")
@click.argument("model")
@click.argument("store", type=options.PATH)
@options.out("The folder of the search: what was tried, the best options, the best run.")
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="So many trainings in all.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES",
              help="So long in all; no trial is begun that would most likely not end in time, but for the first.")  # fmt: skip
@click.option("--options", "file", type=options.PATH, metavar="FILE",
              help="JSON with training options by name that every trial keeps; the others are searched.")  # fmt: skip
@options.seed
@options.device
@options.as_json
def command(
    model: str, store: Path, out: Path, trials: int | None, budget: float | None, file: Path | None, seed: int,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Search training options for MODEL on the validation split of STORE; the test split is not read.

    The first trial has MODEL's defaults. Trials that fall behind are stopped. Stopped by whatever, the same command goes on;
    with a larger --trials or --budget too. Writes best.json, for `labeler train --options`, trials.csv and the best run.
    """
    from labeler.training_options import read_options
    from labeler.tuning import tune

    fixed = read_options(file) if file else None
    result = tune(model, store, out, trials=trials, minutes=budget, fixed=fixed, seed=seed, device=device)
    best, defaults = result["best"], result["defaults"]
    reached = "came to no end" if defaults is None else f"reached {defaults:.4f}"
    lines = [
        f"{out}: {result['trials']} trials, {result['stopped']} of them stopped early; {result['seconds']:.0f} s",
        f"  best: trial {best['number']}, validation {result['metric']} {best['value']:.4f}; the defaults {reached}",
        f"  its options: {out / 'best.json'}, its run: {result['run']}",
    ]
    options.say("\n".join(lines), result, as_json)
