"""Stage `export`: a run as ONNX graphs that need neither torch nor transformers, checked against the run itself."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labeler.artifacts import (
    CARD,
    Recipe,
    already_made,
    check_free,
    input_of,
    making,
    read_json,
    verify,
    write_json,
    write_text,
)
from labeler.decisions import VALIDATION, Rule
from labeler.engines import CHECK, Choice, Engine, Way, open_engine, usable_ways
from labeler.engines.exported import FUSION, PREPROCESSOR, TOKENIZER, TOWER
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.evaluation import HEADLINE, Predictions, figure, scores_of, settle, write_named
from labeler.inputs import found_again
from labeler.items import Item
from labeler.model_card import model_card
from labeler.pictures.decoding import Wanted, prepare_images
from labeler.pictures.images import ImageError
from labeler.records import IMAGE_SHA256, Record, read_records
from labeler.taxonomy import taxonomy_of

if TYPE_CHECKING:
    from labeler.engines.native import Native

log = logging.getLogger("labeler")

LARGEST_DIFFERENCE = 1e-3  # of a float32 export's scores to PyTorch's
MEASURED = 5000  # of validation pairs, on which accuracy is measured: their pictures are held in memory, 150 KB each
AT_ONCE = 512  # pairs whose visual tokens are held in memory
CHECKED = 256  # pairs that a float32 export is checked on
CALIBRATED = 128  # pictures that the ranges of int8 are taken from
KEPT = "export"  # the folder inside a run in which `predict` keeps an export of its own (labeler.own_export)
EXACT = {"format": "onnx", "int8": False, "visual_tokens": None}  # arguments of one whose scores are the run's


class Exporting(NamedTuple):
    """What `export` did: where, whether it had been made before, and the figures of the check."""

    out: Path
    already: bool
    checks: dict[str, Any]


class Checked(NamedTuple):
    """Pairs to compare runtimes on, and their labels [N, L] bool where they are known."""

    items: list[Item]
    truth: np.ndarray | None = None


def export(
    run: Path,
    out: Path,
    *,
    int8: bool = False,
    visual_tokens: int | None = None,
    data: Path | None = None,
    force: bool = False,
) -> Exporting:
    """Write the run as an export: `tower.onnx`, `fusion.onnx`, tokenizer, labels, thresholds, temperature, figures, card.

    With `int8` the image tower computes in 8 bits, its ranges those of validation pictures; with `visual_tokens` its grid is
    averaged to so many. Either changes scores, and needs the store `data` that the run was trained on: accuracy is measured on
    its validation pairs, 5,000 of them at most. Otherwise the export is checked on some of them where `data` is given, else on
    made ones.

    Raises LabelerError, and writes nothing, for a detector as image tower, and when scores differ from PyTorch's by more than
    0.001, or with either of these when accuracy (mean average precision for several labels a row) on the validation split
    falls below its 95 % interval; UsageError for either without `data`; BadInputError when run or store are damaged, or
    pictures are gone.
    """
    exact = not int8 and visual_tokens is None
    if not exact and data is None:
        raise UsageError(
            "--int8 and --visual-tokens change scores: what that costs is measured on validation pairs; name the run's store "
            "with --data"
        )
    trained = verify(run, "train")
    inputs = [input_of(run, trained)]
    if data:
        stored = verify(data, "preprocess")
        inputs.append(input_of(data, stored))
    recipe = Recipe("export", tuple(inputs), EXACT | {"int8": int8, "visual_tokens": visual_tokens})
    if not force and already_made(out, recipe):
        return Exporting(out, True, read_json(out / CHECK))
    if out.resolve() == run.resolve():
        raise UsageError(f"{out}: the run itself, which the export would replace; choose another --out")
    if not exact and out.resolve() == (run / KEPT).resolve():
        raise UsageError(f"{out}: where `labeler predict` keeps an exact export of the run; choose another --out")
    check_free(out, "export")
    native: Any = open_engine(Choice(run), "cpu")
    with making(out, recipe) as folder:
        write_files(native, folder, visual_tokens)
        checked = validation_pairs(native, data, stored, CHECKED if exact else MEASURED) if data else made_pairs(native)
        if int8:
            from labeler.quantizing import quantize_tower

            pictures = [item.pixels for item in checked.items if item.pixels is not None]
            if not pictures:
                raise UsageError(
                    "--int8: its ranges are taken from validation pictures, and there are none; leave it out"
                )
            quantize_tower(folder / TOWER, pictures[:CALIBRATED])
        checks = {"int8": int8, "visual_tokens": visual_tokens} | check(native, folder, checked, exact)
        write_json(folder / CHECK, checks)
        metrics = read_json(run / "metrics-test.json") if (run / "metrics-test.json").is_file() else None
        write_text(folder / CARD, model_card(run, trained, metrics, place=out, exported=checks))
    return Exporting(out, False, checks)


def write_files(native: Native, folder: Path, visual_tokens: int | None = None) -> None:
    """Write the graphs, and all else that labelling needs."""
    from labeler.end_to_end import reader
    from labeler.graphs import write_fusion, write_tower

    run, tower = native.run, native.tower
    if visual_tokens == tower.tokens:
        raise UsageError(f"--visual-tokens {visual_tokens}: the run's image tower gives no more; leave it out")
    if visual_tokens is not None:
        tower = tower.with_tokens(visual_tokens)
    write_tower(tower, folder / TOWER)
    write_fusion(reader(run.model), tower.width, tower.tokens, folder / FUSION)
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise LabelerError(f"{run.folder}: its tokenizer runs in Python alone and has no {TOKENIZER}; label with "
                           "`--runtime native`, or train on a text encoder with a fast tokenizer")  # fmt: skip
    (folder / TOKENIZER).write_text(backend.to_str(), encoding="utf-8")
    image = {**run.preprocessor["image"], "size": tower.size, "mean": tower.mean, "std": tower.std}
    marks = {name: getattr(run.tokenizer, name) for name in ("pad_token_id", "unk_token_id")}
    write_json(folder / PREPROCESSOR, {**run.preprocessor, "image": image, **marks})
    for name in ("labels.json", "calibration.json", "thresholds.json", VALIDATION):
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)


def validation_pairs(native: Native, data: Path, stored: dict[str, Any], most: int) -> Checked:
    """Return the validation pairs of the store `data`, at most `most`, their pictures as `predict` reads them.

    `stored` is the store's manifest, with which its files have been compared.

    Raises BadInputError when the store is not the run's, or the records or pictures that it was made of have changed.
    """
    if stored["content_sha256"] != native.run.manifest["inputs"][0]["sha256"]:
        raise BadInputError(f"{data}: not the store that {native.run.folder} was trained on, so that its validation rows may "
                            "be others; name that one")  # fmt: skip
    source = stored["inputs"][0]
    records = found_again(data, source)
    if verify(records, "ingest")["content_sha256"] != source["sha256"]:
        raise BadInputError(f"{records}: other records than {data} was made of; run `labeler preprocess` again")
    rows = [record for record in read_records(records) if record.split == "validation" and record.labels is not None]
    if len(rows) > most:  # from all over: a source may be sorted by its labels
        rows = [rows[number * len(rows) // most] for number in range(most)]
    root = records / read_json(records / "profile.json")["root"]
    files = (Wanted(root / row.image, row.meta.get(IMAGE_SHA256)) if row.image else None for row in rows)
    items = []
    with closing(prepare_images(files, native.size)) as pictures:
        for row, picture in zip(rows, pictures, strict=True):
            if isinstance(picture, ImageError):
                raise BadInputError(f"{picture}; run `labeler ingest` again")
            items.append(Item(row, pixels=picture and picture.pixels))
    names = native.rule.label_set.names
    return Checked(items, np.array([[name in (row.labels or ()) for name in names] for row in rows]))


def made_pairs(native: Native) -> Checked:
    """Return CHECKED pairs of coarse random pictures and texts of random tokens."""
    rng = np.random.default_rng(0)
    tokenizer, most, side = native.run.tokenizer, native.run.preprocessor["max_text_tokens"], native.size
    items = []
    for number in range(CHECKED):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels = coarse.repeat(-(-side // 8), axis=0).repeat(-(-side // 8), axis=1)[:side, :side]
        ids = rng.integers(0, len(tokenizer), rng.integers(1, most))
        text = " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
        items.append(Item(Record(id=str(number), text=text), pixels=np.ascontiguousarray(pixels)))
    return Checked(items)


def check(native: Engine, folder: Path, checked: Checked, exact: bool) -> dict[str, Any]:
    """Return how each way to run the export in `folder` compares with `native`, on the pairs and on parts of them.

    One that is not `exact` may give other scores, and says anew what it makes of the validation pairs; a way by which OpenVINO is
    worse is left out. Of an exact one OpenVINO is left out where it computes something else than onnxruntime.

    Raises LabelerError as `export` does.
    """
    items = [*checked.items, *parts(checked.items)]
    expected, seconds = timed(native, items)
    shown: dict[str, Any] = {"pairs": len(items), "validation": checked.truth is not None}
    shown["native"] = {"pairs_per_second": round(len(items) / seconds, 1)} | figure_of(native.rule, expected, checked)
    shown["ways"] = {}
    for way in usable_ways():
        scores, seconds = timed(open_engine(Choice(folder, way)), items)
        found = {
            "largest_difference": float(np.abs(scores - expected).max()),
            "same_labels": float((labels(native.rule, scores) == labels(native.rule, expected)).all(axis=1).mean()),
            "pairs_per_second": round(len(items) / seconds, 1),
        } | figure_of(native.rule, scores, checked)
        try:
            refuse_other(way, found) if exact else refuse_worse(way, found, shown["native"])
        except LabelerError as error:
            if way.runtime == "onnx":
                raise
            if not exact:  # each way is measured for itself; what is exact hangs on one graph that OpenVINO reads
                log.warning("%s; %s is left out", error, way)
                continue
            log.warning("%s; %s is left out", error, way.runtime)
            shown["ways"] = {name: kept for name, kept in shown["ways"].items() if not name.startswith(way.runtime)}
            break
        shown["ways"][str(way)] = found
        if not exact and way.runtime == "onnx":
            write_named(folder / VALIDATION, taxonomy_of(native.rule.label_set), said(native.rule, scores, checked))
    return shown


def parts(items: Sequence[Item], most: int = 8) -> list[Item]:
    """Return some of the items without their picture, and some without their text."""
    whole = [item for item in items if item.pixels is not None and item.record.text][:most]
    return [item._replace(pixels=None) for item in whole] + [
        item._replace(record=item.record.model_copy(update={"text": None})) for item in whole
    ]


def timed(engine: Engine, items: Sequence[Item]) -> tuple[np.ndarray, float]:
    """Return scores [N, L] and the seconds that they took, after a few that do not count."""
    engine.logits(items[:8], 8)
    started = time.perf_counter()
    values = np.concatenate(
        [engine.logits(items[start : start + AT_ONCE], 32) for start in range(0, len(items), AT_ONCE)]
    )
    seconds = time.perf_counter() - started
    return scores_of(engine.rule.label_set.task, values, engine.rule.temperature), seconds


def labels(rule: Rule, scores: np.ndarray) -> np.ndarray:
    """Return the labels [N, L] bool that scores stand for."""
    return settle(taxonomy_of(rule.label_set), scores, rule.thresholds)[1]


def said(rule: Rule, scores: np.ndarray, checked: Checked) -> Predictions:
    """Return what the first scores say of the validation pairs."""
    assert checked.truth is not None
    records = [item.record for item in checked.items]
    settled = settle(taxonomy_of(rule.label_set), scores[: len(records)], rule.thresholds)
    return Predictions([row.id for row in records], [row.group or row.id for row in records], checked.truth, *settled)


def figure_of(rule: Rule, scores: np.ndarray, checked: Checked) -> dict[str, Any]:
    """Return {metric: value, metric_ci95: interval} on the pairs whose labels are known, nothing where they are not."""
    if checked.truth is None:
        return {}
    task = rule.label_set.task
    return figure(task, HEADLINE[task], said(rule, scores, checked))


def refuse_other(way: Way, found: dict[str, Any]) -> None:
    """Raise LabelerError where scores in float32 are not PyTorch's."""
    if way.precision == "fp32" and not found["largest_difference"] <= LARGEST_DIFFERENCE:
        raise LabelerError(
            f"{way}: a score differs from PyTorch's by {found['largest_difference']:.2g}, over {LARGEST_DIFFERENCE:g}; "
            "`--runtime native` labels with the run as it is"
        )


def refuse_worse(way: Way, found: dict[str, Any], native: dict[str, Any]) -> None:
    """Raise LabelerError where a figure lies below the interval of PyTorch's."""
    metric = next(name for name in HEADLINE.values() if name in native)
    bounds = native[f"{metric}_ci95"]
    if bounds and found[metric] < bounds[0]:
        raise LabelerError(
            f"{way}: validation {metric.replace('_', ' ')} falls from {native[metric]:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}] to "
            f"{found[metric]:.3f}; export without --int8, or with more visual tokens"
        )
