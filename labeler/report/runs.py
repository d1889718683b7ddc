"""Runs as a report reads them: what `labeler train` and `labeler evaluate` left in their folders."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from labeler.artifacts import MANIFEST, Input, input_of, read_json, read_manifest, sha256_file, work_folder
from labeler.errors import BadInputError, UsageError
from labeler.evaluation import HEADLINE, Predictions, read_predictions, without_parents
from labeler.inputs import found_again
from labeler.records import LabelSet
from labeler.taxonomy import Taxonomy, taxonomy_of


class MeasuredRun(NamedTuple):
    """One run folder, read."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    history: dict[str, Any] | None
    names: list[str]  # of the labels, in order
    taxonomy: Taxonomy
    store: Path
    inputs: tuple[Input, ...]  # every file that was read, with its sha256

    @property
    def measured_on(self) -> str:
        """Return the sha256 of the store's content when the run was measured; another store may lie there now."""
        found: str = self.metrics["data"]["sha256"]
        return found


def read_runs(folders: list[Path], split: str) -> list[MeasuredRun]:
    """Return the runs in the order given, with labels in the first one's order; one given twice, or by a link too, counts once.

    Raises UsageError without folders, and BadInputError when one is no run or not evaluated on `split`, or when the
    runs differ in data, split, task, labels or their parents.
    """
    if not folders:
        raise UsageError("no runs given to report on; type `labeler report checkpoints/RUN...`")
    distinct: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if real not in distinct or distinct[real].is_symlink():
            distinct[real] = folder
    runs = [_read_run(folder, split) for folder in distinct.values()]
    for run in runs[1:]:
        _refuse_other_rows(runs[0], run)
    return [_in_order_of(runs[0], run) for run in runs]


def _in_order_of(first: MeasuredRun, run: MeasuredRun) -> MeasuredRun:
    """Return the run with its labels in the order of those of `first`: they stand by how frequent its data had them."""
    places = {name: place for place, name in enumerate(first.names)}

    def ordered(metrics: dict[str, Any]) -> dict[str, Any]:
        return metrics | {"per_class": sorted(metrics["per_class"], key=lambda row: places[row["label"]])}

    baselines = [ordered(baseline) for baseline in run.metrics["baselines"]]
    metrics = ordered(run.metrics) | {"baselines": baselines}
    return run._replace(metrics=metrics, names=first.names, taxonomy=first.taxonomy)


def _read_run(folder: Path, split: str) -> MeasuredRun:
    """Return the run in `folder`; raises BadInputError saying what is missing and what to type."""
    _refuse_unfinished(folder)
    manifest = read_manifest(folder)
    pretrained = manifest["stage"] == "pretrain"
    manifest = read_manifest(folder, "pretrain" if pretrained else "train")
    trained_on = manifest["inputs"][0]["path"] if manifest["inputs"] else "STORE"
    words = ["labeler", "evaluate", str(folder), "--data", trained_on, "--split", split]
    if pretrained:
        words.append("--zero-shot")
    command = shlex.join(words)
    if not (folder / f"metrics-{split}.json").is_file():
        raise BadInputError(f"{folder}: no metrics-{split}.json in it, the run is not evaluated; type `{command}`")
    metrics = _read_json(folder / f"metrics-{split}.json", command)
    try:
        store = found_again(folder, {"path": metrics["data"]["store"], "sha256": metrics["data"]["sha256"]})
        wrong = metrics["data"]["split"] != split or metrics[HEADLINE[metrics["task"]]] is None
        named = labels_file(folder, split)
        labels = LabelSet.model_validate(_read_json(folder / named, command))
        used = [f"predictions-{split}.jsonl", *(baseline["predictions"] for baseline in metrics["baselines"])]
    except (KeyError, TypeError) as error:
        raise BadInputError(f"{folder / f'metrics-{split}.json'}: no usable {error} in it; type `{command}`") from error
    except ValidationError as error:
        raise BadInputError(f"{folder / named}: not a label set ({error.errors()[0]['msg']})") from error
    if wrong:
        raise BadInputError(f"{folder}: nothing is measured on a split {split!r} with rows; type `{command}`")
    history = folder / "history.json"
    files = [f"metrics-{split}.json", named, *used, *(["history.json"] if history.is_file() else [])]
    for name in files:
        if not (folder / name).is_file():
            raise BadInputError(f"{folder / name}: missing; type `{command}`")
    inputs = [input_of(folder, manifest), *(Input(str(folder / name), sha256_file(folder / name)) for name in files)]
    curve = _read_json(history, command) if history.is_file() else None
    return MeasuredRun(folder, manifest, metrics, curve, labels.names, taxonomy_of(labels), store, tuple(inputs))


def labels_file(folder: Path, split: str) -> str:
    """Return which file has the run's labels: of zero-shot ones, those of the store whose `split` was measured."""
    own = f"labels-{split}.json"
    return own if (folder / own).is_file() else "labels.json"


def _to_evaluate(run: Path, store: Path, *options: str) -> str:
    """Return what to type to evaluate a run on a store."""
    return shlex.join(["labeler", "evaluate", str(run), "--data", str(store), *options])


def _refuse_unfinished(folder: Path) -> None:
    """Raise BadInputError where `folder` is a run that is not trained to its end, or a folder of runs of several seeds."""
    if (folder / MANIFEST).is_file():
        return
    if work_folder(folder).is_dir():
        raise BadInputError(
            f"{folder}: not trained to its end: it is being trained now, or was interrupted and the same `labeler train` with "
            "--resume goes on; evaluate it then, and report again"
        )
    if any(folder.glob(f"seed-*/{MANIFEST}")):
        raise BadInputError(
            f"{folder}: a folder of runs of several seeds; evaluate each, then type "
            f"`labeler report {shlex.quote(str(folder))}/seed-*`"
        )


def _read_json(path: Path, command: str) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: not readable as JSON; type `{command}`") from error


def _refuse_other_rows(first: MeasuredRun, run: MeasuredRun) -> None:
    """Raise BadInputError when `run` was not measured on the rows and labels of `first`."""
    parents = [{run.taxonomy.names[child]: run.taxonomy.names[parent] for child, parent in run.taxonomy.pairs}
               for run in (first, run)]  # fmt: skip
    for what, one, other in (
        ("task", first.metrics["task"], run.metrics["task"]),
        ("labels", sorted(first.names), sorted(run.names)),
        ("labels' parents", *parents),
    ):
        if one != other:
            raise BadInputError(
                f"{run.folder}: its {what} is {other!s:.80}, that of {first.folder} is {one!s:.80}; only runs of the same labels "
                "can be compared: report on each by itself"
            )
    data = [one.metrics["data"] for one in (first, run)]
    # stores of the same records have the same rows, whatever towers have seen them
    key = "records" if all("records" in one for one in data) else "sha256"
    for what, one, other in ((f"data {key}", *(one[key] for one in data)), ("split", *(one["split"] for one in data))):
        if one != other:
            raise BadInputError(
                f"{run.folder}: its {what} is {other!s:.80}, that of {first.folder} is {one!s:.80}; only runs measured "
                f"on the same rows can be compared: type `{_to_evaluate(run.folder, first.store)}`, or report on one"
            )


def read_rows(run: MeasuredRun, name: str, count: int) -> Predictions:
    """Return the predictions in the run's file `name`; raises BadInputError when they are not `count` rows."""
    predictions = without_parents(run.taxonomy, read_predictions(run.folder / name, run.taxonomy.names))
    if len(predictions.ids) != count:
        raise BadInputError(
            f"{run.folder / name}: {len(predictions.ids)} rows, the metrics beside it say {count}; "
            f"type `{_to_evaluate(run.folder, run.store, '--force')}`"
        )
    return predictions
