"""What unlabelled pairs are worth: `python -m benchmarks.weak_labels STORE OUT`, STORE being preprocessed openclipart.

Of the train split so many pairs keep their category, drawn by the seed; of the others it is hidden. `visualbert` learns from the
labelled ones alone, and from all of them with `--teacher zero-shot:RUN`, RUN having learned from the train titles without labels.
Validation rows keep their labels; the test split is read once a run. Made runs are found again.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from benchmarks.zero_shot import DESCRIBED
from labeler.artifacts import versions, write_json
from labeler.evaluating import evaluate
from labeler.evaluation import Resampled, mean_of, read_predictions, resample
from labeler.fitting.distillation import ZeroShotTeacher
from labeler.pretraining import pretrain
from labeler.records import read_label_set
from labeler.store import Store
from labeler.training import train
from labeler.training_options import options_for

FIGURES = Path(__file__).parent / "figures"
COUNTS = (100, 200, 500, 2000)
SEEDS = (0, 1, 2)
MODEL = "visualbert"


def hidden(count: int, seed: int) -> Any:
    """Return a patch by which all but `count` of a store's train rows, drawn by `seed`, have no label."""
    whole: Any = Store.__dict__["rows"].func

    def rows(store: Store) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = whole(store)
        train_rows = np.flatnonzero(np.array(found["split"]) == "train")
        lost = set(np.random.default_rng(seed).permutation(train_rows)[count:].tolist())
        return found | {"labels": [None if row in lost else own for row, own in enumerate(found["labels"])]}

    patched = cached_property(rows)
    patched.__set_name__(Store, "rows")
    return mock.patch.object(Store, "rows", patched)


def measured(store: Path, run: Path) -> Resampled:
    """Return the run's test figures, resampled by group."""
    evaluate(run, store)
    names = read_label_set(store).names
    return resample("single", read_predictions(run / "predictions-test.jsonl", names), wanted=["accuracy", "macro_f1"])


def figures(found: Resampled) -> dict[str, Any]:
    """Return each metric with its interval."""
    return {name: [round(found.estimate[name], 4), *(found.interval(name) or (None, None))] for name in found.estimate}


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--weight", type=float, default=None, help="--teacher-weight of the runs with a teacher.")
def main(store: Path, out: Path, weight: float | None) -> None:
    """Train by every count and seed, into OUT, and write the curve."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    described = {name: phrases for name, phrases in DESCRIBED.items() if name in read_label_set(store).names}
    teacher = ZeroShotTeacher(str(pretrain("clip", store, out / "clip", seed=0).out), described)
    result: dict[str, Any] = {"model": MODEL, "seeds": len(SEEDS), "test_pairs": len(Store(store).rows_of("test")),
                              "versions": versions(), "labelled": {}}  # fmt: skip
    for count in COUNTS:
        runs: dict[str, list[Resampled]] = {"alone": [], "weak": []}
        for seed in SEEDS:
            for name, own in runs.items():
                run = out / f"{count}-{name}-{seed}"
                given = {} if name == "alone" or weight is None else {"teacher_weight": weight}
                with hidden(count, seed):
                    taught = [teacher] if name == "weak" else []
                    train(MODEL, store, run, options_for(MODEL, given), seed=seed, teachers=taught)
                own.append(measured(store, run))
        alone, weak = (mean_of(own) for own in runs.values())
        gain = figures(weak.minus(alone))
        result["labelled"][str(count)] = {"alone": figures(alone), "weak": figures(weak), "gain": gain}
        print(count, result["labelled"][str(count)], flush=True)
        FIGURES.mkdir(exist_ok=True)
        write_json(FIGURES / f"weak-labels-of-{result['test_pairs']}.json", result)


if __name__ == "__main__":
    main()
