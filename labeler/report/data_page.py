"""The page about the data: what the profile of the runs' store holds, with pictures of what looks wrong in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from labeler.artifacts import Input, input_of, read_manifest, sha256_file
from labeler.errors import BadInputError
from labeler.inputs import replaced
from labeler.inspection import ERRORS, PICTURES, quality_folder, read_profile
from labeler.pictures.quality import THRESHOLDS
from labeler.report.charts import histogram_chart
from labeler.report.page import environment
from labeler.report.pictures import data_uri, examples_of, shortened
from labeler.report.runs import MeasuredRun
from labeler.rows.profile import KINDS, label_totals
from labeler.values import SPLITS, writable

log = logging.getLogger("labeler")

ERRORS_SHOWN, PICTURES_SHOWN, CHANGES_SHOWN = 24, 6, 10
ERRORS_FIRST = 4  # on the main page
LISTED = 200  # labels
BUDGET = 2_500_000  # characters of base64 on the whole page
LENGTHS = {
    "text_characters": "Characters a text",
    "text_words": "Words a text",
    "image_width": "Width of a picture, pixels",
    "image_height": "Height of a picture, pixels",
}
MEANINGS = {
    "dark": "Hardly a bright spot.",
    "light": "Nearly all of it is white.",
    "blurred": "Many tones and hardly an edge.",
    "odd shape": "One side is about three times the other, or more.",
    "low information": "One tone nearly everywhere.",
}


class DataSet(NamedTuple):
    """What is known of the data that runs were measured on."""

    profile: dict[str, Any] | None
    quality: Path | None  # the folder with what `labeler inspect` found; the profile is that one's then
    source: Input  # where the profile is from


def read_data(run: MeasuredRun) -> DataSet:
    """Return the profile with the data's quality if `labeler inspect` has made it for the store of `run`, else the store's.

    Neither is of another store that lies there now. Nothing is raised where there is none: stores may be deleted afterwards.
    """
    quality, other = quality_folder(run.store), replaced(run.store, run.measured_on)
    try:
        manifest = read_manifest(quality, "inspect")
        if manifest["inputs"][0]["sha256"] == run.measured_on:
            return DataSet(read_profile(quality), quality, input_of(quality, manifest))
        if not other:
            log.warning(
                "%s: made for another state of the store; `labeler inspect %s` makes it again", quality, run.store
            )
    except BadInputError:
        pass  # not inspected, which the page says
    path = run.store / "profile.json"
    if other:
        log.warning("%s: not the store any more that %s was measured on", run.store, run.folder)
        return DataSet(None, None, Input(str(path), "another store's"))
    try:
        return DataSet(read_profile(run.store), None, Input(str(path), sha256_file(path)))
    except BadInputError:
        return DataSet(None, None, Input(str(path), "missing"))


def render_data(data: DataSet, run: MeasuredRun) -> str:
    """Return the page as one HTML document that loads nothing."""
    template = environment().get_template("data.html.j2")
    name, store = run.metrics["data"]["name"], str(run.store)
    profile = data.profile
    if profile is None:
        return template.render(name=name, store=store, profile=None)
    labels = _labels(profile)
    html = template.render(
        name=name,
        store=store,
        profile=profile,
        splits=SPLITS,
        labels=labels[:LISTED],
        n_labels=len(labels),
        lengths=[(title, profile[key]) for key, title in LENGTHS.items() if profile.get(key)],
        charts=[
            histogram_chart(title, profile["histograms"][key])
            for key, title in LENGTHS.items()
            if (profile.get("histograms", {}).get(key) or {"counts": []})["counts"][1:]  # one bar says nothing
        ],
        kinds=KINDS,
        matrix=_matrix(profile),
        thresholds=THRESHOLDS,
        files=data.quality and {"pictures": str(data.quality / PICTURES), "errors": str(data.quality / ERRORS)},
        changes_shown=CHANGES_SHOWN,
        **_cards(run, profile.get("suspicious_pictures"), profile.get("label_errors")),
    )
    return writable(html)  # as in the other page


def first_errors(data: DataSet, run: MeasuredRun, split: str) -> dict[str, Any]:
    """Return what the other page shows of the likely label errors: {count, checked, here, cards}, no cards without any.

    here: how many are in `split`, None where that is not known; the cards are the first of these, or of all.
    """
    errors = (data.profile or {}).get("label_errors")
    if not errors or not errors["first"]:
        return {"cards": []}
    try:
        found = found_errors(data.quality, split) if data.quality else []
        here: int | None = len(found)
    except (OSError, ValueError):
        found, here = [], None
    rows = (found or errors["first"])[:ERRORS_FIRST]
    cards = _cards(run, None, {"first": rows})["cards"]
    return {"count": errors["count"], "checked": errors["checked"], "here": here, "cards": cards}


def found_errors(quality: Path, split: str) -> list[dict[str, Any]]:
    """Return the likely label errors of a split that `labeler inspect` wrote; raises OSError or ValueError where it cannot be."""
    # ids may hold what `splitlines` takes for an end
    lines = (quality / ERRORS).read_text(encoding="utf-8").split("\n")
    return [row for row in map(json.loads, filter(None, lines)) if row["split"] == split]


def _labels(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Return {name, total, share, splits: [(rows, share of the split)]} for each label, most frequent first."""
    sizes = profile["splits"]
    rows = []
    for name, total in label_totals(profile).most_common():
        counts = [(split, profile["labels"][split].get(name, 0)) for split in SPLITS]
        shares = [(count, count / sizes[split] if sizes[split] else None) for split, count in counts]
        rows.append({"name": name, "total": total, "share": total / profile["kept"], "splits": shares})
    return rows


def _matrix(profile: dict[str, Any]) -> dict[str, Any] | None:
    """Return how often the most frequent labels stand together as {labels, rows}, None where no two ever do."""
    matrix = profile.get("label_matrix")
    if not matrix or not profile["labels_together"]:
        return None
    return {"labels": matrix["labels"], "rows": list(zip(matrix["labels"], matrix["counts"], strict=True))}


def _cards(run: MeasuredRun, pictures: dict[str, Any] | None, errors: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the page shows row by row, and a sentence when pictures are missing.

    {pictures, errors: as in the profile, sections: [{kind, count, meaning, cards}], cards: of the errors, missing}
    """
    kinds = (
        [(kind, pictures["kinds"][kind], pictures["first"][kind][:PICTURES_SHOWN]) for kind in THRESHOLDS]
        if pictures
        else []
    )
    rows = errors["first"][:ERRORS_SHOWN] if errors else []
    ids = {row["id"] for row in [*rows, *(row for *_, first in kinds for row in first)]}
    examples, missing = examples_of(run.store, run.measured_on, ids) if ids else ({}, None)
    budget = BUDGET

    def card(row: dict[str, Any]) -> dict[str, Any]:
        nonlocal budget
        example = examples.get(row["id"])
        picture, budget = data_uri(example, budget)
        return row | {"text": shortened(example.text if example else None), "picture": picture}

    shown_errors = [card(row) for row in rows]
    sections = [
        {"kind": kind, "count": count, "meaning": MEANINGS[kind], "cards": [card(row) for row in first]}
        for kind, count, first in kinds
        if first
    ]
    return {"pictures": pictures, "sections": sections, "errors": errors, "cards": shown_errors, "missing": missing}
