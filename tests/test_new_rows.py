"""Measuring a run on labelled rows that came after it: a store of its own, all of it for testing, with some of the labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from labeler.baselines import Features, logistic_regression
from labeler.errors import BadInputError
from labeler.evaluating import evaluate
from labeler.evaluation import read_predictions
from labeler.ingestion import IngestOptions, ingest
from labeler.measuring import learned_from
from labeler.preprocessing import preprocess
from labeler.report.comparison import collect
from labeler.report.runs import read_runs
from labeler.store import Store
from labeler.training import train


def new_rows(store: Path, folder: Path, *labels: str, taxonomy: dict[str, str] | None = None) -> Path:
    """Return a store of the shapes' rows that have one of `labels`, all of them in the test split."""
    source = folder / "source"
    shutil.copytree(store.parent / "source", source)
    rows = [json.loads(line) for line in (source / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row | {"split": None} for row in rows if row["labels"] in labels]
    (source / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = IngestOptions(split="0,0,1")
    if taxonomy:
        (folder / "taxonomy.json").write_text(json.dumps(taxonomy))
        options = IngestOptions(split="0,0,1", taxonomy=folder / "taxonomy.json")
    assert ingest([source / "pairs.jsonl"], folder / "records", options).profile["splits"]["test"] == len(rows)
    towers = {f"{kind}_encoder": Store(store).towers[kind]["name"] for kind in ("text", "image")}
    return preprocess(folder / "records", folder / "store", **towers).out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("late-fusion"), tmp_path / "run"))


def test_baselines_learn_from_what_the_run_learned_from_and_labels_are_the_runs(run, store, tmp_path, caplog):
    new = new_rows(store, tmp_path / "new", "square", "cross")
    metrics = evaluate(run, new, device="cpu").metrics
    assert metrics["n"] == len(Store(new).rows["id"])
    assert [row["label"] for row in metrics["per_class"] if row["support"] == 0] == ["circle"]
    names = json.loads((run / "labels.json").read_text())["labels"]
    found = read_predictions(run / "predictions-test.jsonl", [label["name"] for label in names])
    texts = dict(zip(Store(new).rows["id"], Store(new).rows["text"], strict=True))
    for identity, truth in zip(found.ids, found.truth, strict=True):
        word = names[int(np.flatnonzero(truth)[0])]["name"]
        assert texts[identity] is None or word in texts[identity]
    assert f"the baselines learned from {store}" in metrics["notes"]
    assert metrics["data"]["caution"].startswith(f"it was trained on another store, {store}; ")
    old, fresh = Store(store), Store(new)
    fresh.label_as(old.label_set)
    parts = [Features(*one.features(one.rows_of(split)), one.truth(one.rows_of(split)))
             for one, split in ((old, "train"), (old, "validation"), (fresh, "test"))]  # fmt: skip
    expected = logistic_regression("single", *parts)
    baseline = read_predictions(run / "baseline-logistic-regression-test.jsonl", [label["name"] for label in names])
    np.testing.assert_allclose(baseline.scores, expected.scores, atol=1e-5)
    assert [entry["n"] for entry in metrics["baselines"]] == [metrics["n"]] * 2
    assert evaluate(run, new, device="cpu").already


def test_figures_of_another_store_are_replaced_with_a_warning_that_says_how_to_have_them_again(
    run, store, tmp_path, labeler
):
    new = new_rows(store, tmp_path / "new", "square", "cross")
    first = labeler("evaluate", run, "--data", new, "--device", "cpu")
    assert "are replaced" not in first.said
    again = labeler("evaluate", run, "--data", store, "--device", "cpu")
    assert again.code == 0, again.said
    assert f"{run}: its figures of the test split of {new} are replaced" in again.said
    assert f"`labeler evaluate` with --data {new} measures them again" in again.said
    assert "are replaced" not in labeler("evaluate", run, "--data", store, "--force", "--device", "cpu").said


def test_without_the_store_that_it_was_trained_on_there_are_no_baselines(run, store, tmp_path, labeler):
    new = new_rows(store, tmp_path / "new", "square", "cross", "circle")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["inputs"][0]["path"] = str(tmp_path / "gone")
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = labeler("evaluate", run, "--data", new, "--device", "cpu")
    assert done.code == 0, done.said
    assert "there are no baselines: the store that it was trained on is not there any more" in done.said
    metrics = json.loads((run / "metrics-test.json").read_text())
    assert metrics["baselines"] == []
    assert [model.name for model in collect(read_runs([run], "test"))] == ["late-fusion"]
    shown = labeler("report", run, "--out", tmp_path / "report.html")
    assert shown.code == 0, shown.said


@pytest.fixture
def texts_store(tmp_path, text_tower, image_tower):
    """Return a function that makes a store of texts alone, {text: label}, whose splits are drawn by the shares given."""

    def make(name: str, texts: dict[str, str], split: str) -> Store:
        rows = [{"id": str(n), "text": text, "label": label} for n, (text, label) in enumerate(texts.items())]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ingest([tmp_path / f"{name}.jsonl"], tmp_path / name / "records", IngestOptions(split=split))
        towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower), "allow_unknown_words": True}
        return Store(preprocess(tmp_path / name / "records", tmp_path / name / "store", **towers).out)

    return make


def test_how_many_words_a_tower_does_not_know_is_no_other_feature(texts_store, tmp_path):
    foreign = {letter: "joy" if n % 2 else "anger" for n, letter in enumerate("今天气真好猫在沙发上睡觉我们去")}
    old = texts_store("old", foreign, "0.5,0.3,0.2")
    new = texts_store("new", {"晚饭吃": "joy", "a red circle 非常生": "anger"}, "0,0,1")
    assert old.towers["text"]["unknown_share"] != new.towers["text"]["unknown_share"]
    trained = {"inputs": [{"path": str(old.folder), "sha256": old.sha256}]}
    found, note = learned_from(new, tmp_path / "run", trained)
    assert found.folder == old.folder
    assert note == f"the baselines learned from {old.folder}"


def test_why_there_are_no_baselines_is_what_differs(texts_store, store, tmp_path):
    texts = {f"a red circle {n}": "joy" if n % 2 else "anger" for n in range(12)}
    old = texts_store("old", texts, "0.5,0.3,0.2")
    trained = {"inputs": [{"path": str(old.folder), "sha256": old.sha256}]}
    other = texts_store("other", {"a red circle": "joy", "a blue cross": "awe"}, "0,0,1")
    found, note = learned_from(other, tmp_path / "run", trained)
    assert found is None
    assert note == f"there are no baselines: the store that it was trained on, {old.folder}, has other labels"
    changed = {"inputs": [{"path": str(old.folder), "sha256": "0" * 64}]}
    assert learned_from(other, tmp_path / "run", changed)[1].endswith(f"{old.folder}, has changed since")
    small = texts_store("small", texts, "0.6,0,0.4")
    given = {"inputs": [{"path": str(small.folder), "sha256": small.sha256}]}
    assert learned_from(texts_store("new", texts, "0,0,1"), tmp_path / "run", given)[1].endswith("no validation rows")


def test_a_label_or_a_parent_that_the_run_does_not_know_is_refused(run, store, tmp_path):
    with_parent = new_rows(store, tmp_path / "parents", "square", "cross", taxonomy={"square": "angular"})
    with pytest.raises(BadInputError, match="was trained with another taxonomy of the labels"):
        evaluate(run, with_parent, device="cpu")


def test_nothing_is_trained_on_a_store_without_train_rows(store, tmp_path, options):
    new = new_rows(store, tmp_path / "new", "square", "cross")
    with pytest.raises(BadInputError, match="no row in the train split; --split of `labeler ingest` draws splits"):
        train("late-fusion", new, tmp_path / "run", options, device="cpu")


def test_a_store_may_be_named_by_a_dot(run, store, tmp_path, labeler, monkeypatch):
    new = new_rows(store, tmp_path / "new", "square", "cross")
    monkeypatch.chdir(new)
    assert labeler("evaluate", run, "--data", ".", "--device", "cpu").code == 0
    assert labeler("inspect", ".").code == 0
    assert sorted(path.name for path in new.parent.iterdir() if path.name.startswith("store")) == [
        "store", "store-baselines-test", "store-quality",
    ]  # fmt: skip


def test_data_are_named_by_their_folder_from_wherever_they_are_looked_at(run, store, monkeypatch):
    monkeypatch.chdir(store.parent)
    assert evaluate(run, Path("store"), device="cpu").metrics["data"]["name"] == store.parent.name
