"""Runs whose data had the same labels, others of them frequent: compared as they are, label by label in one order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_runs import NAMES, page, write_run

from labeler.artifacts import write_json
from labeler.errors import BadInputError
from labeler.evaluating import evaluate
from labeler.evaluation import read_predictions
from labeler.ingestion import ingest
from labeler.preprocessing import preprocess
from labeler.report import report
from labeler.report.comparison import collect
from labeler.report.runs import read_runs
from labeler.store import Store
from labeler.training import train


def other_order(store: Path, folder: Path) -> Path:
    """Return a store of the shapes without some train rows, whose labels stand the other way round."""
    shutil.copytree(store.parent / "source", folder / "source")
    file = folder / "source" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = Store(store).label_set.names
    surplus = {name: 2 * place for place, name in enumerate(reversed(names))}
    kept = []
    for row in rows:
        if row["split"] == "train" and surplus[row["labels"]]:
            surplus[row["labels"]] -= 1
        else:
            kept.append(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    ingest([file], folder / "records")
    towers = {f"{kind}_encoder": Store(store).towers[kind]["name"] for kind in ("text", "image")}
    made = preprocess(folder / "records", folder / "store", **towers).out
    assert Store(made).label_set.names == names[::-1]
    return made


def test_a_run_of_other_data_is_compared_label_by_label(evaluated, store, tmp_path, options):
    first = evaluated("resnet-gru")
    other = train("late-fusion", other_order(store, tmp_path / "data"), tmp_path / "other", options, device="cpu").out
    evaluate(other, store, device="cpu")
    names = Store(store).label_set.names
    models = collect(read_runs([first, other], "test"))
    assert [model.name for model in models] == ["majority", "logistic-regression", "resnet-gru", "late-fusion"]
    found, plain = models[-1], read_predictions(other / "predictions-test.jsonl", names)
    assert found.run.names == names
    for one, expected in zip(found.predictions[2:5], plain[2:5], strict=True):
        assert np.array_equal(one, expected)
    assert [row["label"] for row in found.metrics["per_class"]] == names
    assert [row["support"] for row in found.metrics["per_class"]] == plain.truth.sum(axis=0).tolist()
    report([first, other], tmp_path / "report", explain=0)
    assert "late-fusion" in page(tmp_path / "report").text


def test_labels_with_another_parent_are_not_the_same(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    labels = json.loads((runs[1] / "labels.json").read_text())
    labels["labels"][0]["parent"], labels["parents"] = "living", ["living"]
    write_json(runs[1] / "labels.json", labels)
    with pytest.raises(BadInputError, match=rf"its labels' parents is {{'{NAMES[0]}': 'living'}}, that of .*a is {{}}"):
        read_runs(runs, "test")
