"""Resuming: a run that was stopped anywhere goes on from its last step and ends as one that was not."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labeler.artifacts import verify, work_folder
from labeler.errors import BadInputError, InterruptedRun
from labeler.fitting.watching import Watch
from labeler.runs import load_run
from labeler.training import train


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Return whether two runs hold the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def interrupt_at(monkeypatch, step: int) -> None:
    """Press Ctrl-C during that step."""
    before = Watch.on_step_end

    def press(self, args, state, control, **kwargs):
        if state.global_step == step:
            signal.raise_signal(signal.SIGINT)
        before(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", press)


@pytest.fixture
def resumed(store, options, tmp_path, monkeypatch):
    """Return a function that trains until Ctrl-C at that step, goes on with --resume, and returns the run."""

    def make(name: str, step: int, options=options) -> Path:
        out, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(InterruptedRun, match=f"stopped after step {step}; .* --resume"):
                train(name, store, out, options, device="cpu")
        assert not out.exists()
        assert signal.getsignal(signal.SIGINT) == handler
        assert (work_folder(out) / "trainer" / f"checkpoint-{step}").is_dir()
        steps = []
        before = Watch.on_step_end
        monkeypatch.setattr(Watch, "on_step_end", lambda self, args, state, *rest, **options: (
            steps.append(state.global_step), before(self, args, state, *rest, **options))[1])  # fmt: skip
        train(name, store, out, options, device="cpu", resume=True)
        assert steps == list(range(step + 1, 9))
        return out

    return make


def test_an_interrupted_run_goes_on_from_its_last_step_and_ends_whole(resumed):
    run = resumed("visualbert-coattn", 6)
    verify(run, "train")
    assert not (run / "trainer").exists()
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert load_run(run).name == "visualbert-coattn"


@pytest.mark.parametrize(
    ("name", "step"),
    [("resnet-gru", 4), ("visualbert", 2), ("visualbert", 8), ("visualbert-coattn", 6)],
)
def test_an_interrupt_changes_no_weight(trained, resumed, name, step):
    run = resumed(name, step)
    ours, theirs = (
        json.loads((folder / "history.json").read_text(encoding="utf-8")) for folder in (run, trained(name))
    )
    for epoch in ours["epochs"] + theirs["epochs"]:
        del epoch["train_loss"]  # the mean since the last logged step or the start
    assert ours["epochs"] == theirs["epochs"]
    assert equal(run, trained(name))


@pytest.mark.parametrize("step", [2, 6])
def test_an_interrupt_changes_no_average_and_nothing_that_is_dropped(resumed, store, options, tmp_path, step):
    dropped = {"modality_dropout": 0.5, "visual_token_dropout": 0.5}
    special = dataclasses.replace(options, ema=0.8, loss="focal", class_weights="balanced", **dropped)
    run = resumed("late-fusion", step, special)
    whole = train("late-fusion", store, tmp_path / "whole", special, device="cpu").out
    assert equal(run, whole)
    for name in dropped:
        without = dataclasses.replace(special, **{name: 0.0})
        assert not equal(train("late-fusion", store, tmp_path / name, without, device="cpu").out, whole)


def test_resuming_with_other_settings_is_refused(store, options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(InterruptedRun, match="--resume"):
            train("resnet-gru", store, tmp_path / "run", options, device="cpu")
    with pytest.raises(BadInputError, match="the interrupted run had other arguments or data"):
        train("resnet-gru", store, tmp_path / "run", options, seed=3, device="cpu", resume=True)
    checkpoint = work_folder(tmp_path / "run") / "trainer" / "checkpoint-1" / "model.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="no whole checkpoint to resume from; leave out --resume"):
        train("resnet-gru", store, tmp_path / "run", options, device="cpu", resume=True)
    assert not train("resnet-gru", store, tmp_path / "run", options, device="cpu").already


def test_resume_with_nothing_to_resume_starts_at_the_first_step(trained, store, options, tmp_path):
    assert equal(
        train("resnet-gru", store, tmp_path / "a", options, device="cpu", resume=True).out, trained("resnet-gru")
    )
