"""What training does beside its steps: the sample a head is fitted to, all pairs in pretraining, what interruptions lose."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_resume import interrupt_at

from labeler.artifacts import work_folder
from labeler.batches import Pair, StorePairs
from labeler.errors import DivergedError, InterruptedRun, UsageError
from labeler.fitting import fit as fit_module
from labeler.fitting.checkpoints import Progress
from labeler.fitting.distributed import decode_ahead
from labeler.fitting.fit import Fit
from labeler.fitting.trainer import PairTrainer, collated
from labeler.fitting.watching import Watch
from labeler.store import Store
from labeler.training import train, train_seeds


@pytest.fixture
def fit(store, options) -> Fit:
    return Fit("visualbert", store, options, 0, "cpu")


def test_the_head_is_fitted_to_so_many_pairs_at_most(fit, monkeypatch):
    seen = []
    outputs = fit_module.model_outputs
    monkeypatch.setattr(fit_module, "model_outputs", lambda model, pairs, *rest: (
        seen.append(pairs), outputs(model, pairs, *rest))[1])  # fmt: skip
    monkeypatch.setattr(fit_module, "HEAD_PAIRS", 10)
    fit.start_head()
    assert [len(pairs) for pairs in seen] == [10, min(10, len(fit.validation_pairs))]
    assert fit.progress.at_start is not None
    assert fit.model.head.classifier.weight.any()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_head_is_fitted_in_the_trainings_precision(store, options, precision):
    fit, seen = Fit("visualbert", store, dataclasses.replace(options, precision=precision), 0, "cpu"), set()
    layer = fit.model.fused.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "validate", lambda self: (0.0, 0.0))  # which is in float32
        fit.start_head()
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert fit.model.head.classifier.weight.any()


@pytest.mark.parametrize(("limit", "lengths"), [(64, [4, 8, 64]), (62, [4, 8, 62])])
def test_training_pads_texts_to_few_lengths_that_the_model_reads(fit, limit, lengths):
    fit.max_tokens = limit
    picture = np.ones((2, 3), np.float16)
    found = [collated(fit, [Pair([2] * size, picture, True), Pair([], picture, True)]) for size in (0, 5, limit - 1)]
    assert [batch["input_ids"].shape[1] for batch in found] == lengths
    assert [int(batch["text_mask"].sum()) for batch in found] == [0, 5, limit - 1]


def test_drawn_pairs_are_labelled_ones_in_their_order(store, options):
    fit = Fit("resnet-gru", store, options, 0, "cpu")
    pairs = fit.train_pairs
    assert pairs.drawn(len(pairs), 0).rows.tolist() == pairs.rows.tolist()
    found = pairs.drawn(7, 3)
    assert isinstance(found, StorePairs)
    assert found.rows.tolist() == sorted(found.rows.tolist())
    assert found.rows.tolist() == pairs.drawn(7, 3).rows.tolist() != pairs.drawn(7, 4).rows.tolist()
    places = [pairs.rows.tolist().index(row) for row in found.rows]
    assert found.input_ids == [pairs.input_ids[place] for place in places]
    for one, other in zip(found.__getitems__([0, 6]), pairs.__getitems__([places[0], places[6]]), strict=True):
        np.testing.assert_array_equal(one.visual_tokens, other.visual_tokens)
        assert one.label == other.label


def test_pretraining_reads_pairs_that_nobody_has_labelled(store, options, tmp_path, monkeypatch):
    whole = Store.rows.func
    train_rows = np.flatnonzero(np.array(Store(store).rows["split"]) == "train")

    def rows(self):
        found = whole(self)
        return found | {"labels": [None if row in train_rows[::2] else own for row, own in enumerate(found["labels"])]}

    patched = type(Store.__dict__["rows"])(rows)
    patched.__set_name__(Store, "rows")
    monkeypatch.setattr(Store, "rows", patched)
    lengths = []
    before = PairTrainer.__init__
    monkeypatch.setattr(PairTrainer, "__init__", lambda self, fit, *rest, **more: (
        lengths.append(len(fit.train_pairs)), before(self, fit, *rest, **more))[1])  # fmt: skip
    train("visualbert", store, tmp_path / "run", dataclasses.replace(options, pretrain=1, epochs=1), device="cpu")
    labelled = len(train_rows) - len(train_rows[::2])
    assert lengths == [labelled, len(train_rows)]  # for the labels, then before that for the pairs


def test_an_interrupted_run_of_other_arguments_is_not_said_to_be_lost_for_want_of_an_option(
    store, options, tmp_path, monkeypatch, caplog
):
    for seed, said in ((0, "is started anew (--resume would"), (1, "of other arguments or data lay there")):
        out = tmp_path / f"run-{seed}"
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1)
            with pytest.raises(InterruptedRun, match="stopped after step 1"):
                train("resnet-gru", store, out, options, device="cpu")
        caplog.clear()
        train("resnet-gru", store, out, options, seed=seed, device="cpu")
        assert f"{out}: an interrupted run {said}" in caplog.text


def test_a_training_that_was_stopped_is_not_said_to_have_made_it_worse(store, options, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Fit, "start_head", lambda self: setattr(self.progress, "at_start", 2.0))  # no epoch is as good
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(InterruptedRun, match="stopped after step 6"):
            train("late-fusion", store, tmp_path / "run", options, device="cpu")
    assert "no epoch is as good" not in caplog.text
    train("late-fusion", store, tmp_path / "run", options, device="cpu", resume=True)
    assert "no epoch is as good" in caplog.text


def test_a_teacher_among_the_seeds_runs_is_refused_before_any_is_trained(store, options, tmp_path):
    with pytest.raises(UsageError, match="seed-1: a teacher itself"):
        train_seeds("late-fusion", store, tmp_path, options, range(3), teachers=[tmp_path / "seed-1"])
    assert not list(tmp_path.iterdir())


def test_several_seeds_made_again_go_on_at_the_one_that_was_interrupted(store, options, tmp_path, monkeypatch):
    out, options = tmp_path / "runs", dataclasses.replace(options, epochs=1)
    how = {"device": "cpu"}
    train_seeds("late-fusion", store, out, options, range(3), **how)
    trained = []
    begin, end = Watch.on_train_begin, Watch.on_step_end
    monkeypatch.setattr(Watch, "on_train_begin", lambda self, *rest, **more: (
        trained.append(self.fit.seed), begin(self, *rest, **more))[1])  # fmt: skip

    def press(self, args, state, control, **kwargs):
        if trained == [0, 1] and state.global_step == 1:
            signal.raise_signal(signal.SIGINT)
        end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", press)
    with pytest.raises(InterruptedRun, match="stopped after step 1"):
        train_seeds("late-fusion", store, out, options, range(3), force=True, **how)
    assert (work_folder(out / "seed-1") / "trainer").is_dir()
    results = train_seeds("late-fusion", store, out, options, range(3), force=True, resume=True, **how)
    assert trained == [0, 1, 1, 2]
    assert [result.already for result in results] == [True, False, False]


def test_seeds_that_are_too_large_are_refused_before_the_first(store, options, tmp_path):
    with pytest.raises(UsageError, match="--seed 4294967295 with 2 seeds: the largest seed is 4294967295"):
        train_seeds("late-fusion", store, tmp_path / "runs", options, range(2**32 - 1, 2**32 + 1))
    assert not (tmp_path / "runs").exists()


def test_a_validation_loss_that_is_no_number_stops_before_its_checkpoint(store, options, tmp_path, monkeypatch):
    monkeypatch.setattr(Fit, "validate", lambda self: (math.nan if self.step > 4 else 1.0, 0.5))
    with pytest.raises(DivergedError, match=r"the validation loss is nan after step 8; .* lower --learning-rate"):
        train("visualbert", store, tmp_path / "run", options, device="cpu")
    assert [path.name for path in (work_folder(tmp_path / "run") / "trainer").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_tower_that_reads_less_than_was_asked_for_says_so(store, options, caplog):
    with caplog.at_level(logging.INFO, "labeler"):
        Fit("visualbert", store, dataclasses.replace(options, max_text_tokens=10_000), 0, "cpu")
    assert "tokens at most, --max-text-tokens or not" in caplog.text


def test_what_the_head_began_with_outlives_an_interruption(tmp_path, caplog):
    progress = Progress(at_start=0.8)
    progress.save(tmp_path)
    fit = SimpleNamespace(progress=Progress.load(tmp_path), metric="macro_f1")
    Fit.tell_if_worse(fit, {"epochs": [{"validation_metric": 0.7}]})
    assert "no epoch is as good as the fitted head" in caplog.text


def test_pictures_are_decoded_before_workers_start(store, options, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("labeler.pixels.stored_pixels", lambda store, side: made.append((store.folder, side)))
    decode_ahead(store, options, [])
    assert made == []
    decode_ahead(store, dataclasses.replace(options, finetune_image=True, augment="none"), [tmp_path])
    assert made == [(store, 64)]
