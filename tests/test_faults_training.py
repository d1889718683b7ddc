"""Bad luck in `preprocess` and `train`: kills, a full or read-only disk, two at once, damaged checkpoints, Ctrl-C, no memory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lance
import pytest
import torch
from lacking_memory import lacking_memory
from safetensors.torch import load_file

from labeler.artifacts import MANIFEST, locked, read_manifest, verify, work_folder
from labeler.batches import collate
from labeler.errors import BadInputError, InterruptedRun, LabelerError, LockedError
from labeler.fitting.arguments import training_arguments
from labeler.fitting.checkpoints import by_age
from labeler.fitting.fit import Fit
from labeler.fitting.trainer import LabelTrainer
from labeler.fitting.watching import Watch
from labeler.preprocessing import preprocess
from labeler.store import DATASET
from labeler.training import checkpoints_of, train
from labeler.training_options import TrainOptions

KILLS = 20
LONGER = TrainOptions(epochs=3, batch_size=8, new_learning_rate=5e-3, precision="fp32", ema=0.8, modality_dropout=0.3)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_equal(run: Path, whole: Path) -> None:
    """Assert that two runs hold the same weights, bit for bit, and the same history but for times."""
    verify(run, "train")
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    histories = [json.loads((folder / "history.json").read_text(encoding="utf-8")) for folder in (run, whole)]
    for history in histories:
        assert history.pop("train_seconds") > 0
        assert history.pop("pairs_per_second") > 0
    assert histories[0] == histories[1]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kill(stage: str, source: Path, folder: Path, *towers: Path) -> list[Path]:
    """Make an artifact of that stage again and again, with KILLS kills, and once without: `folder`/whole; return those with."""
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), stage, str(source), str(folder), str(KILLS)]
    folder.mkdir()
    done = subprocess.run([*command, *map(str, towers)], check=False, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    runs = sorted(path for path in folder.glob("run-*"))
    # of a run that had been published when its process was killed, a lock stays until the next takes it over
    assert {name for name in names(folder) if not name.endswith(".lock")} == {"whole", *(run.name for run in runs)}
    return runs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fault_18_training_killed_at_random_moments_ends_with_the_same_weights(store, tmp_path):
    for run in kill("train", store, tmp_path / "killed"):
        assert_equal(run, tmp_path / "killed" / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fault_18_preprocessing_killed_at_random_moments_ends_with_the_same_store(
    store, text_tower, image_tower, tmp_path
):
    runs = kill("preprocess", store.parent / "records", tmp_path / "killed", text_tower, image_tower)
    expected = lance.dataset(str(store / DATASET)).to_table()
    for run in [*runs, tmp_path / "killed" / "whole"]:
        verify(run, "preprocess")
        assert lance.dataset(str(run / DATASET)).to_table() == expected
        assert read_manifest(run)["content_sha256"] == read_manifest(store)["content_sha256"]


class Killed(BaseException):
    """Ends a stage where nothing can catch it."""


@pytest.mark.parametrize("moment", ["write_manifest", "replace_folder"])
def test_fault_18_a_kill_while_the_run_is_published_costs_no_training(
    trained, store, options, tmp_path, monkeypatch, moment
):
    def die(*_):
        raise Killed(moment)

    out, whole = tmp_path / "run", trained("resnet-gru")
    with monkeypatch.context() as patch:
        patch.setattr(f"labeler.artifacts.{moment}", die)
        with pytest.raises(Killed, match=moment):
            train("resnet-gru", store, out, options, device="cpu")
    assert checkpoints_of(out).is_dir()
    monkeypatch.setattr(Watch, "on_step_end", lambda *_, **__: pytest.fail("trained again"))
    train("resnet-gru", store, out, options, device="cpu", resume=True)
    assert_equal(out, whole)
    assert names(tmp_path) == {"run"}


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a disk with these options, or changes them; it is gone after the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(settings: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + settings, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_fault_19_a_full_disk_leaves_the_old_run_and_the_last_checkpoint(trained, store, options, tmp_path, disk):
    old = trained("late-fusion")
    size = sum(path.stat().st_size for path in old.rglob("*") if path.is_file()) >> 10
    out = disk(f"size={2 * size}k") / "run"
    shutil.copytree(old, out)
    other = dataclasses.replace(options, weight_decay=0.02)
    said: list[str] = []
    for more in range(0, 10 * size, size):
        disk(f"size={size + 100 + more}k")
        try:
            train("late-fusion", store, out, other, device="cpu", resume=bool(more))
            break
        except (OSError, LabelerError) as error:
            said.append(str(error))
            verify(out, "train")
    else:
        pytest.fail("the disk was never large enough")
    assert len(said) > 2
    assert all("no space left" in message.lower() for message in said), said
    assert_equal(out, train("late-fusion", store, tmp_path / "whole", other, device="cpu").out)


def test_fault_19_a_full_disk_leaves_the_old_store(store, text_tower, image_tower, disk):
    out = disk("size=1m") / "store"
    (out.parent / "filler").write_bytes(b"x" * (960 << 10))
    with pytest.raises(OSError, match="No space left"):
        preprocess(store.parent / "records", out, text_encoder=str(text_tower), image_encoder=str(image_tower))
    assert names(out.parent) == {"filler"}
    (out.parent / "filler").unlink()
    preprocess(store.parent / "records", out, text_encoder=str(text_tower), image_encoder=str(image_tower))
    verify(out, "preprocess")


def test_fault_20_a_read_only_output_is_refused_before_work_starts(store, options, disk, monkeypatch):
    out = disk("size=1m,ro") / "run"
    monkeypatch.setattr("labeler.fitting.fit.Fit", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr("labeler.encoders.text.load_text_encoder", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(
        BadInputError, match=r"run: cannot be made there \(Read-only file system\); choose another --out"
    ):
        train("late-fusion", store, out, options, device="cpu")
    with pytest.raises(BadInputError, match="Read-only file system"):
        preprocess(store.parent / "records", out)


def test_fault_21_the_second_of_two_runs_is_refused_before_work_starts(store, options, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr("labeler.fitting.fit.Fit", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr("labeler.encoders.text.load_text_encoder", lambda *_: pytest.fail("work was begun"))
    with locked(out):
        with pytest.raises(LockedError, match="another labeler process is making it"):
            train("resnet-gru", store, out, options, device="cpu")
        with pytest.raises(LockedError, match="another labeler process is making it"):
            preprocess(store.parent / "records", out)
    assert names(tmp_path) == set()


def press(monkeypatch, step: int, *signals: signal.Signals) -> None:
    """Send signals during that step."""
    before = Watch.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            for number in signals:
                signal.raise_signal(number)
        before(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", on_step_end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_25_an_interrupt_saves_a_checkpoint(store, options, tmp_path, monkeypatch, number):
    press(monkeypatch, 3, number)
    handler = signal.getsignal(number)
    with pytest.raises(InterruptedRun, match=r"stopped after step 3; .* --resume") as caught:
        train("resnet-gru", store, tmp_path / "run", options, device="cpu")
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) == handler
    assert (work_folder(tmp_path / "run") / "trainer" / "checkpoint-3" / "manifest.json").is_file()


def test_fault_25_a_second_interrupt_ends_at_once(store, options, tmp_path, monkeypatch):
    press(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train("resnet-gru", store, tmp_path / "run", options, device="cpu")
    assert not list((work_folder(tmp_path / "run") / "trainer").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def stopped(store, tmp_path_factory) -> Path:
    """Return where a run lies that was stopped after step 7 of 12, with a checkpoint at 4 (its best epoch), 6 and 7."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        press(patch, 7, signal.SIGINT)
        with pytest.raises(InterruptedRun, match="stopped after step 7"):
            train("late-fusion", store, out, LONGER, device="cpu", save_minutes=0)
    assert [path.name for path in by_age(work_folder(out) / "trainer")] == [f"checkpoint-{step}" for step in (4, 6, 7)]
    return out


@pytest.fixture(scope="module")
def unstopped(store, tmp_path_factory) -> Path:
    """Return the same run, not stopped."""
    return train("late-fusion", store, tmp_path_factory.mktemp("unstopped") / "run", LONGER, device="cpu").out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES = {
    "flip model.safetensors": "model.safetensors: damaged",
    "cut model.safetensors": "model.safetensors: damaged",
    "flip optimizer.pt": "optimizer.pt: damaged",
    "unlink averaged.safetensors": "averaged.safetensors: missing",
    "cut trainer_state.json": "trainer_state.json: damaged",
    "unlink manifest.json": "cut off while it was written",
    "cut manifest.json": "manifest.json: ",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_fault_22_of_damaged_checkpoints_the_one_before_is_used_and_that_is_said(
    stopped, unstopped, store, tmp_path, caplog, damage
):
    out = tmp_path / "run"
    shutil.copytree(work_folder(stopped), work_folder(out))
    caplog.set_level("INFO", "labeler")
    kind, file = damage.split()
    {"flip": flip, "cut": cut, "unlink": Path.unlink}[kind](work_folder(out) / "trainer" / "checkpoint-7" / file)
    train("late-fusion", store, out, LONGER, device="cpu", resume=True)
    said = caplog.text
    assert f"checkpoint-7 cannot be gone on from ({DAMAGES[damage]}" in said
    assert "going on from checkpoint-6" in said
    assert_equal(out, unstopped)


def test_fault_22_without_its_best_epoch_no_checkpoint_is_gone_on_from(stopped, store, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(work_folder(stopped), work_folder(out))
    flip(work_folder(out) / "trainer" / "checkpoint-4" / "model.safetensors")
    with pytest.raises(BadInputError, match="no whole checkpoint to resume from; leave out --resume"):
        train("late-fusion", store, out, LONGER, device="cpu", resume=True)
    assert (
        "checkpoint-7 cannot be gone on from (its best epoch's checkpoint-4: model.safetensors: damaged" in caplog.text
    )


def test_fault_18_a_kill_within_the_first_checkpoint_loses_no_more_than_that(
    stopped, unstopped, store, tmp_path, caplog
):
    out = tmp_path / "run"
    shutil.copytree(work_folder(stopped), work_folder(out))
    for checkpoint in (work_folder(out) / "trainer").glob("checkpoint-*"):
        (checkpoint / MANIFEST).unlink()
    train("late-fusion", store, out, LONGER, device="cpu", resume=True)
    assert "checkpoint-4 cannot be gone on from (cut off while it was written)\n" in caplog.text
    assert_equal(out, unstopped)


def test_a_run_that_went_on_from_another_working_folder_keeps_its_best_epoch(
    stopped, unstopped, store, tmp_path, monkeypatch
):
    shutil.copytree(work_folder(stopped), work_folder(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    train("late-fusion", store, Path("run"), LONGER, device="cpu", resume=True)
    assert_equal(tmp_path / "run", unstopped)


def test_patience_outlasts_an_interrupt(store, options, tmp_path, monkeypatch):
    """From the second epoch on nothing gets better; the run is killed after the third, and once it is over."""
    steady = dataclasses.replace(options, epochs=8, patience=3)
    monkeypatch.setattr(Fit, "validate", lambda self: (1.0, float(self.step == 8)))
    for moment in ("labeler.fitting.trainer.LabelTrainer._finalize_training", "labeler.fitting.fit.Fit.save"):
        with monkeypatch.context() as patch:
            patch.setattr(moment, lambda *_: (_ for _ in ()).throw(Killed("killed")))
            press(patch, 13, *[signal.SIGINT] * 2 * moment.endswith("training"))
            with pytest.raises((Killed, KeyboardInterrupt), match=r"^(killed)?$"):
                train("resnet-gru", store, tmp_path / "run", steady, device="cpu", resume=True)
    run = train("resnet-gru", store, tmp_path / "run", steady, device="cpu", resume=True)
    assert (len(run.history["epochs"]), run.history["best_epoch"]) == (5, 2)


@pytest.mark.parametrize("special", [{}, {"class_weights": "balanced", "loss": "focal"}])
def test_fault_26_a_batch_that_memory_does_not_hold_is_halved_and_has_the_same_gradients(
    store, options, tmp_path, caplog, special
):
    gradients, losses = [], []
    for limit in (8, 3):
        fit = Fit("visualbert", store, dataclasses.replace(options, **special), 0, "cpu")
        lacking_memory(fit.model, limit)
        trainer = LabelTrainer(fit, args=training_arguments(tmp_path, options, 0, torch.device("cpu")))
        batch = collate(fit.train_pairs.__getitems__(range(8)), fit.tokenizer.pad_token_id)
        losses.append(trainer.training_step(fit.model, batch).item())
        gradients.append([parameter.grad for parameter in fit.model.parameters() if parameter.grad is not None])
    assert "batches are trained on in 4 parts from here on, which changes no gradient" in caplog.text
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_fault_26_memory_that_does_not_hold_one_pair_is_an_error(store, options, tmp_path, monkeypatch):
    monkeypatch.setattr("labeler.models.resnet_gru.Model.forward", lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(LabelerError, match="out of memory with a batch of one pair; lower --max-text-tokens"):
        train("resnet-gru", store, tmp_path / "run", options, device="cpu")
