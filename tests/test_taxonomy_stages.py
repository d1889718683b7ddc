"""A taxonomy through the stages: training, evaluation, report, labelling, export, label errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from shapes import draw_source
from sklearn import metrics as reference
from test_label_errors import clean
from test_taxonomy import lines_of, write

from labeler.decisions import promised, validation_predictions
from labeler.errors import BadInputError
from labeler.evaluating import evaluate
from labeler.export_tasks import export_tasks
from labeler.ingestion import IngestOptions, ingest
from labeler.label_errors import find_label_errors
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.records import label_set, read_label_set
from labeler.report import report
from labeler.runs import load_run
from labeler.store import Store
from labeler.taxonomy import taxonomy_of
from labeler.training import train


@pytest.fixture(scope="module", params=["single", "multi"])
def stages(request, tmp_path_factory, text_tower, image_tower, options):
    """Return the folder of a store, an evaluated run and its report, of shapes or shapes and colours with a taxonomy."""
    folder = tmp_path_factory.mktemp(f"taxonomy-{request.param}")
    source = draw_source(folder / "source", request.param)
    taxonomy, chosen = {"angular": ["cross", "square"]}, {}
    if request.param == "multi":
        taxonomy |= {"circle": ["blue"]}
        names = ["circle", "cross", "square", "red", "green", "blue", "yellow", "angular"]
        chosen["labels"] = write(folder / "labels.txt", "\n".join(names))
    given = write(folder / "taxonomy.json", taxonomy)
    ingest([source], folder / "records", IngestOptions(task=request.param, taxonomy=given, **chosen))
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    run = train("late-fusion", folder / "store", folder / "run", options, device="cpu").out
    evaluate(run, folder / "store", device="cpu")
    report([run], folder / "report")
    return folder


def pairs_of(folder: Path) -> list[tuple[str, str]]:
    """Return (child, parent) of the label set in `folder`."""
    return [(label.name, label.parent) for label in read_label_set(folder).labels if label.parent]


def test_every_file_with_predictions_agrees_with_the_taxonomy(stages, tmp_path):
    predict([stages / "source" / "pictures"], stages / "run", tmp_path / "out.jsonl", device="cpu")
    labels = read_label_set(stages / "run")
    assert pairs_of(stages / "run") == pairs_of(stages / "records")
    assert len(pairs_of(stages / "run")) == (2 if labels.task == "single" else 3)
    files = sorted((stages / "run").glob("*-test.jsonl"))
    assert len(files) == 3
    for path in [*files, tmp_path / "out.jsonl"]:
        for line in lines_of(path):
            assert set(line["scores"]) == {*labels.names, *labels.parents}
            held = [line[key] for key in ("truth", "predicted", "labels") if key in line]
            for child, parent in pairs_of(stages / "run"):
                assert line["scores"][parent] >= line["scores"][child]
                assert all(parent in names for names in held if child in names), (path.name, line)
            if path.name == "out.jsonl":
                assert ("label" in line) == (labels.task == "single")
                assert labels.task == "multi" or set(line["labels"]) == {line["label"], *(
                    parent for child, parent in pairs_of(stages / "run") if child == line["label"])}  # fmt: skip
    predict([stages / "source" / "pictures"], stages / "run", tmp_path / "out.csv", device="cpu")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [cells["labels"] for cells in table] == [
        "|".join(line["labels"]) for line in lines_of(tmp_path / "out.jsonl")
    ]
    if labels.task == "single":
        assert [cells["label"] for cells in table] == [line["label"] or "" for line in lines_of(tmp_path / "out.jsonl")]
    assert ("label" in table[0]) == (labels.task == "single")
    assert all(float(cells["score:angular"]) >= float(cells["score:cross"]) for cells in table)


def test_the_parents_are_measured_and_stand_in_the_report(stages):
    metrics = json.loads((stages / "run" / "metrics-test.json").read_text(encoding="utf-8"))
    comparison = json.loads((stages / "report" / "comparison.json").read_text(encoding="utf-8"))
    page = (stages / "report" / "index.html").read_text(encoding="utf-8")
    text = (stages / "report" / "comparison.md").read_text(encoding="utf-8")
    if metrics["task"] == "multi":
        assert "parents" not in metrics
        assert "angular" in [row["label"] for row in metrics["per_class"]]
        assert 'id="parents"' not in page
        return
    lines = lines_of(stages / "run" / "predictions-test.jsonl")
    truth, predicted = (
        ["angular" if "angular" in line[key] else line[key][0] for line in lines] for key in ("truth", "predicted")
    )
    assert metrics["parents"]["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    weighted = reference.f1_score(truth, predicted, average="weighted")
    assert metrics["parents"]["weighted_f1"] == pytest.approx(weighted)
    assert sorted(row["label"] for row in metrics["parents"]["per_class"]) == ["angular", "circle"]
    assert metrics["parents"]["accuracy"] >= metrics["accuracy"]
    for row in comparison["models"]:
        assert row["parents"]["accuracy_ci95"]
    assert len(comparison["models"]) == 3
    assert comparison["models"][-1]["parents"]["accuracy"] == metrics["parents"]["accuracy"]
    assert 'id="parents"' in page
    assert "## By the labels' parents" in text


def test_validation_rows_come_back_as_the_labels_that_promises_are_made_of(stages):
    run, store = load_run(stages / "run"), Store(stages / "store")
    kept = validation_predictions(run)
    assert np.array_equal(kept.truth, store.truth(store.rows_of("validation")))
    measured = evaluate(stages / "run", stages / "store", split="validation", device="cpu").metrics
    assert kept.scores.shape[1] == len(run.label_set.names) == len(measured["per_class"])
    assert promised(run, 0.5).total == kept.predicted.sum()


def test_exported_tasks_hold_what_a_person_would_choose(stages, tmp_path):
    predict([stages / "source" / "pictures"], stages / "run", tmp_path / "out.jsonl", device="cpu")
    done = export_tasks(tmp_path / "out.jsonl", tmp_path / "tasks.json")
    labels = read_label_set(stages / "run")
    assert done.task == labels.task
    assert set(done.labels) == {*labels.names, *labels.parents}
    results = [task["predictions"][0]["result"] for task in json.loads((tmp_path / "tasks.json").read_text())]
    choices = [result[0]["value"]["choices"] for result in results if result]
    key = "label" if labels.task == "single" else "labels"
    said = [[line[key]] if key == "label" else line[key] for line in lines_of(tmp_path / "out.jsonl")]
    assert choices == [names for names in said if names]


def test_a_run_of_another_taxonomy_is_refused(stages, text_tower, image_tower, tmp_path):
    task = read_label_set(stages / "run").task
    ingest([stages / "source" / "pairs.jsonl"], tmp_path / "records", IngestOptions(task=task))
    preprocess(tmp_path / "records", tmp_path / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    with pytest.raises(
        BadInputError, match=r"with another taxonomy of the labels.*evaluate it on the store it was trained on"
    ):
        evaluate(stages / "run", tmp_path / "store", device="cpu")


def test_no_suggestion_has_a_label_without_its_parent():
    rows = clean("multi")
    truth = rows.truth.copy()
    truth[:, 0] |= truth[:, 1]
    truth[:12, 0] = truth[:12, 1] = [True] * 6 + [False] * 6
    labels = label_set({"a": 4, "b": 3, "c": 2, "d": 1}, "multi", {"b": "a"})
    plain, told = (
        find_label_errors("multi", rows._replace(truth=truth), range(300), taxonomy=taxonomy)
        for taxonomy in (None, taxonomy_of(labels))
    )
    assert any(error.suggested[1] and not error.suggested[0] for error in plain.errors), "else this test says nothing"
    assert told.errors
    for error in told.errors:
        assert error.suggested[0] or not error.suggested[1]
        assert (error.suggested != truth[error.row]).any()
