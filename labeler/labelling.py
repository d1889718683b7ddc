"""Stage `predict`: labels for pairs that nobody has labelled, one line an item, in the order of the input."""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice, tee
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from labeler.artifacts import BadInputError, UsageError, neutral
from labeler.decisions import aimed, promised
from labeler.decoding import prepare_images
from labeler.evaluation import NEVER, Aim, settle
from labeler.images import ImageError, check_size, resolve_image
from labeler.records import Record, Reject, Row, RowError, record_from
from labeler.sources import Reading, brings_pictures, image_root, read_source
from labeler.taxonomy import taxonomy_of

if TYPE_CHECKING:
    import numpy as np

    from labeler.encoders.image import ImageEncoder
    from labeler.runs import Run

log = logging.getLogger("labeler")

ITEMS_AT_A_TIME = 128
FORMATS = ("jsonl", "csv")


class Item(NamedTuple):
    """One thing to label: a record, its picture's file, or its name and bytes, and the picture as the image tower takes it; or
    why it cannot be.
    """

    record: Record
    path: Path | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    error: str | None = None


class Predicted(NamedTuple):
    """What `predict` did: how many items it wrote, how many of them with an error, and for review."""

    items: int
    errors: int
    review: int = 0


def predict(
    inputs: Sequence[Path],
    model: Path,
    out: Path | None = None,
    *,
    format: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    mapping: dict[str, str] | None = None,
    allow_outside: bool = False,
    aim: Aim | None = None,
    min_precision: float | None = None,
) -> Predicted:
    """Label every item of `inputs` (folders, pictures, jsonl, csv) with the run `model`; write one line an item.

    A line is {"id", "image", "text", "labels", "scores": {label: p}, "model", "error"}. A label brings its parent; where
    labels have parents and a pair has one label, `label` in a line of jsonl is that one. An item that cannot be read has an
    error and no labels; the rest goes on. With an `aim`, thresholds are fitted for that. With `min_precision` a label is given
    only where validation rows show that so sure a label is right in that share (`labeler.evaluation.promise`); a line then has
    `review`, true where one was withheld. `out` None is standard output; a file appears whole or not at all. `format` is
    jsonl or csv, by default what `out` ends in.

    Raises BadInputError when an input is missing or `model` is no whole run; UsageError for an unknown format.
    """
    form = format or ("csv" if out is not None and out.suffix.lower() == ".csv" else "jsonl")
    if form not in FORMATS:
        raise UsageError(f"--format {form}: expected {' or '.join(FORMATS)}")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected 1 or more")
    if out is not None and out.is_dir():
        raise BadInputError(f"{out}: a folder; --out takes the file to write")
    sources = [read_source(path, Reading(mapping=mapping or {})) for path in inputs]  # before any model is loaded
    from labeler.prediction import choose_device
    from labeler.runs import load_run

    run = aimed(load_run(model, choose_device(device)), aim)
    least = None if min_precision is None else least_score(run, min_precision)
    tower = image_tower(run)
    rows: Iterable[Row | Reject] = chain.from_iterable(sources)
    if not any(brings_pictures(path) for path in inputs):  # those would fill the memory
        rows = list(rows)
    total = len(rows) if isinstance(rows, list) else None
    count = errors = review = 0
    with (
        writing(out) as file,
        closing(read_items(rows, mapping or {}, allow_outside, tower.size)) as items,
        tqdm(total=total, desc="labelling", unit="item", disable=None) as bar,
    ):
        write = LineWriter(file, form, taxonomy_of(run.label_set).names, review=least is not None)
        while chunk := list(islice(items, ITEMS_AT_A_TIME)):
            for line in label_items(chunk, run, tower, batch_size, str(model), least):
                write(line)
                count += 1
                review += line.get("review", False)
                errors += line["error"] is not None
                bar.update()
            bar.set_postfix(errors=errors, refresh=False)
    return Predicted(count, errors, review)


def label(run: Run, pairs: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
    """Return a line for each of `pairs`, as `predict` writes it: {"id", "image", "text", "labels", "scores", "model", "error"}.

    A pair has an `image` (a file's path, or a file's bytes), a `text`, or both, and an `id` if it likes. One that cannot be
    read has an error and no labels.
    """
    rows = []
    for number, pair in enumerate(pairs, start=1):
        image, held = pair.get("image"), isinstance(pair.get("image"), bytes)
        fields = {"id": pair.get("id", str(number)), "text": pair.get("text"),
                  "image": f"{number}" if held else None if image is None else os.path.abspath(image)}  # fmt: skip
        rows.append(Row("pairs", number, {key: value for key, value in fields.items() if value is not None},
                        picture=image if held else None))  # fmt: skip
    tower = image_tower(run)
    with closing(read_items(rows, {}, True, tower.size)) as items:
        return list(label_items(list(items), run, tower, batch_size, str(run.folder)))


def least_score(run: Run, precision: float) -> float:
    """Return what a label must score to be given with the precision; above every score where nothing can be promised."""
    given = promised(run, precision)
    if given.threshold is None:
        log.warning("none of %d labels on the validation split are sure enough to promise a precision of %g: everything is left "
                    "for review", given.total, precision)  # fmt: skip
        return NEVER
    log.info("precision %g: %d of %d labels on the validation split score %.3f or more, and %d of them are right",
             precision, given.n, given.total, given.threshold, given.right)  # fmt: skip
    return given.threshold


def image_tower(run: Run) -> ImageEncoder:
    """Return the image tower that the run was trained with, on the run's device; its own where that was fine-tuned.

    Raises LabelerError when its weights have changed since, or what is read of them has.
    """
    from labeler.encoders.image import recorded_image_encoder
    from labeler.end_to_end import EndToEnd

    if isinstance(run.model, EndToEnd):
        return run.model.encoder
    tower = recorded_image_encoder(run.preprocessor["image"], run.folder)
    tower.module.to(run.model.device)
    return tower


def read_items(
    rows: Iterable[Row | Reject], mapping: dict[str, str], allow_outside: bool, side: int
) -> Generator[Item, None, None]:
    """Yield an item for every row, in order, its picture at `side` x `side` pixels; they are decoded ahead of their use."""
    source, again = tee(read_item(row, mapping, allow_outside) for row in rows)
    files = ((item.path, None, item.data) if item.path else None for item in source)
    with closing(prepare_images(files, side)) as pictures:
        for item, picture in zip(again, pictures, strict=True):
            if isinstance(picture, ImageError):
                yield item._replace(error=str(picture), data=None)
            else:
                yield item._replace(pixels=picture and picture.pixels, data=None)


def read_item(row: Row | Reject, mapping: dict[str, str], allow_outside: bool) -> Item:
    """Return the row as an item; an error in place of an exception."""
    if isinstance(row, Reject):
        return Item(Record(id=row.id or f"{Path(row.source).name}:{row.line}"), error=f"line {row.line}: {row.message}")
    try:
        record = record_from(row, mapping, labelled=False)
    except RowError as error:
        return Item(unusable(row), error=str(error))
    try:
        if isinstance(row.picture, bytes):
            check_size(len(row.picture))
            return Item(record, Path(record.image or record.id), row.picture)
        if record.image is None:
            return Item(record)
        return Item(record, resolve_image(image_root(Path(row.source)), record.image, allow_outside=allow_outside))
    except ImageError as error:
        return Item(record, error=str(error))


def unusable(row: Row) -> Record:
    """Return a record that names a row which is none."""
    return Record(id=(row.shown_id or row.place).encode("utf-8", "replace").decode("utf-8"))


def label_items(
    items: Sequence[Item], run: Run, tower: ImageEncoder, batch_size: int, model: str, least: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the output line of every item, in order; labels that score less than `least` are withheld."""
    from labeler.prediction import PairList, logits, scores_of

    usable = [item for item in items if item.error is None]
    taxonomy = taxonomy_of(run.label_set)
    scores: Iterator[list[float]] = iter(())
    decided: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]] = iter(())
    apart = taxonomy.task == "single" and bool(taxonomy.pairs)
    if usable:
        values = logits(
            run.model,
            PairList(make_pairs(usable, run, tower, batch_size)),
            run.tokenizer.pad_token_id,
            batch_size=batch_size,
        )
        settled, chosen = settle(taxonomy, scores_of(taxonomy.task, values, run.temperature), run.thresholds)
        given = chosen if least is None else chosen & (settled >= least)
        withheld = (chosen & ~given).any(axis=1)
        scores, decided = (
            iter(taxonomy.scores(settled).tolist()),
            zip(given, taxonomy.flags(given), withheld, strict=True),
        )
    for item in items:
        record = item.record
        line: dict[str, Any] = {"id": record.id, "image": record.image, "text": record.text, "labels": [], "scores": {}}
        line |= {"model": model, "error": item.error} | ({"label": None} if apart else {})
        line |= {} if least is None else {"review": False}
        if item.error is None:
            line["scores"] = dict(zip(taxonomy.names, next(scores), strict=True))
            own, held, unsure = next(decided)
            line["labels"] = [name for name, one in zip(taxonomy.names, held, strict=True) if one]
            if apart and own.any():
                line["label"] = run.label_set.names[own.argmax()]
            line |= {} if least is None else {"review": bool(unsure)}
        yield line


def make_pairs(items: Sequence[Item], run: Run, tower: ImageEncoder, batch_size: int) -> list[Any]:
    """Return items as pairs: texts tokenized, pictures shown to the image tower unless that is part of the run's model."""
    import numpy as np

    from labeler.batches import Pair, tokenize
    from labeler.end_to_end import EndToEnd
    from labeler.store import region_mask

    ids = tokenize(run.tokenizer, [item.record.text for item in items], run.preprocessor["max_text_tokens"])
    if isinstance(run.model, EndToEnd):
        blank = np.zeros((tower.size, tower.size, 3), dtype=np.uint8)
        shown = [blank if item.pixels is None else item.pixels for item in items]
        return [
            Pair(ids[row], None, item.pixels is not None, pixels=shown[row].transpose(2, 0, 1))
            for row, item in enumerate(items)
        ]
    nothing = np.zeros((tower.tokens, tower.width), dtype=np.float16)
    tokens, masks = [nothing] * len(items), [np.ones(tower.tokens, dtype=bool)] * len(items)
    pictures = [row for row, item in enumerate(items) if item.pixels is not None]
    for start in range(0, len(pictures), batch_size):
        rows = pictures[start : start + batch_size]
        seen = tower.see([pixels for row in rows if (pixels := items[row].pixels) is not None])
        for number, row in enumerate(rows):
            tokens[row] = seen.tokens[number].numpy()
            if seen.boxes is not None:
                masks[row] = region_mask(seen.boxes[number].numpy())
    return [
        Pair(ids[row], tokens[row], items[row].pixels is not None, visual_mask=masks[row]) for row in range(len(items))
    ]


class LineWriter:
    """Writes lines as jsonl, or as csv with a column for each label's score."""

    def __init__(self, file: IO[str], form: str, names: Sequence[str], review: bool = False):
        """Write to `file`; for csv, the header first, with a column for what is for review."""
        self.file, self.names, self.extra = file, names, ["review"] if review else []
        self.table = csv.writer(file, lineterminator="\n") if form == "csv" else None
        if self.table:
            self.table.writerow(
                [
                    "id",
                    "image",
                    "text",
                    "labels",
                    "model",
                    "error",
                    *self.extra,
                    *(neutral(f"score:{name}") for name in names),
                ]
            )

    def __call__(self, line: dict[str, Any]) -> None:
        """Write one line."""
        if self.table is None:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        cells = [line["id"], line["image"], line["text"], "|".join(line["labels"]), line["model"], line["error"]]
        cells += [str(line[name]).lower() for name in self.extra]
        self.table.writerow([neutral(cell) for cell in cells] + [line["scores"].get(name, "") for name in self.names])


@contextmanager
def writing(out: Path | None) -> Iterator[IO[str]]:
    """Yield the file to write to: standard output, or a partial file that is renamed to `out` at the end."""
    if out is None:
        yield sys.stdout
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{out.parent}: cannot be made a folder ({error.strerror}); choose another --out"
        ) from error
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
