"""Training on several workers: the loss curve of one, and a worker that dies costs what was trained since the last checkpoint."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from labeler.artifacts import read_json, read_manifest, verify, work_folder
from labeler.cli import cli
from labeler.errors import LabelerError, UsageError
from labeler.fitting import workers
from labeler.fitting.checkpoints import newest_checkpoint
from labeler.fitting.workers import OwnPart, own_part
from labeler.runs import load_run
from labeler.training import train


def train_together(store: Path, folder: Path, special: dict[str, Any], *runs: str) -> list[dict[str, Any]]:
    """Return the histories of runs of together.py, of 25 pairs in batches of 8.

    The last batch has a single pair, and the second worker none of it.
    """
    options = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"} | special
    script = Path(__file__).with_name("together.py")
    command = [sys.executable, str(script), str(store), str(folder), "visualbert", json.dumps(options), *runs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    histories = [read_json(folder / run / "history.json") for run in runs]
    assert [history["workers"] for history in histories] == [int(run[0]) for run in runs]
    assert {len(history["epochs"]) for history in histories} == {3}
    return histories


def assert_same_training(folder: Path, histories: list[dict[str, Any]], *runs: str) -> None:
    curves = [history["epochs"] + history["steps"] for history in histories]
    weights = [load_file(folder / run / "model.safetensors") for run in runs]
    for curve, trained in zip(curves[1:], weights[1:], strict=True):
        for ours, theirs in zip(curves[0], curve, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)
        assert trained.keys() == weights[0].keys()
        for name, weight in weights[0].items():
            torch.testing.assert_close(trained[name], weight, rtol=1e-2, atol=1e-4)


def test_two_workers_train_with_all_that_one_can(store, tmp_path):
    """No curve is compared: each worker draws the words to hide for itself."""
    special = {"class_weights": "balanced", "pretrain": 1, "modality_dropout": 0.3, "ema": 0.8}
    histories = train_together(store, tmp_path, special, "1", "2")
    assert all(history["pretraining"] for history in histories)
    assert [history["train_pairs"] for history in histories] == [25, 25]


def test_two_workers_have_the_loss_curve_of_one_with_the_model_divided_among_them_too(store, tmp_path):
    """Checkpoints of a divided model are those of one worker: either goes on from the other's."""
    runs = ("1", "2", "2shard", "1<2shard", "2shard<1")
    special = {"activation_checkpointing": True, "modality_dropout": 0.3, "visual_token_dropout": 0.5}
    histories = train_together(store, tmp_path, special, *runs)
    assert [history["sharded"] for history in histories] == [False, False, True, False, True]
    assert_same_training(tmp_path, histories, *runs)
    whole = read_json(tmp_path / "1" / "held-0.json")
    for number in "01":
        part = read_json(tmp_path / "2shard" / f"held-{number}.json")
        assert part == pytest.approx({name: count / 2 for name, count in whole.items()}, rel=0.02)
    left = [{path.name for path in (tmp_path / run).iterdir() if path.is_file()} for run in ("1", "2shard")]
    assert left[1] == left[0] | {"held-1.json"}, "no part of a model is left over"


@pytest.mark.parametrize("pairs", [1, 7, 8, 25])
def test_every_pair_is_one_workers(monkeypatch, pairs):
    monkeypatch.setattr(workers, "count", lambda: 3)
    dealt = []
    for number in range(3):
        monkeypatch.setattr(workers, "number", lambda number=number: number)
        part = OwnPart(range(pairs), 8)
        assert len(part) == len(list(part)) == -(-pairs // 8)
        assert all(list(part)), "a worker without a pair would not take the step"
        dealt += [index for batch in part.batches() for index in own_part(batch)]
    assert sorted(dealt) == list(range(pairs))


def train_workers() -> list[psutil.Process]:
    """Return the processes of Ray's workers that this one has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] * ("RayTrainWorker" in "".join(child.cmdline()[:1]))
    return found


def kill_one(trainer: Path, killed: list[int]) -> None:
    """Kill the second worker as soon as there is a checkpoint."""
    while not killed:
        time.sleep(0.05)
        found = train_workers()
        if len(found) == 2 and list(trainer.glob("checkpoint-*/manifest.json")):
            killed.append(found[1].pid)
            os.kill(found[1].pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_is_started_again_and_training_goes_on_from_the_last_checkpoint(
    store, options, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "labeler")
    out, killed = tmp_path / "run", []
    threading.Thread(target=kill_one, args=(work_folder(out) / "trainer", killed), daemon=True).start()
    made, make = [], tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **how: made.append(make(**how)) or made[-1])
    train("resnet-gru", store, out, options, device="cpu", workers=2, save_minutes=0)
    assert killed
    assert "going on from checkpoint-" in caplog.text
    verify(out, "train")
    run = load_run(out)
    assert [epoch["epoch"] for epoch in run.history["epochs"]] == [1, 2]
    assert run.history["workers"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert not {"workers", "shard"} & read_manifest(out)["arguments"].keys()
    assert train("resnet-gru", store, out, options, device="cpu").already, (
        "how many workers there were changes no recipe"
    )
    assert made
    assert not any(Path(folder).exists() for folder in made), "Ray leaves no files"
    assert train_workers() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fault_25_an_interrupt_of_several_workers_saves_a_checkpoint_and_one_goes_on(store, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "labeler", "train", "resnet-gru", str(store), "--out", str(out), "--epochs", "400",
               "--patience", "400", "--batch-size", "4", "--device", "cpu"]  # fmt: skip
    started = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True)
    for line in started.stderr:
        if line.startswith("epoch 2/400"):
            started.send_signal(signal.SIGTERM)
            break
    rest = started.stderr.read()
    assert started.wait() == 130, rest
    assert "stopping after this step and saving a checkpoint" in rest
    assert "error: stopped; the same command with --resume goes on from the last checkpoint" in rest
    last = newest_checkpoint(work_folder(out) / "trainer")
    step = int(last.name.removeprefix("checkpoint-"))
    done = subprocess.Popen([*command, "--resume"], stderr=subprocess.PIPE, text=True)
    for line in done.stderr:
        if line.startswith("epoch "):
            assert int(line.split()[1].partition("/")[0]) == step // 7 + 1  # an epoch of 25 pairs has 7 steps
            done.send_signal(signal.SIGTERM)
            break
    assert done.wait() == 130
    assert not out.exists()


@pytest.mark.parametrize("option", [{"ema": 0.5}, {"pretrain": 1}, {"finetune_image": True}])
def test_what_needs_the_whole_model_does_not_go_with_a_divided_one(store, options, tmp_path, option):
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} needs the whole model on a worker, --shard divides it"):
        train("late-fusion", store, tmp_path / "run", replace(options, **option), workers=2, shard=True)


def test_one_worker_divides_no_model(store, tmp_path):
    with pytest.raises(UsageError, match="--shard divides a model among workers; add --workers 2"):
        cli.main(["train", "resnet-gru", str(store), "--out", str(tmp_path / "run"), "--shard"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_command_says_how_to_install_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"need Ray; install it: pip install 'ray\[data,train\]'"):
        cli.main(
            ["train", "resnet-gru", str(store), "--out", str(tmp_path / "run"), "--workers", "2"], standalone_mode=False
        )
    assert list(tmp_path.iterdir()) == []


def test_an_address_at_which_no_cluster_answers(store, options, tmp_path):
    with pytest.raises(LabelerError, match=r"--ray-address 127.0.0.1:1: no Ray cluster answers there"):
        train("resnet-gru", store, tmp_path / "run", options, device="cpu", ray_address="127.0.0.1:1")
