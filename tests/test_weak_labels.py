"""Pairs that nobody has labelled: kept apart at ingest, seen by no figure, learned from by what teachers say of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from shapes import draw_source
from torch.nn import functional

from labeler.artifacts import read_manifest
from labeler.errors import BadInputError, UsageError
from labeler.evaluating import evaluate
from labeler.fitting.distillation import ZeroShotTeacher, teachers_say
from labeler.ingestion import IngestOptions, ingest
from labeler.losses import TrainingLoss, distillation_loss
from labeler.preprocessing import preprocess
from labeler.pretraining import pretrain, pretrain_options
from labeler.records import read_records
from labeler.rows.profile import profile_lines
from labeler.store import Store
from labeler.training import train
from labeler.training_options import TrainOptions

DESCRIBED = {"square": ["square"], "circle": ["a circle", "round"]}


def partly_labelled(folder, task, keep):
    """Draw the data set, and take the labels from all rows but those whose number `keep` holds of."""
    rows = [json.loads(line) for line in draw_source(folder, task).read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row.pop("split")
        if not keep(number):
            row["labels"] = None
    path = folder / "part.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["single", "multi"])
def part(request, tmp_path_factory, text_tower, image_tower):
    """A store, every second of whose rows is labelled."""
    return half_labelled(tmp_path_factory.mktemp(f"part-{request.param}"), request.param, text_tower, image_tower)


def half_labelled(folder, task, text_tower, image_tower):
    """Make a store in `folder`, every second of whose rows is labelled."""
    path = partly_labelled(folder / "source", task, lambda number: number % 2 == 0)
    ingest([path], folder / "records", IngestOptions(allow_unlabelled=True, split="0.5,0.25,0.25"))
    return preprocess(
        folder / "records", folder / "store", image_encoder=str(image_tower), text_encoder=str(text_tower)
    ).out


def test_rows_without_a_label_are_kept_to_learn_from(part, tmp_path):
    records = list(read_records(part.parent / "records"))
    profile = json.loads((part.parent / "records/profile.json").read_text(encoding="utf-8"))
    without = [record for record in records if record.labels is None]
    assert profile["unlabelled"] == len(without) == 19
    labelled = {record.group for record in records if record.labels is not None}
    assert {record.split for record in without if record.group not in labelled} == {"train"}
    assert {record.split for record in records if record.labels is not None} == {"train", "validation", "test"}
    assert "  without a label                 19" in profile_lines(profile)
    refused = ingest([part.parent / "source/part.jsonl"], tmp_path / "records").profile
    assert refused["rejects"]["label-missing"] == len(without)


def test_no_figure_sees_them(part):
    store = Store(part)
    for split in ("train", "validation", "test"):
        assert store.labelled[store.rows_of(split)].all()
    everything = store.rows_of("train", unlabelled=True)
    assert set(store.rows_of("train")) < set(everything)
    assert not store.truth(everything)[~store.labelled[everything]].any()


@pytest.mark.parametrize("task", ["single", "multi"])
def test_each_row_is_learned_by_what_is_said_of_it(task):
    torch.manual_seed(0)
    logits, truth = torch.randn(4, 3), np.eye(3, dtype=bool)[[0, 1, 2, 0]]
    options = dataclasses.replace(TrainOptions(), teacher_weight=0.3)
    loss = TrainingLoss(options, task, truth)
    soft = torch.rand(4, 3) if task == "multi" else torch.randn(4, 3).softmax(1)
    soft[0] = torch.nan  # the teachers say nothing of the first; nobody has labelled the last two
    if task == "single":
        labels = torch.tensor([0, 1, -1, -1])
        own = functional.cross_entropy(logits[:2], labels[:2], reduction="none")
    else:
        labels = torch.from_numpy(truth).float()
        labels[2:] = torch.nan
        own = functional.binary_cross_entropy_with_logits(logits[:2], labels[:2], reduction="none").mean(1)
    said = sum(distillation_loss(task, logits[row : row + 1], soft[row : row + 1], 2.0) for row in (1, 2, 3))
    expected = (own[0] + 0.7 * own[1] + 0.3 * said) / 4
    torch.testing.assert_close(loss(logits, labels, soft), expected)
    assert loss.mass(labels) == 4


@pytest.fixture(scope="module")
def towers(part, tmp_path_factory):
    """A run of `labeler pretrain` on all pairs."""
    chosen = pretrain_options("clip", {"epochs": 1, "precision": "fp32"})
    return pretrain("clip", part, tmp_path_factory.mktemp("towers") / "run", chosen, device="cpu").out


def test_a_zero_shot_teacher_speaks_of_unlabelled_rows_alone(part, towers, trained_on, tmp_path):
    store = Store(part)
    rows = store.rows_of("train", unlabelled=True)
    teacher = ZeroShotTeacher(str(towers), DESCRIBED, ("a drawing of {}",))
    said = teachers_say([teacher], store, rows, 2.0, "cpu")
    assert np.isnan(said[store.labelled[rows]]).all()
    assert not np.isnan(said[~store.labelled[rows]]).any()
    run = trained_on(tmp_path / "run", teachers=[teacher])
    manifest = read_manifest(run, "train")
    assert json.loads((run / "history.json").read_text())["train_pairs"] == len(rows)
    assert [item["path"] for item in manifest["inputs"]] == [str(part), str(towers)]
    assert manifest["arguments"]["zero_shot_teachers"]["0"]["described"]["circle"] == ["a circle", "round"]
    assert f"--teacher zero-shot:{towers}" in (run / "README.md").read_text(encoding="utf-8")
    assert evaluate(run, part, device="cpu").metrics["n"] == len(store.rows_of("test"))
    # a run as a teacher speaks of every row, of those with labels alone
    both, alone = (teachers_say(teachers, store, rows, 2.0, "cpu") for teachers in ([run, teacher], [run]))
    labelled = store.labelled[rows]
    np.testing.assert_array_equal(both[labelled], alone[labelled])
    np.testing.assert_allclose(both[~labelled], (alone + said)[~labelled] / 2, atol=1e-6)


@pytest.fixture
def trained_on(part, options):
    """Return a function that trains a small model on the partly labelled store."""
    return lambda out, **how: (
        train("late-fusion", part, out, dataclasses.replace(options, epochs=1), device="cpu", **how).out
    )


def test_what_cannot_be_taught_is_said(store, trained, towers, tmp_path, labeler):
    done = labeler("train", "late-fusion", store, "--out", tmp_path / "run", "--teacher", f"zero-shot:{towers}")
    assert done.code == 2
    assert "every train row of" in done.said
    assert "--allow-unlabelled" in done.said
    done = labeler(
        "train", "late-fusion", store, "--out", tmp_path / "run", "--teacher", f"zero-shot:{trained('late-fusion')}"
    )
    assert done.code == 3
    assert "made by `labeler train`, expected the output of `labeler pretrain`" in done.said
    done = labeler("train", "late-fusion", store, "--out", tmp_path / "run", "--template", "a {}")
    assert done.code == 2
    assert "--describe and --template are for --teacher zero-shot:RUN" in done.said


def test_a_description_of_what_is_no_label_is_refused(part, towers, tmp_path, trained_on):
    with pytest.raises(UsageError, match="a description of 'hexagon', which is no label here"):
        trained_on(tmp_path / "run", teachers=[ZeroShotTeacher(str(towers), {"hexagon": ["a hexagon"]})])


def test_pairs_without_any_label_are_enough_for_towers(tmp_path, text_tower, image_tower, options):
    path = partly_labelled(tmp_path / "source", "single", lambda number: False)
    found = ingest([path], tmp_path / "records", IngestOptions(allow_unlabelled=True)).profile
    assert found["unlabelled"] == 38
    assert all(found["splits"].values())
    store = preprocess(tmp_path / "records", tmp_path / "store", image_encoder=str(image_tower),
                       text_encoder=str(text_tower)).out  # fmt: skip
    chosen = pretrain_options("clip", {"epochs": 1, "precision": "fp32"})
    assert pretrain("clip", store, tmp_path / "clip", chosen, device="cpu").out.is_dir()
    with pytest.raises(BadInputError, match="nobody has labelled a row of the train split; label some, or learn from"):
        train("late-fusion", store, tmp_path / "run", options, device="cpu")
    with pytest.raises(BadInputError, match="no usable row among 38"):
        ingest([partly_labelled(tmp_path / "other", "single", lambda number: False)], tmp_path / "more",
               IngestOptions(task="single"))  # fmt: skip
