"""Bad luck while labelling: the faults of the same numbers, and what is labelled again when files change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from PIL import Image

from labeler.artifacts import locked, work_folder
from labeler.decisions import read_rule
from labeler.errors import InterruptedRun, LabelerError, LockedError, UsageError
from labeler.items import Item, ItemReading, key_of
from labeler.labeller import Labeller, Settings
from labeler.memory import lacks_memory
from labeler.predicting import predict
from labeler.records import Record, Reject, Row
from labeler.shards import Counts

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("resnet-gru")


@pytest.fixture
def folder(store, tmp_path) -> Path:
    """Return a folder of 36 pictures, one of them broken, and a text."""
    folder = Path(shutil.copytree(store.parent / "source" / "pictures", tmp_path / "pictures"))
    (folder / "broken.png").write_bytes((folder / "cross-blue-one.png").read_bytes()[:150])
    (folder / "words.txt").write_text("a red circle", encoding="utf-8")
    return folder


@pytest.fixture
def small_windows(monkeypatch):
    """Let nine items make a shard."""
    monkeypatch.setattr("labeler.predicting.WINDOW", 9)


def lines_of(path: Path) -> dict[str, str]:
    return {json.loads(line)["id"]: line for line in path.read_text(encoding="utf-8").splitlines()}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "labeler", "predict", *map(str, arguments), "--device", "cpu"]


def test_only_new_and_changed_files_are_labelled(folder, run, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    assert predict([folder], run, out, device="cpu") == Counts(38, 1)
    before = lines_of(out)
    shown = []
    logits = Labeller.logits
    monkeypatch.setattr(Labeller, "logits", lambda self, items: shown.extend(items) or logits(self, items))
    Image.new("RGB", (40, 30), "red").save(folder / "a-new.png")
    Image.new("RGB", (40, 30), "blue").save(folder / "circle-blue-one.png")
    (folder / "cross-red-one.txt").write_text("a cross now", encoding="utf-8")
    (folder / "square-red-one.png").unlink()
    assert predict([folder], run, out, device="cpu") == Counts(38, 1, kept=34, dropped=1)
    changed = {"a-new.png", "circle-blue-one.png", "cross-red-one.png"}
    assert {item.record.id for item in shown} == changed
    after = lines_of(out)
    assert list(after) == sorted(after)
    assert after.keys() == before.keys() - {"square-red-one.png"} | changed
    assert [name for name in after if before.get(name) != after[name]] == sorted(changed)


def test_a_second_run_without_errors_loads_no_model(folder, run, tmp_path, monkeypatch):
    (folder / "broken.png").unlink()
    predict([folder], run, tmp_path / "out.csv", device="cpu")
    monkeypatch.setattr("labeler.predicting.Labeller", None)
    assert predict([folder], run, tmp_path / "out.csv", device="cpu") == Counts(37, 0, kept=37)


def test_what_changes_a_row_s_key(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")

    def key(source=tmp_path / "rows.jsonl", held=None, mapping=(), keep=(), **fields) -> int:
        return key_of(
            Row(str(source), 1, {"id": "1", "image": "a.png", "text": "red"} | fields, picture=held),
            ItemReading(dict(mapping), keep=keep),
        )

    first = key()
    assert (
        first
        == key(other="field")
        == key_of(Row(str(tmp_path / "b.csv"), 9, {"id": "1", "img": "a.png", "text": "red "}), ItemReading({}))
    )
    others = [key(id="2"), key(text="blue"), key(text=None), key(image="b.png"), key(image=None),
              key(title="x", mapping=[("text", "title")]),
              key(held=b"one"), key(held=b"two"), key(text="\0"), key(source=tmp_path / "below" / "rows.jsonl"),
              key(other="field", keep=("other",)), key(other="value", keep=("other",))]  # fmt: skip
    picture.write_bytes(b"two")
    others.append(key())
    times = picture.stat()
    picture.write_bytes(b"six")
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))  # as an archive does that knows one time only
    others.append(key())
    picture.unlink()
    others.append(key())
    rejects = [key_of(Reject("a.jsonl", line, None, "not-json", "cut off"), ItemReading({})) for line in (1, 2)]
    assert len({first, *others, *rejects}) == 1 + len(others) + 2


def test_fault_18_killed_at_20_moments_the_output_is_that_of_an_uninterrupted_run(tmp_path):
    rows = [{"id": number, "text": "x" * (number % 13 + 1)} for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    script = Path(__file__).with_name("killing_labelling.py")
    done = subprocess.run([sys.executable, script, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "20"], env=ENVIRONMENT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(lines_of(tmp_path / "out.jsonl")) == 200
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(set(done.stdout.split())) > 2, "kills came at different moments"


def test_fault_19_on_a_full_disk_nothing_is_lost(folder, run, tmp_path, small_windows):
    """A shard that does not fit; the output that does not; and space again."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        predict([folder], run, tmp_path / "whole.jsonl", device="cpu")
        (tmp_path / "one.jsonl").write_text('{"text": "red"}\n', encoding="utf-8")
        predict([tmp_path / "one.jsonl"], run, place / "out.jsonl", device="cpu")
        old = (place / "out.jsonl").read_bytes()
        for free in range(0, 48, 4):  # KiB
            (place / "other").write_bytes(b"")
            status = os.statvfs(place)
            (place / "other").write_bytes(bytes(status.f_bavail * status.f_frsize - (free << 10)))
            with suppress(OSError):
                predict([folder], run, place / "out.jsonl", device="cpu")
                break
            assert (place / "out.jsonl").read_bytes() == old
        assert free > 8
        assert (place / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_fault_19_the_message_says_what_to_do(run, tmp_path, monkeypatch, capsys):
    from labeler.cli import system_error

    assert "free some space or choose another --out" in system_error(OSError(28, "No space left on device", "x"))


def test_fault_21_while_another_process_writes_the_output(folder, run, tmp_path):
    with locked(tmp_path / "out.jsonl"), pytest.raises(LockedError, match=r"another labeler process is making it"):
        predict([folder], run, tmp_path / "out.jsonl", device="cpu")
    done = subprocess.run(command("none.jsonl", "--model", run, "--out", tmp_path / "out.jsonl"), env=ENVIRONMENT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, "no such file" in done.stderr) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_25_ctrl_c_keeps_the_shards_and_the_next_run_goes_on(run, tmp_path, number):
    rows = "".join(json.dumps({"id": n, "text": f"{n} red circle"}) + "\n" for n in range(60_000))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    # native: no export is made in the shared run
    how = ["--model", run, "--out", out, "--batch-size", 1, "--runtime", "native"]
    process = subprocess.Popen(
        command(tmp_path / "rows.jsonl", *how), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        while not list(work_folder(out).glob("*.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == f"error: {out}: interrupted; the same command goes on from there"
    assert not out.exists()
    assert list(work_folder(out).glob("*.json"))


def test_fault_25_in_python_too(folder, run, tmp_path, monkeypatch, small_windows):
    written = []

    def interrupted(self, items):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(items)
        return logits(self, items)

    logits = Labeller.logits
    predict([folder], run, tmp_path / "whole.jsonl", device="cpu")
    monkeypatch.setattr(Labeller, "logits", interrupted)
    with pytest.raises(InterruptedRun, match=r"out.jsonl: interrupted; the same command goes on from there"):
        predict([folder], run, tmp_path / "out.jsonl", device="cpu")
    shards = sorted(work_folder(tmp_path / "out.jsonl").iterdir())
    with pytest.raises(UsageError, match="--device nonsense"):  # other options, and a slip
        predict([folder], run, tmp_path / "out.jsonl", device="nonsense", allow_outside=True)
    assert sorted(work_folder(tmp_path / "out.jsonl").iterdir()) == shards
    monkeypatch.setattr(Labeller, "logits", logits)
    assert predict([folder], run, tmp_path / "out.jsonl", device="cpu") == Counts(38, 1)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class Narrow:
    """An engine whose memory suffices for batches up to `most`; it says a row of each item's number."""

    size = 32

    def __init__(self, most: int, error: Exception):
        self.most, self.error, self.asked = most, error, []

    def logits(self, items, batch_size):
        self.asked.append(batch_size)
        if batch_size > self.most:
            raise self.error
        return np.array([[int(item.record.id), 0, 0] for item in items], np.float32)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                                   RuntimeException("[ONNXRuntimeError] : Failed to allocate memory for requested buffer"),
                                   RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])  # fmt: skip
def test_fault_26_a_batch_that_is_too_large_is_halved_and_that_is_said_once(run, error, caplog):
    settings = Settings(run, read_rule(run), ItemReading({}), batch_size=32)
    items = [Item(Record(id=str(number), text="a")) for number in range(7)]
    engine = Narrow(5, error)
    labeller = Labeller(settings, engine)
    assert labeller.logits(items)[:, 0].tolist() == list(range(7))
    labeller.logits(items)
    assert engine.asked == [32, 16, 8, 4, 4]
    assert [record.message for record in caplog.records] == [
        "memory does not suffice for batches of 32: going on with 4 (--batch-size 4 asks for that)"
    ]
    with pytest.raises(LabelerError, match="memory does not suffice for a single item"):
        Labeller(settings, Narrow(0, error)).logits(items)
    with pytest.raises(RuntimeError, match="a bug"):
        Labeller(settings, Narrow(0, RuntimeError("a bug"))).logits(items)
    assert not lacks_memory(ValueError("out of range"))


LIMITED = """
import resource, sys
from pathlib import Path
import torch, psutil
from labeler.engines.native import Native
from labeler.predicting import label
from labeler.runs import load_run
run = load_run(Path(sys.argv[1]))
torch.set_num_threads(1)
pairs = [{"id": str(n), "text": "red circle " * 30} for n in range(2048)]
few = label(run, pairs[:8])
room = psutil.Process().memory_info().vms + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
import logging; logging.basicConfig(level=logging.WARNING)
many = label(run, pairs, batch_size=2048)
close = [abs(a["scores"][name] - b["scores"][name]) < 3e-6 for a, b in zip(few, many) for name in a["scores"]]
print(len(many), all(close), all(a["labels"] == b["labels"] for a, b in zip(few, many)))
"""


def test_fault_26_under_a_real_limit_of_memory(trained):
    """60 MB of address space beyond what the loaded model has, and batches of 2,048."""
    done = subprocess.run([sys.executable, "-c", LIMITED, trained("visualbert"), "60"], env=ENVIRONMENT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.stdout == "2048 True True\n", done.stderr[-2000:]
    assert done.stderr.count("memory does not suffice for batches of 2048: going on with") == 1


def test_a_device_as_output_is_written_to_and_not_replaced(folder, run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    assert predict([folder], run, pipe, device="cpu") == Counts(38, 1)
    assert len(reader.communicate()[0].splitlines()) == 38
    assert pipe.is_fifo()
