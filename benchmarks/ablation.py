"""What co-attention gives: each kind, number of blocks and place, against VisualBERT without any, on held-out pairs.

    python -m benchmarks.ablation [--data clipart-category] [--seeds 5] [--variants hieco-between-2,seed-before-1]

Trains VisualBERT and 18 variants of it with the same seeds, and takes the paired difference of each to VisualBERT. All read all
visual tokens in training: co-attention does by itself, VisualBERT does not, and their difference would be that too. Runs that
are already made are found. All variants are reported and none is chosen by these figures; of 18 intervals of 95 %, about one
leaves out zero by chance.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import RESULTS, Trial, data_sets, measure, several, stored, table
from labeler.models import COATTENTIONS, COATTN_PLACES

NONE = "visualbert-all-tokens"
BLOCKS = (1, 2, 4)
VARIANTS = [f"{kind}-{place}-{count}" for kind, place, count in product(COATTENTIONS, COATTN_PLACES, BLOCKS)]


def trials(variants: list[str], epochs: int | None = None) -> list[Trial]:
    """Return VisualBERT, then the variants; with `epochs` under names that keep such runs apart."""
    given: dict[str, Any] = {"visual_token_dropout": 0.0} | ({"epochs": epochs} if epochs else {})
    suffix = f"-epochs-{epochs}" if epochs else ""
    found = [Trial(NONE + suffix, "visualbert", given)]
    for variant in variants:
        kind, place, count = variant.split("-")
        blocks = {"coattention": kind, "coattn_place": place, "n_coattn": int(count)}
        found.append(Trial(variant + suffix, "visualbert-coattn", given | blocks))
    return found


@click.command()
@click.option("--data", type=click.Choice([data_set.name for data_set in data_sets()]), default="clipart-category")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--variants", callback=several, default=",".join(VARIANTS), help="KIND-PLACE-BLOCKS, commas between [default: all]."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Fewer, to try it out [default: the model's].")
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, help="Where ablation-DATA.json is written."
)
def main(data: str, seeds: int, variants: list[str], epochs: int | None, results: Path) -> None:
    """Train what is missing, write ablation-DATA.json after every run, print the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    [data_set] = [found for found in data_sets() if found.name == data]
    planned = trials(variants, epochs)
    compared = [(planned[0].name, trial.name) for trial in planned[1:]]
    result = measure(
        f"ablation-{data}", stored(data_set), planned, range(seeds), compared, results / f"ablation-{data}.json"
    )
    print(table(result))


if __name__ == "__main__":
    main()
