"""Stage `evaluate`: a run and the baselines, measured on the same held-out rows."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import (
    CARD,
    Recipe,
    adding,
    already_made,
    input_of,
    read_json,
    read_manifest,
    remove,
    verify,
    write_json,
    write_text,
)
from labeler.decisions import aimed, promised
from labeler.embedding import refuse_other_tower
from labeler.errors import BadInputError, UsageError
from labeler.evaluation import (
    Aim,
    Predictions,
    kept,
    measure_retrieval,
    predictions_of,
    reliability,
    risk_coverage,
    rows_of,
    scores_of,
    write_named,
)
from labeler.inputs import verified_store
from labeler.measuring import MODALITIES, learned_from, make_baselines, measured, measured_parents, measuring_arguments
from labeler.model_card import model_card
from labeler.origins import has_seen, note_origins
from labeler.pretraining import pretrain_command
from labeler.records import differing_names
from labeler.sources.answers import UNKNOWN
from labeler.taxonomy import taxonomy_of
from labeler.towers_card import towers_card
from labeler.training_options import TrainOptions
from labeler.values import Split
from labeler.zero_shot import prompts_of, refuse_towers, told_by, zero_shot_run

log = logging.getLogger("labeler")
PROMISES = (0.8, 0.9, 0.95, 0.99)


class ZeroShotOptions(NamedTuple):
    """How a store's labels are told to a model that has learned none: {label: phrases} for some of them, and templates."""

    described: Mapping[str, Sequence[str]] | None = None
    templates: Sequence[str] = ()

    def arguments(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return told_by(self.described, self.templates)


class Evaluated(NamedTuple):
    """What `evaluate` did: where, whether it had been made before, and the metrics."""

    out: Path
    already: bool
    metrics: dict[str, Any]


def evaluate(
    run: Path,
    data: Path,
    *,
    split: Split = "test",
    aim: Aim | None = None,
    batch_size: int = 32,
    force: bool = False,
    device: str = "auto",
    zero_shot: ZeroShotOptions | None = None,
) -> Evaluated:
    """Score the run on one split of the store `data`; write `predictions-SPLIT.jsonl` and `metrics-SPLIT.json` into the run.

    The majority class and a logistic regression on the frozen features are measured on the same rows; their figures stand
    under `baselines`, their predictions in files of their own beside the run's. They learn from the store's own train rows,
    or, where it has none, from those of the store that the run was trained on. Under `modalities` stand the run's figures on
    the rows that have a text and a picture, with `both`, with the `text` and with the `image` alone; under `calibration` how
    far scores are off, before and after the temperature; under `abstention` what the surest labels are worth, and whether
    what the validation split promises of them holds. With an `aim`, thresholds are fitted for that, the baselines' too.

    With `zero_shot`, the run is one of `labeler pretrain`, and its zero-shot labels are measured, given by what stands under
    `zero_shot`; under `retrieval` stands how well texts and pictures find each other. Figures of another store are replaced.

    Raises UsageError for an aim where rows have one label, or of zero-shot labels; BadInputError when run or store are damaged,
    or the store's labels or image tower are not the run's.
    """
    if zero_shot and aim:
        raise UsageError(f"--aim {aim}: thresholds are fitted on labels, and zero-shot labels have learned none")
    if not zero_shot:
        refuse_towers(run, "--zero-shot")
    trained, stored = verify(run, "pretrain" if zero_shot else "train"), verified_store(data)
    name = f"manifest-{split}.json"
    arguments = measuring_arguments(split, aim) | ({"zero_shot": zero_shot.arguments()} if zero_shot else {})
    recipe = Recipe("evaluate", (input_of(run, trained), input_of(data, stored)), arguments)
    if not force and already_made(run, recipe, name):
        return Evaluated(run, True, read_json(run / f"metrics-{split}.json"))
    from labeler.store import Store

    store = Store(data, check=False)
    opened = opened_for(store, run, device, aim, zero_shot)
    refuse_mismatch(opened, store)
    warn_of_replacing(run, store, split, name)
    fitted_on, origin = learned_from(store, run, trained)
    with adding(run, recipe, name) as folder:
        promises = () if zero_shot or has_seen(trained, store, split) else PROMISES
        predictions, figures = measure_run(opened, store, split, batch_size, promises)
        write_named(folder / f"predictions-{split}.jsonl", taxonomy_of(store.label_set), predictions)
        metrics = describe(opened, store, split, trained) | figures | {"aim": str(aim) if aim else None}
        metrics["data"]["records"] = stored["inputs"][0]["sha256"]  # which stores of other towers share
        made = make_baselines(store, split, aim, fitted_on, folder) if fitted_on else None
        metrics["baselines"] = taken_over(made, folder) if made else []
        note_origins(metrics, trained, store, split, origin)
        if zero_shot:
            metrics["zero_shot"] = arguments["zero_shot"]
            metrics["retrieval"] = measured_retrieval(opened, store, split, batch_size)
            write_text(
                folder / f"labels-{split}.json", store.label_set.model_dump_json(indent=2) + "\n"
            )  # for the report
        write_json(folder / f"metrics-{split}.json", metrics)
        if split == "test" and CARD not in trained["files"]:  # an older labeler's card is part of its run
            card = partial(towers_card, typed=shlex.join(pretrain_command(trained, run))) if zero_shot else model_card
            write_text(folder / CARD, card(run, trained, metrics=metrics))
    return Evaluated(run, False, metrics)


def warn_of_replacing(run: Path, store: Any, split: Split, name: str) -> None:
    """Say which figures are replaced, where the manifest `name` in the run is of those of rows in another place."""
    if not (run / name).is_file():
        return
    try:
        before = read_manifest(run, "evaluate", name)["inputs"][1]
    except (BadInputError, IndexError):  # damaged, so that it is made again anyway
        return
    if before["sha256"] != store.sha256 and Path(before["path"]).resolve() != store.folder.resolve():
        log.warning("%s: its figures of the %s split of %s are replaced; `labeler evaluate` with --data %s measures them again",
                    run, split, before["path"], before["path"])  # fmt: skip


def taken_over(baselines: Path, folder: Path) -> list[dict[str, Any]]:
    """Copy the baselines' predictions to `folder`; return their figures. What was made in `folder` is removed."""
    for path in baselines.glob("baseline-*.jsonl"):
        shutil.copyfile(path, folder / path.name)
    found: list[dict[str, Any]] = read_json(baselines / "baselines.json")
    if baselines.parent == folder:
        remove(baselines)
    return found


def opened_for(store: Any, run: Path, device: str, aim: Aim | None, zero_shot: ZeroShotOptions | None) -> Any:
    """Return the run in `run`, with thresholds for the `aim`, or as a model of zero-shot labels for those of the store."""
    from labeler.inference import choose_device
    from labeler.runs import load_run

    if zero_shot is None:
        return aimed(load_run(run, choose_device(device)), aim)
    if len(store.label_set.names) < 2:
        raise BadInputError(f"{store.folder}: {len(store.label_set.names)} labels; only rows that carry one of two or more are "
                            "measured; ingest them with labels")  # fmt: skip
    prompts = prompts_of(store.label_set, zero_shot.described, zero_shot.templates)
    return zero_shot_run(run, prompts, store.label_set, choose_device(device))


def measure_run(
    run: Any, store: Any, split: Split, batch_size: int, promises: Sequence[float]
) -> tuple[Predictions, dict[str, Any]]:
    """Return the run's predictions on the split, and its own figures; `promises`: precisions of abstention to look at."""
    from labeler.pixels import pixels_for

    pixels = pixels_for(run, store)
    predictions, before, seconds = score_split(run, store, split, batch_size, pixels)
    whole = measured(store, predictions)
    metrics = whole | measured_parents(store, predictions)
    metrics["calibration"] = {"temperature": run.temperature} | {
        when: reliability(store.label_set.task, found) for when, found in (("before", before), ("after", predictions))
    }
    metrics["thresholds"] = run.thresholds
    metrics["abstention"] = abstention(run, predictions, promises)
    metrics["evaluate_pairs_per_second"] = round(len(predictions.ids) / seconds, 2)
    metrics["modalities"] = score_modalities(run, store, predictions, whole, split, batch_size, pixels)
    return predictions, metrics


def refuse_mismatch(run: Any, store: Any) -> None:
    """Raise BadInputError unless the run knows the store's labels and image tower; its labels are the store's from here on."""
    ours, theirs = run.label_set, store.label_set
    lacking = set(ours.names) - set(theirs.names)
    # what <unk> stands for hangs on which other labels there are
    if ours.task != theirs.task or not set(theirs.names) <= set(ours.names) or (lacking and UNKNOWN in theirs.names):
        raise BadInputError(
            f"{run.folder} was trained for other labels than {store.folder} has ({len(ours.names)} for task {ours.task}, "
            f"{len(theirs.names)} for {theirs.task}): {differing_names(ours.names, theirs.names)}; evaluate it on labels that it "
            "knows (`labeler ingest --labels FILE` rejects all others), or train again"
        )
    parents = {label.name: label.parent for label in ours.labels}
    if any(parents[label.name] != label.parent for label in theirs.labels):
        raise BadInputError(
            f"{run.folder} was trained with another taxonomy of the labels than {store.folder} has; evaluate it on the store "
            "it was trained on, or train again"
        )
    if ours.names != theirs.names:
        store.label_as(ours)
    refuse_other_tower(run, store)
    ours, theirs = run.preprocessor["image"], store.towers["image"]
    if ours["tokens"] != theirs["tokens"] and not ours.get("fine_tuned"):
        raise BadInputError(
            f"{run.folder} reads {ours['tokens']} visual tokens a picture, {store.folder} holds {theirs['tokens']}; run "
            f"`labeler preprocess` with --visual-tokens {ours['tokens']}, or train again"
        )


def score_split(
    run: Any, store: Any, split: Split, batch_size: int, pixels: Any = None
) -> tuple[Predictions, Predictions, float]:
    """Return the run's predictions on the split's rows, those without its temperature, and the seconds that scoring took."""
    from labeler.batches import StorePairs
    from labeler.inference import logits

    rows = store.rows_of(split)
    pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"], pixels)
    started = time.perf_counter()
    values = logits(run.model, pairs, run.tokenizer.pad_token_id, batch_size=batch_size, progress=f"scoring {split}")
    seconds = time.perf_counter() - started
    calibrated, raw = (
        predictions_of(store, rows, scores_of(store.label_set.task, values, temperature), run.thresholds)
        for temperature in (run.temperature, 1.0)
    )
    return calibrated, raw, seconds


def score_modalities(
    run: Any,
    store: Any,
    predictions: Predictions,
    whole: dict[str, Any],
    split: Split,
    batch_size: int,
    pixels: Any = None,
) -> dict[str, dict[str, Any]]:
    """Return {modality: figures} on the split's rows that have a text and a picture, so that nothing else differs.

    `whole` are the figures of `predictions`, on all of the split's rows.
    """
    import torch

    from labeler.batches import StorePairs, without
    from labeler.inference import model_outputs

    def alone(**batch: torch.Tensor) -> torch.Tensor:  # [B, 2, L]
        return torch.stack([run.model(**without(batch, missing)).logits for missing in ("image", "text")], dim=1)

    rows = store.rows_of(split)
    complete = np.flatnonzero(store.complete(rows))
    found = dict.fromkeys(MODALITIES, rows_of(predictions, complete))
    if len(complete):
        pairs = StorePairs(store, rows[complete], run.tokenizer, run.preprocessor["max_text_tokens"], pixels)
        progress = f"scoring {split}, text alone and image alone"
        values = model_outputs(run.model, pairs, run.tokenizer.pad_token_id, alone, progress, batch_size)
        for column, modality in enumerate(MODALITIES[1:]):
            scores = scores_of(store.label_set.task, values[:, column], run.temperature)
            found[modality] = predictions_of(store, rows[complete], scores, run.thresholds)
    figures = {
        modality: whole if modality == "both" and len(complete) == len(rows) else measured(store, found[modality])
        for modality in MODALITIES
    }
    return {
        modality: {key: value for key, value in values.items() if key not in ("per_class", "confusion")}
        for modality, values in figures.items()
    }


def describe(run: Any, store: Any, split: Split, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the figures are about: the model, the data, the training."""
    # runs of earlier versions lack options that came later, and had what is their default now
    arguments, towers = asdict(TrainOptions()) | manifest["arguments"], store.towers
    parameters = list(run.model.parameters())
    place = store.folder.resolve()  # a relative `store` lies in no folder that has a name
    embedded = all(tower["name"] == "embedded" for tower in towers.values())
    return {
        "schema_version": 1,
        "name": run.name,
        "run": str(run.folder),
        "preset": "embedded" if embedded else f"{towers['text']['name']} + {towers['image']['name']}",
        "task": store.label_set.task,
        "seed": manifest["seed"],
        "data": {"name": place.parent.name if place.name == "store" else place.name,
                 "sha256": store.sha256, "split": split, "store": str(store.folder)},
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(
            parameter.numel() for name, parameter in run.model.named_parameters()
            if parameter.requires_grad and (name.startswith("head.") or not arguments["freeze"])
        ),
        "train_seconds": run.history["train_seconds"],
        "pairs_per_second": run.history["pairs_per_second"],
        "best_epoch": run.history["best_epoch"],
        "settings": {key: value for key, value in arguments.items() if key != "model"}
        | {"precision": run.history["precision"]},
    }  # fmt: skip


def measured_retrieval(run: Any, store: Any, split: Split, batch_size: int) -> dict[str, Any]:
    """Return how well the split's texts and pictures find each other, of the rows that have both; {} where there are none."""
    from labeler.batches import StorePairs
    from labeler.embedding import embed_pairs, pair_keys

    rows = store.rows_of(split)
    rows = rows[store.complete(rows)]
    if not len(rows):
        return {}
    pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"])
    found = embed_pairs(
        run.model.towers, pairs, run.tokenizer.pad_token_id, batch_size=batch_size, progress=f"embedding {split}"
    )
    return measure_retrieval(*found, tuple(pair_keys(store, rows).T), [store.rows["group"][row] for row in rows])


def abstention(run: Any, predictions: Predictions, wanted: Sequence[float]) -> dict[str, Any]:
    """Return risk and coverage on the split, and of each `wanted` promise whether it holds there; none of older runs."""
    found = risk_coverage(predictions)
    try:
        given = [promised(run, precision) for precision in wanted]
    except BadInputError as error:
        log.warning("%s", error)
        given = []
    return found | {"promises": [kept(predictions, one) for one in given]}
