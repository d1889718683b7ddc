"""Pretraining of two towers: what belongs together is learned without labels, can be stopped anywhere, and starts a model."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from lacking_memory import lacking_memory
from safetensors.torch import load_file

from labeler.artifacts import read_manifest, work_folder
from labeler.batches import collate
from labeler.embedding import load_towers_run, pair_keys
from labeler.errors import BadInputError, DivergedError, InterruptedRun, LabelerError, UsageError
from labeler.fitting.arguments import training_arguments
from labeler.fitting.contrastive import ContrastiveFit, ContrastiveTrainer
from labeler.fitting.watching import Watch
from labeler.layers import LogitScale
from labeler.pretraining import pretrain, pretrain_options
from labeler.runs import load_run
from labeler.store import Store
from labeler.training import train

GIVEN = {"epochs": 2, "batch_size": 10, "chunk_size": 4, "precision": "fp32", "new_learning_rate": 5e-3}


def weights(run):
    return load_file(run / "model.safetensors")


def test_what_belongs_together_is_learned(store, tmp_path):
    options = pretrain_options(
        "clip", {**GIVEN, "epochs": 12, "batch_size": 24, "chunk_size": 24, "learning_rate": 1e-3}
    )
    result = pretrain("clip", store, tmp_path / "run", options, device="cpu")
    epochs = result.history["epochs"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] - 0.5
    assert result.history["train_pairs"] == 23  # one has no picture, one no text
    manifest = read_manifest(result.out, "pretrain")
    assert manifest["arguments"]["batch_size"] == 24
    assert not (result.out / "trainer").exists()
    assert pretrain("clip", store, tmp_path / "run", options, device="cpu").already


def test_no_label_and_no_test_row_is_read(store, tmp_path, monkeypatch):
    first = pretrain("clip", store, tmp_path / "first", pretrain_options("clip", GIVEN), device="cpu").out
    asked = []
    before = Store.rows_of
    with monkeypatch.context() as patch:
        patch.setattr(Store, "rows_of", lambda self, split, **how: asked.append(split) or before(self, split, **how))
        patch.setattr(Store, "truth", lambda self, rows: np.zeros((len(rows), 3), dtype=bool))
        second = pretrain("clip", store, tmp_path / "second", pretrain_options("clip", GIVEN), device="cpu").out
    assert set(asked) == {"train", "validation"}
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_chunks_that_memory_does_not_hold_are_halved_and_change_no_gradient(store, tmp_path, caplog):
    gradients, losses = [], []
    for limit in (10, 3):
        options = pretrain_options("clip", GIVEN | {"chunk_size": 10})
        fit = ContrastiveFit("clip", store, options, 0, "cpu")
        lacking_memory(fit.model, limit)
        trainer = ContrastiveTrainer(fit, args=training_arguments(tmp_path, fit.options, 0, torch.device("cpu")))
        batch = collate(fit.train_pairs.__getitems__(range(10)), fit.tokenizer.pad_token_id)
        losses.append(trainer.training_step(fit.model, batch).item())
        gradients.append([parameter.grad for parameter in fit.model.parameters() if parameter.grad is not None])
    assert fit.chunk_size == 2
    assert "batches go in chunks of 2 pairs from here on, which changes no loss; --chunk-size 2 does so" in caplog.text
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_memory_that_does_not_hold_a_chunk_of_one_pair_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr("labeler.models.clip.TwoTowers.forward", lambda *_, **__: torch.empty(1 << 50))
    options = pretrain_options("clip", GIVEN)
    with pytest.raises(LabelerError, match="out of memory with a chunk of one pair; lower --batch-size or --max-text"):
        pretrain("clip", store, tmp_path / "run", options, device="cpu")


@pytest.mark.parametrize("step", [2, 3, 5])
def test_an_interrupt_changes_no_weight(store, tmp_path, monkeypatch, step):
    """Of 6 steps, press Ctrl-C in that one."""
    options = pretrain_options("clip", GIVEN)
    whole = pretrain("clip", store, tmp_path / "whole", options, device="cpu").out
    before, taken = Watch.on_step_end, []

    def press(self, *arguments, **others):
        taken.append(0)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)
        before(self, *arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", press)
        with pytest.raises(InterruptedRun, match="--resume goes on"):
            pretrain("clip", store, tmp_path / "run", options, device="cpu")
    run = pretrain("clip", store, tmp_path / "run", options, device="cpu", resume=True).out
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(whole).items())


def test_a_temperature_that_runs_away_stops_training_and_loses_nothing(store, tmp_path, monkeypatch):
    kept = pretrain("clip", store, tmp_path / "run", pretrain_options("clip", GIVEN), device="cpu").out
    before = read_manifest(kept)
    calls, forward = [], LogitScale.forward

    def runs_away(self):
        calls.append(0)
        return forward(self) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(LogitScale, "forward", runs_away)
    with pytest.raises(DivergedError, match="the loss is nan at step 5"):
        pretrain("clip", store, tmp_path / "run", pretrain_options("clip", GIVEN), seed=1, device="cpu")
    assert read_manifest(kept) == before
    assert list((work_folder(kept) / "trainer").glob("checkpoint-*"))


def test_what_cannot_be_pretrained_is_said(store, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"visualbert has no two towers to pretrain; there are: .*clip"):
        pretrain_options("visualbert")
    with pytest.raises(LabelerError, match="batch-size 2 or more"):
        pretrain_options("clip", {"batch_size": 1})
    monkeypatch.setattr(Store, "complete", lambda self, rows: np.zeros(len(rows), dtype=bool))
    with pytest.raises(BadInputError, match="0 rows of the train split have both a text and a picture"):
        pretrain("clip", store, tmp_path / "run", pretrain_options("clip", GIVEN), device="cpu")


def test_keys_are_equal_where_texts_or_pictures_are(store):
    opened = Store(store)
    rows = opened.rows_of("train")[:4]
    keys = pair_keys(opened, rows)
    assert len(np.unique(keys)) == 8
    opened.rows["text"][rows[1]] = (opened.rows["text"][rows[0]] or "").upper() + "!"
    again = pair_keys(opened, rows)
    assert again[1, 0] == again[0, 0] == keys[0, 0]


def test_a_head_is_put_on_it(store, options, pretrained, tmp_path):
    run = train("clip", store, tmp_path / "run", options, init=pretrained, device="cpu")
    manifest = read_manifest(run.out, "train")
    assert [item["path"] for item in manifest["inputs"]] == [str(store), str(pretrained)]
    assert manifest["inputs"][1]["sha256"] == read_manifest(pretrained)["content_sha256"]
    card = (run.out / "README.md").read_text(encoding="utf-8")
    assert f"--init {pretrained}" in card
    assert "--teacher" not in card
    assert load_run(run.out).name == "clip"
    assert train("clip", store, tmp_path / "run", options, init=pretrained, device="cpu").already
    assert not train("clip", store, tmp_path / "run", options, device="cpu").already


def test_a_frozen_run_keeps_its_towers(store, options, pretrained, tmp_path):
    import dataclasses

    frozen = dataclasses.replace(options, freeze=True)
    run = train("clip", store, tmp_path / "run", frozen, init=pretrained, device="cpu").out
    before, after = weights(pretrained), weights(run)
    assert all(torch.equal(value, after[f"towers.{name}"]) for name, value in before.items())
    with pytest.raises(UsageError, match="resnet-gru has no head apart"):
        train("resnet-gru", store, tmp_path / "other", frozen, device="cpu")


def test_what_cannot_start_a_model_is_said(store, options, pretrained, trained, tmp_path):
    with pytest.raises(UsageError, match=r"late-fusion starts from no run; leave out --init, or train .*clip"):
        train("late-fusion", store, tmp_path / "run", options, init=pretrained, device="cpu")
    with pytest.raises(BadInputError, match="made by `labeler train`, expected the output of `labeler pretrain`"):
        train("clip", store, tmp_path / "run", options, init=trained("clip"), device="cpu")
    other = shutil.copytree(pretrained, tmp_path / "other")
    told = json.loads((other / "preprocessor.json").read_text(encoding="utf-8"))
    told["image"] |= {"sha256": "0" * 64, "name": "another"}
    (other / "preprocessor.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"other reads visual tokens of 'another', .* holds those of"):
        train("clip", store, tmp_path / "run", options, init=other, device="cpu")


def test_a_run_opens_as_it_was_saved_or_not_at_all(store, pretrained, tmp_path):
    run = load_towers_run(pretrained)
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in weights(pretrained).items())
    import shutil

    broken = shutil.copytree(pretrained, tmp_path / "run")
    content = bytearray((broken / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInputError, match="damaged"):
        load_towers_run(broken)


def test_of_very_many_validation_pairs_some_are_looked_at(store, monkeypatch, caplog):
    caplog.set_level("INFO", "labeler")
    monkeypatch.setattr("labeler.fitting.contrastive.RANKED", 4)
    fit = ContrastiveFit("clip", store, pretrain_options("clip", GIVEN), 0, "cpu")
    assert len(fit.validation_pairs) == 4
    assert len(fit.train_pairs) == 23
    assert set(fit.validation_pairs.rows) < set(fit.store.rows_of("validation"))
    assert "4 of the " in caplog.text
