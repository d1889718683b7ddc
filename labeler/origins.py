"""Origins: the stores that a run, or what it was made from, has learned from, and whether rows measured stand in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import MANIFEST, read_manifest
from labeler.embedding import pair_keys
from labeler.encoders.weights import TOWER, recorded_tower, tower_sha256
from labeler.errors import BadInputError, LabelerError
from labeler.inputs import found_again, holds
from labeler.store import Store
from labeler.values import Split

log = logging.getLogger("labeler")
GONE, CHANGED = "is not there any more", "has changed since"
SEEN = {
    "train": "it was trained on these rows",
    "validation": "its epoch, temperature and thresholds were chosen by these rows",
}


class Origin(NamedTuple):
    """A store that was learned from, in words; None, and why, where what is in it is not known."""

    words: str
    sha256: str
    store: Store | None


def has_seen(trained: dict[str, Any], store: Store, split: Split) -> bool:
    """Return whether these are the rows that the run was trained on, or chosen by."""
    return split != "test" and trained["inputs"][0]["sha256"] == store.sha256


def note_origins(
    metrics: dict[str, Any], trained: dict[str, Any], store: Store, split: Split, baselines: str | None
) -> None:
    """Note in the metrics, and say, where run (or, in `baselines`, these) learned from another store than is measured."""
    seen = has_seen(trained, store, split)
    cautions = [f"{SEEN[split]}: these are no figures of rows that it has not seen"] if seen else []
    cautions += elsewhere(Path(metrics["run"]), trained, store, split)
    if cautions:
        metrics["data"]["caution"] = ". ".join(cautions)
        metrics["data"]["trained_on_it"] = trained["inputs"][0]["sha256"] == store.sha256
    notes = [*cautions, *([baselines] if baselines else [])]
    metrics["notes"] = [*metrics["notes"], *notes]
    for note in notes:
        log.warning("%s on %s: %s", metrics["run"], store.folder, note)


def elsewhere(run: Path, trained: dict[str, Any], store: Store, split: Split) -> list[str]:
    """Return what is to be said of each other store that `run` learned from, whose train rows may stand in this split."""
    others: dict[str, Origin] = {}
    for origin in origins(run, trained):
        others.setdefault(origin.sha256, origin)
    here = others.pop(store.sha256, None)
    notes = [overlap_note(other, store, split) for other in others.values()]
    if here and split != "test" and not has_seen(trained, store, split):  # what it started from has
        notes.append(overlap_note(here, store, split))
    return notes


def overlap_note(origin: Origin, store: Store, split: Split) -> str:
    """Return in words how many rows of the split stand among those that were learned from."""
    if origin.store is None:
        return f"{origin.words}: whether it has seen rows of this split cannot be told"
    rows = store.rows_of(split)
    known = np.flatnonzero(np.isin(origin.store.rows["split"], ["train", "validation"]))
    ours, theirs = pair_keys(store, rows), pair_keys(origin.store, known)
    alike = [np.isin(a, b[b != 0]) for a, b in zip(ours.T, theirs.T, strict=True)]  # 0: without a text, or a picture
    seen = int(np.logical_or(*alike).sum())
    return (
        f"{origin.words}; {seen} of {len(rows)} rows here share their text or picture with its train and validation rows, not "
        "counting copies of pictures that were re-encoded, resized or recoloured"
    )


def origins(run: Path, made: dict[str, Any], who: str = "it") -> Iterator[Origin]:
    """Yield the stores that a run with the manifest `made` learned from, and those of its image tower, start and teachers."""
    given, *others = made["inputs"]
    words = f"{who} was trained on another store, {given['path']}"
    try:
        store = Store(found_again(run, given), check=False)
    except BadInputError:
        yield Origin(f"{words}, which {GONE}", given["sha256"], None)
    else:
        if store.sha256 != given["sha256"]:
            yield Origin(f"{words}, which {CHANGED}", given["sha256"], None)
        else:
            yield Origin(words, store.sha256, store)
            yield from of_tower(store)
    for number, other in enumerate(others):
        started = number == 0 and made["arguments"].get("init")
        part = f"{who} started from {other['path']}, which" if started else f"its teacher {other['path']}"
        place = found_again(run, other)
        if holds(place, other["sha256"]):
            yield from origins(place, read_manifest(place), part)
        # of a published model that is still the same nothing is said: nobody here knows what it read
        elif tower_sha256(other["path"]) != other["sha256"]:
            yield Origin(f"{part} {CHANGED if (place / MANIFEST).is_file() else GONE}", other["sha256"], None)


def of_tower(store: Store) -> Iterator[Origin]:
    """Yield the stores that the image tower of `store` was fine-tuned on, where a run made it."""
    recorded = store.towers["image"]
    if Path(recorded["name"]).name != TOWER:
        return
    who = f"the image tower {recorded['name']}"
    try:
        run = Path(recorded_tower(recorded, "image", store.folder)).parent
        yield from origins(run, read_manifest(run, "train"), who)
    except LabelerError:
        yield Origin(f"{who} {GONE}, or {CHANGED}", recorded["sha256"], None)
