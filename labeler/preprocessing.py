"""Stage `preprocess`: every picture decoded once, safely, and shown once to the frozen towers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from labeler.artifacts import (
    BadInputError,
    Recipe,
    already_made,
    input_of,
    making,
    sha256_bytes,
    sha256_json,
    verify,
    write_json,
)
from labeler.encoders.weights import tower_sha256
from labeler.images import ImageError, decode_image, frame_of, read_image_file, thumbnail
from labeler.records import LabelSet, Record, read_label_set, read_records
from labeler.store import DATASET

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

    from labeler.encoders.image import ImageEncoder
    from labeler.encoders.text import TextEncoder

BATCH_SIZE = 32


class Preprocessed(NamedTuple):
    """What `preprocess` did: where, whether it had been made before, and how many rows it holds."""

    out: Path
    already: bool
    rows: int


class Loaded(NamedTuple):
    """A record with its picture: decoded, and as a thumbnail's bytes."""

    record: Record
    image: Image.Image | None
    thumbnail: bytes | None


def preprocess(
    records: Path, out: Path, *, text_encoder: str = "embedded", image_encoder: str = "embedded", force: bool = False
) -> Preprocessed:
    """Read the artifact `records` and publish the store `out`: a Lance dataset, one row a record, in its order.

    Columns: id, split, group, text, labels (numbers in labels.json), image (a WebP of at most 320 px, to look
    at), visual_tokens ([V, D] float16 of the frozen image tower, from the picture itself; null without a
    picture), text_features ([D] float32 of the frozen text tower). Memory stays flat.

    Raises BadInputError when `records` is no such artifact, or a picture has changed since ingest; LabelerError
    when a tower cannot be loaded.
    """
    manifest = verify(records, "ingest")
    hashes = {"text": tower_sha256(text_encoder), "image": tower_sha256(image_encoder)}
    asked = {"text_encoder": text_encoder, "image_encoder": image_encoder, "weights": hashes}
    recipe = Recipe("preprocess", (input_of(records, manifest),), asked)
    rows = sum(1 for _ in read_records(records))
    if not force and already_made(out, recipe):
        return Preprocessed(out, True, rows)
    from labeler.encoders.image import load_image_encoder
    from labeler.encoders.text import load_text_encoder

    image, text = load_image_encoder(image_encoder), load_text_encoder(text_encoder)
    towers = {
        "image": {"name": image_encoder, "sha256": hashes["image"], "tokens": image.tokens, "width": image.width},
        "text": {"name": text_encoder, "sha256": hashes["text"], "width": text.model.config.hidden_size},
    }
    # Lance names its files at random: what stands for the content is what it was made from
    with making(out, recipe, content=sha256_json([manifest["content_sha256"], towers])) as folder:
        write_dataset(folder / DATASET, records, image, text, rows)
        write_json(folder / "towers.json", towers)
        for name in ("labels.json", "profile.json"):
            shutil.copyfile(records / name, folder / name)
    return Preprocessed(out, False, rows)


def write_dataset(path: Path, records: Path, image: ImageEncoder, text: TextEncoder, rows: int) -> None:
    """Write the Lance dataset, a batch in memory at a time; a progress bar on a terminal."""
    import lance
    import pyarrow

    label_set = read_label_set(records)
    schema = pyarrow.schema([
        ("id", pyarrow.string()), ("split", pyarrow.string()), ("group", pyarrow.string()),
        ("text", pyarrow.string()), ("labels", pyarrow.list_(pyarrow.int32())), ("image", pyarrow.binary()),
        ("visual_tokens", pyarrow.list_(pyarrow.float16(), image.tokens * image.width)),
        ("text_features", pyarrow.list_(pyarrow.float32(), text.model.config.hidden_size)),
    ])  # fmt: skip
    with tqdm(total=rows, desc="preprocessing", unit="pair", disable=None) as bar:
        failed: list[Exception] = []

        def batches() -> Iterator[pyarrow.RecordBatch]:
            try:
                for loaded in load_batches(records):
                    yield record_batch(loaded, label_set, image, text, schema)
                    bar.update(len(loaded))
            except Exception as error:
                failed.append(error)
                raise

        try:
            lance.write_dataset(pyarrow.RecordBatchReader.from_batches(schema, batches()), str(path), schema=schema)
        except OSError:
            if failed:  # Lance turns what its source raises into an OSError that holds the traceback as text
                raise failed[0] from None
            raise


def load_batches(records: Path) -> Iterator[list[Loaded]]:
    """Yield BATCH_SIZE records at a time with their pictures; the next batch is decoded while this one is used."""
    profile = json.loads((records / "profile.json").read_text(encoding="utf-8"))
    root = records / profile["root"]
    source = read_records(records)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def submit() -> list[Future[Loaded]]:
            return [pool.submit(load_pair, root, record) for record in islice(source, BATCH_SIZE)]

        ahead = submit()
        while ahead:
            current, ahead = ahead, submit()
            yield [future.result() for future in current]


def load_pair(root: Path, record: Record) -> Loaded:
    """Return the record with its decoded picture.

    Raises BadInputError when the picture is no longer the one that `ingest` saw.
    """
    if record.image is None:
        return Loaded(record, None, None)
    path = root / record.image
    try:
        data = read_image_file(path)
        if sha256_bytes(data) != record.meta.get("image_sha256"):
            raise ImageError("image-changed", f"{path}: another picture than at ingest")
        image = decode_image(data, frame_of(path)[1])
    except ImageError as error:
        raise BadInputError(f"{error}; run `labeler ingest` again") from error
    return Loaded(record, image, thumbnail(image))


def record_batch(
    loaded: list[Loaded], label_set: LabelSet, image: ImageEncoder, text: TextEncoder, schema: pyarrow.Schema
) -> pyarrow.RecordBatch:
    """Return one Arrow batch with everything that the towers say about `loaded`."""
    import pyarrow

    numbers = {name: number for number, name in enumerate(label_set.names)}
    records = [item.record for item in loaded]
    tokens: list[Any] = [None] * len(loaded)
    with_image = [row for row, item in enumerate(loaded) if item.image is not None]
    if with_image:
        seen = image.visual_tokens([item.image for item in loaded if item.image is not None])
        for row, value in zip(with_image, seen.flatten(1).numpy(), strict=True):
            tokens[row] = value
    columns = {
        "id": [record.id for record in records],
        "split": [record.split for record in records],
        "group": [record.group for record in records],
        "text": [record.text for record in records],
        "labels": [[numbers[name] for name in record.labels] for record in records],
        "image": [item.thumbnail for item in loaded],
        "visual_tokens": tokens,
        "text_features": list(text.features([record.text for record in records]).numpy()),
    }
    arrays = [pyarrow.array(columns[field.name], type=field.type) for field in schema]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
