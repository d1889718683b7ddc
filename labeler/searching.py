"""Stages `index` and `search`: the texts and pictures of a store that lie nearest to words, or to a picture, in a shared space.

labeler index STORE --model RUN -> pictures.lance, texts.lance: id, text, image, vector [S] of length 1, nearest by cosine
labeler search "words" | picture -> its embedding by the same run -> the nearest of the one or the other
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from labeler.artifacts import (
    MANIFEST,
    Recipe,
    already_made,
    check_free,
    input_of,
    locked,
    making,
    read_json,
    read_manifest,
    sha256_json,
    verify,
    write_json,
)
from labeler.errors import BadInputError, UsageError
from labeler.inputs import found_again, verified_store
from labeler.items import Item
from labeler.pictures.decoding import Wanted, prepare_images
from labeler.pictures.images import VIDEOS, ImageError, frame_of
from labeler.records import Record
from labeler.sources.folder import PICTURES
from labeler.values import RowError, clean_text

if TYPE_CHECKING:
    from labeler.runs import Run

Kind = Literal["pictures", "texts"]
KINDS: tuple[Kind, ...] = ("pictures", "texts")
EXACT_UP_TO = 10_000  # vectors: as many are compared with all of them in a few milliseconds
ROWS_A_PARTITION = 25_000
PROBES = 8  # partitions looked into
CANDIDATES = 256  # that the graph search of a partition keeps
TOGETHER = 1024  # rows embedded, written and held at once


class Indexed(NamedTuple):
    """What `index` did: where, whether it had been made before, and how many pictures and texts can be found."""

    out: Path
    already: bool
    counts: dict[str, int]


class Hit(NamedTuple):
    """One thing found: the row's id and text, the cosine to what was asked, -1 to 1, and where its picture is.

    image: as the row's record has it; None where there is none, or the store is too old to know.
    """

    id: str
    text: str | None
    score: float
    image: str | None = None


class Found(NamedTuple):
    """What `search` found: the hits, the nearest first; where the store that they are rows of should be, its content's sha256."""

    hits: list[Hit]
    store: Path
    sha256: str


def index(
    data: Path, model: Path, out: Path, *, batch_size: int = 64, force: bool = False, device: str = "auto"
) -> Indexed:
    """Embed all texts and pictures of the store `data` by `model`, a run of `labeler pretrain`; publish the index `out`.

    Over EXACT_UP_TO vectors it is a graph over partitions (IVF_HNSW_SQ; Malkov and Yashunin 2018), which finds nearly all of the
    nearest; up to that nothing but the vectors, and what is found is exact. An index that is already made is told where store
    and run are now.

    Raises BadInputError when the store or the run is none or damaged, or the store holds visual tokens of another image tower.
    """
    trained, stored = verify(model, "pretrain"), verified_store(data)
    # `search` may be called from anywhere
    inputs = [input_of(Path(os.path.abspath(folder)), made) for folder, made in ((data, stored), (model, trained))]
    recipe = Recipe("index", tuple(inputs), {"exact_up_to": EXACT_UP_TO})
    if not force and already_made(out, recipe):
        tell_places(out, recipe)
        return Indexed(out, True, read_counts(out))
    check_free(out, "index")
    from labeler.embedding import load_towers_run, refuse_other_tower
    from labeler.inference import choose_device
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


def tell_places(out: Path, recipe: Recipe) -> None:
    """Let the manifest of the index `out` say where the inputs of its `recipe` are now."""
    manifest, inputs = read_manifest(out, "index"), [item._asdict() for item in recipe.inputs]
    if manifest["inputs"] != inputs:
        with locked(out):
            write_json(out / MANIFEST, manifest | {"inputs": inputs})


def read_counts(folder: Path) -> dict[str, int]:
    """Return how many pictures and texts an index holds."""
    counts: dict[str, int] = read_json(folder / "counts.json")
    return counts


def embedded(store: Any, run: Run, batch_size: int) -> Iterator[dict[Kind, dict[str, Any]]]:
    """Yield ids, texts, paths and vectors of TOGETHER rows at a time, apart for pictures and texts; without what is missing."""
    from tqdm import tqdm

    from labeler.batches import StorePairs
    from labeler.embedding import embed_pairs

    total = len(store.rows["id"])
    with tqdm(total=total, desc="embedding", unit="pair", disable=None) as bar:
        for start in range(0, total, TOGETHER):
            rows = np.arange(start, min(start + TOGETHER, total))
            pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"])
            text, image = embed_pairs(run.model, pairs, run.tokenizer.pad_token_id, batch_size=batch_size)
            columns = {"id": store.rows["id"], "text": store.rows["text"], "image": store.image_paths}
            parts: dict[Kind, dict[str, Any]] = {}
            for kind, vectors in zip(KINDS, (image, text), strict=True):
                there = np.flatnonzero(vectors.any(axis=1))
                found = {name: [values[row] for row in rows[there]] for name, values in columns.items()}
                parts[kind] = found | {"vector": vectors[there]}
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
    """Return ids, texts, pictures' paths and vectors [N, S] as an Arrow table."""
    import pyarrow

    values = pyarrow.array(np.ascontiguousarray(columns["vector"], dtype=np.float32).ravel())
    vectors = pyarrow.FixedSizeListArray.from_arrays(values, width)
    words = {name: pyarrow.array(columns[name], type=pyarrow.string()) for name in ("id", "text", "image")}
    return pyarrow.table(words | {"vector": vectors})


def make_fast(path: Path, count: int) -> None:
    """Add the graph index to the `count` vectors in a Lance dataset."""
    import lance

    dataset: Any = lance.dataset(str(path))
    dataset.optimize.compact_files()
    partitions = max(1, count // ROWS_A_PARTITION)
    dataset.create_index("vector", "IVF_HNSW_SQ", metric="cosine", num_partitions=partitions, m=20, ef_construction=150)
    dataset.cleanup_old_versions(older_than=timedelta(0))  # the files before they were made one: as much again


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
        """Return where the store is (see `found_again`)."""
        return found_again(self.folder, self.manifest["inputs"][0])

    @property
    def model(self) -> Path:
        """Return where the run is that made the vectors; raises BadInputError when it is not there."""
        place = found_again(self.folder, self.manifest["inputs"][1])
        if not place.is_dir():
            raise BadInputError(
                f"{self.folder}: the run that made the index is not at {place}; name it with --model RUN"
            )
        return place

    def nearest(self, vector: np.ndarray, find: Kind, top: int) -> list[Hit]:
        """Return the `top` pictures or texts nearest to vector [S], the nearest first.

        Raises BadInputError when the index has none of them.
        """
        if find not in self.datasets:
            raise BadInputError(f"{self.folder}: no {find} in it; the store has none")
        asked: dict[str, Any] = {"column": "vector", "q": vector.astype(np.float32), "k": top, "metric": "cosine"}
        if self.counts[find] > EXACT_UP_TO:
            # the vectors of twice as many are read whole: the graph's are rounded to 8 bits
            asked |= {"nprobes": PROBES, "refine_factor": 2, "ef": max(CANDIDATES, 2 * top)}
        kept = [name for name in ("id", "text", "image") if name in self.datasets[find].schema.names]
        table = self.datasets[find].to_table(columns=[*kept, "_distance"], nearest=asked).to_pylist()
        return [Hit(row["id"], row["text"], 1 - row["_distance"], row.get("image")) for row in table]

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

    `model` is where the run is that made the index, by default where it was then, or lies to the index as it did.

    Raises UsageError for an empty query, or words that are no text; BadInputError for a picture that cannot be read, an index
    that is none, one that another model made, or whose run is gone.
    """
    if picture_of(query) is None:
        query = words_of(query)
    opened = Index(folder)
    model = model or opened.model
    opened.refuse_other_model(model)
    from labeler.embedding import load_towers_run
    from labeler.inference import choose_device

    vector = embed_query(load_towers_run(model, choose_device(device)), query.strip())
    return Found(opened.nearest(vector, find, top), opened.store, opened.manifest["inputs"][0]["sha256"])


def embed_query(run: Run, query: str) -> np.ndarray:
    """Return the embedding [S] of the picture that `query` names (see `picture_of`), or of the words themselves.

    Raises BadInputError when the picture cannot be read, or there is no such file.
    """
    from labeler.embedding import embed_pairs
    from labeler.engines.native import image_tower, make_pairs
    from labeler.inference import PairList

    tower, path = image_tower(run), picture_of(query)
    if path is None:
        item = Item(Record(id="query", text=query))
    else:
        (picture,) = prepare_images([Wanted(path)], tower.size)
        if isinstance(picture, ImageError) or picture is None:
            raise BadInputError(f"{picture}; give the file of a picture, or words")
        item = Item(Record(id="query"), path, pixels=picture.pixels)
    pairs = PairList(make_pairs([item], run, tower, 1))
    text, image = embed_pairs(run.model, pairs, run.tokenizer.pad_token_id)
    return text[0] if item.pixels is None else image[0]


def words_of(query: str) -> str:
    """Return a query's words, cleaned as texts are; raises UsageError where there are none, or they cannot be read."""
    try:
        words = clean_text(query, "query")
    except RowError as error:
        raise UsageError(f"{error}; give words in UTF-8, or the file of a picture") from None
    if words is None:
        raise UsageError("an empty query; give words, or the file of a picture")
    return words


def picture_of(query: str) -> Path | None:
    """Return the path of the picture that a query names: a file that is there, or what is called like a picture or a video.

    Of a video it may be one of its frames (`labeler.pictures.images.frame_of`). None for words.
    """
    path = Path(query.strip())
    file = frame_of(path)[0]
    return path if is_file(file) or file.suffix.lower() in (*PICTURES, *VIDEOS) else None


def is_file(path: Path) -> bool:
    """Return whether there is such a file; words may be too long for a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
