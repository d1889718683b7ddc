"""Distillation: what teachers, runs trained before, say of the training rows, for another model to learn from.

The soft targets of a row are the mean of the teachers' probabilities, so that an ensemble becomes one model. Hinton et al. 2015,
"Distilling the Knowledge in a Neural Network". The loss that they are learned by is in `labeler.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labeler.artifacts import BadInputError, Input, input_of, read_manifest
from labeler.records import LabelSet, differing_names, read_label_set

if TYPE_CHECKING:
    from labeler.store import Store


def teacher_inputs(teachers: Sequence[Path], data: Path, manifest: dict[str, Any]) -> tuple[Input, ...]:
    """Return the runs `teachers` as inputs of a run on the store `data`, whose manifest is given.

    Raises BadInputError when one is no run, was trained for other labels, or on another store: what it learned there may be
    a validation or test row here, and would reach the student.
    """
    if not teachers:
        return ()
    inputs, labels = [], read_label_set(data)
    for teacher in teachers:
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
    teachers: Sequence[Path], store: Store, rows: np.ndarray, temperature: float, device: Any
) -> np.ndarray:
    """Return the mean of the teachers' probabilities on `rows` at `temperature`: [N, L] float32, in the order of the rows.

    Logits are divided by the temperature before softmax (single) or sigmoid (multi). Each teacher reads the texts by its own
    tokenizer. Raises BadInputError when one is damaged.
    """
    import torch

    from labeler.batches import StorePairs
    from labeler.pixels import pixels_for
    from labeler.prediction import logits
    from labeler.runs import load_run

    total = torch.zeros(len(rows), len(store.label_set.names), dtype=torch.float64)
    for teacher in teachers:
        run = load_run(teacher, device)
        pixels = pixels_for(run, store)
        pairs = StorePairs(store, rows, run.tokenizer, run.preprocessor["max_text_tokens"], pixels)
        values = logits(run.model, pairs, run.tokenizer.pad_token_id, progress=f"asking {teacher.name}")
        softened = torch.from_numpy(values).double() / temperature
        total += softened.softmax(dim=1) if store.label_set.task == "single" else softened.sigmoid()
    return (total / len(teachers)).float().numpy()
