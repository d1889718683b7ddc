"""What a run was made from: stores that its start and its image tower have learned from, and whether test rows stand in them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from labeler.encoders.weights import TOWER
from labeler.evaluating import evaluate
from labeler.ingestion import ingest
from labeler.preprocessing import preprocess
from labeler.store import Store
from labeler.training import train

TESTED = 6  # of the new store's test rows, how many were train rows of the old


@pytest.fixture
def records(store, tmp_path) -> Path:
    """Return records of the shapes, some train rows of which are test rows now, and the test rows train rows."""
    shutil.copytree(store.parent / "source", tmp_path / "source")
    file = tmp_path / "source" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        if row["split"] == "test":
            row["split"] = "train"
        elif number < TESTED:
            row["split"] = "test"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ingest([file], tmp_path / "records").out


def seen(store: Path) -> str:
    return f"was trained on another store, {store}; {TESTED} of {TESTED} rows here share their text or picture with its train"


def test_what_the_run_that_it_started_from_has_read_is_said(store, records, pretrained, options, tmp_path, caplog):
    towers = {f"{kind}_encoder": Store(store).towers[kind]["name"] for kind in ("text", "image")}
    new = preprocess(records, tmp_path / "store", **towers).out
    start = Path(shutil.copytree(pretrained, tmp_path / "start"))
    run = train("clip", new, tmp_path / "run", options, init=start, device="cpu").out
    metrics = evaluate(run, new, device="cpu").metrics
    assert metrics["data"]["caution"].startswith(f"it started from {start}, which {seen(store)}")
    assert seen(store) in caplog.text
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "which training did not read" not in card
    assert "of which what it was made from may have read some" in card
    shutil.rmtree(start)
    metrics = evaluate(run, new, device="cpu", force=True).metrics
    assert metrics["data"]["caution"].startswith(
        f"it started from {start}, which is not there any more: whether it has"
    )
    assert (
        "caution" not in evaluate(train("clip", new, run, options, device="cpu").out, new, device="cpu").metrics["data"]
    )
    assert "which training did not read" in (run / "README.md").read_text(encoding="utf-8")


def test_what_the_image_tower_was_fine_tuned_on_is_said(store, records, options, tmp_path):
    tuning = dataclasses.replace(options, epochs=1, finetune_image=True, augment="none")
    tuned = train("late-fusion", store, tmp_path / "tuned", tuning, device="cpu").out
    text = Store(store).towers["text"]["name"]
    new = preprocess(records, tmp_path / "store", text_encoder=text, image_encoder=str(tuned / TOWER)).out
    run = train("resnet-gru", new, tmp_path / "run", options, device="cpu").out
    metrics = evaluate(run, new, device="cpu").metrics
    assert metrics["data"]["caution"].startswith(f"the image tower {tuned / TOWER} {seen(store)}")
    shutil.rmtree(tuned)
    metrics = evaluate(run, new, device="cpu", force=True).metrics
    assert f"the image tower {tuned / TOWER} is not there any more, or has changed since" in metrics["data"]["caution"]
