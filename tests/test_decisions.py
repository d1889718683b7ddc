"""Thresholds for an aim and promised precision, from the run through evaluate and predict to the command line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from labeler.cli import main
from labeler.decisions import aimed, promised, validation_predictions
from labeler.errors import BadInputError, UsageError
from labeler.evaluating import PROMISES, evaluate
from labeler.evaluation import aim_of, fit_thresholds, read_predictions
from labeler.labeller import least_score
from labeler.predicting import predict
from labeler.runs import load_run
from labeler.training import train


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def source(store) -> Path:
    return store.parent / "source"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("late-fusion"), tmp_path / "run"))


@pytest.fixture(scope="module")
def multi_run(tmp_path_factory, multi_store, options) -> Path:
    return train("late-fusion", multi_store, tmp_path_factory.mktemp("runs") / "run", options, device="cpu").out


def test_what_is_not_sure_enough_is_left_for_review(run, source, tmp_path, caplog):
    caplog.set_level("INFO")
    everything = predict([source / "pictures"], run, tmp_path / "all.jsonl", device="cpu")
    given = promised(load_run(run), 0.5)
    assert given.threshold is not None
    found = predict([source / "pictures"], run, tmp_path / "some.jsonl", device="cpu", min_precision=0.5)
    assert f"{given.n} of {given.total} labels on the validation split score" in caplog.text
    assert found.items == everything.items
    assert 0 < found.review < found.items
    for sure, whole in zip(lines_of(tmp_path / "some.jsonl"), lines_of(tmp_path / "all.jsonl"), strict=True):
        assert sure["scores"] == whole["scores"]
        unsure = max(whole["scores"].values()) < given.threshold
        assert (sure["review"], sure["labels"]) == (unsure, [] if unsure else whole["labels"])
        assert "review" not in whole


def test_nothing_is_given_where_nothing_can_be_promised(run, source, tmp_path, caplog):
    found = predict([source / "pictures"], run, tmp_path / "out.csv", device="cpu", min_precision=0.99)
    assert found.review == found.items
    assert "everything is left for review" in caplog.text
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["labels"], row["review"]) for row in rows} == {("", "true")}


def test_an_item_with_an_error_is_not_for_review(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "image": "no.png"}\n', encoding="utf-8")
    found = predict([tmp_path / "rows.jsonl"], run, tmp_path / "out.csv", device="cpu", min_precision=0.5)
    assert (found.errors, found.review) == (1, 0)


def test_thresholds_for_an_aim_are_those_of_the_validation_rows(multi_run):
    opened = load_run(multi_run)
    kept = validation_predictions(opened)
    assert np.allclose(opened.thresholds, fit_thresholds(kept.scores, kept.truth))
    precise, complete = (aimed(opened, aim_of(text)) for text in ("recall=0.3", "recall=1"))
    assert np.allclose(precise.thresholds, fit_thresholds(kept.scores, kept.truth, aim_of("recall=0.3")))
    assert (np.array(complete.thresholds) <= precise.thresholds).all()
    assert complete.thresholds != precise.thresholds
    assert aimed(opened, None) is aimed(opened, aim_of("f1")) is opened


def test_evaluate_and_predict_decide_by_the_same_thresholds(multi_run, multi_store, tmp_path):
    run = Path(shutil.copytree(multi_run, tmp_path / "run"))
    plain = evaluate(run, multi_store, device="cpu").metrics
    aim = aim_of("recall=0.3")
    done = evaluate(run, multi_store, device="cpu", aim=aim)
    assert not done.already
    assert evaluate(run, multi_store, device="cpu", aim=aim).already
    assert done.metrics["thresholds"] == aimed(load_run(run), aim).thresholds != plain["thresholds"]
    assert done.metrics["mean_average_precision"] == plain["mean_average_precision"]
    names = [row["label"] for row in plain["per_class"]]
    test = read_predictions(run / "predictions-test.jsonl", names)
    assert np.array_equal(test.predicted, test.scores >= done.metrics["thresholds"])
    source = multi_store.parent / "source"
    predict([source / "pairs.jsonl"], run, tmp_path / "out.jsonl", device="cpu", aim=aim)
    labelled = {line["id"]: line["labels"] for line in lines_of(tmp_path / "out.jsonl")}
    for row, predicted in zip(test.ids, test.predicted, strict=True):
        assert labelled[row] == [names[i] for i in np.flatnonzero(predicted)]


def test_labels_that_are_not_sure_are_withheld_one_by_one(multi_run, multi_store, tmp_path):
    opened = load_run(multi_run)
    least = least_score(opened, 0.5)
    source = multi_store.parent / "source"
    done = predict([source / "pairs.jsonl"], multi_run, tmp_path / "out.jsonl", device="cpu", min_precision=0.5)
    thresholds = dict(zip(opened.label_set.names, opened.thresholds, strict=True))
    lines = lines_of(tmp_path / "out.jsonl")
    for line in lines:
        chosen = [name for name, score in line["scores"].items() if score >= thresholds[name]]
        assert line["labels"] == [name for name in chosen if line["scores"][name] >= least]
        assert line["review"] == (line["labels"] != chosen)
    assert done.review == sum(line["review"] for line in lines)


def test_evaluate_says_what_promises_are_worth(run, store):
    found = evaluate(run, store, device="cpu").metrics["abstention"]
    assert [one["promised"] for one in found["promises"]] == list(PROMISES)
    assert found["points"][-1]["coverage"] == 1.0
    assert all(one["total"] == 7 for one in found["promises"])


def test_a_run_of_before_is_measured_without_promises_and_refuses_to_make_one(run, store, caplog):
    (run / "validation.jsonl").unlink()
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["validation.jsonl"]
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert evaluate(run, store, device="cpu").metrics["abstention"]["promises"] == []
    assert "an older labeler trained it" in caplog.text
    with pytest.raises(BadInputError, match="train it again"):
        predict([store.parent / "source"], run, None, device="cpu", min_precision=0.9)


def test_the_command_line(run, source, tmp_path, monkeypatch, capfd):
    words = ["predict", source / "pictures", "--model", run, "--out", tmp_path / "out.jsonl", "--device", "cpu"]
    for extra, code, message in (
        (["--min-precision", "0.5"], 0, "for review"),
        (["--min-precision", "1"], 2, "0<x<1"),
        (["--aim", "precision"], 2, "expected f1, precision=P or recall=R"),
        (["--aim", "recall=0.9"], 2, "gives one label a row"),
    ):
        monkeypatch.setattr("sys.argv", ["labeler", *map(str, words), *extra])
        with pytest.raises(SystemExit, match=f"^{code}$"):
            main()
        assert message in capfd.readouterr().err


def test_evaluate_refuses_an_aim_where_rows_have_one_label(run, store):
    with pytest.raises(UsageError, match="gives one label a row"):
        evaluate(run, store, device="cpu", aim=aim_of("recall=0.9"))
