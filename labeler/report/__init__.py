"""Report: runs compared on the same rows, as offline pages, Markdown, JSON and CSV."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from labeler.artifacts import (
    MANIFEST,
    Input,
    Recipe,
    adding,
    already_made,
    input_of,
    read_json,
    read_manifest,
    write_json,
    write_text,
)
from labeler.errors import BadInputError
from labeler.report.comparison import collect, compare_models, trained
from labeler.report.data_page import DataSet, first_errors, read_data, render_data
from labeler.report.explanations import explain_rows
from labeler.report.page import render_csv, render_markdown, render_page
from labeler.report.runs import MeasuredRun, read_runs

log = logging.getLogger("labeler")

FILES = ("comparison.json", "comparison.md", "comparison.csv", "index.html", "data.html")
EXPLAINED = 6  # pairs, unless another number is asked for


def report(
    runs: list[Path],
    out: Path,
    *,
    split: str = "test",
    explain: int = EXPLAINED,
    force: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Return the comparison of `runs` on their split, after writing it to the folder `out`.

    Writes `comparison.json`, `.md` and `.csv`, `index.html`, `data.html` (about the data of the runs' store) and the
    manifest. With `explain`, so many pairs of the best run are explained on `device`; what explains them stays in
    `explanations.json`, with a manifest of its own, for the next report. Other files in `out` stay as they are and are no part
    of the manifest. Made already from the same inputs, nothing is written unless `force`.

    Raises UsageError without runs, LockedError when another process writes to `out`, and BadInputError when a run is not
    evaluated on `split`, when the runs differ in data, split, task or labels, or when `out` belongs to something else.
    """
    found = read_runs(runs, split)
    data = read_data(found[0])
    recipe = _recipe(found, data, {"split": split, "explain": explain})
    _refuse_foreign(out)
    if not force and already_made(out, recipe):
        log.info("%s: already made from the same inputs; --force makes it again", out)
        return read_json(out / FILES[0])
    models = collect(found)
    comparison = compare_models(found, models)
    explained = explain_rows(trained(comparison, models)[0], comparison["task"], out, explain, force, device)
    with adding(out, recipe) as work:
        write_json(work / "comparison.json", comparison)
        write_text(work / "comparison.md", render_markdown(comparison))
        write_text(work / "comparison.csv", render_csv(comparison))
        write_text(
            work / "index.html", render_page(comparison, found, models, explained, first_errors(data, found[0], split))
        )
        write_text(work / "data.html", render_data(data, found[0]))
    return comparison


def _recipe(runs: list[MeasuredRun], data: DataSet, asked: dict[str, Any]) -> Recipe:
    """Return what decides the report: the runs' files and paths, what is asked for, what is known of the data, the pictures."""
    inputs = [*(item for run in runs for item in run.inputs), data.source]
    for store in dict.fromkeys(run.store for run in runs):
        try:
            inputs.append(input_of(store, read_manifest(store)))
        except BadInputError:
            inputs.append(Input(str(store), "missing"))
    return Recipe("report", tuple(inputs), {"runs": [str(run.folder) for run in runs]} | asked)


def _refuse_foreign(out: Path) -> None:
    """Raise BadInputError when writing to `out` would replace a file that is not this stage's."""
    if (out / MANIFEST).exists():
        read_manifest(out, "report")
        return
    taken = [name for name in FILES if (out / name).exists()]
    if taken or (out.exists() and not out.is_dir()):
        raise BadInputError(
            f"{out / taken[0] if taken else out}: exists and was not made by `labeler report`, so it is left alone; "
            "choose another --out, or move it away"
        )
