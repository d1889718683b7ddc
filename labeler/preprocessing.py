"""Stage `preprocess`: every picture decoded once, safely, and shown once to the frozen towers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from labeler.artifacts import (
    BadInputError,
    Recipe,
    already_made,
    input_of,
    making,
    sha256_json,
    verify,
    write_json,
)
from labeler.decoding import prepare_images
from labeler.encoders.weights import tower_sha256
from labeler.images import ImageError, Prepared
from labeler.records import LabelSet, Record, read_label_set, read_records
from labeler.store import DATASET, THUMBNAIL_MIME

if TYPE_CHECKING:
    import pyarrow

    from labeler.encoders.image import ImageEncoder
    from labeler.encoders.text import TextEncoder

BATCH_SIZE = 32


class Preprocessed(NamedTuple):
    """What `preprocess` did: where, whether it had been made before, and how many rows it holds."""

    out: Path
    already: bool
    rows: int


class Loaded(NamedTuple):
    """A record with its picture, decoded."""

    record: Record
    picture: Prepared | None


def preprocess(
    records: Path, out: Path, *, text_encoder: str = "embedded", image_encoder: str = "embedded", force: bool = False
) -> Preprocessed:
    """Read the artifact `records` and publish the store `out`: a Lance dataset, one row a record, in its order.

    Columns: id, split, group, text, labels (numbers in labels.json), image (a JPEG of at most 320 px, to look
    at), visual_tokens ([V, D] float16 of the frozen image tower, from the picture itself; null without a
    picture), text_features ([D] float32 of the frozen text tower). Memory stays flat.

    Raises BadInputError when `records` is no such artifact, or a picture has changed since ingest; LabelerError
    when a tower cannot be loaded.
    """
    manifest = verify(records, "ingest")
    hashes = {"text": tower_sha256(text_encoder), "image": tower_sha256(image_encoder)}
    asked = {
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
        "weights": hashes,
        "thumbnails": THUMBNAIL_MIME,
    }
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
                for loaded in load_batches(records, image.size):
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


def load_batches(records: Path, side: int) -> Iterator[list[Loaded]]:
    """Yield BATCH_SIZE records at a time, their pictures at `side` x `side` pixels; the next ones are decoded meanwhile.

    Raises BadInputError when a picture is no longer the one that `ingest` saw.
    """
    profile = json.loads((records / "profile.json").read_text(encoding="utf-8"))
    root = records / profile["root"]
    source, again = tee(read_records(records))
    files = ((root / item.image, item.meta.get("image_sha256", "")) if item.image else None for item in source)
    with closing(prepare_images(files, side)) as pictures:
        pairs = zip(again, pictures, strict=True)
        while batch := [usable(*pair) for pair in islice(pairs, BATCH_SIZE)]:
            yield batch


def usable(record: Record, picture: Prepared | ImageError | None) -> Loaded:
    """Return the record with its picture; raises BadInputError when that cannot be used."""
    if isinstance(picture, ImageError):
        raise BadInputError(f"{picture}; run `labeler ingest` again")
    return Loaded(record, picture)


def record_batch(
    loaded: list[Loaded], label_set: LabelSet, image: ImageEncoder, text: TextEncoder, schema: pyarrow.Schema
) -> pyarrow.RecordBatch:
    """Return one Arrow batch with everything that the towers say about `loaded`."""
    import pyarrow

    numbers = {name: number for number, name in enumerate(label_set.names)}
    records = [item.record for item in loaded]
    tokens: list[Any] = [None] * len(loaded)
    pictures = {row: item.picture for row, item in enumerate(loaded) if item.picture is not None}
    if pictures:
        seen = image.visual_tokens([picture.pixels for picture in pictures.values()])
        for row, value in zip(pictures, seen.flatten(1).numpy(), strict=True):
            tokens[row] = value
    columns = {
        "id": [record.id for record in records],
        "split": [record.split for record in records],
        "group": [record.group for record in records],
        "text": [record.text for record in records],
        "labels": [[numbers[name] for name in record.labels] for record in records],
        "image": [item.picture and item.picture.thumbnail for item in loaded],
        "visual_tokens": tokens,
        "text_features": list(text.features([record.text for record in records]).numpy()),
    }
    arrays = [pyarrow.array(columns[field.name], type=field.type) for field in schema]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
