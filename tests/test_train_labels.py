"""What a train split must carry: labels to tell apart; those that none of its rows carries are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.preprocessing import preprocess
from labeler.store import Store
from labeler.training import train


@pytest.fixture
def with_labels(store, multi_store, tmp_path) -> Callable[..., Path]:
    """Return a function that makes a store of the shapes whose train rows carry of their labels those that are kept."""

    def make(task: str, *kept: str) -> Path:
        whole = multi_store if task == "multi" else store
        shutil.copytree(whole.parent / "source", tmp_path / "source")
        file, rows = tmp_path / "source" / "pairs.jsonl", []
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["split"] == "train" and task == "multi":
                row["labels"] = [name for name in row["labels"] if name in kept]
            if row["split"] != "train" or task == "multi" or row["labels"] in kept:
                rows.append(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ingest([file], tmp_path / "records", IngestOptions(task=task))
        towers = {f"{kind}_encoder": Store(whole).towers[kind]["name"] for kind in ("text", "image")}
        return preprocess(tmp_path / "records", tmp_path / "store", **towers).out

    return make


@pytest.mark.parametrize(
    ("task", "kept", "found"), [("single", ["circle"], "one label alone"), ("multi", [], "no label")]
)
def test_train_rows_without_labels_to_tell_apart_are_refused(with_labels, options, tmp_path, task, kept, found):
    with pytest.raises(
        BadInputError, match=f"the rows of the train split carry {found}, so that there is nothing to learn"
    ):
        train("resnet-gru", with_labels(task, *kept), tmp_path / "run", options, device="cpu")
    assert not (tmp_path / "run").exists()


def test_labels_that_no_train_row_carries_are_said(with_labels, options, tmp_path, caplog):
    train("resnet-gru", with_labels("single", "circle", "square"), tmp_path / "run", options, device="cpu")
    assert "no train row carries 1 of the 3 labels, which cannot be learned: cross" in caplog.text
