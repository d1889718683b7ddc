"""Stage `inspect`: what a store shows of its data's quality: suspicious pictures and likely label errors."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from labeler.artifacts import (
    Input,
    Recipe,
    already_made,
    check_free,
    input_of,
    making,
    read_json,
    read_manifest,
    sha256_file,
    write_json,
    write_text,
)
from labeler.errors import BadInputError, LabelerError
from labeler.inputs import verified_store
from labeler.paths import by_name
from labeler.pictures.images import decode_image
from labeler.pictures.quality import THRESHOLDS, quality_scores, suspicious
from labeler.taxonomy import taxonomy_of

if TYPE_CHECKING:
    from labeler.label_errors import Judged
    from labeler.store import Store

log = logging.getLogger("labeler")

FIRST = 50  # rows that the profile itself holds of each list
PICTURES, ERRORS = "suspicious-pictures.jsonl", "label-errors.jsonl"
AT_ONCE = 256  # pictures in memory


class Inspected(NamedTuple):
    """What `inspect` did: where, whether it had been made before, and the profile with what it found."""

    out: Path
    already: bool
    profile: dict[str, Any]


def quality_folder(store: Path) -> Path:
    """Return the folder beside the store in which `inspect` keeps what it found."""
    return by_name(store).with_name(f"{by_name(store).name}-quality")


def read_profile(folder: Path) -> dict[str, Any]:
    """Return the profile in the artifact `folder`; raises BadInputError where there is none (an older labeler's)."""
    path = folder / "profile.json"
    if not path.is_file():
        stage = read_manifest(folder)["stage"]
        raise BadInputError(f"{path}: missing; make it again with `labeler {stage} --force`")
    return read_json(path)


def inspect(store: Path, *, force: bool = False, seed: int = 0) -> Inspected:
    """Return the store's profile with its suspicious pictures and likely label errors, and publish them beside it.

    Writes `profile.json` (the store's own, with `suspicious_pictures` and `label_errors` added: counts, and the FIRST
    rows of each), `suspicious-pictures.jsonl` and `label-errors.jsonl` (all rows) to `quality_folder(store)`. `seed`
    decides the folds of the cross-validation. The features of all rows are in memory at once, 4 bytes each.

    Raises BadInputError when `store` is no store, damaged, or has no profile.
    """
    manifest, profile = verified_store(store), read_profile(store)
    out = quality_folder(store)
    inputs = (input_of(store, manifest), Input(str(store / "profile.json"), sha256_file(store / "profile.json")))
    recipe = Recipe("inspect", inputs, {"thresholds": THRESHOLDS}, seed)
    if not force and already_made(out, recipe):
        return Inspected(out, True, read_profile(out))
    try:
        check_free(out, "inspect")  # before minutes of work
    except LabelerError as error:
        where = "move what is there, or copy the store to where there is room beside it"
        raise type(error)(str(error).replace("choose another --out", where)) from error
    from labeler.store import Store

    opened = Store(store, check=False)
    pictures, found = picture_rows(opened)
    errors, about = error_rows(opened, seed)
    profile |= {"suspicious_pictures": found | {"first": first_of_each(pictures)}}
    profile |= {"label_errors": about | {"first": errors[:FIRST]}}
    with making(out, recipe) as folder:
        for name, rows in ((PICTURES, pictures), (ERRORS, errors)):
            write_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_json(folder / "profile.json", profile)
    log.info("%s: %d of %d pictures suspicious, %d of %d rows with a likely label error", out,
             len(pictures), found["checked"], len(errors), about["checked"])  # fmt: skip
    return Inspected(out, False, profile)


def picture_rows(store: Store) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row {id, split, kinds, scores} for each suspicious picture, in the store's order, and the counts."""
    found, checked = [], 0
    ids, splits = store.rows["id"], store.rows["split"]
    numbered = ((row, data) for row, data in enumerate(store.thumbnails()) if data)

    def judged(item: tuple[int, bytes]) -> tuple[int, dict[str, float]]:
        return item[0], quality_scores(decode_image(item[1]))

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(desc="looking", unit="picture", disable=None) as bar:
        while batch := list(islice(numbered, AT_ONCE)):
            for row, scores in pool.map(judged, batch):
                if kinds := suspicious(scores):
                    rounded = {kind: round(scores[kind], 4) for kind in kinds}
                    found.append({"id": ids[row], "split": splits[row], "kinds": kinds, "scores": rounded})
            checked += len(batch)
            bar.update(len(batch))
    counts = Counter(kind for row in found for kind in row["kinds"])
    return found, {"checked": checked, "count": len(found), "kinds": {kind: counts[kind] for kind in THRESHOLDS}}


def first_of_each(pictures: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return for each kind the FIRST most suspicious pictures, as {id, split, score}."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in THRESHOLDS:
        rows = [row for row in pictures if kind in row["kinds"]]
        rows = sorted(rows, key=lambda row: row["scores"][kind])[:FIRST]
        found[kind] = [{"id": row["id"], "split": row["split"], "score": row["scores"][kind]} for row in rows]
    return found


def error_rows(store: Store, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row {id, split, given, suggested, score} for each likely label error, most likely first, and the counts."""
    from labeler.baselines import Features
    from labeler.label_errors import FOLDS, find_label_errors

    rows = np.flatnonzero(store.labelled)
    names = store.label_set.names
    groups = np.unique([store.rows["group"][row] for row in rows], return_inverse=True)[1]
    count = len(np.unique(groups))
    if count < FOLDS:
        reason = f"{count} groups of labelled rows, at least {FOLDS} are needed"
        return [], {"checked": 0, "count": 0, "not_checked": reason, "changes": [], "labels_not_judged": []}
    log.info("looking for label errors: logistic regression on the frozen features, %d folds", FOLDS)
    features = Features(*store.features(rows), store.truth(rows))
    taxonomy = taxonomy_of(store.label_set)
    judged = find_label_errors(taxonomy.task, features, groups.tolist(), seed, taxonomy)
    if judged.guessed:
        reason = (
            f"the regression that judges them knows hardly more than how frequent each label is (log loss "
            f"{judged.probe.log_loss:.3f}, of the frequencies {judged.frequencies:.3f})"
        )
        return [], {"checked": 0, "count": 0, "not_checked": reason, "changes": [], "labels_not_judged": []}
    errors = [
        {
            "id": store.rows["id"][rows[error.row]],
            "split": store.rows["split"][rows[error.row]],
            "given": named(features.truth[error.row], names),
            "suggested": named(error.suggested, names),
            "score": round(error.score, 6),
        }
        for error in judged.errors
    ]
    return errors, about_errors(errors, judged, len(rows), names)


def about_errors(errors: list[dict[str, Any]], judged: Judged, checked: int, names: list[str]) -> dict[str, Any]:
    """Return the counts of the profile: how many errors, which changes most often, and how they were found."""
    changes = Counter(
        (label, other)
        for error in errors
        for label in sorted(set(error["given"]) - set(error["suggested"])) or [None]
        for other in sorted(set(error["suggested"]) - set(error["given"])) or [None]
    )
    return {
        "checked": checked,
        "count": len(errors),
        "changes": [[*change, count] for change, count in changes.most_common(FIRST)],
        "labels_not_judged": named(judged.not_judged, names),
        "probe": {"C": judged.probe.strength, "log_loss": round(judged.probe.log_loss, 4)},
    }


def named(flags: np.ndarray, names: list[str]) -> list[str]:
    """Return the names of the labels that are set."""
    return [names[number] for number in np.flatnonzero(flags)]
