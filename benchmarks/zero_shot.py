"""What `clip` learns from titles alone: `python -m benchmarks.zero_shot STORE OUT`, STORE being preprocessed openclipart.

Three seeds of `labeler pretrain clip`, without labels, then the test split, once: recall of titles and drawings, and zero-shot
categories by their names and by the phrases below, which were chosen on validation rows. Made runs are found again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np

from labeler.evaluating import ZeroShotOptions, evaluate
from labeler.evaluation import mean_of, read_predictions, resample
from labeler.pretraining import pretrain
from labeler.records import read_label_set
from labeler.values import Split

SEEDS = (0, 1, 2)
DESCRIBED = {
    "signs_and_symbols": [
        "flag of a country",
        "national flag",
        "road sign",
        "warning sign",
        "symbol",
        "arrow",
        "sign",
        "logo",
    ],
    "computer": [
        "computer",
        "computer icon",
        "software",
        "keyboard",
        "monitor",
        "server",
        "network",
        "hotel icon",
        "button",
    ],
    "people": ["people", "person", "man", "woman", "child", "face", "portrait", "clothes", "hat"],
    "food": ["food", "fruit", "vegetable", "meal", "drink", "cake", "ice cream", "plate"],
    "recreation": ["recreation", "sport", "game", "toy", "holiday", "music", "musical instrument", "religion"],
    "animals": ["animal", "bird", "fish", "dog", "cat", "insect"],
    "tools": ["tool", "hammer", "knife", "wrench", "weapon"],
    "geography": ["map", "map of a country", "globe", "landscape"],
    "transportation": ["car", "truck", "airplane", "ship", "train", "bicycle"],
    "office": ["office supplies", "pencil", "paper", "folder", "envelope", "scissors"],
    "plants": ["plant", "flower", "tree", "leaf"],
    "buildings": ["building", "house", "castle", "church", "tower"],
    "education": ["school", "book", "laboratory", "mathematics"],
    "electronics": ["electronic device", "circuit", "resistor", "telephone", "camera"],
}


def measured(store: Path, run: Path, split: Split) -> dict[str, Any]:
    """Return {names or phrases: metrics} of a run; those by names are measured on a copy, and the run keeps those by phrases."""
    copy = run.with_name(f"{run.name}-names")
    if not copy.exists():
        shutil.copytree(run, copy)
    options = {"names": (copy, ZeroShotOptions()), "phrases": (run, ZeroShotOptions(DESCRIBED))}
    return {
        how: evaluate(place, store, split=split, zero_shot=asked).metrics for how, (place, asked) in options.items()
    }


def accuracy(store: Path, runs: list[Path], split: str) -> str:
    """Return the mean accuracy over the runs, with the 95 % interval of groups drawn for all alike."""
    names = read_label_set(store).names
    drawn = [
        resample("single", read_predictions(run / f"predictions-{split}.jsonl", names), wanted=["accuracy"])
        for run in runs
    ]
    mean = mean_of(drawn)
    low, high = mean.interval("accuracy") or (float("nan"), float("nan"))
    return f"{mean.estimate['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
def main(store: Path, out: Path, split: Split) -> None:
    """Pretrain on STORE by every seed, into OUT/seed-N, and measure."""
    runs = [pretrain("clip", store, out / f"seed-{seed}", seed=seed) for seed in SEEDS]
    found = [measured(store, run.out, split) for run in runs]
    for direction in ("text_to_image", "image_to_text"):
        figures = [one["phrases"]["retrieval"] for one in found]
        for metric in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank"):
            values = [one[direction][metric] for one in figures]
            click.echo(
                f"{direction:14} {metric:13} {np.mean(values):.3f}  each {json.dumps([round(value, 3) for value in values])}"
            )
    click.echo(f"chance at 10: {figures[0]['chance']['recall_at_10']:.4f} of {figures[0]['n']} pairs")
    for how, place in (("names", "seed-{}-names"), ("phrases", "seed-{}")):
        modalities = {
            kind: np.mean([one[how]["modalities"][kind]["accuracy"] for one in found]) for kind in ("text", "image")
        }
        alone = ", ".join(f"{kind} alone {value:.3f}" for kind, value in modalities.items())
        click.echo(
            f"accuracy by {how}: {accuracy(store, [out / place.format(seed) for seed in SEEDS], split)}; {alone}"
        )
    seconds = [run.history["train_seconds"] for run in runs]
    click.echo(f"trained in {', '.join(f'{value:.0f} s' for value in seconds)}")


if __name__ == "__main__":
    main()
