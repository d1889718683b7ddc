"""Predictions or records as tasks for Label Studio, with the labelling interface that they fit."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labeler.artifacts import make_parent, sha256_bytes, write_json, write_text
from labeler.errors import BadInputError, UsageError
from labeler.pictures.images import VIDEOS, frame_of, spelt
from labeler.records import Record, Task, read_label_set
from labeler.replacing import refuse_to_replace
from labeler.sources import image_root
from labeler.sources.jsonl import LineError, parse_line

log = logging.getLogger("labeler")

# of a task, and their fields
ANSWERS = {
    "predictions": {"model_version", "score", "result"},
    "annotations": {"result"},
}
CONTROL = "labels"  # the name of the Choices in the interface
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MARK = "<!-- labeler export-tasks {} -->\n"  # with the sha256 of what stands before it: a change by hand is seen
# what XML 1.0 cannot carry, not even escaped
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class Prediction(BaseModel):
    """One line that `labeler predict` wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    image: str | None
    text: str | None
    labels: tuple[str, ...]
    scores: dict[str, Score]
    model: str
    error: str | None
    label: str | None = None  # where `labels` has its parent too
    source: str | None = None  # where there were several inputs
    review: bool = False

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the labels that a person would choose."""
        return self.labels if self.label is None else (self.label,)


class Exported(NamedTuple):
    """What `export_tasks` did: tasks written, items with an error left out, the labels, the task, the interface's file."""

    tasks: int
    errors: int
    labels: list[str]
    task: Task
    interface: Path


def export_tasks(source: Path, out: Path, *, image_folder: str = "", force: bool = False) -> Exported:
    """Write `source` as a JSON list of Label Studio tasks to `out`, and the interface (XML) beside it.

    A task is {"data": {"id", "image", "text"}} with the labels as a prediction, or, where `source` holds records, as an
    annotation. `image` is /data/local-files/?d=PATH, or a URL, "" where an item has none; fields that no item has are left
    out.
    The interface offers every label, one or several by what `source` holds. Each file appears whole or not at all.

    Args:
        source: the jsonl that `labeler predict` wrote, or the records that `labeler ingest` wrote: folder or file.
        out: the file to write; the interface gets the same name with .xml.
        image_folder: the pictures' folder, relative to Label Studio's document root; where `predict` had several inputs, the
            folder that holds them all.
        force: replace what something else wrote.

    Raises UsageError where `out` would overwrite `source` or its own interface; BadInputError where a line of `source`
    is neither a prediction nor a record, where pictures of several inputs are called alike and not there, where no item can
    be exported, where XML cannot carry a label, or, unless `force`, where one of the two files is there and
    `labeler export-tasks` did not write it.
    """
    path = source / "records.jsonl" if source.is_dir() else source
    if out.is_dir():
        raise BadInputError(f"{out}: a folder; --out takes the file to write")
    interface = out.with_suffix(".xml")
    if out == interface or path.resolve() in (out.resolve(), interface.resolve()):
        raise UsageError(f"--out {out}: expected a name other than {path.name}, ending in .json")
    items = below_one_folder(path, list(read_items(path)))
    kept = [item for item in items if isinstance(item, Record) or item.error is None]
    if not kept:
        raise BadInputError(f"{path}: no item without an error among {len(items)}, so there is nothing to label")
    labels, task = choose_labels(path, kept)
    objects = [name for name in ("image", "text") if any(getattr(item, name) for item in kept)]
    tasks = [task_of(item, objects, image_folder) for item in kept]
    if films := sum(frame_of(item.image or "")[0].suffix.lower() in VIDEOS for item in kept):
        log.warning(
            "%d items are frames of videos: their tasks lead to the video, which Label Studio shows no picture of",
            films,
        )
    view = interface_xml(labels, task, objects)
    if not force:
        refuse_to_replace(out, lambda file: are_tasks(read_text(file), tasks), "export-tasks")
        refuse_to_replace(interface, lambda file: is_interface(read_text(file), view), "export-tasks")
    make_parent(out)
    write_text(interface, view + MARK.format(sha256_bytes(view.encode())))
    write_json(out, tasks)
    return Exported(len(tasks), len(items) - len(tasks), labels, task, interface)


def read_items(path: Path) -> Iterator[Prediction | Record]:
    """Yield the predictions or records in `path`; raises BadInputError naming the line that is neither."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; give the jsonl that `labeler predict` wrote")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not raw.strip():
                continue
            try:
                yield parse_item(parse_line(raw)[0])
            except (LineError, ValidationError) as error:
                reason = error if isinstance(error, LineError) else first_error(error)
                expected = "expected a line of `labeler predict` (jsonl, not csv) or of records.jsonl"
                raise BadInputError(f"{path}:{number}: {reason}; {expected}") from error


def below_one_folder(path: Path, items: list[Prediction | Record]) -> list[Prediction | Record]:
    """Return predictions of several inputs with their pictures relative to the folder that holds these; all others as they are.

    As they are, too, and said, where of some input no picture lies beside it (`predict --image-folder`, or another machine).
    Raises BadInputError where then inputs of two folders call their pictures alike.
    """
    local = [item for item in items
             if isinstance(item, Prediction) and item.source and is_path(item.image) and item.error is None]  # fmt: skip
    roots = {source: os.path.abspath(image_root(Path(source))) for source in {str(item.source) for item in local}}
    if len(set(roots.values())) < 2:
        return items
    places = {id(item): spelt(Path(roots[str(item.source)]), str(item.image)) for item in local}
    there = {item.source for item in local if os.path.lexists(frame_of(places[id(item)])[0])}
    if there == roots.keys():
        folder = os.path.commonpath([*roots.values(), *(os.path.abspath(place.parent) for place in places.values())])
        return [item.model_copy(update={"image": Path(os.path.relpath(places[id(item)], folder)).as_posix()})
                if id(item) in places else item for item in items]  # fmt: skip
    first: dict[Any, str] = {}
    for item in local:
        other = first.setdefault(item.image, str(item.source))
        if roots[other] != roots[str(item.source)]:
            raise BadInputError(
                f"{path}: {other} and {item.source} both have a picture {item.image}, and not all pictures are where "
                "these inputs were; export where they are, or label each input by itself"
            )
    log.warning("%s: no pictures lie beside %s; places are written as the lines have them", path,
                ", ".join(sorted(map(str, roots.keys() - there))))  # fmt: skip
    return items


def is_path(image: str | None) -> bool:
    """Return whether an item's image is a path, not a URL, which Label Studio reads by itself."""
    return image is not None and "://" not in image


def parse_item(fields: dict[str, Any]) -> Prediction | Record:
    """Return one line as what it is; raises ValidationError where it is neither, LineError for half a surrogate pair."""
    try:
        json.dumps(fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise LineError("not-utf8", "half a surrogate pair, which no file can carry") from None
    return (Prediction if "scores" in fields else Record).model_validate(fields)


def first_error(error: ValidationError) -> str:
    """Return the first thing that is wrong with a line, and where."""
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


def choose_labels(path: Path, items: Sequence[Prediction | Record]) -> tuple[list[str], Task]:
    """Return all labels, in the model's order, and whether an item has one or any number of them.

    A label set beside the records says it. Predictions do not: single are those with one label each whose scores are
    shares of one.

    Raises BadInputError where there is no label, or one that XML cannot carry.
    """
    label_set = read_label_set(path.parent) if path.name == "records.jsonl" and is_beside(path) else None
    names = dict.fromkeys(label_set.names if label_set else [])
    for item in items:
        names |= dict.fromkeys([*(item.scores if isinstance(item, Prediction) else ()), *(item.labels or ())])
    if not names:
        raise BadInputError(f"{path}: no label in it, so there would be nothing to choose from")
    for name in names:
        if UNWRITABLE.search(name) or not name:
            raise BadInputError(f"{path}: the label {name!r} is empty or holds a character that XML cannot carry")
    single = all(has_one_label(item) for item in items if item.labels is not None)  # nobody's label is no vote
    return list(names), label_set.task if label_set else "single" if single else "multi"


def is_beside(path: Path) -> bool:
    """Return whether the label set that `labeler ingest` writes lies beside the records."""
    return (path.parent / "labels.json").is_file()


def has_one_label(item: Prediction | Record) -> bool:
    """Return whether an item looks like one with a single label."""
    if isinstance(item, Record) or not item.scores:
        return len(item.labels or ()) == 1
    if "label" in item.model_fields_set:
        return True
    none = item.review and not item.labels  # withheld
    rounded = 0.5e-6 * len(item.scores)  # scores have 6 decimals
    return (none or len(item.labels) == 1) and math.isclose(sum(item.scores.values()), 1, abs_tol=max(1e-3, rounded))


def task_of(item: Prediction | Record, objects: Sequence[str], image_folder: str) -> dict[str, Any]:
    """Return an item as a task with the fields that `objects` names; labels as a prediction or an annotation."""
    data = {"id": item.id} | {name: getattr(item, name) or "" for name in objects}
    if item.image:
        # a prediction has a name as its table has it, which may have been written on Windows; a record has a path
        name = item.image.replace("\\", "/") if isinstance(item, Prediction) else item.image
        name = os.fspath(frame_of(name)[0])  # a frame is in no file of its own
        path = f"{image_folder.strip('/')}/{name}".lstrip("/")
        data["image"] = f"/data/local-files/?d={quote(path)}" if is_path(item.image) else item.image
    chosen = item.labels or () if isinstance(item, Record) else item.chosen
    choices = {"from_name": CONTROL, "to_name": to_name(objects), "type": "choices",
               "value": {"choices": list(chosen)}}  # fmt: skip
    result = [choices] if item.labels else []
    if isinstance(item, Record):
        return {"data": data} | ({} if item.labels is None else {"annotations": [{"result": result}]})
    prediction = {"model_version": item.model, "score": confidence(item), "result": result}
    return {"data": data, "predictions": [prediction]}


def to_name(objects: Sequence[str]) -> str:
    """Return what the choices are about: the text, which is always there to be clicked, else the image."""
    return "text" if "text" in objects else "image"


def confidence(item: Prediction) -> float:
    """Return the lowest score of the chosen labels; where none was chosen, that of the likeliest label, which is for review, and
    where no label applies, how far the highest is from 1.
    """
    if item.labels:
        return min(item.scores.get(name, 0.0) for name in item.labels)
    highest = max(item.scores.values(), default=0.0)
    return highest if item.review else 1 - highest


def interface_xml(labels: Sequence[str], task: Task, objects: Sequence[str]) -> str:
    """Return the labelling interface: picture and text, and below them every label as a choice."""
    view = ElementTree.Element("View")
    for name in objects:
        ElementTree.SubElement(view, name.capitalize(), name=name, value=f"${name}")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=to_name(objects),
                                     choice="single" if task == "single" else "multiple")  # fmt: skip
    for label in labels:
        ElementTree.SubElement(choices, "Choice", value=label)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def read_text(path: Path) -> str:
    """Return what a file holds, with signs in place of bytes that are not UTF-8."""
    return path.read_bytes().decode("utf-8", "replace")


def is_interface(text: str, view: str) -> bool:
    """Return whether `export_tasks` wrote `text`, or it is the interface `view` itself, as older versions wrote it."""
    before, _, rest = text.rpartition("<!-- ")
    return text == view or f"<!-- {rest}" == MARK.format(sha256_bytes(before.encode()))


def are_tasks(text: str, tasks: list[dict[str, Any]]) -> bool:
    """Return whether `text` is a JSON list as `export_tasks` writes it: `tasks`, or others, some labelled, with nothing that
    Label Studio adds.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if found == tasks:
        return True
    whole = isinstance(found, list) and all(isinstance(task, dict) and is_task(task) for task in found)
    return whole and any(len(task) > 1 for task in found)


def is_task(task: dict[str, Any]) -> bool:
    """Return whether a task has the fields that `task_of` gives it, and no others."""
    data, kind = task.get("data"), next((name for name in ANSWERS if name in task), None)
    if not (isinstance(data, dict) and "id" in data and data.keys() <= {"id", "image", "text"}):
        return False
    if kind is None:
        return task.keys() == {"data"}
    answers = task[kind]
    return (
        task.keys() == {"data", kind}
        and isinstance(answers, list)
        and all(isinstance(answer, dict) and answer.keys() == ANSWERS[kind] for answer in answers)
    )
