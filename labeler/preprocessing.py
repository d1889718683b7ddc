"""Stage `preprocess`: every picture decoded once, safely, and shown once to the frozen towers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from labeler.artifacts import (
    MANIFEST,
    Recipe,
    already_made,
    check_free,
    differences,
    input_of,
    making,
    read_json,
    sha256_json,
    verify,
    write_json,
)
from labeler.encoders.weights import EMBEDDED, tower_sha256
from labeler.errors import BadInputError, LabelerError
from labeler.memory import halving
from labeler.pictures.decoding import NEAR, Wanted, asked_once, prepare_images
from labeler.pictures.images import STRETCHED_BY, ImageError, Prepared
from labeler.records import IMAGE_SHA256, LabelSet, Record, read_label_set, read_records
from labeler.sources.answers import given_answers
from labeler.store import ANSWERS, BOXES, DATASET, PATHS, THUMBNAIL_MIME, TOKENS
from labeler.values import UNKNOWN_SHARE

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


class Shown:
    """What an image tower says of pictures; one that several records share is shown to it once, where they stand together."""

    def __init__(self, image: ImageEncoder):
        self.image = image
        self.known: dict[int, tuple[Prepared, tuple[np.ndarray, ...]]] = {}  # by identity, with what has that identity

    def see(self, pictures: Sequence[Prepared]) -> list[tuple[np.ndarray, ...]]:
        """Return of each picture its visual tokens [V * D] float16 and, of a detector, the boxes [V * 4] float32."""
        new = {id(picture): picture for picture in pictures if id(picture) not in self.known}
        if new:
            seen = in_parts(self.image.see, [picture.pixels for picture in new.values()])
            values = zip(*(value.flatten(1).numpy() for value in seen if value is not None), strict=True)
            self.known |= {key: (new[key], value) for key, value in zip(new, values, strict=True)}
        found = [self.known[id(picture)][1] for picture in pictures]
        for old in list(self.known)[:-NEAR]:
            del self.known[old]
        return found


class Loaded(NamedTuple):
    """A record with its picture, decoded."""

    record: Record
    picture: Prepared | None


def preprocess(
    records: Path,
    out: Path,
    *,
    text_encoder: str = EMBEDDED,
    image_encoder: str = EMBEDDED,
    visual_tokens: int | None = None,
    allow_unknown_words: bool = False,
    force: bool = False,
) -> Preprocessed:
    """Read the artifact `records` and publish the store `out`: a Lance dataset, one row a record, in its order.

    Columns: id, split, group, text, labels (numbers in labels.json), image_path (as the record has it), image (a JPEG of at most
    320 px, to look at), visual_tokens ([V, D] float16 of the frozen image tower, from the picture itself; null without a
    picture), of a detector visual_boxes ([V * 4] float32, x1 y1 x2 y2 as shares of width and height; zeros for a region that
    is none), text_features ([D] float32 of the frozen text tower), of questions answers (all that people gave). Memory stays
    flat. With `visual_tokens` the tower's grid is averaged to so many.
    Where `out` is such a store and only the image tower or the number of its tokens is another, these are added as a column, and
    no other is written again; the tokens that were there stay, and are found again when they are asked for.

    Raises BadInputError when `records` is no such artifact, a picture has changed since ingest, or over a third of all the
    texts' tokens are unknown to the text tower's vocabulary, unless `allow_unknown_words`; LabelerError when a tower cannot be
    loaded; UsageError when it has no grid that `visual_tokens` are a smaller square of.
    """
    manifest = verify(records, "ingest")
    asked = arguments_of(records, text_encoder, image_encoder, visual_tokens)
    recipe = Recipe("preprocess", (input_of(records, manifest),), asked)
    rows = sum(1 for _ in read_records(records))
    if not force and already_made(out, recipe):
        return Preprocessed(out, True, rows)
    check_free(out, "preprocess")
    from labeler.encoders.image import load_image_encoder
    from labeler.encoders.text import check_vocabulary, load_text_encoder

    image, text = load_image_encoder(image_encoder), load_text_encoder(text_encoder)
    if visual_tokens is not None:
        image = image.with_tokens(visual_tokens)
    texts = (record.text for record in read_records(records))
    unknown = check_vocabulary(text, texts, allow=allow_unknown_words)  # before hours are spent on pictures
    towers = towers_of(image, text, asked["weights"])
    if unknown > UNKNOWN_SHARE:
        towers["text"]["unknown_share"] = round(unknown, 4)
    kept = None if force else other_tokens(out, recipe)
    # Lance names its files at random: what stands for the content is what it was made from
    content = sha256_json([manifest["content_sha256"], towers, STRETCHED_BY, *([ANSWERS] if ANSWERS in asked else [])])
    with making(out, recipe, content=content) as folder:
        with tqdm(total=rows, desc="preprocessing", unit="pair", disable=None) as bar:
            if kept is None:
                loaded = counted(load_batches(records, image.size), bar)
                write_dataset(folder / DATASET, loaded, records, image, text, answers=ANSWERS in asked)
            else:
                shutil.copytree(out / DATASET, folder / DATASET, copy_function=link)
                loaded = counted(load_batches(records, image.size), bar)
                set_tokens(folder / DATASET, loaded, image, kept, tokens_of(towers))
        write_json(folder / "towers.json", towers)
        for name in ("labels.json", "profile.json"):
            shutil.copyfile(records / name, folder / name)
    return Preprocessed(out, False, rows)


def arguments_of(records: Path, text_encoder: str, image_encoder: str, visual_tokens: int | None) -> dict[str, Any]:
    """Return what a manifest records of how a store is made."""
    asked = {
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
        "visual_tokens": visual_tokens,
        "weights": {"text": tower_sha256(text_encoder), "image": tower_sha256(image_encoder)},
        "thumbnails": THUMBNAIL_MIME,
        "stretched_by": STRETCHED_BY,
    }
    # a store from before there was such a column is another one
    return asked | ({ANSWERS: True} if has_answers(records) else {})


def towers_of(image: ImageEncoder, text: TextEncoder, hashes: dict[str, str]) -> dict[str, Any]:
    """Return what towers.json says: names, sha256, shapes; of an averaged grid, how many cells it had."""
    seen = {"name": image.name, "sha256": hashes["image"], "tokens": image.tokens, "width": image.width}
    if image.averaging is not None:
        seen["grid"] = image.averaging.shape[1]
    return {
        "image": seen,
        "text": {"name": text.name, "sha256": hashes["text"], "width": text.model.config.hidden_size},
    }


def has_answers(records: Path) -> bool:
    """Return whether any record has one label and keeps what people answered to its question."""
    single = read_label_set(records).task == "single"
    return single and any(given_answers(record.meta) for record in read_records(records))


def other_tokens(out: Path, recipe: Recipe) -> str | None:
    """Return which visual tokens the store `out` has (`tokens_of`) where these alone are not what `recipe` asks for; else None.

    None too where there is no such store, or it is damaged.
    """
    if not (out / MANIFEST).is_file():
        return None
    try:
        manifest = verify(out, "preprocess")
    except BadInputError:
        return None
    theirs, asked = manifest["arguments"], dict(recipe.arguments)
    same_text = theirs.pop("weights")["text"] == asked.pop("weights")["text"]
    for name in ("image_encoder", "visual_tokens"):
        asked[name] = theirs.setdefault(name, None)
    if differences(manifest, recipe._replace(arguments=asked)) or not same_text:
        return None
    return tokens_of(read_json(out / "towers.json"))


def tokens_of(towers: dict[str, Any]) -> str:
    """Return what tells a store's visual tokens from others: the image tower's weights, and how many there are."""
    return f"{towers['image']['sha256'][:16]}_{towers['image']['tokens']}"


def link(source: str, target: str) -> None:
    """Let `target` be the file `source`, which nobody writes to any more; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def set_tokens(path: Path, loaded: Iterable[list[Loaded]], image: ImageEncoder, old: str, new: str) -> None:
    """Let visual_tokens of the Lance dataset be those that `new` stands for (`tokens_of`), and keep those of `old` beside them.

    They are a column more, or one that was kept; nothing else is written again.
    """
    import lance
    import pyarrow

    dataset: Any = lance.dataset(str(path))  # its types are wrong about alter_columns
    for name in (TOKENS, BOXES):
        if name in dataset.schema.names:
            dataset.alter_columns({"path": name, "name": kept_as(name, old)})
    if kept_as(TOKENS, new) in dataset.schema.names:
        for name in (TOKENS, BOXES):
            if kept_as(name, new) in dataset.schema.names:
                dataset.alter_columns({"path": kept_as(name, new), "name": name})
        return
    shown = Shown(image)
    stream(dataset.add_columns, pyarrow.schema(seen_fields(image)), (seen(batch, shown) for batch in loaded))


def kept_as(column: str, tokens: str) -> str:
    """Return the name of the column with visual tokens, or boxes, that are not the store's."""
    return f"{column}_{tokens}"


def counted(batches: Iterable[list[Loaded]], bar: tqdm[Any]) -> Iterator[list[Loaded]]:
    """Yield the batches; the bar goes on when the next one is asked for."""
    for batch in batches:
        yield batch
        bar.update(len(batch))


def write_dataset(
    path: Path, loaded: Iterable[list[Loaded]], records: Path, image: ImageEncoder, text: TextEncoder, *, answers: bool
) -> None:
    """Write the Lance dataset, a batch in memory at a time; with `answers`, a column of them too."""
    import lance
    import pyarrow

    label_set = read_label_set(records)
    schema = pyarrow.schema([
        ("id", pyarrow.string()), ("split", pyarrow.string()), ("group", pyarrow.string()),
        ("text", pyarrow.string()), ("labels", pyarrow.list_(pyarrow.int32())), (PATHS, pyarrow.string()),
        ("image", pyarrow.binary()),
        *seen_fields(image), ("text_features", pyarrow.list_(pyarrow.float32(), text.model.config.hidden_size)),
        *([(ANSWERS, pyarrow.list_(pyarrow.string()))] if answers else []),
    ])  # fmt: skip
    shown = Shown(image)
    columns = (columns_of(batch, label_set, shown, text) for batch in loaded)
    stream(lambda reader: lance.write_dataset(reader, str(path), schema=schema), schema, columns)


def stream(
    write: Callable[[pyarrow.RecordBatchReader], Any], schema: pyarrow.Schema, columns: Iterable[dict[str, list[Any]]]
) -> None:
    """Have `write` read the columns, a batch in memory at a time; what making them raises is raised here too."""
    import pyarrow

    failed: list[Exception] = []

    def batches() -> Iterator[pyarrow.RecordBatch]:
        try:
            for values in columns:
                arrays = [pyarrow.array(values[field.name], type=field.type) for field in schema]
                yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
        except Exception as error:
            failed.append(error)
            raise

    try:
        write(pyarrow.RecordBatchReader.from_batches(schema, batches()))
    except OSError:
        if failed:  # Lance turns what its source raises into an OSError that holds the traceback as text
            raise failed[0] from None
        raise


def load_batches(records: Path, side: int) -> Iterator[list[Loaded]]:
    """Yield BATCH_SIZE records at a time, their pictures at `side` x `side` pixels; the next ones are decoded meanwhile.

    A picture that several records near each other share is decoded once, and is one object.

    Raises BadInputError when a picture is no longer the one that `ingest` saw.
    """
    profile = read_json(records / "profile.json")
    root = records / profile["root"]
    source, again = tee(read_records(records))
    files = (Wanted(root / item.image, item.meta.get(IMAGE_SHA256, "")) if item.image else None for item in source)
    with closing(asked_once(lambda asked: prepare_images(asked, side, looks=True), files)) as pictures:
        pairs = zip(again, pictures, strict=True)
        while batch := [usable(*pair) for pair in islice(pairs, BATCH_SIZE)]:
            yield batch


def usable(record: Record, picture: Prepared | ImageError | None) -> Loaded:
    """Return the record with its picture; raises BadInputError when that cannot be used."""
    if isinstance(picture, ImageError):
        raise BadInputError(f"{picture}; run `labeler ingest` again")
    return Loaded(record, picture)


def columns_of(loaded: list[Loaded], label_set: LabelSet, shown: Shown, text: TextEncoder) -> dict[str, list[Any]]:
    """Return {column: values} with everything that the towers say about `loaded`."""
    numbers = {name: number for number, name in enumerate(label_set.names)}
    records = [item.record for item in loaded]
    return {
        "id": [record.id for record in records],
        "split": [record.split for record in records],
        "group": [record.group for record in records],
        "text": [record.text for record in records],
        "labels": [record.labels and [numbers[name] for name in record.labels] for record in records],
        PATHS: [record.image for record in records],
        "image": [item.picture and item.picture.thumbnail for item in loaded],
        ANSWERS: [given_answers(record.meta) for record in records],
        **seen(loaded, shown),
        "text_features": list(
            in_parts(lambda texts: (text.features([*texts]),), [record.text for record in records])[0].numpy()
        ),
    }


def in_parts(function: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Return what a tower gives of items, tensors or None, where memory does not suffice for all at once by halves of them.

    Raises LabelerError where it does not suffice for one.
    """
    import torch

    def join(first: Any, second: Any) -> Any:
        return tuple(None if one is None else torch.cat([one, other]) for one, other in zip(first, second, strict=True))

    try:
        return halving(function, items, join)
    except MemoryError as error:
        raise LabelerError(f"memory does not suffice for a single item ({error}); end other programs, or take a smaller "
                           "--image-encoder or --text-encoder") from error  # fmt: skip


def seen_fields(image: ImageEncoder) -> list[pyarrow.Field]:
    """Return the fields of the columns with what an image tower sees."""
    import pyarrow

    fields = [pyarrow.field(TOKENS, pyarrow.list_(pyarrow.float16(), image.tokens * image.width))]
    if image.regions:
        fields.append(pyarrow.field(BOXES, pyarrow.list_(pyarrow.float32(), image.tokens * 4)))
    return fields


def seen(loaded: list[Loaded], shown: Shown) -> dict[str, list[Any]]:
    """Return {column: values}: each picture's visual tokens [V * D] float16 and boxes [V * 4], None where a record has none."""
    columns: dict[str, list[Any]] = {field.name: [None] * len(loaded) for field in seen_fields(shown.image)}
    pictures = {row: item.picture for row, item in enumerate(loaded) if item.picture is not None}
    for row, values in zip(pictures, shown.see([*pictures.values()]), strict=True):
        for name, numbers in zip(columns, values, strict=True):
            columns[name][row] = numbers
    return columns
