"""Faults that `labeler report` meets, each done on the real command: a clear error, or a page that still works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import Answer
from report_runs import page, two_runs, write_run
from shapes import draw

from labeler.artifacts import work_folder
from labeler.evaluating import evaluate
from labeler.ingestion import ingest
from labeler.inspection import inspect
from labeler.preprocessing import preprocess
from labeler.training import train

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"


def refused(answer: Answer, match: str) -> None:
    """Check that the command ended as bad input does, with this message."""
    assert answer.code == 3, answer.said
    assert re.search(match, answer.said), answer.said


def test_what_to_type_for_a_run_with_a_blank_in_its_name_can_be_typed(labeler, tmp_path):
    run = write_run(tmp_path / "my run", store="my data/store")
    answer = labeler("report", run, "--split", "train", "--out", tmp_path / "report")
    refused(answer, "not evaluated")
    typed = shlex.split(re.search("type `(.*?)`", answer.said)[1])
    assert typed == ["labeler", "evaluate", str(run), "--data", "my data/store", "--split", "train"]


def test_predictions_of_other_rows_are_refused_and_the_run_is_named(labeler, tmp_path):
    runs = two_runs(tmp_path)
    file = runs[1] / "predictions-test.jsonl"
    file.write_text(file.read_text().replace('"row-3"', '"row-3000"'))
    result = labeler("report", *runs, "--out", tmp_path / "report")
    refused(
        result,
        r"resnet-gru: its predictions of resnet-gru are for other rows .*labeler evaluate .*resnet-gru .*--force",
    )
    assert not (tmp_path / "report").exists()


def test_a_split_without_rows_is_refused(labeler, tmp_path, evaluated):
    run = shutil.copytree(evaluated("resnet-gru"), tmp_path / "run")
    refused(
        labeler("report", run, "--split", "train", "--out", tmp_path / "report"),
        "the run is not evaluated; type `labeler ev",
    )
    metrics = json.loads((run / "metrics-test.json").read_text())
    (run / "metrics-test.json").write_text(json.dumps(metrics | {"n": 0, "accuracy": None}))
    refused(labeler("report", run, "--out", tmp_path / "report"), "nothing is measured on a split 'test' with rows")
    assert not (tmp_path / "report").exists()


def test_a_folder_of_seeds_is_not_a_run_and_one_seed_has_no_spread(labeler, tmp_path):
    write_run(tmp_path / "out/seed-0")
    refused(labeler("report", tmp_path / "out", "--out", tmp_path / "report"), r"type `labeler report .*out/seed-\*`")
    result = labeler("report", tmp_path / "out/seed-0", "--out", tmp_path / "report")
    assert result.code == 0, result.said
    assert "Several seeds" not in page(tmp_path / "report").text
    assert json.loads((tmp_path / "report/comparison.json").read_text())["seeds"] == []


def test_a_run_that_is_still_being_trained_is_refused(labeler, tmp_path):
    work_folder(tmp_path / "run").mkdir()
    refused(
        labeler("report", tmp_path / "run", "--out", tmp_path / "report"),
        "run: not trained to its end: it is being trained now",
    )
    assert not (tmp_path / "report").exists()


def test_runs_on_different_data_are_refused_with_what_differs(labeler, tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", sha256="cd" * 32)]
    refused(labeler("report", *runs, "--out", tmp_path / "report"), r"b: its data sha256 is cdcd.*that of .*a is abab")
    assert not (tmp_path / "report").exists()


def test_of_three_thousand_classes_the_page_shows_the_most_frequent(labeler, tmp_path):
    names = [f"label number {number}" for number in range(3000)]
    run = write_run(tmp_path / "run", names=names, rows=60, baselines=False, modalities=False, sure=False)
    result = labeler("report", run, "--out", tmp_path / "report")
    assert result.code == 0, result.said
    assert "confusion" not in json.loads((run / "metrics-test.json").read_text())
    found = page(tmp_path / "report")
    assert (tmp_path / "report/index.html").stat().st_size < 1_000_000
    assert (
        "The 40 most frequent of 3,000 labels have a row and a column of their own, the others one together."
        in found.text
    )
    assert "The table has the 200 most frequent of 3,000 labels" in found.text
    assert sum(tag in ("td", "th") for tag, _ in found.tags) < 5000


@pytest.fixture(scope="module")
def evil(tmp_path_factory, text_tower, image_tower, options) -> Path:
    """Return a run on texts, labels and ids that are HTML, trained and evaluated; the store lies beside it."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "source").mkdir()
    lines = []
    for number in range(36):
        draw(("circle", "cross")[number % 2], "red", number).save(folder / f"source/{number}.png")
        label = (EVIL, "<b>cross</b>")[number % 2]
        split = ("train" if number < 20 else "validation") if number < 26 else "test"
        row = {
            "id": f"<i>{number}",
            "image": f"{number}.png",
            "text": f"{EVIL} {number}",
            "label": label,
            "split": split,
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "source/pairs.jsonl").write_text("".join(lines))
    ingest([folder / "source/pairs.jsonl"], folder / "records")
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    run = train("visualbert-coattn", folder / "store", folder / "run", options, device="cpu").out
    evaluate(run, folder / "store", device="cpu")
    inspect(folder / "store")
    return run


def test_labels_texts_and_ids_that_are_html_do_nothing(labeler, evil, tmp_path):
    result = labeler("report", evil, "--out", tmp_path / "report")
    assert result.code == 0, result.said
    for name in ("index.html", "data.html"):  # which checks for scripts, handlers and links
        found = page(tmp_path / "report", name)
        assert "<script>alert(1)</script>" in found.text
        assert "{{ 7*7 }}" in found.text
        assert not [1 for tag, _ in found.tags if tag in ("b", "i")] or name == "index.html"
    assert sum(tag == "article" for tag, _ in page(tmp_path / "report").tags) == 6
