"""Stage `predict`: labels for pairs that nobody has labelled, one line an item, in the order of the input."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from labeler.artifacts import read_manifest
from labeler.decisions import Rule, aimed, read_rule, rule_of
from labeler.engines import Choice, Precision
from labeler.errors import BadInputError, InterruptedRun, UsageError
from labeler.evaluation import Aim
from labeler.items import ItemReading, key_of, read_items
from labeler.labeller import WINDOW, Labeller, Settings, least_score
from labeler.output import LineFormat, Stream, writing
from labeler.output_places import absolute, lies_in, output_format, place_to_write
from labeler.own_export import MANY, choose_engine
from labeler.pictures.images import MISSING, TEXTS_ALONE
from labeler.processes import AHEAD
from labeler.ray_predicting import label_on_ray
from labeler.records import ALIASES, Reject, Row, field_called, find_field
from labeler.remote import PREFIX
from labeler.remote_rows import format_of
from labeler.remote_rows import read as read_remote
from labeler.shards import ERROR, Counts, Line, Shards
from labeler.sources import Reading, brings_pictures, check_image_folder, find_format, read_source, refuse_encoding
from labeler.sources.text import ENCODING
from labeler.taxonomy import taxonomy_of
from labeler.values import shown_names
from labeler.zero_shot import Prompts, label_set_of, refuse_towers

if TYPE_CHECKING:
    from labeler.runs import Run

log = logging.getLogger("labeler")

FEW = 16  # pictures that may be held before the first row is labelled
OWN = ("id", "image", "text", "labels", "label", "scores", "model", "error", "review", "source")  # fields of a line


def predict(
    inputs: Sequence[Path | str], model: Path, out: Path | str | None = None, *, format: str | None = None, batch_size: int = 32,
    device: str = "auto", runtime: str = "auto", precision: Precision = "auto", mapping: dict[str, str] | None = None,
    encoding: str | None = None, image_folder: Path | None = None, keep: Sequence[str] = (), allow_missing_image: bool = False,
    allow_outside: bool = False, aim: Aim | None = None, min_precision: float | None = None, prompts: Prompts | None = None,
    force: bool = False, engine: str = "local", workers: int | None = None, ray_address: str | None = None,
) -> Counts:  # fmt: skip
    """Label every item of `inputs` (folders, pictures, jsonl, csv) with `model`, a run or an export; write one line an item.

    A line is {"id", "image", "text", "labels", "scores": {label: p}, "model", "error"}. A label brings its parent; where
    labels have parents and a pair has one label, `label` in a line is that one. An item that cannot be read has an
    error and no labels; the rest goes on. With an `aim`, thresholds are fitted for that. With `min_precision` a label is given
    only where validation rows show that so sure a label is right in that share (`labeler.evaluation.promise`); a line then has
    `review`, true where one was withheld. With `prompts`, `model` is a run of `labeler pretrain`, and the labels are theirs.
    Images of rows are relative to `image_folder`, by default to where their input lies. Where there are several inputs, `source`
    in a line is that of its item; a line carries the fields `keep` of its row, and with `allow_missing_image` a row whose picture
    is not there is labelled by its text.
    `out` None is standard output, a link the file that it leads to; a pipe or a device gets lines as they come. `format`
    is jsonl or csv, by default what `out` ends in. An input and `out` may be strings, s3://BUCKET/KEY (see `labeler.remote`); a
    line then has the picture's URL as its `image`.

    A file appears whole or not at all, and unless `force` replaces none that was not written like this, or has been changed
    since. What an interrupted run has labelled, and what stands in `out` from a run of the same model and options, is kept where
    neither the row nor its picture's file has changed, unless `force`; items that had an error are tried again.

    `runtime` and `precision` say what computes (see `labeler.own_export.choose_engine`).

    With the engine `ray`, `workers` processes label, on the cluster at `ray_address` or on this machine (see
    `labeler.ray_predicting`); the lines are the same.

    Raises BadInputError when an input is missing, or has no field that can be a picture or a text, when `model` is neither, or
    `out` something else's; UsageError for an unknown format, or a field that no row has; LockedError when another process writes
    to `out`; InterruptedRun after Ctrl-C.
    """
    form = output_format(format, out)
    refuse_options(batch_size, engine == "ray", workers, ray_address)
    if prompts:
        refuse_with_prompts(aim, min_precision, runtime, precision)
    out = place_to_write(inputs, out, force)
    how = ItemReading(mapping or {}, allow_outside, allow_missing_image, kept_fields(keep), len(inputs) > 1,
                      image_folder)  # fmt: skip
    refuse_image_folder(inputs, image_folder)
    job = opened(inputs, how, encoding, out)  # before any model is loaded
    choice = Choice(model, prompts=prompts)
    if not prompts:
        refuse_towers(model, "--zero-shot LABELS")
        choice = choose_engine(model, device, runtime, precision, many=job.many)
    recipe = {"model": str(model), "sha256": read_manifest(model)["content_sha256"], "way": str(choice.way), "format": form,
              "aim": str(aim or ""), "min_precision": min_precision, "prompts": prompts and prompts.arguments(),
              **how.arguments()}  # fmt: skip
    rule = Rule(model, label_set_of(prompts), None, 1.0) if prompts else aimed(read_rule(choice.folder), aim)
    least = None if min_precision is None else least_score(rule, min_precision)
    settings = Settings(model, rule, how, device, batch_size, least, job.ahead, choice)
    by_ray = partial(label_on_ray, workers=workers, address=ray_address)
    taxonomy = taxonomy_of(rule.label_set)
    if form == "csv":  # lines of older versions, which lack that column and write some cells otherwise, are not kept
        recipe |= {"cells": 2} | ({"columns": ["label"]} if taxonomy.apart else {})
    written = LineFormat(form, taxonomy.names, least is not None, how.carried, taxonomy.apart)
    with writing(out, recipe, written, force) as output:
        return label_job(job, settings, by_ray if engine == "ray" else label_here, written, output, out)


class Job(NamedTuple):
    """What is to be labelled: its rows, and how to read them again.

    many: whether there are MANY rows, or sources that cannot be asked; fetched: whether pictures come as bytes or from afar, so
    that to count the rows would fetch them all; number: how many rows there are, None where that is not known yet.
    """

    rows: Iterator[Row | Reject]
    again: Callable[[], Iterator[Row | Reject]]
    many: bool
    fetched: bool
    number: int | None = None

    @property
    def ahead(self) -> int:
        """Return how many pictures are held ahead of the model: whole files are larger than what is decoded of them."""
        return AHEAD if self.fetched else WINDOW

    def total(self) -> int | None:
        """Return how many rows there are, for a progress bar; None where none is shown, or counting takes long."""
        if not sys.stderr.isatty():
            return None
        if self.number is not None or self.fetched:
            return self.number
        log.disabled = True  # what is said of the rows is said when they are labelled
        try:
            return sum(1 for _ in self.again())
        finally:
            log.disabled = False


def opened(inputs: Sequence[Path | str], how: ItemReading, encoding: str | None, out: Path | str | None) -> Job:
    """Return what is to be labelled.

    Raises BadInputError when an input is missing, UsageError for an encoding that none of them has, and as `look_at` does.
    """
    if encoding:
        refuse_encoding(
            encoding, [format_of(place) if isinstance(place, str) else find_format(place) for place in inputs]
        )
    again = partial(read_inputs, inputs, how, encoding, out)
    streams = any(isinstance(place, Path) and brings_pictures(place) for place in inputs)
    rows = again()
    first, whole = first_of(rows)
    look_at(first, how, whole=whole)
    fetched = streams or any(isinstance(place, str) for place in inputs)
    return Job(chain(first, rows), again, streams or not whole, fetched, len(first) if whole else None)


def first_of(rows: Iterator[Row | Reject]) -> tuple[list[Row | Reject], bool]:
    """Draw MANY rows, or as many as hold FEW pictures as bytes; return them, and whether there are no more."""
    first: list[Row | Reject] = []
    held = 0
    for row in rows:
        first.append(row)
        held += isinstance(row, Row) and isinstance(row.picture, bytes)
        if len(first) == MANY or held == FEW:
            return first, False
    return first, True


def look_at(first: Sequence[Row | Reject], how: ItemReading, *, whole: bool) -> None:
    """Say what a glance at the first rows, or the `whole` of them, says is not as it was meant.

    Raises UsageError for a field that was named and that none of all rows has, BadInputError where no field can be a picture or
    a text.
    """
    rows = [row for row in first if isinstance(row, Row)]
    if not rows:
        return
    fields = list(dict.fromkeys(name for row in rows for name in row.fields))
    pictured = any(row.picture is not None for row in rows)
    named = [
        ("--map", theirs, f" (for {ours})")
        for ours, theirs in how.mapping.items()
        if not (ours == "image" and pictured)
    ]
    for option, name, what in [*named, *(("--keep", name, "") for name in how.keep)]:
        if field_called(fields, name) is None:
            message = f"{option}: no row has the field {name!r}{what}; there are: {shown_names(fields)}"
            if whole:
                raise UsageError(message)
            log.warning("%s, in the first %d", message, len(first))
    found = {ours: find_field(fields, ours, how.mapping) for ours in ALIASES}
    kept = {field_called(fields, name) for name in how.keep}
    unused = [name for name in fields if name not in found.values() and name not in kept]
    lacking = [ours for ours in ("image", "text") if found[ours] is None and not (ours == "image" and pictured)]
    if len(lacking) == 2 and whole:
        raise BadInputError(f"{rows[0].source}: neither an image nor a text in its fields ({shown_names(fields)}); "
                            "--map image=FIELD and --map text=FIELD name those that are meant")  # fmt: skip
    for ours in lacking if unused else ():
        log.warning("no item has %s; is it in one of these fields? %s: --map %s=FIELD",
                    "a picture" if ours == "image" else "a text", shown_names(unused), ours)  # fmt: skip
    for name in sorted(
        {note.removeprefix(ENCODING) for row in rows for note in row.notes if note.startswith(ENCODING)}
    ):
        log.warning("rows that are not UTF-8 were read as %s (--encoding names another)", name)


def refuse_image_folder(inputs: Sequence[Path | str], image_folder: Path | None) -> None:
    """Raise UsageError for an image folder where an input says itself where its pictures lie, BadInputError where it is none."""
    if image_folder and (far := next((place for place in inputs if isinstance(place, str)), None)):
        raise UsageError(
            f"--image-folder is for tables of this machine; pictures of {far} lie beside it, or are s3:// themselves"
        )
    check_image_folder([place for place in inputs if isinstance(place, Path)], Reading(image_folder=image_folder))


def kept_fields(names: Sequence[str]) -> tuple[str, ...]:
    """Return the fields to carry, each once; raises UsageError for one that would stand in the place of a line's own."""
    if strange := [name for name in names if name in OWN]:
        raise UsageError(
            f"--keep {strange[0]}: a line has a field of that name already; give it another name in the input"
        )
    return tuple(dict.fromkeys(names))


def refuse_options(batch_size: int, by_ray: bool, workers: int | None, ray_address: str | None) -> None:
    """Raise UsageError for a batch of nothing, and for what only Ray takes."""
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected 1 or more")
    if not by_ray and (workers or ray_address):
        raise UsageError("--workers and --ray-address are Ray's; add --engine ray")


def refuse_with_prompts(aim: Aim | None, min_precision: float | None, runtime: str, precision: Precision) -> None:
    """Raise UsageError for what zero-shot labels do not go with."""
    if aim or min_precision is not None:
        raise UsageError("--aim and --min-precision read validation rows with labels, and zero-shot labels have none")
    if runtime not in ("auto", "native") or precision not in ("auto", "fp32"):
        raise UsageError("zero-shot labels are computed by PyTorch in float32: leave out --runtime and --precision")


def label_job(
    job: Job, settings: Settings, label_windows: Callable[..., Generator[list[Line], None, None]], written: LineFormat,
    output: Shards | Stream, out: Path | str | None,
) -> Counts:  # fmt: skip
    """Label what the output does not know yet, with a progress bar, and join it; raises InterruptedRun after Ctrl-C."""
    try:
        with tqdm(total=job.total(), desc="labelling", unit="item", disable=None) as bar:
            label_rows(label_windows, job.rows, settings, written, output, bar)
            return output.join()
    except KeyboardInterrupt:
        if isinstance(output, Stream):
            raise
        raise InterruptedRun(f"{out}: interrupted; the same command goes on from there") from None


def label_rows(
    label_windows: Callable[..., Generator[list[Line], None, None]], rows: Iterable[Row | Reject], settings: Settings,
    written: LineFormat, output: Shards | Stream, bar: tqdm[Any],
) -> None:  # fmt: skip
    """Label the rows that the output does not know yet by `label_windows`, which is called as `label_here` is."""
    errors, told = 0, ""
    unknown = unknown_rows(rows, settings.reading, output, bar)
    first = list(islice(unknown, 1))
    if not first:
        return  # and the model is not even loaded
    with closing(label_windows(chain(first, unknown), settings, written, WINDOW)) as windows:
        for lines in windows:
            output.publish(lines)
            failed = [line for line in lines if line.mark == ERROR]
            told = told or (written.error_of(failed[0]) if failed else "")
            errors += len(failed)
            bar.set_postfix(errors=errors, refresh=False)
            bar.update(len(lines))
    if told:
        lost = "no such file" in told and not settings.reading.allow_missing
        advice = f". {TEXTS_ALONE}" if told.startswith(PREFIX) else MISSING
        log.warning("the first of the items with an error: %s%s", told, advice if lost else "")


def unknown_rows(
    rows: Iterable[Row | Reject], how: ItemReading, output: Shards | Stream, bar: tqdm[Any]
) -> Iterator[Row | Reject]:
    """Yield the rows that the output does not know, in order; the bar counts no others."""
    for row in rows:
        if not output.known(key_of(row, how)):
            yield row
        elif bar.total:
            bar.total -= 1


def label_here(
    rows: Iterable[Row | Reject], settings: Settings, written: LineFormat, size: int
) -> Generator[list[Line], None, None]:
    """Yield the lines of rows, in order, a window of `size` rows at a time; the next one's pictures are decoded meanwhile."""
    labeller = Labeller(settings)
    side = labeller.engine.size
    with closing(read_items(rows, settings.reading, side, settings.ahead)) as items:
        while window := list(islice(items, size)):
            yield [written(line) for line in labeller(window)]


def read_inputs(
    inputs: Sequence[Path | str], how: ItemReading, encoding: str | None = None, out: Path | str | None = None
) -> Iterator[Row | Reject]:
    """Return the rows of all inputs, without `out` where it lies in a folder; raises BadInputError when an input is missing."""
    reading = Reading(mapping=how.mapping, encoding=encoding, image_folder=how.image_folder)
    rows = chain.from_iterable([
        read_remote(place, how.mapping, how.allow_outside, encoding) if isinstance(place, str) else read_source(place, reading)
        for place in inputs
    ])  # fmt: skip
    if out is None:
        return rows
    identity = how.mapping.get("id", "id")
    own = {
        place.rstrip("/") if isinstance(place, str) else str(place): absolute(out)[len(absolute(place)) + 1 :]
        for place in inputs if lies_in(out, place)
    }  # fmt: skip

    def is_output(row: Row | Reject) -> bool:
        name = row.id if isinstance(row, Reject) else row.fields.get(identity)
        return row.source in own and own[row.source] == name

    return (row for row in rows if not is_output(row)) if own else rows


def label(run: Run, pairs: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
    """Return a line for each of `pairs`, as `predict` writes it: {"id", "image", "text", "labels", "scores", "model", "error"}.

    A pair has an `image` (a file's path, or a file's bytes), a `text`, or both, and an `id` if it likes. An empty path is no
    image. A pair that cannot be read has an error and no labels.

    Raises TypeError where `run` is a folder, `pairs` are no pairs, or an image is something else.
    """
    if isinstance(run, str | os.PathLike):
        raise TypeError(f"run: expected an opened run, not its folder; load_run({os.fspath(run)!r}) opens it")
    if isinstance(pairs, Mapping):
        raise TypeError("pairs: expected a list of pairs, not one pair; put it into a list")
    rows = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, Mapping):
            raise TypeError(
                f"pair {number}: expected a dict with an 'image', a 'text' or both, not {type(pair).__name__}"
            )
        image = pair.get("image")
        if not isinstance(image, str | os.PathLike | bytes | None):
            raise TypeError(f"pair {number}: expected the path or the bytes of a picture's file as its image, "
                            f"not {type(image).__name__}")  # fmt: skip
        held = image if isinstance(image, bytes) else None
        fields = {"id": pair.get("id", str(number)), "text": pair.get("text"),
                  "image": f"{number}" if held is not None else os.path.abspath(image) if image else None}  # fmt: skip
        rows.append(Row("pairs", number, {key: value for key, value in fields.items() if value is not None},
                        picture=held))  # fmt: skip
    from labeler.engines.native import Native

    how = ItemReading({}, allow_outside=True)
    labeller = Labeller(Settings(run.folder, rule_of(run), how, batch_size=batch_size), Native(run))
    with closing(read_items(rows, how, labeller.engine.size)) as items:
        windows = iter(lambda: list(islice(items, WINDOW)), [])
        return [line for window in windows for line in labeller(window)]
