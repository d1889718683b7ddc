"""How fast and how exact a search over many vectors is: `python -m benchmarks.search INDEX`.

INDEX is what `labeler index` wrote; as many vectors as asked are drawn around its own (real embeddings of pictures, and noise
of half their distance to each other), half of the queries around its texts. Each query's ten nearest are compared with those of
exact search.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import lance
import numpy as np
from tqdm import tqdm

from labeler.searching import Index, make_fast, table_of

TOP = 10


def vectors_of(index: Index, kind: str) -> np.ndarray:
    """Return the vectors [N, S] of an index."""
    column = index.datasets[kind].to_table(columns=["vector"]).column(0).combine_chunks()
    found: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
    return found


def around(vectors: np.ndarray, count: int, spread: float, random: np.random.Generator) -> np.ndarray:
    """Return `count` vectors of length 1, each one of `vectors` with noise of length `spread`."""
    noise = random.normal(size=(count, vectors.shape[1])) * spread / np.sqrt(vectors.shape[1])
    drawn = vectors[random.integers(0, len(vectors), count)] + noise
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def measure(index: Index, vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Return median and 95 % quantile of a query's seconds, a query's CPU time, and the share of the nearest that is found."""
    seconds, found, busy = [], [], time.process_time()
    for query in tqdm(queries, desc="searching", disable=None):
        started = time.perf_counter()
        found.append({int(hit.id) for hit in index.nearest(query, "pictures", TOP)})
        seconds.append(time.perf_counter() - started)
    busy = (time.process_time() - busy) / len(queries)
    true = [set(np.argpartition(-(vectors @ query), TOP)[:TOP].tolist()) for query in queries]
    right = sum(len(one & other) for one, other in zip(found, true, strict=True))
    return {"median": float(np.median(seconds)), "p95": float(np.quantile(seconds, 0.95)), "busy": busy,
            "recall": right / (TOP * len(queries))}  # fmt: skip


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=int, default=100_000, show_default=True)
@click.option("--queries", type=int, default=200, show_default=True)
def main(folder: Path, count: int, queries: int) -> None:
    """Draw COUNT vectors around those of the index FOLDER, index them, and search."""
    random, real = np.random.default_rng(0), Index(folder)
    pictures, texts = vectors_of(real, "pictures"), vectors_of(real, "texts")
    sample = pictures[random.permutation(len(pictures))[:200]]
    spread = float(np.sqrt(np.mean(2 - 2 * sample @ sample.T))) / 2
    vectors = around(pictures, count, spread, random)
    asked = np.concatenate([around(part, queries // 2, spread, random) for part in (pictures, texts)])
    with tempfile.TemporaryDirectory() as place:
        path, names = Path(place) / "pictures.lance", [str(number) for number in range(count)]
        lance.write_dataset(
            table_of({"id": names, "text": names, "image": names, "vector": vectors}, vectors.shape[1]), str(path)
        )
        started = time.perf_counter()
        make_fast(path, count)
        built = time.perf_counter() - started
        real.counts, real.datasets = {"pictures": count}, {"pictures": lance.dataset(str(path))}
        for query in asked[:5]:
            real.nearest(query, "pictures", TOP)  # the index is read from its files
        figures = measure(real, vectors, asked)
    click.echo(
        f"{count} vectors of {vectors.shape[1]}: built in {built:.0f} s; a query {1000 * figures['median']:.1f} ms (median), "
        f"{1000 * figures['p95']:.1f} ms (95 %), {1000 * figures['busy']:.1f} ms of CPU time; "
        f"recall@{TOP} against exact search {figures['recall']:.3f}"
    )


if __name__ == "__main__":
    main()
