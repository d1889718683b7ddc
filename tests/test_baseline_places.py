"""Where baselines are made: beside the store, by one process for all; in the run's work folder where nothing can be written."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from labeler.artifacts import beside, locked, verify
from labeler.evaluating import evaluate
from labeler.report import report


@pytest.fixture
def own(store, trained, tmp_path) -> tuple[Path, Path]:
    """Return a run and a store of one's own, beside which nothing lies."""
    shutil.copytree(store, tmp_path / "data" / "store")
    return Path(shutil.copytree(trained("resnet-gru"), tmp_path / "run")), tmp_path / "data" / "store"


def test_where_nothing_can_be_written_beside_the_store_it_is_measured_all_the_same(own, tmp_path, evaluated):
    run, store = own
    beside(store.with_name("store-baselines-test"), "lock").mkdir()  # no file can be opened there, even by root
    before = sorted(store.parent.iterdir())
    figures = evaluate(run, store, device="cpu").metrics
    known = json.loads((evaluated("resnet-gru") / "metrics-test.json").read_text(encoding="utf-8"))["baselines"]
    assert [row["accuracy"] for row in figures["baselines"]] == [row["accuracy"] for row in known]
    assert sorted(store.parent.iterdir()) == before
    verify(run, "evaluate", "manifest-test.json")
    assert {path.name for path in run.iterdir() if "baseline" in path.name} == {
        "baseline-majority-test.jsonl", "baseline-logistic-regression-test.jsonl",
    }  # fmt: skip
    assert len(report([run], tmp_path / "report", explain=0)["models"]) == 3


def test_baselines_that_another_process_is_making_are_waited_for(own, caplog):
    run, store = own
    out, holds = store.with_name("store-baselines-test"), threading.Event()

    def hold() -> None:
        with locked(out):
            holds.set()
            time.sleep(1.5)

    other = threading.Thread(target=hold)
    other.start()
    assert holds.wait(10)
    with caplog.at_level("INFO", "labeler"):
        evaluate(run, store, device="cpu")
    other.join()
    assert f"{out}: another labeler process is making it; waiting" in caplog.text
    verify(out, "baselines")
