"""What figures and files claim: of rows that a run has seen, of other aims, of fields that are no business of a label."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from labeler.artifacts import read_manifest
from labeler.engines import Choice, open_engine
from labeler.evaluating import evaluate
from labeler.evaluation import Aim
from labeler.export_tasks import export_tasks
from labeler.exporting import validation_pairs
from labeler.items import ItemReading, key_of, read_item
from labeler.output import LineFormat
from labeler.own_export import choose_engine
from labeler.predicting import predict
from labeler.records import Row
from labeler.report import report
from labeler.shards import Counts
from labeler.training import train
from labeler.values import parse_labels


@pytest.mark.parametrize(
    ("split", "said"), [("validation", "were chosen by these rows"), ("train", "was trained on these")]
)
def test_rows_that_a_run_has_seen_promise_nothing(trained, store, tmp_path, caplog, split, said):
    run = Path(shutil.copytree(trained("late-fusion"), tmp_path / "run"))
    metrics = evaluate(run, store, split=split, device="cpu").metrics
    assert said in metrics["data"]["caution"]
    assert said in caplog.text
    assert metrics["abstention"]["promises"] == []
    found = report([run], tmp_path / "report", split=split)
    assert any(said in line for line in found["cautions"])
    assert said in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    metrics = evaluate(run, store, device="cpu").metrics
    assert "caution" not in metrics["data"]
    assert metrics["abstention"]["promises"]


def test_runs_with_thresholds_for_different_aims_are_compared_with_a_caution(multi_store, options, tmp_path):
    run = train("late-fusion", multi_store, tmp_path / "run", options, device="cpu").out
    other = Path(shutil.copytree(run, tmp_path / "other"))
    evaluate(run, multi_store, device="cpu")
    evaluate(other, multi_store, device="cpu")
    assert report([run, other], tmp_path / "alike")["cautions"] == []
    evaluate(other, multi_store, aim=Aim("recall", 0.5), device="cpu")
    [caution] = report([run, other], tmp_path / "report")["cautions"]
    assert caution.startswith("Thresholds were fitted for different aims (")
    assert "recall=0.5" in caution
    said = "Thresholds were fitted for recall=0.5 (`--aim`), not for the best F1"
    assert said in (other / "README.md").read_text(encoding="utf-8")
    assert "Thresholds were fitted" not in (run / "README.md").read_text(encoding="utf-8")
    [caution] = report([other], tmp_path / "alone")["cautions"]
    assert caution.startswith(said)


@pytest.mark.parametrize(
    "strange",
    [{"split": "holdout"}, {"category": "[draft] x"}, {"labels": {"a": 1}}, {"group": ["x"]}, {"score": float("inf")}],
)
def test_a_field_that_is_not_asked_for_is_no_reason_to_label_nothing(strange):
    how = ItemReading({})
    plain, odd = (Row("pairs.jsonl", 1, {"id": "1", "text": "hello"} | more) for more in ({}, strange))
    assert read_item(odd, how).error is None
    assert read_item(odd, how).record == read_item(plain, how).record
    assert key_of(odd, how) == key_of(plain, how)


def test_a_table_of_another_purpose_is_labelled(trained, tmp_path):
    rows = ["id,text,split,labels", "1,a red circle,prod,[x", "2,a blue square,prod,"]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert predict([tmp_path / "a.csv"], trained("late-fusion"), tmp_path / "out.jsonl", device="cpu") == Counts(2, 0)


def test_labels_with_a_separator_in_them_are_told_apart_in_a_table():
    line = {"id": "1", "image": None, "text": "x", "model": "m", "error": None, "scores": {"a|b": 0.9, "c": 0.8}}
    written = LineFormat("csv", ["a|b", "c"])
    for labels in (["a|b", "c"], ["c"], []):
        [cells] = csv.reader([written(line | {"labels": labels}).text])
        assert parse_labels(cells[3], "|") == tuple(labels)


def test_the_first_error_is_said_with_what_helps(trained, tmp_path, caplog):
    rows = [json.dumps({"id": str(n), "image": f"{n}.png", "text": "a"}) for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run = trained("late-fusion")
    for form in ("jsonl", "csv"):
        caplog.clear()
        assert predict([tmp_path / "a.jsonl"], run, tmp_path / f"out.{form}", device="cpu") == Counts(3, 3)
        assert "the first of the items with an error: " in caplog.text
        assert "0.png: no such file. --image-folder DIR says where pictures lie" in caplog.text
    caplog.clear()
    predict([tmp_path / "a.jsonl"], run, tmp_path / "b.jsonl", device="cpu", allow_missing_image=True)
    assert "with an error" not in caplog.text


def test_tasks_of_frames_lead_to_their_video(tmp_path, caplog):
    line = {"id": "1", "image": "clip.mp4#frame=2of4", "text": "t", "labels": ["a"], "scores": {"a": 0.9, "b": 0.1},
            "model": "m", "error": None}  # fmt: skip
    (tmp_path / "out.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    export_tasks(tmp_path / "out.jsonl", tmp_path / "tasks.json", image_folder="pics")
    [task] = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert task["data"]["image"] == "/data/local-files/?d=pics/clip.mp4"
    assert "1 items are frames of videos" in caplog.text


def test_a_precision_is_asked_for_whatever_the_size_of_the_job(trained, tmp_path):
    pytest.importorskip("openvino")
    run = Path(shutil.copytree(trained("late-fusion"), tmp_path / "run"))  # an export is kept in it
    for many in (False, True):
        choice = choose_engine(run, precision="int8", many=many)
        assert (choice.way.runtime, choice.way.precision) == ("openvino", "int8")


def test_pairs_that_are_measured_are_from_all_over_the_split(trained, store):
    native = open_engine(Choice(trained("late-fusion")), "cpu")
    stored = read_manifest(store)
    every, some = (
        [item.record.id for item in validation_pairs(native, store, stored, most).items] for most in (1000, 3)
    )
    assert len(every) > 5
    assert some == [every[0], every[len(every) // 3], every[2 * len(every) // 3]]
