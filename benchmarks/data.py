"""How fast data are read: one command for each part of the way to the store.

    python -m benchmarks.data rows [--rows 1000000] [--rounds 3]
    python -m benchmarks.data pictures [--pictures 1000] [--rounds 5]
    python -m benchmarks.data batches STORE [--batches 100]
    python -m benchmarks.data whole FOLDER
    python -m benchmarks.data looks IMAGES [--sheets FOLDER]

Prints JSON. What is compared runs in turns, so that other work on the machine hits both; figures are medians. CPU time, of
processes started too, says how the ways compare where other work leaves one of them fewer cores.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import click
import numpy as np
import orjson
from PIL import Image, ImageOps

from labeler.pictures.decoding import Wanted, prepare_images
from labeler.pictures.images import difference_hash, load_image
from labeler.processes import cores
from labeler.rows.looks import NEAR, near_pairs

SIDE = 224
CELL = 96
SIZE = (1280, 720)
LABELS = ("joy", "anger", "sadness", "fear", "surprise")


class Rate(NamedTuple):
    """Items a second of time on the wall, and a second of CPU time."""

    wall: float
    cpu: float


@click.group()
def data() -> None:
    """Measure how fast data are read."""


@data.command()
@click.option("--rows", "count", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def rows(count: int, rounds: int) -> None:
    """Ingest generated rows of text; and a bare loop that parses each line with orjson, hashes it and writes it out."""
    with tempfile.TemporaryDirectory(prefix="labeler-rows-") as folder:
        source = write_rows(Path(folder) / "rows.jsonl", count)
        command = [sys.executable, "-m", "benchmarks.data", "ingest", str(source), str(Path(folder) / "records")]
        ways = {
            "bare loop": lambda: bare_loop(source, Path(folder) / "out.jsonl"),
            "labeler ingest": lambda: run(command),
        }
        found = rates(ways, count, rounds)
        memory = json.loads(run(command))
    bare, ours = found.values()
    click.echo(json.dumps({
        "rows": count, "rounds": rounds, "cores": cores(),
        "seconds": {way: round(count / rate.wall, 2) for way, rate in found.items()},
        "cpu_seconds": {way: round(count / rate.cpu, 2) for way, rate in found.items()},
        "times_the_bare_loop": round(bare.wall / ours.wall, 2), "peak_memory_mb": memory,
    }, indent=2))  # fmt: skip


@data.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def ingest(source: Path, out: Path) -> None:
    """Ingest a file; print the peak resident memory of this process and of its largest worker, in MB."""
    from labeler.ingestion import ingest as stage

    stage([source], out, force=True)
    peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    click.echo(json.dumps({"process": peaks[0], "largest_worker": peaks[1]}))


@data.command()
@click.argument("store", type=click.Path(exists=True, path_type=Path))
@click.option("--batches", type=click.IntRange(min=1), default=100, show_default=True)
def batches(store: Path, batches: int) -> None:
    """Read shuffled batches of 32 from a store, tokens and texts as training takes them."""
    from labeler.store import Store

    opened = Store(store, check=False)
    texts, order = opened.rows["text"], np.random.default_rng(0).permutation(len(opened.rows["id"]))
    chosen = [np.resize(order, (batches + 1, 32))[number] for number in range(batches + 1)]
    seconds = []
    for number in chosen:
        started = time.perf_counter()
        tokens, real = opened.visual_tokens(number)
        assert len(tokens) == len([texts[row] for row in number]) == len(real)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    click.echo(
        json.dumps({"batches": batches, "ms_a_batch": round(1000 * median, 2), "pairs_per_second": round(32 / median)})
    )


@data.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def whole(folder: Path) -> None:
    """Ingest the real sets below FOLDER (mvsa_single, openclipart): rows in are rows kept and rejects, each by its sha256."""
    for path, label in ((folder / "mvsa_single/train.jsonl", "label"), (folder / "openclipart/data.jsonl", "category")):
        with tempfile.TemporaryDirectory(prefix="labeler-whole-") as out:
            click.echo(
                json.dumps(
                    {"source": path.name, "of": path.parent.name} | accounted(path, label, Path(out) / "records")
                )
            )


@data.command()
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--copies", default=300, show_default=True, help="How many pictures are copied in each way.")
@click.option("--distance", default=NEAR, show_default=True, help="The largest distance at which pictures are joined.")
@click.option(
    "--sheets", type=click.Path(path_type=Path), help="Write contact sheets of the joined pairs to this folder."
)
def looks(images: Path, copies: int, distance: float, sheets: Path | None) -> None:
    """How far made copies of a folder's pictures are from them, and which of its pictures are joined as copies."""
    pictures = [load_image(path) for path in sorted(images.iterdir())]
    hashed = [(picture, look) for picture in pictures if (look := difference_hash(picture))]
    step = max(1, len(hashed) // copies)
    away = {}
    for way, copy in COPIES.items():
        found = [(look, difference_hash(copy(picture))) for picture, look in hashed[::step][:copies]]
        shares = [jaccard_distance(look, other) if other else 1.0 for look, other in found]
        away[way] = {"median": round(statistics.median(shares), 3), "95%": round(float(np.quantile(shares, 0.95)), 3)}
    hashes = np.stack([np.frombuffer(bytes.fromhex(look), np.uint8) for _, look in hashed])
    pairs = [(a, b) for a, b in zip(*near_pairs(hashes, distance), strict=True)]
    near = [(a, b) for a, b in pairs if (hashes[a] != hashes[b]).any()]
    if sheets is not None:
        write_sheets([(hashed[a][0], hashed[b][0]) for a, b in near], sheets)
    click.echo(json.dumps({
        "pictures": len(pictures), "without_a_hash": len(pictures) - len(hashed), "copies_made": len(found), "distances": away,
        "joined_within": distance, "pairs_with_equal_hashes": len(pairs) - len(near), "pairs_with_other_hashes": len(near),
    }, indent=2))  # fmt: skip


@data.command()
@click.option("--pictures", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
def pictures(pictures: int, rounds: int) -> None:
    """Decode JPEGs of 1280x720 to 224x224: Pillow in a plain loop, and preprocess's way on all cores with thumbnails."""
    with tempfile.TemporaryDirectory(prefix="labeler-pictures-") as folder:
        paths = [write_photo(Path(folder) / f"{number}.jpg", number) for number in range(pictures)]
        with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
            shares = [paths[core :: cores()] for core in range(cores())]
            ways = {
                "plain loop, one thread": lambda: plain_loop(paths),
                "plain loop, a process a core": lambda: list(pool.map(plain_loop, shares)),
                "labeler, a process a core": lambda: ours(paths),
            }
            found = rates(ways, len(paths), rounds)
        size = sum(path.stat().st_size for path in paths) // len(paths)
    plain, plain_on_all, fast = found.values()
    click.echo(json.dumps({
        "pictures": pictures, "bytes_each": size, "rounds": rounds, "cores": cores(),
        "pictures_per_second": {way: round(rate.wall, 1) for way, rate in found.items()},
        "times_one_plain_loop": round(fast.wall / plain.wall, 2),
        "times_a_plain_loop_a_core": round(fast.wall / plain_on_all.wall, 2),
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


def write_rows(path: Path, count: int) -> Path:
    """Write rows of 5 to 24 words with one of five labels."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(5000)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(random.choices(words, k=random.randint(5, 24)))
            file.write(json.dumps({"id": f"row-{number}", "text": text, "label": random.choice(LABELS)}) + "\n")
    return path


def bare_loop(source: Path, out: Path) -> None:
    """Parse, hash and write every line, and nothing else."""
    with open(source, "rb") as lines, open(out, "wb") as file:
        for line in lines:
            orjson.loads(line)
            hashlib.sha256(line).digest()
            file.write(line)


def run(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def accounted(source: Path, label: str, out: Path) -> dict[str, Any]:
    """Return how many rows of a jsonl file were kept and rejected; fail where a row is in neither, or a picture is another."""
    from labeler.ingestion import IngestOptions
    from labeler.ingestion import ingest as stage

    profile = stage([source], out, IngestOptions(label=label)).profile
    given = [orjson.loads(line) for line in source.read_bytes().splitlines()]
    records = [orjson.loads(line) for line in (out / "records.jsonl").read_bytes().splitlines()]
    lines = {orjson.loads(line)["line"] for line in (out / "rejects.jsonl").read_bytes().splitlines()}
    left = [row for number, row in enumerate(given, 1) if number not in lines]
    for row, record in zip(left, records, strict=True):
        data = (source.parent / str(row.get("image") or row.get("img"))).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record["meta"]["image_sha256"], record["id"]
    return {"rows": len(given), "kept": profile["kept"], "rejected": profile["rejected"]}


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


def encoded(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """Return the picture as it comes back from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Return the picture with its sides multiplied by `factor`."""
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return the picture without `share` of its width and height on each side."""
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 75": lambda image: encoded(image, "JPEG", 75),
    "JPEG of quality 40": lambda image: encoded(image, "JPEG", 40),
    "70 % size, WebP of quality 60": lambda image: encoded(scaled(image, 0.7), "WEBP", 60),
    "half size": lambda image: scaled(image, 0.5),
    "2 % cropped on each side": lambda image: cropped(image, 0.02),
}


def jaccard_distance(one: str, other: str) -> float:
    """Return the share of the bits set in either hash (hex) that are not set in both."""
    a, b = int(one, 16), int(other, 16)
    return 1 - (a & b).bit_count() / (a | b).bit_count()


def write_sheets(pairs: list[tuple[Image.Image, Image.Image]], folder: Path, columns: int = 8, rows: int = 10) -> None:
    """Write pairs of pictures side by side, `columns` x `rows` of them a sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pairs), columns * rows):
        sheet = Image.new("RGB", (columns * 2 * CELL + columns * 8, rows * (CELL + 8)), "grey")
        for number, pair in enumerate(pairs[start : start + columns * rows]):
            for which, picture in enumerate(pair):
                small = ImageOps.pad(picture, (CELL, CELL), color="white")
                sheet.paste(small, (number % columns * (2 * CELL + 8) + which * CELL, number // columns * (CELL + 8)))
        sheet.save(folder / f"{start:05}.png")


def plain_loop(paths: list[Path]) -> int:
    """Return how many pictures there are, each read as one would write it first."""
    return sum(len(np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)))) == SIDE for path in paths)


def ours(paths: list[Path]) -> list[Any]:
    """Return the pictures and their thumbnails as `labeler preprocess` has them decoded, processes started and ended."""
    return list(prepare_images(map(Wanted, paths), SIDE, looks=True))


if __name__ == "__main__":
    data()
