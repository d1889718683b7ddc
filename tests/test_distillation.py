"""Distillation: each row is taught what the teachers say of it, and a teacher that could give held-out rows away is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labeler.artifacts import read_manifest, verify
from labeler.batches import StorePairs, collate
from labeler.cli import cli
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.fitting.distillation import teachers_say
from labeler.fitting.trainer import LabelTrainer
from labeler.runs import load_run
from labeler.store import Store
from labeler.training import train
from labeler.training_options import options_for


def weights_equal(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(run / "model.safetensors") for run in (one, other))
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


def probabilities(run, batch: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    with torch.inference_mode():
        softened = run.model(**batch).logits / temperature
    return softened.softmax(1) if run.label_set.task == "single" else softened.sigmoid()


def test_soft_targets_are_the_mean_of_what_each_teacher_says_of_a_row_alone(trained, store):
    opened, names = Store(store), ["visualbert", "resnet-gru"]  # which have tokenizers of their own
    rows = opened.rows_of("train")[::-1].copy()
    said = teachers_say([trained(name) for name in names], opened, rows, 2.5, "cpu")
    assert said.dtype == np.float32
    runs = [load_run(trained(name)) for name in names]
    for row, soft in zip(rows, said, strict=True):
        alone = []
        for run in runs:
            pairs = StorePairs(opened, np.array([row]), run.tokenizer, run.preprocessor["max_text_tokens"])
            batch = collate([pairs[0]._replace(label=None)], run.tokenizer.pad_token_id)
            alone.append(probabilities(run, batch, 2.5)[0])
        np.testing.assert_allclose(soft, torch.stack(alone).mean(0), atol=1e-6)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_every_shuffled_row_is_taught_what_the_teacher_says_of_it(
    store, multi_store, options, tmp_path, monkeypatch, task
):
    data = store if task == "single" else multi_store
    teacher = train("visualbert", data, tmp_path / "teacher", dataclasses.replace(options, epochs=1), device="cpu").out
    run, seen, before = load_run(teacher), [], LabelTrainer.compute_loss

    def note(self, model, inputs, *arguments, **how):
        seen.append(dict(inputs))
        return before(self, model, inputs, *arguments, **how)

    monkeypatch.setattr(LabelTrainer, "compute_loss", note)
    chosen = dataclasses.replace(options, teacher_temperature=3.0)
    train("late-fusion", data, tmp_path / "run", chosen, teachers=[teacher], device="cpu")  # of the same tokenizer
    assert len(seen) == 8
    assert not torch.equal(seen[0]["labels"], seen[4]["labels"]), "the two epochs have the same order"
    for batch in seen:
        soft, labels = batch.pop("soft_targets"), batch.pop("labels")
        assert soft.shape == (len(labels), len(run.label_set.names))
        torch.testing.assert_close(soft, probabilities(run, batch, 3.0), atol=1e-5, rtol=0)


def test_a_pair_without_its_picture_is_taught_what_is_said_of_the_whole(trained, store, options, tmp_path, monkeypatch):
    lost, before = [], LabelTrainer.compute_loss

    def note(self, model, inputs, *arguments, **how):
        lost.append((inputs["soft_targets"], ~inputs["visual_mask"].any(1)))
        return before(self, model, inputs, *arguments, **how)

    monkeypatch.setattr(LabelTrainer, "compute_loss", note)
    chosen = dataclasses.replace(options, epochs=1, modality_dropout=0.9)
    train("resnet-gru", store, tmp_path / "run", chosen, teachers=[trained("visualbert")], device="cpu")
    opened = Store(store)
    whole = torch.from_numpy(teachers_say([trained("visualbert")], opened, opened.rows_of("train"), 2.0, "cpu"))
    assert sum(without.sum() for _, without in lost) > 5
    for soft, _ in lost:
        assert all((row == whole).all(1).any() for row in soft)


def test_a_teacher_of_no_weight_changes_nothing_and_one_of_all_weight_leaves_nothing_to_the_labels(
    trained, store, options, tmp_path
):
    def student(name: str, teacher: str = "visualbert", **given) -> Path:
        chosen = dataclasses.replace(options, **given)
        return train("resnet-gru", store, tmp_path / name, chosen, teachers=[trained(teacher)], device="cpu").out

    assert weights_equal(student("none", teacher_weight=0.0), trained("resnet-gru"))
    assert not weights_equal(student("half"), trained("resnet-gru"))
    assert weights_equal(
        student("all", teacher_weight=1.0), student("smoothed", teacher_weight=1.0, label_smoothing=0.5)
    )
    assert not weights_equal(tmp_path / "all", student("other", "late-fusion", teacher_weight=1.0))


def test_the_teachers_are_part_of_what_makes_a_run(trained, store, options, tmp_path):
    def taught(*names: str):
        one = dataclasses.replace(options, epochs=1)
        teachers = [trained(name) for name in names]
        return train("visualbert", store, tmp_path / "run", one, teachers=teachers, device="cpu")

    first = taught("resnet-gru", "late-fusion")
    inputs = verify(first.out, "train")["inputs"]
    assert [item["path"] for item in inputs] == [str(store), str(trained("resnet-gru")), str(trained("late-fusion"))]
    assert inputs[1]["sha256"] == read_manifest(trained("resnet-gru"))["content_sha256"]
    assert f"--teacher {trained('late-fusion')}" in (first.out / "README.md").read_text(encoding="utf-8")
    assert taught("resnet-gru", "late-fusion").already
    assert not taught("resnet-gru").already
    assert not taught().already


@pytest.fixture
def teacher(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("resnet-gru"), tmp_path / "teacher"))


def change_labels(run: Path, change) -> None:
    content = json.loads((run / "labels.json").read_text(encoding="utf-8"))
    change(content)
    (run / "labels.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_teacher_for_other_labels_is_refused(teacher, store, tmp_path):
    def refused(match: str) -> None:
        with pytest.raises(BadInputError, match=match):
            train("resnet-gru", store, tmp_path / "run", teachers=[teacher])

    change_labels(teacher, lambda content: content["labels"].reverse())
    refused("a teacher for other labels than .* has: the same names in another order; train it on this store")
    change_labels(teacher, lambda content: content["labels"][0].update(name="oval"))
    refused(r"has: it lacks \['cross'\], it alone has \['oval'\]")
    change_labels(teacher, lambda content: content.update(task="multi"))
    refused("a teacher for a task 'multi', .* has 'single'")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_may_have_seen_held_out_rows_is_refused(teacher, store, tmp_path):
    manifest = read_manifest(teacher)
    manifest["inputs"][0] = {"path": "data/other/store", "sha256": "ab" * 32}
    (teacher / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    match = r"trained on another store \(data/other/store\), whose train rows may be validation or test rows of"
    with pytest.raises(BadInputError, match=match):
        train("resnet-gru", store, tmp_path / "run", teachers=[teacher])


def test_what_is_no_whole_teacher_is_refused(teacher, store, tmp_path):
    with pytest.raises(BadInputError, match="made by `labeler preprocess`, expected the output of `labeler train`"):
        train("resnet-gru", store, tmp_path / "run", teachers=[store])
    with pytest.raises(UsageError, match="a teacher itself, which the new run would replace"):
        train("resnet-gru", store, teacher, teachers=[teacher], force=True)
    content = bytearray((teacher / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (teacher / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInputError, match=r"model.safetensors: damaged"):
        train("resnet-gru", store, tmp_path / "run", teachers=[teacher], device="cpu")


@pytest.mark.parametrize(("name", "value"), [("teacher_weight", 1.1), ("teacher_weight", float("nan")),
                                             ("teacher_temperature", 0.0), ("teacher_temperature", float("inf"))])  # fmt: skip
def test_shares_and_temperatures_out_of_range_are_named(name, value):
    with pytest.raises(LabelerError, match=f"{name.replace('_', '-')} is {value}"):
        options_for("visualbert", {name: value})


def test_the_command_takes_teachers(trained, store, tmp_path):
    arguments = ["train", "resnet-gru", str(store), "--out", str(tmp_path / "run"), "--epochs", "1", "--device", "cpu"]
    arguments += ["--teacher-temperature", "4"]
    with pytest.raises(UsageError, match="--teacher-temperature without a teacher; name one with --teacher RUN"):
        cli.main(arguments, standalone_mode=False)
    for name in ("visualbert", "late-fusion"):
        arguments += ["--teacher", str(trained(name))]
    cli.main(arguments, standalone_mode=False)
    manifest = verify(tmp_path / "run", "train")
    assert len(manifest["inputs"]) == 3
    assert (manifest["arguments"]["teacher_temperature"], manifest["arguments"]["teacher_weight"]) == (4.0, 0.5)
