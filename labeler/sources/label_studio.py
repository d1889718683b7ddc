"""Label Studio: the exports "JSON" (tasks with their annotations) and "JSON_MIN" (one flat object an annotation)."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from labeler.errors import BadInputError, CodedError
from labeler.records import ALIASES, Reject, Row, field_called, find_field
from labeler.sources import json_document

EXPECTED = "a Label Studio export in the format JSON or JSON_MIN: a list of tasks"
# what JSON_MIN writes behind the answers
AFTER_ANSWERS = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Answer = dict[str, tuple[str, ...]]  # what one annotation chose, by the name of its Choices


class TaskError(CodedError):
    """A task that is no row; `code` is the reject's code."""


class Task(NamedTuple):
    """One task: its running number, its data, the answers that count, and whether it comes from JSON_MIN."""

    number: int
    fields: dict[str, Any]
    answers: list[Answer]
    flat: bool = False


def claims(path: Path) -> bool:
    """Return whether the beginning of `path` looks like a Label Studio export; raises nothing."""
    keys = json_document.head_keys(path)
    tasks = {key[1] for key in keys if key[0] == "[]" and len(key) > 1}
    annotated = "data" in tasks or ("[]", "annotations", "[]", "result") in keys
    return ("annotations" in tasks and annotated) or {"annotation_id", "annotator"} <= tasks


def read(path: Path, wanted: str | None = None) -> Iterator[Row | Reject]:
    """Yield a row for every task of `path`; `line` counts tasks from 1.

    A row has the fields of the task's data; `label`, a tuple of one choice, or a list of choices where any answer in
    the export holds several; and the choices by the name of their control, for exports with several controls. A task
    without an annotation has the label None. Cancelled annotations do not count; where one is marked as ground truth,
    the others do not either. `wanted` is the field that the labels will be taken from: annotators have to agree on that
    control, by default on the one whose choices are `label`; where they differ on another, its field is None. Paths of
    Label Studio's local files become relative to the folder of `path`.

    Rejects: no task, annotators who disagree on the label, a picture that is no local file. Raises BadInputError where
    the file is no JSON or no list.
    """
    document = json_document.load(path, EXPECTED)
    if not isinstance(document.value, list):
        raise BadInputError(f"{path}: a JSON {type(document.value).__name__} on top; expected {EXPECTED}")
    tasks: list[Task | Reject] = []
    for number, value in enumerate(document.value, 1):
        try:
            if fault := document.fault_in(value):
                raise TaskError(fault.code, fault.message)
            tasks.append(parse_task(number, value))
        except TaskError as error:
            tasks.append(Reject(str(path), number, task_id(value), error.code, str(error)))
    answers = [answer for item in tasks if isinstance(item, Task) for answer in item.answers]
    control = label_control(answers, wanted)
    several = {name for answer in answers for name, choices in answer.items() if len(choices) > 1}
    for item in joined(tasks):
        if isinstance(item, Reject):
            yield item
            continue
        try:
            yield row_of(path, item, control, several)
        except TaskError as error:
            yield Reject(str(path), item.number, task_id(item.fields), error.code, str(error))


def task_id(value: Any) -> str | None:
    """Return the id of what may be a task, for its reject."""
    found = value.get("id") if isinstance(value, dict) else None
    return str(found) if isinstance(found, (str, int)) else None


def parse_task(number: int, value: Any) -> Task:
    """Return one task of either format; raises TaskError where it is none."""
    if not isinstance(value, dict):
        raise TaskError("not-an-object", f"a JSON {type(value).__name__}, expected a task: an object with data")
    if "annotation_id" in value or "annotator" in value:
        return parse_flat(number, value)
    data = value.get("data")
    if not isinstance(data, dict):
        raise TaskError("not-a-task", "no object `data` (JSON) and no `annotation_id` (JSON_MIN), so it is no task")
    fields = data if find_field(data, "id", {}) else data | {"id": value.get("id")}
    annotations = value.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in annotations):
        raise TaskError("annotation-invalid", "`annotations` is no list of objects; export with full annotations")
    counted = [item for item in annotations if not item.get("was_cancelled") and not item.get("skipped")]
    counted = [item for item in counted if item.get("ground_truth")] or counted
    return Task(number, fields, [answer_of(item) for item in counted])


def answer_of(annotation: dict[str, Any]) -> Answer:
    """Return what one annotation of a JSON export chose; raises TaskError where its result cannot be read."""
    result = annotation.get("result") or []
    if not isinstance(result, list) or not all(isinstance(item, dict) for item in result):
        raise TaskError("annotation-invalid", "an annotation's `result` is no list of objects")
    answer: Answer = {}
    for item in result:
        if item.get("type") != "choices":
            continue
        name, value = item.get("from_name"), item.get("value")
        choices = choices_in(value)
        if not isinstance(name, str) or choices is None:
            raise TaskError("annotation-invalid", "choices without `from_name` or without a list of strings in `value`")
        answer[name] = tuple(dict.fromkeys([*answer.get(name, ()), *choices]))
    return answer


def choices_in(value: Any) -> list[str] | None:
    """Return the list of strings in {"choices": [...]}, or None for anything else."""
    choices = value.get("choices") if isinstance(value, dict) else None
    return choices if isinstance(choices, list) and all(isinstance(item, str) for item in choices) else None


def parse_flat(number: int, value: dict[str, Any]) -> Task:
    """Return one object of a JSON_MIN export.

    The answers stand under their controls' names behind the data and the id: a string for one choice, an object for
    several. Where the data have an id of their own, their other strings cannot be told from answers.
    """
    names = list(value)
    begin = names.index("id") + 1 if "id" in names else 0
    end = min(names.index(name) for name in AFTER_ANSWERS[:2] if name in names)
    ours = {alias for field, aliases in ALIASES.items() if field != "labels" for alias in aliases}
    answer: Answer = {}
    for place, (name, item) in enumerate(value.items()):
        if (choices := choices_in(item)) is not None:
            answer[name] = tuple(dict.fromkeys(choices))
        elif isinstance(item, str) and begin <= place < end and name not in ours:
            answer[name] = (item,)
    if value.get("annotation_id") is None:
        return Task(number, {name: item for name, item in value.items() if name not in AFTER_ANSWERS}, [], flat=True)
    fields = {name: item for name, item in value.items() if name not in (*AFTER_ANSWERS, *answer)}
    return Task(number, fields, [answer], flat=True)


def joined(tasks: Sequence[Task | Reject]) -> list[Task | Reject]:
    """Return JSON_MIN's tasks, which writes one object an annotation, with all answers to one task at its first place."""
    found: dict[Any, Task | Reject] = {}
    for place, item in enumerate(tasks):
        key: Any = place
        if isinstance(item, Task) and item.flat and item.fields.get("id") is not None:
            # not by the id alone: two projects' exports in one file have the same ids for different data
            key = repr(item.fields)
            before = found.get(key)
            if isinstance(before, Task):
                item = before._replace(answers=before.answers + item.answers)
        found[key] = item
    return list(found.values())


def label_control(answers: Sequence[Answer], wanted: str | None = None) -> str | None:
    """Return the control whose choices are the labels: the one `wanted`, else the only one, or the first that is called like one.

    None where there is none of these. `label` is wanted of whatever the labels are called, too: it is the name of their field.
    """
    names = {name for answer in answers for name in answer}
    found = field_called(names, wanted) if wanted else None
    if found or (wanted and wanted.strip().casefold() != "label"):
        return found
    return names.pop() if len(names) == 1 else next((name for name in ALIASES["labels"] if name in names), None)


def row_of(path: Path, task: Task, control: str | None, several: set[str]) -> Row:
    """Return the row of a task.

    Args:
        path: the export.
        task: as parsed.
        control: the control whose choices are the labels, or None.
        several: the controls that take several choices.

    Raises TaskError where annotators disagree on the label or the picture is no local file.
    """
    fields = with_local_files(task.fields, path.parent)
    taken = {find_field(fields, field, {}) for field in ("id", "image", "text")}
    label: Any = None
    names = {name for answer in task.answers for name in answer}
    for name in sorted(names | ({control} if control and task.answers else set())):
        given = {tuple(sorted(answer.get(name, ()))) for answer in task.answers}
        if len(given) > 1 and name == control:
            shown = " / ".join(", ".join(choices) or "nothing" for choices in sorted(given))
            message = f"{name}: annotators chose {shown}; mark one annotation as ground truth"
            raise TaskError("annotators-disagree", message)
        choices = task.answers[0].get(name, ()) if len(given) == 1 else None
        # a tuple: one label, which may hold the separator of labels in a string
        value: Any = list(choices) if choices is not None and name in several else choices or None
        if name not in taken:
            fields[name] = value
        label = value if name == control else label
    # a control that is called like a label, as `labels` is, needs no second field, which would be unused
    ours = control if control and find_field([*fields, control], "labels", {}) == control else "label"
    return Row(str(path), task.number, fields | {ours: label})


def with_local_files(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields with local files as paths relative to `folder`; raises TaskError where the image is none.

    Where no field is called like an image, the only local file is the image.
    """
    local = {name: file for name, value in fields.items() if isinstance(value, str)
             and (file := local_file(value, folder)) is not None}  # fmt: skip
    found = fields | local
    name = find_field(found, "image", {})
    if name is None and len(local) == 1:
        return found | {"image": next(iter(local.values()))}
    value = found[name] if name else None
    if isinstance(value, str) and value.startswith("data:"):
        raise TaskError("image-embedded", f"{name}: the picture itself (base64); save it as a file beside the export")
    if isinstance(value, str) and (URL.match(value) or value.startswith(("/data/", "/storage-data/"))):
        raise TaskError("image-url", f"{name}: {value[:200]} names no local file; save the picture beside the export")
    return found


def local_file(url: str, folder: Path) -> str | None:
    """Return the path below `folder` of a file that Label Studio serves, or None for any other string.

    `/data/local-files/?d=a/b.jpg` (with or without a host) is `a/b.jpg`; the upload `/data/upload/7/c.jpg` is
    `upload/7/c.jpg` where `folder` holds it there, as Label Studio does, else `c.jpg`.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    query = parse_qs(parts.query)
    if parts.path.rstrip("/").endswith("/data/local-files") and parts.scheme in ("", "http", "https"):
        name = query.get("d", [""])[-1]
        return posixpath.normpath(name).lstrip("/") if name else None
    if parts.scheme or parts.netloc:
        return None
    stored = ""
    if parts.path.startswith("/data/upload/"):
        stored = unquote(parts.path).removeprefix("/data/")
    elif parts.path.rstrip("/") == "/storage-data/uploaded":
        stored = query.get("filepath", [""])[-1]
    if not posixpath.basename(stored):
        return None
    return stored if os.path.isfile(folder / stored) else posixpath.basename(stored)
