"""Stage `predict`: labels for pairs that nobody has labelled, one line an item, in the order of the input."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from labeler.artifacts import BadInputError, UsageError
from labeler.decisions import Rule, aimed, promised
from labeler.engines import Engine, open_engine
from labeler.evaluation import NEVER, Aim, scores_of, settle
from labeler.items import Item, read_items
from labeler.output import LineWriter, writing
from labeler.records import Reject, Row
from labeler.sources import Reading, brings_pictures, read_source
from labeler.taxonomy import taxonomy_of
from labeler.zero_shot import Prompts

if TYPE_CHECKING:
    import numpy as np

    from labeler.runs import Run

log = logging.getLogger("labeler")

ITEMS_AT_A_TIME = 128
FORMATS = ("jsonl", "csv")


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
    prompts: Prompts | None = None,
) -> Predicted:
    """Label every item of `inputs` (folders, pictures, jsonl, csv) with the run `model`; write one line an item.

    A line is {"id", "image", "text", "labels", "scores": {label: p}, "model", "error"}. A label brings its parent; where labels
    have parents and a pair has one label, `label` in a line of jsonl is that one. An item that cannot be read has an error and
    no labels; the rest goes on. With an `aim`, thresholds are fitted for that. With `min_precision` a label is given only where
    validation rows show that so sure a label is right in that share (`labeler.evaluation.promise`); a line then has `review`,
    true where one was withheld. With `prompts`, `model` is a run of `labeler pretrain`, and the labels are theirs. `out` None
    is standard output; a file appears whole or not at all. `format` is jsonl or csv, by default what `out` ends in.

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
    if prompts and (aim or min_precision is not None):
        raise UsageError("--aim and --min-precision read validation rows with labels, and zero-shot labels have none")
    engine = open_engine(model, device, prompts)
    rule = aimed(engine.rule, aim)
    least = None if min_precision is None else least_score(rule, min_precision)
    rows: Iterable[Row | Reject] = chain.from_iterable(sources)
    if not any(brings_pictures(path) for path in inputs):  # those would fill the memory
        rows = list(rows)
    total = len(rows) if isinstance(rows, list) else None
    count = errors = review = 0
    with (
        writing(out) as file,
        closing(read_items(rows, mapping or {}, allow_outside, engine.size)) as items,
        tqdm(total=total, desc="labelling", unit="item", disable=None) as bar,
    ):
        write = LineWriter(file, form, taxonomy_of(rule.label_set).names, review=least is not None)
        while chunk := list(islice(items, ITEMS_AT_A_TIME)):
            for line in label_items(chunk, engine, rule, batch_size, str(model), least):
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
    from labeler.engines.native import Native

    engine = Native(run)
    with closing(read_items(rows, {}, True, engine.size)) as items:
        return list(label_items(list(items), engine, engine.rule, batch_size, str(run.folder)))


def least_score(rule: Rule, precision: float) -> float:
    """Return what a label must score to be given with the precision; above every score where nothing can be promised."""
    given = promised(rule, precision)
    if given.threshold is None:
        log.warning("none of %d labels on the validation split are sure enough to promise a precision of %g: everything is left "
                    "for review", given.total, precision)  # fmt: skip
        return NEVER
    log.info("precision %g: %d of %d labels on the validation split score %.3f or more, and %d of them are right",
             precision, given.n, given.total, given.threshold, given.right)  # fmt: skip
    return given.threshold


def label_items(
    items: Sequence[Item], engine: Engine, rule: Rule, batch_size: int, model: str, least: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the output line of every item, in order; labels that score less than `least` are withheld."""
    usable = [item for item in items if item.error is None]
    taxonomy = taxonomy_of(rule.label_set)
    scores: Iterator[list[float]] = iter(())
    decided: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]] = iter(())
    apart = taxonomy.task == "single" and bool(taxonomy.pairs)
    if usable:
        values = engine.logits(usable, batch_size)
        settled, chosen = settle(taxonomy, scores_of(taxonomy.task, values, rule.temperature), rule.thresholds)
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
                line["label"] = rule.label_set.names[own.argmax()]
            line |= {} if least is None else {"review": bool(unsure)}
        yield line
