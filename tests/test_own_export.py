"""The export that a run keeps of itself: when it is made and waited for, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from labeler import own_export, predicting
from labeler.artifacts import locked, read_manifest, verify
from labeler.engines import Choice, Way
from labeler.engines.exported import FUSION
from labeler.errors import LabelerError, UsageError
from labeler.own_export import choose_engine
from labeler.predicting import predict

ONNX = Way("onnx", "fp32")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_precision_that_was_asked_for_is_never_another(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained("visualbert"), tmp_path / "run")

    def fails(run):
        raise LabelerError("no space left")

    monkeypatch.setattr(own_export, "own_export", fails)
    for precision in ("int8", "bf16"):
        with pytest.raises(LabelerError, match="no space left"):
            choose_engine(run, precision=precision)
    assert choose_engine(run, precision="fp32") == choose_engine(run) == Choice(run)


def test_a_run_keeps_an_export_for_large_jobs(trained, store, tmp_path, monkeypatch, caplog):
    run, source = shutil.copytree(trained("resnet-gru"), tmp_path / "run"), store.parent / "source" / "pairs.jsonl"
    predict([source], run, tmp_path / "small.jsonl")
    assert not (run / "export").exists()
    monkeypatch.setattr(predicting, "MANY", 30)
    predict([source], run, tmp_path / "large.jsonl", precision="fp32")
    made = (run / "export" / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(predicting, "MANY", 1000)
    assert choose_engine(run, many=False) == Choice(run / "export", ONNX)  # it is there now
    assert (run / "export" / "manifest.json").stat().st_mtime_ns == made
    for ours, theirs in zip(lines(tmp_path / "small.jsonl"), lines(tmp_path / "large.jsonl"), strict=True):
        assert ours["labels"] == theirs["labels"]
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)
    (run / "export" / FUSION).write_bytes(b"no graph")
    assert choose_engine(run, many=False) == Choice(run / "export", ONNX)
    assert "fusion.onnx: damaged" in caplog.text
    assert "making it again" in caplog.text
    verify(run / "export", "export")
    assert choose_engine(run, "cuda") == Choice(run)
    with pytest.raises(UsageError, match="--device cuda: --runtime onnx runs on the processor"):
        choose_engine(run, "cuda", "onnx")
    with pytest.raises(UsageError, match="--device nonsense: an export runs on the processor; leave it out"):
        choose_engine(run / "export", "nonsense")
    monkeypatch.setattr(own_export, "own_export", lambda run: (_ for _ in ()).throw(PermissionError(30, "Read-only")))
    assert choose_engine(run) == Choice(run)
    assert "Read-only; labelling with PyTorch" in caplog.text


def test_a_run_s_own_export_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    done = own_export.export_apart(tmp_path / "none", tmp_path / "out")
    assert (done.returncode, own_export.last_line(done)) == (
        3, f"{tmp_path / 'none'}: no such artifact folder; run `labeler train` first"
    )  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_the_export_that_another_process_is_making_is_waited_for(
    trained, exported, tmp_path, caplog, monkeypatch, known
):
    """Whether it is seen at once, or comes to light when an export of this process's own finds the place held."""
    caplog.set_level("INFO", "labeler")
    run, ready = shutil.copytree(trained("resnet-gru"), tmp_path / "run"), exported("resnet-gru")
    waiting = f"{run}: waiting for the export that another process is making"

    def make_elsewhere():
        deadline = time.monotonic() + 60
        while waiting not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.copytree(ready, run / "export")
        lock.close()

    lock = ExitStack()
    lock.enter_context(locked(run / "export"))
    if not known:
        monkeypatch.setattr(own_export, "check_free", lambda *_: monkeypatch.undo())
    with ThreadPoolExecutor() as pool:
        other = pool.submit(make_elsewhere)
        assert choose_engine(run) == Choice(run / "export", ONNX)
    other.result()
    assert caplog.text.count(waiting) == 1
    assert ("exporting it first" in caplog.text) == (not known)


def test_an_export_of_a_run_that_has_been_trained_anew_is_told_of(trained, exported, tmp_path, caplog):
    run = shutil.copytree(trained("resnet-gru"), tmp_path / "run")
    folder = shutil.copytree(exported("resnet-gru"), tmp_path / "export")
    manifest = read_manifest(folder)
    manifest["inputs"][0]["path"] = str(run)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    choose_engine(folder)
    assert not caplog.text
    other = read_manifest(run) | {"content_sha256": "another"}
    (run / "manifest.json").write_text(json.dumps(other), encoding="utf-8")
    choose_engine(folder)
    assert f"{folder}: made of {run}, which has changed since; `labeler export` makes it again" in caplog.text


def test_a_run_whose_folder_cannot_be_written_labels_with_pytorch_at_once(trained, tmp_path, monkeypatch, caplog):
    run = shutil.copytree(trained("resnet-gru"), tmp_path / "run")
    (run / ".export.lock").mkdir()
    monkeypatch.setattr(own_export, "export_apart", lambda *_: pytest.fail("exported"))
    assert choose_engine(run) == Choice(run)
    assert "cannot be made there (Is a directory); labelling with PyTorch" in caplog.text
