"""What the statistics are worth, by simulation, and how long they take.

python -m benchmarks.evaluation intervals    # how often 95 % intervals cover the truth
python -m benchmarks.evaluation promises     # how often a promised precision is broken, and how much is labelled
python -m benchmarks.evaluation on-test RUN...  # what promises were worth on the test rows of evaluated runs
python -m benchmarks.evaluation times        # seconds for the figures of a run and the comparisons of six models
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from scipy.stats import binom, binomtest

from labeler.decisions import VALIDATION
from labeler.evaluating import PROMISES
from labeler.evaluation import (
    Predictions,
    compare,
    decide,
    judge,
    kept,
    measure,
    promise,
    read_predictions,
    resample,
    statistics,
    without_parents,
)
from labeler.evaluation.metrics import HEADLINE, SECOND
from labeler.records import read_label_set
from labeler.taxonomy import taxonomy_of

POPULATION = 200_000  # rows that stand for all
SHARES = {
    ("single", 150): np.array([0.6, 0.25, 0.15]),
    ("single", 300): np.array([0.4, 0.2, 0.15, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01]),
    ("multi", 300): np.geomspace(0.01, 0.3, 20),
    ("multi", 600): np.geomspace(0.03, 0.3, 20),
}
METRICS = {
    "single": ("accuracy", "weighted_f1", "macro_f1"),
    "multi": ("mean_average_precision", "micro_f1", "macro_f1"),
}


@click.group()
def main() -> None:
    """Simulate; every command is seeded."""


@main.command()
@click.option("--samples", type=click.IntRange(min=10), default=200, show_default=True)
@click.option("--draws", type=click.IntRange(min=100), default=1000, show_default=True)
def intervals(samples: int, draws: int) -> None:
    """Draw samples from a known population and count how often percentile, reflected and BCa intervals hold its value."""
    click.echo("| rows | task, labels | metric | percentile | reflected | BCa |\n|---|---|---|---|---|---|")
    for (task, rows), shares in SHARES.items():
        wanted = METRICS[task]
        truth = statistics(task, simulated(task, POPULATION, shares, -1), np.ones((POPULATION, 1)), wanted)
        hits = {metric: np.zeros(3) for metric in wanted}
        for seed in range(samples):
            found = resample(task, simulated(task, rows, shares, seed), seed, draws, wanted)
            for metric in wanted:
                low, high = np.nanquantile(found.drawn[metric], [0.025, 0.975])
                mirrored = 2 * found.estimate[metric] - np.array([high, low])
                for way, bounds in enumerate(((low, high), mirrored, found.interval(metric) or (1, 0))):
                    hits[metric][way] += bounds[0] <= truth[metric][0] <= bounds[1]
        for metric in wanted:
            shown = " | ".join(f"{share:.3f}" for share in hits[metric] / samples)
            click.echo(f"| {rows} | {task}, {len(shares)} | {metric} | {shown} |")


def simulated(task: str, rows: int, shares: np.ndarray, seed: int) -> Predictions:
    """Return predictions of a fair model for labels that have these shares of the rows."""
    random = np.random.default_rng([seed + 1, rows])
    if task == "single":
        truth = np.arange(len(shares)) == random.choice(len(shares), rows, p=shares)[:, None]
    else:
        truth = random.random((rows, len(shares))) < shares
    logits = 2 * truth + random.normal(size=truth.shape) + np.log(shares) * (1.0 if task == "single" else 0.5)
    scores = (
        1 / (1 + np.exp(-logits)) if task == "multi" else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    )
    ids = [str(number) for number in range(rows)]
    return Predictions(ids, ids, truth, scores, decide(task, scores))


@main.command()
@click.option("--samples", type=click.IntRange(min=10), default=200, show_default=True)
def promises(samples: int) -> None:
    """Fit thresholds for a promised precision on simulated rows and look at all rows whether it holds."""
    click.echo("| promised | scores | rows | possible | threshold | broken | labelled |\n|---|---|---|---|---|---|---|")
    for precision in (0.9, 0.95):
        for honest, name in ((1.0, "calibrated"), (2.0, "too sure")):
            everything = sure(POPULATION, -1, honest)
            scores, right = everything.scores.max(axis=1), (everything.truth & everything.predicted).any(axis=1)
            order = np.argsort(-scores)
            true = np.cumsum(right[order]) / np.arange(1, POPULATION + 1)
            possible = (np.flatnonzero(true >= precision).max(initial=-1) + 1) / POPULATION
            for rows in (300, 1000):
                for way, threshold in WAYS.items():
                    given = [threshold(sure(rows, seed, honest), precision) for seed in range(samples)]
                    places = np.searchsorted(-scores[order], [-value for value in given], side="right")
                    broken = np.mean([place > 0 and true[place - 1] < precision for place in places])
                    labelled = places.mean() / POPULATION
                    click.echo(
                        f"| {precision} | {name} | {rows} | {possible:.2f} | {way} | {broken:.2f} | {labelled:.2f} |"
                    )


def sure(rows: int, seed: int, honest: float) -> Predictions:
    """Return predictions of two labels whose chance to be right is the score to the power of `honest`."""
    random = np.random.default_rng([seed + 1, rows])
    score = 0.5 + 0.5 * random.beta(2, 1, rows)
    right = random.random(rows) < score**honest
    scores = np.where(right[:, None] == [True, False], score[:, None], 1 - score[:, None])
    ids = [str(number) for number in range(rows)]
    return Predictions(ids, ids, np.tile([True, False], (rows, 1)), scores, decide("single", scores))


def ranked(rows: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores from the highest down, how many are wrong up to each, and how many there are."""
    scores = rows.scores.max(axis=1)
    order = np.argsort(-scores)
    wrong = np.cumsum(~(rows.truth & rows.predicted).any(axis=1)[order])
    return scores[order], wrong, np.arange(1, len(scores) + 1)


def reached(rows: Predictions, precision: float) -> float:
    """Return the lowest threshold whose precision on the rows is the one promised."""
    scores, wrong, count = ranked(rows)
    found = np.flatnonzero((1 - wrong / count >= precision) & (count >= 20))
    return float(scores[found[-1]]) if len(found) else np.inf


def tested(rows: Predictions, precision: float) -> float:
    """Return the threshold of `labeler predict --min-precision`."""
    threshold = promise(rows, precision).threshold
    return np.inf if threshold is None else threshold


def in_sequence(rows: Predictions, precision: float) -> float:
    """Return the threshold of tests in a fixed sequence from each of four places (Learn then Test), 2.5 % each."""
    scores, wrong, count = ranked(rows)
    passed = binom.cdf(wrong, count, 1 - precision) <= 0.025
    least, best = np.log(0.025) / np.log(precision), 0
    for start in least * np.array([1.0, 1.6, 2.6, 4.2]):
        after = passed[int(np.ceil(start)) - 1 :]
        length = len(after) if after.all() else int(after.argmin())
        best = max(best, len(passed) - len(after) + length if length else 0)
    return float(scores[best - 1]) if best else np.inf


WAYS: dict[str, Callable[[Predictions, float], float]] = {
    "reached": reached, "tested at 10 % (ours)": tested, "tested in sequence": in_sequence}  # fmt: skip


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def on_test(runs: tuple[Path, ...]) -> None:
    """Let validation rows of evaluated RUNS promise precisions; count how many hold on test rows, how right all labels are."""
    found = []
    for run in runs:
        taxonomy = taxonomy_of(read_label_set(run))
        validation, test = (
            read_predictions(run / name, taxonomy.names) for name in (VALIDATION, "predictions-test.jsonl")
        )
        validation, test = without_parents(taxonomy, validation), without_parents(taxonomy, test)
        found += [kept(test, promise(validation, precision)) for precision in PROMISES]
    click.echo("| promised | runs | promise made | below it on test | broken | labels given | right, 95 % interval |")
    click.echo("|---|---|---|---|---|---|---|")
    for promised in sorted({one["promised"] for one in found}):
        ones = [one for one in found if one["promised"] == promised]
        given = [one for one in ones if one["n"]]
        n, right = sum(one["n"] for one in given), sum(round(one["n"] * one["precision"]) for one in given)
        if not n:
            click.echo(f"| {promised} | {len(ones)} | 0 | – | – | 0 | – |")
            continue
        bounds = binomtest(right, n).proportion_ci(0.95, method="exact")
        below, broken = sum(one["precision"] < promised for one in given), sum(one["holds"] is False for one in given)
        share = n / sum(one["total"] for one in ones)
        click.echo(
            f"| {promised} | {len(ones)} | {len(given)} | {below} | {broken} | {share:.2f} | "
            f"{right / n:.3f} [{bounds.low:.3f}, {bounds.high:.3f}] |"
        )


@main.command()
@click.option("--rows", type=click.IntRange(min=10), default=2000, show_default=True)
def times(rows: int) -> None:
    """Time the figures of one run with all intervals, and the comparison of all pairs of six models."""
    for task, labels in (("single", 14), ("multi", 61)):
        shares = np.geomspace(0.02, 0.3, labels)
        shares = shares / shares.sum() if task == "single" else shares
        model, names = simulated(task, rows, shares, 0), [str(number) for number in range(labels)]
        begin = time.perf_counter()
        measure(task, names, model)
        measured = time.perf_counter() - begin
        noise = np.random.default_rng(0)
        models = [model]
        for _ in range(5):
            scores = np.clip(model.scores + noise.normal(0, 0.05, model.scores.shape), 0, 1)
            models.append(model._replace(scores=scores, predicted=decide(task, scores)))
        begin = time.perf_counter()
        drawn = [resample(task, one, wanted=(HEADLINE[task], SECOND[task])) for one in models]
        judge(
            [compare(task, models[a], models[b], resampled=(drawn[a], drawn[b])) for a, b in combinations(range(6), 2)]
        )
        compared = time.perf_counter() - begin
        click.echo(f"{task}, {labels} labels, {rows} rows: {measured:.1f} s for a run, {compared:.1f} s for 15 pairs")


if __name__ == "__main__":
    main()
