"""Labelling: against the loop that a user would write, over many files, and how long it takes to start.

    python -m benchmarks.prediction predict RUN PAIRS.jsonl ITEMS [EXPORT...]   # pairs/s of each runtime and of a plain loop
    python -m benchmarks.prediction scale FOLDER [COUNT...]      # links to the pictures of a folder: time and memory an item
    python -m benchmarks.prediction actors RUN PAIRS.jsonl ITEMS # `--engine ray` with one and two workers, beside one process
    python -m benchmarks.prediction cost RUN RECORDS EXPORT...   # accuracy of its exports on test pairs, beside PyTorch's
    python -m benchmarks.prediction startup RUN FILE             # `labeler --help`, and `predict` of one file

Prints JSON. Every figure is a ratio of things that were run one after the other; on a shared machine the ratios stay and the
figures do not. A run whose model is VisualBERT with the embedded towers; its own export is made if it has none, others (fast
ones) may be named.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import read_json
from labeler.engines import Choice

WIDE = 384  # MiniLM
LOOPED = 512  # items of the loops, and of PyTorch: they take twenty times as long
COUNTS = (1_000, 10_000, 100_000)
FEW = 64  # items, of which a command takes little longer than to start
CHEAP = "an engine that adds up pixels in place of a model: what is measured is everything else"


class Given(NamedTuple):
    """A picture's file and its text."""

    path: Path
    text: str


def plain_loop(run_folder: Path, given: list[Given], batch_size: int) -> tuple[float, list[str]]:
    """Return pairs/s, and the label of every pair, of a loop over files: Pillow, timm's tower, the model in float32."""
    import torch
    from PIL import Image

    from labeler.engines.native import image_tower
    from labeler.runs import load_run

    run = load_run(run_folder)
    tower = image_tower(run)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
    module = tower.module.to(memory_format=torch.contiguous_format)  # as timm makes it
    names, found = run.label_set.names, []
    started = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(given), batch_size):
            batch = given[first : first + batch_size]
            pictures = [
                Image.open(pair.path).convert("RGB").resize((tower.size,) * 2, Image.Resampling.BICUBIC)
                for pair in batch
            ]
            pixels = torch.stack(
                [(torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 - mean) / std for p in pictures]
            )
            tokens = tower._replace(module=module).backbone(pixels)
            texts = run.tokenizer([pair.text for pair in batch], return_tensors="pt", padding=True, truncation=True,
                                  max_length=run.preprocessor["max_text_tokens"])  # fmt: skip
            mask = texts["attention_mask"].bool()
            shown = torch.ones(len(batch), tokens.shape[1], dtype=torch.bool)
            logits = run.model(texts["input_ids"], mask, tokens, shown).logits
            found += [names[number] for number in logits.argmax(dim=1)]
    return len(given) / (time.perf_counter() - started), found


def labelled(choice: Choice, given: list[Given]) -> tuple[float, list[str]]:
    """Return pairs/s of what `predict` does with that choice, the model loaded beforehand as for the loop, and the labels."""
    from unittest import mock

    from labeler import labeller, predicting
    from labeler.decisions import read_rule
    from labeler.items import ItemReading
    from labeler.output import LineFormat
    from labeler.records import Row

    rows = [
        Row(str(pair.path.parent / "pairs.jsonl"), 1, {"id": str(number), "image": pair.path.name, "text": pair.text})
        for number, pair in enumerate(given)
    ]
    settings = labeller.Settings(choice.folder, read_rule(choice.folder), ItemReading({}), choice=choice)
    ready = labeller.Labeller(settings)
    with mock.patch.object(predicting, "Labeller", return_value=ready):
        started = time.perf_counter()
        written = LineFormat("jsonl", settings.rule.label_set.names)
        windows = predicting.label_here(rows, settings, written, labeller.WINDOW)
        lines = [json.loads(line.text) for lines in windows for line in lines]
    return len(given) / (time.perf_counter() - started), [line["labels"][0] for line in lines]


def floor(given: list[Given], words: float, visual: int) -> dict[str, float]:
    """Return seconds a pair that decoding and matrix products take at least, by this machine's speed just now.

    words, visual: how many tokens of each kind a pair has on average.
    """
    import torch

    from benchmarks.training_speed import matrix_speed
    from labeler.pictures.decoding import Wanted, prepare_images

    some = given[:200]
    started = time.perf_counter()
    for _ in prepare_images([Wanted(pair.path) for pair in some], 224):
        pass
    decoding = (time.perf_counter() - started) / len(some)
    length = words + visual
    layer = 2 * length * (4 * WIDE * WIDE + 2 * WIDE * 4 * WIDE) + 4 * length * length * WIDE
    flop = 0.77e9 + 6 * layer + 2 * visual * 1280 * WIDE  # the tower's; six layers; the projection
    return {"decoding": decoding, "gflop": round(flop / 1e9, 3), "matrix_fp32": flop / matrix_speed(torch.float32) / 1e9,
            "matrix_bf16": flop / matrix_speed(torch.bfloat16) / 1e9}  # fmt: skip


def predict(run: Path, source: Path, items: int, exports: list[Path]) -> dict[str, Any]:
    """Return pairs/s of each way, with the share of equal labels, the ratio to the loop at batch 1 and to the floors.

    `source`: lines of {"image", "text"}, the first `items` of which are labelled.
    """
    from transformers import AutoTokenizer

    from labeler.engines import usable_ways
    from labeler.own_export import own_export

    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:items]]
    given = [Given((source.parent / line["image"]).resolve(), line["text"]) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(run, local_files_only=True)
    tokens = statistics.mean(len(tokenizer(pair.text)["input_ids"]) for pair in given)
    choices = {"native": Choice(run)} | {
        f"{name}, {way}": Choice(folder, way)
        for name, folder in {"export": own_export(run), **{path.name: path for path in exports}}.items()
        for way in usable_ways()
    }
    visual = read_json(run / "preprocessor.json")["image"]["tokens"]
    least = floor(given, tokens, visual)
    speeds, labels = {}, {}
    for size in (1, 32):
        name = f"plain loop, batch {size}"
        speeds[name], labels[name] = plain_loop(run, given[:LOOPED], size)
    for name, choice in choices.items():
        speeds[name], labels[name] = labelled(choice, given if choice.way else given[:LOOPED])
    base, same = speeds["plain loop, batch 1"], labels["plain loop, batch 1"]
    floors = {kind: max(least["decoding"], least[f"matrix_{kind}"]) for kind in ("fp32", "bf16")}
    return {
        "items": len(given), "mean_text_tokens": round(tokens, 1), "visual_tokens": visual, "floor_seconds_a_pair": least,
        "ways": {name: {"pairs_per_second": round(speed, 2), "ratio_to_loop": round(speed / base, 2),
                        "share_of_fp32_floor": round(speed * floors["fp32"], 3),
                        "share_of_bf16_floor": round(speed * floors["bf16"], 3),
                        "same_labels": float(np.mean([a == b for a, b in zip(labels[name], same, strict=False)]))}
                 for name, speed in speeds.items()},
    }  # fmt: skip


class Cheap:
    """An engine of three labels: see CHEAP."""

    size = 32

    def logits(self, items: Any, batch_size: int) -> np.ndarray:
        """Return logits [N, 3] that hang on the pictures alone."""
        return np.stack([item.pixels.mean(axis=(0, 1)) for item in items]).astype(np.float32)


def scale(folder: Path, counts: list[int]) -> dict[str, Any]:
    """Return seconds and bytes an item for each number of files, and how long a second run takes that finds all of them done.

    The pictures are linked; every count is run in a process of its own.
    """
    pictures = sorted(path.resolve() for path in folder.iterdir() if path.suffix in (".jpg", ".png"))[:200]
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for count in counts:
            many = Path(place) / str(count)
            many.mkdir()
            for number in range(count):
                (many / f"{number:07d}{pictures[number % len(pictures)].suffix}").symlink_to(
                    pictures[number % len(pictures)]
                )
            runs = [
                json.loads(subprocess.run([sys.executable, "-m", "benchmarks.prediction", "scale-one", str(many)], check=True,
                                          capture_output=True, text=True).stdout) for _ in range(2)
            ]  # fmt: skip
            first, second = runs
            results[str(count)] = {
                "ms_an_item": round(1000 * first["seconds"] / count, 3),
                "peak_memory_mb": first["peak_memory_mb"],
                "again_seconds": round(second["seconds"], 2),
                "again_peak_memory_mb": second["peak_memory_mb"],
            }
    return {"engine": CHEAP, "files": results}


def scale_one(folder: Path) -> dict[str, Any]:
    """Label a folder with the cheap engine; return seconds and the peak of resident memory."""
    from unittest import mock

    from labeler import labeller, predicting
    from labeler.decisions import Rule
    from labeler.records import Label, LabelSet

    rule = Rule(folder, LabelSet(task="single", labels=tuple(Label(name=name, count=1) for name in "abc")), None, 1.0)
    started = time.perf_counter()
    with (
        mock.patch.object(labeller, "open_engine", return_value=Cheap()),
        mock.patch.object(predicting, "choose_engine", return_value=Choice(folder)),
        mock.patch.object(predicting, "read_rule", return_value=rule),
        mock.patch.object(predicting, "read_manifest", return_value={"content_sha256": "cheap"}),
    ):
        predicting.predict([folder], folder, folder.with_suffix(".jsonl"), allow_outside=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"seconds": time.perf_counter() - started, "peak_memory_mb": memory}


def actors(run: Path, source: Path, items: int) -> dict[str, Any]:
    """Return seconds of `labeler predict` in one process and by Ray's workers, from start to end, for the first `items` lines of
    `source` and for FEW of them; pairs/s of what lies between; whether all wrote the same.
    """
    from labeler.own_export import own_export

    own_export(run)  # else the first to label many makes it
    ways: dict[str, list[str]] = {"local": []}
    ways |= {f"ray, {count} workers": ["--engine", "ray", "--workers", str(count)] for count in (1, 2)}
    lines = source.read_bytes().splitlines(keepends=True)[:items]
    found: dict[str, dict[str, Any]] = {}
    written: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        for way, options in ways.items():
            seconds = {}
            for count in (FEW, len(lines)):
                given, out = Path(place) / f"{count}.jsonl", Path(place) / f"{count} {way}.jsonl"
                given.write_bytes(b"".join(lines[:count]))
                command = [
                    "predict",
                    str(given),
                    "--image-folder",
                    str(source.parent),
                    "--model",
                    str(run),
                    "--out",
                    str(out),
                ]
                [seconds[count]] = timed([sys.executable, "-m", "labeler", *command, *options], 1)
            written[way] = out.read_bytes()
            speed = (len(lines) - FEW) / (seconds[len(lines)] - seconds[FEW])
            found[way] = {"seconds": round(seconds[len(lines)], 1), f"seconds_of_{FEW}": round(seconds[FEW], 1),
                          "pairs_per_second": round(speed, 1)}  # fmt: skip
    return {"items": len(lines), "ways": found, "same_output": len(set(written.values())) == 1}


def cost(run: Path, records: Path, exports: list[Path]) -> dict[str, Any]:
    """Return the accuracy of the run's own export and of `exports`, by the way `predict` takes, on the test pairs of `records`.

    With the differences to PyTorch, and 95 % intervals of them over groups. Single labels, pairs with picture and text.
    """
    from labeler.engines import choose_way
    from labeler.evaluation import Predictions, differences, resample
    from labeler.own_export import own_export

    lines = [json.loads(line) for line in (records / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["split"] == "test" and line["image"] and line["text"]]
    source = Path(read_json(records / "manifest.json")["inputs"][0]["path"]).parent
    given = [Given((source / line["image"]).resolve(), line["text"]) for line in lines]
    names = read_json(run / "labels.json")["labels"]
    numbers = {label["name"]: number for number, label in enumerate(names)}

    def marked(labels: list[str]) -> np.ndarray:
        return np.eye(len(numbers), dtype=bool)[[numbers[label] for label in labels]]

    truth = marked([line["labels"][0] for line in lines])
    ids, groups = ([line[name] for line in lines] for name in ("id", "group"))
    folders = {"own export": own_export(run), **{path.name: path for path in exports}}
    choices = {"native": Choice(run)} | {name: choose_way(folder) for name, folder in folders.items()}
    drawn: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, choice in choices.items():
        _, labels = labelled(choice, given)
        drawn[name] = resample("single", Predictions(ids, groups, truth, marked(labels).astype(float), marked(labels)))
        found[name] = {"way": str(choice.way), "accuracy": round(drawn[name].estimate["accuracy"], 4)}
    for name in folders:
        difference = differences(drawn[name].minus(drawn["native"]), "accuracy", "macro_f1")
        found[name] |= {"difference": round(difference["delta_accuracy"], 4), "ci95": difference["ci95"]}
    return {"pairs": len(lines), "ways": found}


def startup(run: Path, file: Path, times: int = 5) -> dict[str, Any]:
    """Return the median of seconds that each command takes from start to end, the first time apart."""
    commands: dict[str, list[str]] = {"python -c pass": ["-c", "pass"], "labeler --help": ["-m", "labeler", "--help"],
                "labeler predict, one file": ["-m", "labeler", "predict", str(file), "--model", str(run)]}  # fmt: skip
    return {
        name: round(statistics.median(list(timed([sys.executable, *command], times))[1:]), 2)
        for name, command in commands.items()
    }


def timed(command: list[str], times: int) -> Iterator[float]:
    """Yield the seconds that a command takes, several times."""
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        yield time.perf_counter() - started


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "predict":
        done = predict(Path(rest[0]), Path(rest[1]), int(rest[2]), [Path(path) for path in rest[3:]])
    elif what == "scale":
        done = scale(Path(rest[0]), [int(count) for count in rest[1:]] or list(COUNTS))
    elif what == "actors":
        done = actors(Path(rest[0]), Path(rest[1]), int(rest[2]))
    elif what == "cost":
        done = cost(Path(rest[0]), Path(rest[1]), [Path(path) for path in rest[2:]])
    elif what == "scale-one":
        done = scale_one(Path(rest[0]))
    else:
        done = startup(Path(rest[0]), Path(rest[1]))
    print(json.dumps(done, indent=2))
