"""Distillation: what teachers, runs trained before, say of the training rows, for another model to learn from.

The soft targets of a row are the mean of the probabilities of those teachers that speak of it, so that an ensemble becomes one
model. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network". The loss that they are learned by is in
`labeler.losses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labeler.artifacts import Input, input_of, read_manifest
from labeler.encoders.weights import is_published, tower_sha256
from labeler.errors import BadInputError, UsageError
from labeler.records import LabelSet, differing_names, read_label_set
from labeler.zero_shot import prompts_of, told_by, zero_shot_run

if TYPE_CHECKING:
    from labeler.store import Store


class ZeroShotTeacher(NamedTuple):
    """A model that gives pairs that nobody has labelled its zero-shot labels.

    source: the folder of a run of `labeler pretrain`, or a published model (`labeler.published_towers`), by folder or name;
    described: {label: its phrases}, for labels that their names do not say all of; templates: see `labeler.zero_shot`.
    """

    source: str
    described: Mapping[str, Sequence[str]] | None = None
    templates: Sequence[str] = ()

    @property
    def published(self) -> bool:
        """Return whether it is a model that others have published."""
        return is_published(self.source)

    def as_input(self) -> Input:
        """Return it as an input of a run; raises BadInputError when it is neither a run of `labeler pretrain` nor published."""
        if self.published:
            return Input(self.source, tower_sha256(self.source))
        folder = Path(self.source)
        return input_of(folder, read_manifest(folder, "pretrain"))

    def arguments(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return told_by(self.described, self.templates)


def teacher_inputs(
    teachers: Sequence[Path | ZeroShotTeacher], data: Path, manifest: dict[str, Any]
) -> tuple[Input, ...]:
    """Return the runs `teachers` as inputs of a run on the store `data`, whose manifest is given.

    A teacher of zero-shot labels may have learned from any pairs, since it was told no label.

    Raises BadInputError when one is no run, was trained for other labels, or on another store: what it learned there may be
    a validation or test row here, and would reach the student. UsageError for a description of what is no label.
    """
    if not teachers:
        return ()
    inputs, labels = [], read_label_set(data)
    for teacher in teachers:
        if isinstance(teacher, ZeroShotTeacher):
            prompts_of(labels, teacher.described, teacher.templates)
            inputs.append(teacher.as_input())
            continue
        trained = read_manifest(teacher, "train")
        refuse_other_labels(teacher, read_label_set(teacher), data, labels)
        store = trained["inputs"][0]
        if store["sha256"] != manifest["content_sha256"]:
            raise BadInputError(
                f"{teacher}: a teacher trained on another store ({store['path']}), whose train rows may be validation or test "
                f"rows of {data}; train it on this store"
            )
        inputs.append(input_of(teacher, trained))
    return tuple(inputs)


def refuse_other_labels(teacher: Path, theirs: LabelSet, data: Path, ours: LabelSet) -> None:
    """Raise BadInputError unless the teacher's labels are the store's, in the same order and of the same task."""
    if theirs.task != ours.task:
        raise BadInputError(f"{teacher}: a teacher for a task {theirs.task!r}, {data} has {ours.task!r}")
    if theirs.names == ours.names:
        return
    raise BadInputError(
        f"{teacher}: a teacher for other labels than {data} has: {differing_names(theirs.names, ours.names)}; train it on "
        "this store"
    )


def teachers_say(
    teachers: Sequence[Path | ZeroShotTeacher], store: Store, rows: np.ndarray, temperature: float, device: Any
) -> np.ndarray:
    """Return the mean of the teachers' probabilities on `rows` at `temperature`: [N, L] float32, in the order of the rows.

    Logits are divided by the temperature before softmax (single) or sigmoid (multi). Each teacher reads the texts by its own
    tokenizer. Teachers of zero-shot labels, which know less than who labels, say nothing of a labelled row; one of which no
    teacher says anything is NaN.

    Raises BadInputError when one is damaged, or its image tower is not the store's.
    """
    import torch

    total = torch.zeros(len(rows), len(store.label_set.names), dtype=torch.float64)
    speaking = torch.zeros(len(rows), 1, dtype=torch.float64)
    for teacher in teachers:
        taught = np.flatnonzero(~store.labelled[rows]) if isinstance(teacher, ZeroShotTeacher) else np.arange(len(rows))
        softened = torch.from_numpy(teacher_logits(teacher, store, rows[taught], device)).double() / temperature
        total[taught] += softened.softmax(dim=1) if store.label_set.task == "single" else softened.sigmoid()
        speaking[taught] += 1
    return (total / speaking).float().numpy()


def teacher_logits(teacher: Path | ZeroShotTeacher, store: Store, rows: np.ndarray, device: Any) -> np.ndarray:
    """Return one teacher's logits on `rows`, [N, L] float32; raises what `teachers_say` does."""
    from labeler.batches import StorePairs
    from labeler.embedding import refuse_other_tower
    from labeler.inference import logits
    from labeler.pixels import pixels_for, stored_pixels
    from labeler.runs import load_run

    if not isinstance(teacher, ZeroShotTeacher):
        run = load_run(teacher, device)
    else:
        prompts = prompts_of(store.label_set, teacher.described, teacher.templates)
        if teacher.published:
            from labeler.published_towers import load_published
            from labeler.zero_shot_model import ZeroShot

            towers, tokenizer = load_published(teacher.source)
            limit = towers.max_text_tokens
            pairs = StorePairs(store, rows, tokenizer, limit, stored_pixels(store, towers.size))
            model: Any = ZeroShot(towers.to(device), tokenizer, limit, prompts, store.label_set.task)
            return logits(model, pairs, tokenizer.pad_token_id, progress=f"asking {teacher.source}")
        run = zero_shot_run(Path(teacher.source), prompts, store.label_set, device)
        refuse_other_tower(run, store)
    pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"], pixels_for(run, store))
    return logits(run.model, pairs, run.tokenizer.pad_token_id, progress=f"asking {run.name}")


def refuse_idle(teachers: Sequence[Path | ZeroShotTeacher], store: Store) -> None:
    """Raise UsageError for teachers of zero-shot labels where the train split has no pair for them to label."""
    zero_shot = any(isinstance(teacher, ZeroShotTeacher) for teacher in teachers)
    if zero_shot and store.labelled[store.rows_of("train", unlabelled=True)].all():
        raise UsageError(f"--teacher zero-shot: every train row of {store.folder} has labels; ingest pairs without any by "
                         "--allow-unlabelled, or leave it out")  # fmt: skip
