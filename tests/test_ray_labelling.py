"""Labelling on Ray: the lines of one process, whatever happens to a worker. Slow: a cluster of this machine is started."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from labeler import predicting
from labeler.errors import BadInputError, UsageError
from labeler.predicting import predict
from labeler.ray_predicting import ROUND, rounds
from labeler.records import Row
from labeler.shards import Counts


@pytest.fixture
def pairs(store, tmp_path) -> Path:
    """Return 72 rows, some of which cannot be read."""
    rows = []
    for number in range(72):
        picture = sorted((store.parent / "source" / "pictures").glob("*.png"))[number % 36]
        rows.append(
            {"id": number, "image": str(picture), "text": f"{number} red circle"}
            | ({"image": "no.png"} if number % 20 == 7 else {})
        )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "pairs.jsonl"


def ray_workers() -> list[psutil.Process]:
    """Return the processes of this machine's Ray that label, as far as this process has started them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one(killed: list[int]) -> None:
    """Kill the first of the processes that label, once it is there, and has had time to begin."""
    while not killed:
        for process in ray_workers()[:1]:
            time.sleep(1)
            process.kill()
            killed.append(process.pid)
        time.sleep(0.05)


@pytest.mark.slow
def test_fault_30_a_killed_worker_loses_and_doubles_nothing_and_every_line_is_as_without_ray(
    trained, pairs, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    monkeypatch.setattr("labeler.predicting.WINDOW", 6)
    run = trained("visualbert")
    whole = predict([pairs], run, tmp_path / "local.jsonl", device="cpu", allow_outside=True)
    killed: list[int] = []
    running = predicting.label_on_ray

    def watched(*arguments, **how):
        for lines in running(*arguments, **how):
            assert [signal.getsignal(number) for number in handlers] == list(handlers.values()), (
                "Ctrl-C stays the command's"
            )
            yield lines

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(predicting, "label_on_ray", watched)
    threading.Thread(target=kill_one, args=(killed,), daemon=True).start()
    done = predict([pairs], run, tmp_path / "ray.jsonl", device="cpu", allow_outside=True, engine="ray", workers=2)
    assert killed
    assert done == whole == Counts(72, 4)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert not [process for process in psutil.Process().children(recursive=True) if "ray" in process.name()]


def test_rows_are_handed_over_a_bounded_number_of_bytes_at_a_time():
    rows = [Row("a", number, {"id": number}, picture=b"x" * (ROUND // 5)) for number in range(23)]
    found = [len(windows) for windows in rounds(rows, 2)]
    assert sum(found) == 12
    assert max(found) == 3
    assert [len(windows) for windows in rounds(rows, 2, 5)] == [5, 5, 2]  # work for all, where one alone fills a round
    assert list(rounds([], 2)) == []


def test_what_is_missing_is_said(trained, pairs, monkeypatch):
    asked = {"inputs": [pairs], "model": trained("visualbert"), "device": "cpu"}
    with pytest.raises(UsageError, match="--workers and --ray-address are Ray's; add --engine ray"):
        predict(**asked, workers=2)
    pytest.importorskip("ray")
    with pytest.raises(BadInputError, match=r"--ray-address 127.0.0.1:1: no Ray cluster answers there"):
        predict(**asked, engine="ray", ray_address="127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--engine ray needs Ray; install it: pip install 'ray\[data,train\]'"):
        predict(**asked, engine="ray")
