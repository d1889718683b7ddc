"""Stages `index` and `search`: the texts and pictures of a store that lie nearest to words, or to a picture, in a shared space.

labeler index STORE --model RUN -> pictures.lance, texts.lance: id, text, vector [S] of length 1, nearest by cosine
labeler search "words" | picture -> its embedding by the same run -> the nearest of the one or the other
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from labeler.artifacts import (
    BadInputError,
    Recipe,
    UsageError,
    already_made,
    input_of,
    making,
    read_manifest,
    sha256_json,
    verify,
    write_json,
)
from labeler.decoding import prepare_images
from labeler.images import ImageError
from labeler.items import Item
from labeler.records import Record
from labeler.sources.folder import PICTURES

if TYPE_CHECKING:
    from labeler.runs import Run

Kind = Literal["pictures", "texts"]
KINDS: tuple[Kind, ...] = ("pictures", "texts")
EXACT_UP_TO = 10_000  # vectors: as many are compared with all of them in a few milliseconds
ROWS_A_PARTITION = 25_000
PROBES = 8  # partitions looked into
CANDIDATES = 128  # that the graph search of a partition keeps
TOGETHER = 1024  # rows embedded, written and held at once


class Indexed(NamedTuple):
    """What `index` did: where, whether it had been made before, and how many pictures and texts can be found."""

    out: Path
    already: bool
    counts: dict[str, int]


class Hit(NamedTuple):
    """One thing found: the row's id and text, and the cosine to what was asked, -1 to 1."""

    id: str
    text: str | None
    score: float


class Found(NamedTuple):
    """What `search` found: the hits, the nearest first, and the store that they are rows of."""

    hits: list[Hit]
    store: Path


def index(
    data: Path, model: Path, out: Path, *, batch_size: int = 64, force: bool = False, device: str = "auto"
) -> Indexed:
    """Embed all texts and pictures of the store `data` by `model`, a run of `labeler pretrain`; publish the index `out`.

    Over EXACT_UP_TO vectors it is a graph over partitions (IVF_HNSW_SQ; Malkov and Yashunin 2018), which finds nearly all of the
    nearest; up to that nothing but the vectors, and what is found is exact.

    Raises BadInputError when the store or the run is none or damaged, or the store holds visual tokens of another image tower.
    """
    trained, stored = verify(model, "pretrain"), verify(data, "preprocess")
    recipe = Recipe("index", (input_of(data, stored), input_of(model, trained)), {"exact_up_to": EXACT_UP_TO})
    if not force and already_made(out, recipe):
        return Indexed(out, True, read_counts(out))
    from labeler.embedding import load_towers_run, refuse_other_tower
    from labeler.prediction import choose_device
    from labeler.store import Store

    store, run = Store(data, check=False), load_towers_run(model, choose_device(device))
    refuse_other_tower(run, store)
    content = sha256_json([item.sha256 for item in recipe.inputs])  # Lance names its files at random
    with making(out, recipe, content=content) as folder:
        counts = write_vectors(folder, embedded(store, run, batch_size), run.model.config.shared_width)
        for kind, count in counts.items():
            if count > EXACT_UP_TO:
                make_fast(folder / f"{kind}.lance", count)
        write_json(folder / "counts.json", counts)
    return Indexed(out, False, counts)


def read_counts(folder: Path) -> dict[str, int]:
    """Return how many pictures and texts an index holds."""
    import json

    counts: dict[str, int] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return counts


def embedded(store: Any, run: Run, batch_size: int) -> Iterator[dict[Kind, dict[str, Any]]]:
    """Yield ids, texts and vectors of TOGETHER rows at a time, apart for pictures and texts; without what is missing."""
    from tqdm import tqdm

    from labeler.batches import StorePairs
    from labeler.embedding import embed_pairs

    total = len(store.rows["id"])
    with tqdm(total=total, desc="embedding", unit="pair", disable=None) as bar:
        for start in range(0, total, TOGETHER):
            rows = np.arange(start, min(start + TOGETHER, total))
            pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"])
            text, image = embed_pairs(run.model, pairs, run.tokenizer.pad_token_id, batch_size=batch_size)
            ids, texts = ([store.rows[column][row] for row in rows] for column in ("id", "text"))
            parts: dict[Kind, dict[str, Any]] = {}
            for kind, vectors in zip(KINDS, (image, text), strict=True):
                there = np.flatnonzero(vectors.any(axis=1))
                parts[kind] = {
                    "id": [ids[row] for row in there],
                    "text": [texts[row] for row in there],
                    "vector": vectors[there],
                }
            yield parts
            bar.update(len(rows))


def write_vectors(folder: Path, parts: Iterator[dict[Kind, dict[str, Any]]], width: int) -> dict[str, int]:
    """Write pictures.lance and texts.lance into `folder`, a part in memory at a time; return how many rows each has."""
    import lance

    counts = dict.fromkeys(KINDS, 0)
    for part in parts:
        for kind, columns in part.items():
            mode = "append" if (folder / f"{kind}.lance").exists() else "create"
            lance.write_dataset(table_of(columns, width), str(folder / f"{kind}.lance"), mode=mode)
            counts[kind] += len(columns["id"])
    return {str(kind): count for kind, count in counts.items()}


def table_of(columns: dict[str, Any], width: int) -> Any:
    """Return ids, texts and vectors [N, S] as an Arrow table."""
    import pyarrow

    values = pyarrow.array(np.ascontiguousarray(columns["vector"], dtype=np.float32).ravel())
    vectors = pyarrow.FixedSizeListArray.from_arrays(values, width)
    texts = pyarrow.array(columns["text"], type=pyarrow.string())
    return pyarrow.table({"id": pyarrow.array(columns["id"], type=pyarrow.string()), "text": texts, "vector": vectors})


def make_fast(path: Path, count: int) -> None:
    """Add the graph index to the `count` vectors in a Lance dataset."""
    import lance

    dataset: Any = lance.dataset(str(path))
    dataset.optimize.compact_files()
    partitions = max(1, count // ROWS_A_PARTITION)
    dataset.create_index("vector", "IVF_HNSW_SQ", metric="cosine", num_partitions=partitions, m=20, ef_construction=150)


class Index:
    """An index that is open for questions."""

    def __init__(self, folder: Path):
        """Open `folder`, every file compared with its sha256 first; raises BadInputError when it is no index, or damaged."""
        import lance

        self.folder, self.manifest = folder, verify(folder, "index")
        self.counts = read_counts(folder)
        self.datasets: dict[str, Any] = {
            kind: lance.dataset(str(folder / f"{kind}.lance")) for kind in KINDS if self.counts[kind]
        }

    @property
    def store(self) -> Path:
        """Return where the store was."""
        return Path(self.manifest["inputs"][0]["path"])

    def nearest(self, vector: np.ndarray, find: Kind, top: int) -> list[Hit]:
        """Return the `top` pictures or texts nearest to vector [S], the nearest first.

        Raises BadInputError when the index has none of them.
        """
        if find not in self.datasets:
            raise BadInputError(f"{self.folder}: no {find} in it; the store has none")
        asked: dict[str, Any] = {"column": "vector", "q": vector.astype(np.float32), "k": top, "metric": "cosine"}
        if self.counts[find] > EXACT_UP_TO:
            # the vectors of what is found are read whole: the graph's are rounded to 8 bits
            asked |= {"nprobes": PROBES, "refine_factor": 1, "ef": max(CANDIDATES, 2 * top)}
        table = self.datasets[find].to_table(columns=["id", "text", "_distance"], nearest=asked).to_pylist()
        return [Hit(row["id"], row["text"], 1 - row["_distance"]) for row in table]

    def refuse_other_model(self, model: Path) -> None:
        """Raise BadInputError unless the vectors were made by the run `model`."""
        made, given = self.manifest["inputs"][1], read_manifest(model, "pretrain")["content_sha256"]
        if made["sha256"] != given:
            raise BadInputError(
                f"{self.folder}: made by another model ({made['path']}, content {made['sha256'][:12]}) than {model} is now "
                f"({given[:12]}), whose vectors mean something else; make it again with `labeler index --model {model}`"
            )


def search(
    query: str, folder: Path, *, find: Kind = "pictures", top: int = 10, model: Path | None = None, device: str = "auto"
) -> Found:
    """Return the pictures or texts of the index `folder` that are nearest to `query`: the file of a picture, or else words.

    `model` is where the run is that made the index, by default where it was then.

    Raises UsageError for an empty query; BadInputError for a picture that cannot be read, an index that is none, or one that
    another model made.
    """
    if not query.strip():
        raise UsageError("an empty query; give words, or the file of a picture")
    opened = Index(folder)
    model = model or Path(opened.manifest["inputs"][1]["path"])
    opened.refuse_other_model(model)
    from labeler.embedding import load_towers_run
    from labeler.prediction import choose_device

    vector = embed_query(load_towers_run(model, choose_device(device)), query.strip())
    return Found(opened.nearest(vector, find, top), opened.store)


def embed_query(run: Run, query: str) -> np.ndarray:
    """Return the embedding [S] of a picture's file, where there is one of that name, or of the words themselves.

    Raises BadInputError when the picture cannot be read, or `query` is named like a picture and there is no such file.
    """
    from labeler.embedding import embed_pairs
    from labeler.engines.native import image_tower, make_pairs
    from labeler.prediction import PairList

    tower, path = image_tower(run), Path(query)
    item = Item(Record(id="query", text=query))
    if is_file(path) or path.suffix.lower() in PICTURES:
        (picture,) = prepare_images([(path, None)], tower.size)
        if isinstance(picture, ImageError) or picture is None:
            raise BadInputError(f"{picture}; give the file of a picture, or words")
        item = Item(Record(id="query", image=query), path, pixels=picture.pixels)
    pairs = PairList(make_pairs([item], run, tower, 1))
    text, image = embed_pairs(run.model, pairs, run.tokenizer.pad_token_id)
    return text[0] if item.pixels is None else image[0]


def is_file(path: Path) -> bool:
    """Return whether there is such a file; words may be too long for a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
