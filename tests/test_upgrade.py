"""After an upgrade: what an earlier version finished or began counts, though it does not record options that came later."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from test_resume import interrupt_at
from test_tuning import ONE, search

from labeler.artifacts import MANIFEST, sha256_json, work_folder
from labeler.errors import InterruptedRun
from labeler.fitting.watching import Watch
from labeler.training import train
from labeler.tuning import STUDY

LATER = "activation_checkpointing"  # an option that came after the first runs


def older(path: Path) -> None:
    """Take the later option out of the arguments that a JSON file records."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    del recorded["arguments"][LATER]
    path.write_text(json.dumps(recorded), encoding="utf-8")


def test_a_run_of_before_an_option_is_found_and_kept(trained, store, options, tmp_path, caplog):
    run = shutil.copytree(trained("resnet-gru"), tmp_path / "run")
    older(run / MANIFEST)
    assert train("resnet-gru", store, run, options, device="cpu").already
    other = dataclasses.replace(options, weight_decay=0.02)
    with caplog.at_level(logging.INFO, "labeler"):
        assert not train("resnet-gru", store, run, other, device="cpu").already
    assert "weight_decay was 0.01, is 0.02; making it again" in caplog.text
    assert LATER not in caplog.text


def only_hashed(path: Path) -> None:
    """Write what the first versions wrote of an interrupted run."""
    told = json.loads(path.read_text(encoding="utf-8"))
    inputs = [item["sha256"] for item in told["inputs"]]
    path.write_text(json.dumps({"sha256": sha256_json([told["stage"], inputs, told["arguments"], told["seed"]])}))


@pytest.mark.parametrize("written", [older, only_hashed])
def test_an_interrupted_run_of_before_an_option_goes_on(
    store, options, tmp_path, monkeypatch, written: Callable[[Path], None]
):
    out, steps = tmp_path / "run", []
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(InterruptedRun, match="stopped after step 6"):
            train("resnet-gru", store, out, options, device="cpu")
    written(work_folder(out) / "trainer" / "recipe.json")
    before = Watch.on_step_end
    monkeypatch.setattr(Watch, "on_step_end", lambda self, args, state, *rest, **more: (
        steps.append(state.global_step), before(self, args, state, *rest, **more))[1])  # fmt: skip
    train("resnet-gru", store, out, options, device="cpu", resume=True)
    assert steps == [7, 8]


def test_a_search_of_before_an_option_goes_on(store, tmp_path):
    out = tmp_path / "search"
    search(store, out, ONE, trials=1)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / STUDY}")
    recipe = study.user_attrs["recipe"]
    del recipe["arguments"][LATER]
    study.set_user_attr("recipe", recipe)
    assert search(store, out, ONE, trials=1)["trials"] == 1
