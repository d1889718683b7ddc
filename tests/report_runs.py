"""Runs as `labeler train` and `labeler evaluate` leave them, with simulated predictions; pages as a browser takes them."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from labeler import artifacts
from labeler.artifacts import write_json
from labeler.evaluation import (
    Predictions,
    decide,
    kept,
    measure,
    promise,
    reliability,
    risk_coverage,
    round_scores,
    write_predictions,
)

NAMES = ["animals", "buildings", "food", "music", "people", "plants"]
DRAWS = 200


def simulate(task: str, names: list[str], rows: int, skill: float, seed: int, data_seed: int = 7) -> Predictions:
    """Return predictions as a model of that skill makes them: the truth depends on `data_seed` alone."""
    data, noise = np.random.default_rng(data_seed), np.random.default_rng([seed, 1])
    share = np.linspace(2, 1, len(names)) / np.linspace(2, 1, len(names)).sum()
    truth = np.arange(len(names)) == data.choice(len(names), rows, p=share)[:, None]
    if task == "multi":
        truth |= data.random((rows, len(names))) < share / 2
    logits = skill * (truth + data.normal(0, 0.4, truth.shape)) + noise.normal(0, 1, truth.shape)
    if task == "single":
        scores = round_scores(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    else:
        scores = round_scores(1 / (1 + np.exp(2.5 - logits)))
    ids = [f"row-{i}" for i in range(rows)]
    groups = [f"group-{i // 2}" if i < 20 else f"row-{i}" for i in range(rows)]
    return Predictions(ids, groups, truth, scores, decide(task, scores))


def write_run(
    folder: Path, name: str = "visualbert", *, task: str = "single", skill: float = 3.0, seed: int = 0,
    names: list[str] | None = None, rows: int = 80, sha256: str = "ab" * 32, split: str = "test",
    baselines: bool = True, preset: str = "embedded", store: str = "data/clipart/store", modalities: bool = True,
    sure: bool = True,
) -> Path:  # fmt: skip
    """Write a run folder as `labeler train` and `labeler evaluate` leave it; return it."""
    names = names or NAMES
    folder.mkdir(parents=True)
    labels = [{"name": label, "count": 9, "parent": None} for label in names]
    write_json(folder / "labels.json", {"schema_version": 1, "task": task, "labels": labels})
    keys = ("epoch", "train_loss", "validation_loss", "validation_metric")
    values = [(n, 2.5 / (n + 0.4 * seed), 1.6 + abs(n - 3) / 8, 0.7 - abs(n - 3) / 25) for n in range(1, 7)]
    epochs = [dict(zip(keys, row, strict=True)) for row in values]
    metric = "macro_f1" if task == "single" else "mean_average_precision"
    write_json(folder / "history.json", {"metric": metric, "best_epoch": 3, "epochs": epochs, "steps": []})
    recipe = artifacts.Recipe("train", (artifacts.Input(store, sha256),), {"model": name, "epochs": 6}, seed)
    artifacts.write_manifest(folder, recipe, datetime(2025, 1, 2, tzinfo=timezone.utc))
    found = simulate(task, names, rows, skill, seed + round(100 * skill))
    write_predictions(folder / f"predictions-{split}.jsonl", names, found)
    head = {
        "schema_version": 1, "name": name, "run": str(folder), "preset": preset, "task": task, "seed": seed,
        "data": {"name": "clipart-category", "sha256": sha256, "split": split, "n": rows, "store": store},
        "parameters": 23_451_122, "trainable_parameters": 23_000_000, "train_seconds": 812.4,
        "pairs_per_second": 31.7, "evaluate_pairs_per_second": 95.2, "best_epoch": 3,
        "settings": {"learning_rate": 5e-5, "epochs": 6, "batch_size": 32, "seed": seed},
    }  # fmt: skip
    if sure:  # as if its scores came from a temperature of 1.5
        promises = [kept(found, promise(simulate(task, names, 400, skill, 99), share)) for share in (0.8, 0.99)]
        head["calibration"] = {"temperature": 1.5} | dict.fromkeys(("before", "after"), reliability(task, found))
        head["abstention"] = risk_coverage(found) | {"promises": promises}
    measured = measure(task, names, found, draws=DRAWS)
    alone = {modality: measure(task, names, simulate(task, names, rows, skill / worse, seed), draws=DRAWS)
             for modality, worse in (("text", 2), ("image", 4))}  # fmt: skip
    head["modalities"] = {"both": measured, **alone} if modalities else None
    both = (("majority", 0.0), ("logistic-regression", 2.4)) if baselines else ()
    others = [_baseline(folder, task, names, rows, split, *one) for one in both]
    write_json(folder / f"metrics-{split}.json", head | measured | {"baselines": others})
    return folder


def _baseline(folder: Path, task: str, names: list[str], rows: int, split: str, name: str, skill: float) -> dict:
    found = simulate(task, names, rows, skill, 5)
    if name == "majority":
        scores = round_scores(np.tile(found.truth.mean(axis=0), (rows, 1)))
        found = found._replace(scores=scores, predicted=decide(task, scores))
    write_predictions(folder / f"baseline-{name}-{split}.jsonl", names, found)
    settings = {"C": 0.01} if skill else {}
    head = {"name": name, "parameters": 6, "train_seconds": 0.2, "settings": settings}
    return head | {"predictions": f"baseline-{name}-{split}.jsonl"} | measure(task, names, found, draws=DRAWS)


class Page(HTMLParser):
    """What a browser would make of the page: its tags and attributes, and whether each tag is closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag; a void one is not left open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a self-closed tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag closed is the one opened last."""
        assert self.open.pop() == tag, f"</{tag}> closes nothing, or something else"

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text += data


def two_runs(tmp_path: Path, **settings) -> list[Path]:
    """Return a good and a poor run."""
    runs = (("visualbert", 4.5), ("resnet-gru", 1.2))
    return [write_run(tmp_path / "checkpoints" / name, name, skill=skill, **settings) for name, skill in runs]


def page(out: Path, name: str = "index.html") -> Page:
    """Return the parsed page, after checking that it loads nothing and every tag is closed."""
    html = (out / name).read_text(encoding="utf-8")
    found = Page(html)
    assert found.open == []
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "object", "embed", "base", "form")]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "srcset", "poster", "background"):
            place = attributes.get(name) or "#"
            assert place in ("index.html", "data.html") or place.startswith(("#", "data:image/"))
    assert not re.search(r"@import|url\(", html)
    return found
