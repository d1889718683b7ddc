"""Large jsonl files, which processes read: the same records, and nothing left behind when it ends early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import labeler.ingestion
from labeler.errors import LabelerError
from labeler.ingestion import ingest

ROOT = Path(__file__).parent.parent
ROWS = [
    {"text": "née {}"}, {"label": ["joy", "sky"]}, {"label": None}, {"text": "http://x/{}", "label": "joy"}, {"split": "nowhere"},
    {"likes": 1.5}, {"id": "the same", "text": "x"}, {"text": "What? {}", "author": "a:b"},
]  # fmt: skip


def write(path: Path, count: int, odd: bool = True) -> Path:
    """Write rows of which, with `odd`, every hundredth is like no other, or no row at all."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            row = {"id": str(number), "text": f"text number {number} " + "and more " * 12, "label": "ab"[number % 2]}
            if odd and number % 100 == 0:
                change = ROWS[number // 100 % len(ROWS)]
                row |= {key: value.format(number) if key == "text" else value for key, value in change.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if odd and number % 1000 == 0:
                file.write("\n  \n{broken\n" + repr(row | {"id": f"literal {number}"}) + "\n")
    return path


def started(folder: Path, source: Path) -> subprocess.Popen:
    """Return `labeler ingest` of the file, when its processes are at work."""
    command = [sys.executable, "-m", "labeler", "ingest", str(source), "--out", str(folder / "out")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if psutil.Process(running.pid).children():
            return running
        time.sleep(0.05)
    raise AssertionError(running.communicate())


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("large") / "rows.jsonl", 500_000, odd=False)


def test_processes_make_the_records_that_one_process_makes(tmp_path, monkeypatch):
    source = write(tmp_path / "rows.jsonl", 15_000)
    assert source.stat().st_size > 8 * labeler.ingestion.PIECE_BYTES, "or no processes are started"
    many = ingest([source], tmp_path / "many")
    monkeypatch.setattr(labeler.ingestion, "PIECE_BYTES", 1 << 30)
    one = ingest([source], tmp_path / "one")
    assert many.profile == one.profile
    assert many.profile["rejects"]["not-json"] == 15
    assert many.profile["python_literal_lines"] == 15
    for name in ("records.jsonl", "rejects.jsonl", "labels.json"):
        assert (many.out / name).read_bytes() == (one.out / name).read_bytes()


def test_ctrl_c_ends_it_quietly_and_leaves_nothing(tmp_path, large):
    running = started(tmp_path, large)
    children = psutil.Process(running.pid).children()
    for process in [*children, psutil.Process(running.pid)]:  # a terminal sends it to all of them
        process.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert os.listdir(tmp_path) == []


def test_killed_it_leaves_no_process(tmp_path, large):
    running = started(tmp_path, large)
    children = psutil.Process(running.pid).children()
    running.kill()
    running.communicate(timeout=30)
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_script_without_a_main_guard_can_ingest(tmp_path):
    source = write(tmp_path / "rows.jsonl", 15_000)
    script = tmp_path / "script.py"
    script.write_text(
        f"from pathlib import Path\nfrom labeler.ingestion import ingest\n"
        f"print(ingest([Path({str(source)!r})], Path({str(tmp_path / 'out')!r})).profile['rows'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "15030\n"


def test_a_piece_on_which_its_process_dies_is_named(tmp_path, monkeypatch):
    from crashing import crashing_chunk

    monkeypatch.setattr(labeler.ingestion, "chunk_of_lines", crashing_chunk)
    source = write(tmp_path / "rows.jsonl", 20_000)
    with pytest.raises(LabelerError, match=r"rows\.jsonl:\d+: the process that .* died \(signal 6\)"):
        ingest([source], tmp_path / "out")
    assert os.listdir(tmp_path) == ["rows.jsonl"]
