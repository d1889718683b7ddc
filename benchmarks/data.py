"""How fast data are read: one command for each part of the way to the store.

    python -m benchmarks.data pictures [--pictures 1000] [--rounds 5]

Prints JSON. What is compared runs in turns, so that other work on the machine hits both; figures are medians. CPU time, of
processes started too, says how the ways compare where other work leaves one of them fewer cores.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image

from labeler.decoding import cores, prepare_images

SIDE = 224
SIZE = (1280, 720)


class Rate(NamedTuple):
    """Items a second of time on the wall, and a second of CPU time."""

    wall: float
    cpu: float


@click.group()
def data() -> None:
    """Measure how fast data are read."""


@data.command()
@click.option("--pictures", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
def pictures(pictures: int, rounds: int) -> None:
    """Decode JPEGs of 1280x720 to 224x224: Pillow in a plain loop, and preprocess's way on all cores with thumbnails."""
    with tempfile.TemporaryDirectory(prefix="labeler-pictures-") as folder:
        paths = [write_photo(Path(folder) / f"{number}.jpg", number) for number in range(pictures)]
        ways = {"plain loop, one thread": lambda: plain_loop(paths), "labeler, all cores": lambda: ours(paths)}
        found = rates(ways, len(paths), rounds)
        size = sum(path.stat().st_size for path in paths) // len(paths)
    plain, fast = found.values()
    click.echo(json.dumps({
        "pictures": pictures, "bytes_each": size, "rounds": rounds, "cores": cores(),
        "pictures_per_second": {way: round(rate.wall, 1) for way, rate in found.items()},
        "ours_per_core": round(fast.wall / cores(), 1),
        "ratio": round(fast.wall / plain.wall, 2), "ratio_per_core": round(fast.wall / cores() / plain.wall, 2),
        "pictures_per_cpu_second": {way: round(rate.cpu, 1) for way, rate in found.items()},
        "ratio_cpu": round(fast.cpu / plain.cpu, 2),
    }, indent=2))  # fmt: skip


def rates(ways: dict[str, Callable[[], Any]], items: int, rounds: int) -> dict[str, Rate]:
    """Return the rate of each way, medians over `rounds` in turns, after one round that does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(-1, rounds):
        for way, run in ways.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            run()
            if number >= 0:
                seconds[way].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return {way: Rate(*(items / statistics.median(times) for times in zip(*found, strict=True)))
            for way, found in seconds.items()}  # fmt: skip


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_photo(path: Path, seed: int) -> Path:
    """Write a JPEG with shades, edges and grain as a photo has: about 200 KB."""
    random = np.random.default_rng(seed)
    layers = []
    for columns, resample in (
        (16, Image.Resampling.BICUBIC),
        (80, Image.Resampling.NEAREST),
        (320, Image.Resampling.BILINEAR),
    ):
        coarse = random.integers(0, 256, (columns * 9 // 16, columns, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(coarse).resize(SIZE, resample), dtype=np.float32))
    grain = random.normal(0, 4, (SIZE[1], SIZE[0], 1))
    pixels = 0.6 * layers[0] + 0.2 * layers[1] + 0.2 * layers[2] + grain
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return path


def plain_loop(paths: list[Path]) -> list[np.ndarray]:
    """Return the pictures as one would write it first."""
    return [np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path in paths]


def ours(paths: list[Path]) -> list[Any]:
    """Return the pictures and their thumbnails as `labeler preprocess` has them decoded, processes started and ended."""
    return list(prepare_images(((path, None) for path in paths), SIDE))


if __name__ == "__main__":
    data()
