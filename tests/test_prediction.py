"""Scoring and labelling: one inference path, its files, what it refuses, and one line for every item."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from labeler.artifacts import verify
from labeler.batches import Pair
from labeler.engines.native import image_tower as image_tower_of
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.evaluating import evaluate
from labeler.evaluation import read_predictions, scores_of
from labeler.inference import PairList, choose_device, logits
from labeler.ingestion import IngestOptions, ingest
from labeler.labeller import WINDOW
from labeler.models import model_names
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.runs import load_run
from labeler.shards import Counts
from labeler.store import Store
from labeler.training import train
from labeler.values import neutral


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """Return a copy of a trained run, into which `evaluate` may write."""
    return Path(shutil.copytree(trained("visualbert-coattn"), tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(scope="module")
def source(store) -> Path:
    """Return the folder of the shapes: pairs.jsonl and pictures."""
    return store.parent / "source"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_pairs(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Recording(torch.nn.Module):
    """A model whose logits are each pair's first token, and which keeps the shapes of its batches."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.shapes, self.modes = [], []

    def forward(self, input_ids, text_mask, visual_tokens, visual_mask):
        from transformers.modeling_outputs import SequenceClassifierOutput

        self.shapes.append(tuple(input_ids.shape))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return SequenceClassifierOutput(logits=input_ids[:, :1].double())


def test_logits_come_in_the_order_of_the_pairs_with_little_padding():
    picture = np.zeros((1, 2), np.float16)
    made = [Pair([10 + number] + [1] * (7 * number % 5), picture, True) for number in range(10)]
    model = Recording().train()
    values = logits(model, PairList(made), 0, batch_size=2)
    assert values[:, 0].tolist() == list(range(10, 20))
    assert values.dtype == np.float32
    assert model.shapes == [(2, width) for width in (1, 2, 3, 4, 5)]
    assert set(model.modes) == {(False, False)}


def test_scores_are_rounded_probabilities():
    values = np.array([[0.0, np.log(3.0), -200.0], [1000.0, 0.0, 0.0]], dtype=np.float32)
    assert scores_of("single", values).tolist() == [[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]
    assert scores_of("multi", values).tolist() == [[0.5, 0.75, 0.0], [1.0, 0.5, 0.5]]


def test_an_unknown_device_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"--device warp: .*; try --device cpu"):
        choose_device("warp")


def test_evaluate_writes_figures_predictions_and_baselines(run, store):
    done = evaluate(run, store, device="cpu")
    assert not done.already
    names = {path.name for path in run.iterdir()}
    assert {"metrics-test.json", "predictions-test.jsonl", "manifest-test.json", "baseline-majority-test.jsonl",
            "baseline-logistic-regression-test.jsonl"} <= names  # fmt: skip
    verify(run, "train")
    verify(run, "evaluate", "manifest-test.json")
    metrics = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    assert metrics == done.metrics
    assert (metrics["n"], metrics["task"], metrics["name"]) == (7, "single", "visualbert-coattn")
    predictions = read_predictions(run / "predictions-test.jsonl", ["square", "circle", "cross"])
    right = (predictions.predicted == predictions.truth).all(axis=1).mean()
    assert metrics["accuracy"] == pytest.approx(right)
    assert [entry["name"] for entry in metrics["baselines"]] == ["majority", "logistic-regression"]
    assert all(entry["n"] == 7 and (run / entry["predictions"]).is_file() for entry in metrics["baselines"])
    again = evaluate(run, store, device="cpu")
    assert again.already
    assert again.metrics == metrics
    assert not evaluate(run, store, device="cpu", force=True, batch_size=2).already
    forced = read_predictions(run / "predictions-test.jsonl", ["square", "circle", "cross"])
    np.testing.assert_allclose(forced.scores, predictions.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", model_names())
def test_text_alone_and_image_alone_are_what_predict_gives_without_the_other(trained, store, source, tmp_path, name):
    run = Path(shutil.copytree(trained(name), tmp_path / "run"))
    metrics = evaluate(run, store, device="cpu").metrics["modalities"]
    assert list(metrics) == ["both", "text", "image"]
    rows = [row for row in lines_of(source / "pairs.jsonl") if row["split"] == "test" and row["image"] and row["text"]]
    assert len(rows) == 5
    for modality, missing in (("both", {}), ("text", {"image": None}), ("image", {"text": None})):
        whole = [row | {"image": str(source / row["image"])} | missing for row in rows]
        pairs = write_pairs(tmp_path / "pairs.jsonl", whole)
        assert predict([pairs], run, tmp_path / f"{modality}.jsonl", device="cpu", allow_outside=True) == Counts(5, 0)
        right = [
            line["labels"] == [row["labels"]]
            for line, row in zip(lines_of(tmp_path / f"{modality}.jsonl"), rows, strict=True)
        ]
        assert metrics[modality]["accuracy"] == pytest.approx(np.mean(right)), modality
        assert metrics[modality]["n"] == 5
        assert {"accuracy_ci95", "macro_f1", "macro_f1_ci95"} <= set(metrics[modality])


def test_a_store_of_texts_alone_has_no_row_with_both(words_only, options, tmp_path):
    words = words_only()
    run = train("late-fusion", words, tmp_path / "run", dataclasses.replace(options, epochs=1), device="cpu").out
    metrics = evaluate(run, words, device="cpu").metrics
    assert metrics["n"] > 0
    assert {(figures["n"], figures["accuracy"]) for figures in metrics["modalities"].values()} == {(0, None)}


@pytest.fixture(scope="module")
def words_only(source, tmp_path_factory, text_tower, image_tower):
    """Return a function that makes a store of texts alone: its own labels, or its own image tower."""

    def make(rename: str | None = None, tower: Path = image_tower) -> Path:
        folder = tmp_path_factory.mktemp("words")
        rows = [row | {"image": None, "text": row["id"]} for row in lines_of(source / "pairs.jsonl")]
        for row in rows:
            row["labels"] = rename if rename and row["labels"] == "circle" else row["labels"]
        ingest([write_pairs(folder / "pairs.jsonl", rows)], folder / "records", IngestOptions(task="single"))
        towers = {"text_encoder": str(text_tower), "image_encoder": str(tower)}
        return preprocess(folder / "records", folder / "store", **towers).out

    return make


def test_evaluate_refuses_other_labels(run, words_only):
    with pytest.raises(
        BadInputError, match=r"was trained for other labels than .*lacks \['disc'\], it alone has \['circle'\]"
    ):
        evaluate(run, words_only(rename="disc"), device="cpu")


def test_a_run_measured_on_another_store_says_what_it_may_have_seen(run, store, source, words_only, tmp_path, caplog):
    other = tmp_path / "other"
    rows = [row | {"split": {"test": "train", "train": "test"}.get(row["split"], row["split"])}
            for row in lines_of(source / "pairs.jsonl")]  # fmt: skip
    shutil.copytree(source, other / "source")
    ingest([write_pairs(other / "source/pairs.jsonl", rows)], other / "records", IngestOptions())
    towers = {f"{kind}_encoder": Store(store).towers[kind]["name"] for kind in ("text", "image")}
    preprocess(other / "records", other / "store", **towers)
    metrics = evaluate(run, other / "store", device="cpu").metrics
    n = metrics["n"]
    note = f"it was trained on another store, {store}; {n} of {n} rows here share their text or picture"
    assert [one for one in metrics["notes"] if one.startswith("it was")] == [
        f"{note} with its train and validation rows, not counting copies of pictures that were re-encoded, resized or recoloured"
    ]
    assert note in caplog.text
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "which training did not read" not in card
    assert "not of the store that it was trained on" in card
    evaluate(run, store, device="cpu")
    assert "which training did not read" in (run / "README.md").read_text(encoding="utf-8")


def test_splits_in_which_nothing_carries_a_label_are_told(
    multi_store, options, run, tmp_path, text_tower, image_tower, labeler
):
    def stored(empty):
        folder = tmp_path / empty
        shutil.copytree(multi_store.parent / "source", folder / "source")
        rows = lines_of(folder / "source/pairs.jsonl")
        rows = [row | {"labels": [] if row["split"] == empty else row["labels"]} for row in rows]
        ingest([write_pairs(folder / "source/pairs.jsonl", rows)], folder / "records", IngestOptions())
        return preprocess(
            folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower)
        ).out

    with pytest.raises(BadInputError, match="no row of the validation split carries a label, so that no epoch"):
        train("late-fusion", stored("validation"), tmp_path / "run", options, device="cpu")
    test = stored("test")
    made = train("late-fusion", test, tmp_path / "run", dataclasses.replace(options, epochs=1), device="cpu").out
    done = labeler("evaluate", made, "--data", test, "--device", "cpu")
    assert done.code == 0
    assert "late-fusion mean average precision –" in " ".join(done.said.split())


def test_evaluate_refuses_another_image_tower(run, words_only, image_tower, tmp_path):
    other = Path(shutil.copytree(image_tower, tmp_path / "tower"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"reads visual tokens of .* run `labeler preprocess` with --image-encoder"):
        evaluate(run, words_only(tower=other), device="cpu")


@pytest.mark.parametrize("name", model_names())
def test_predict_gives_what_evaluate_measured(trained, store, source, tmp_path, name):
    assert_as_measured(Path(shutil.copytree(trained(name), tmp_path / "run")), store, source, tmp_path)


def test_predict_averages_the_grid_as_preprocess_did(store, options, source, text_tower, image_tower, tmp_path):
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower), "visual_tokens": 1}
    averaged = preprocess(store.parent / "records", tmp_path / "store", **towers).out
    run = train("visualbert-coattn", averaged, tmp_path / "run", options, device="cpu").out
    assert image_tower_of(load_run(run)).tokens == 1
    assert_as_measured(run, averaged, source, tmp_path)
    with pytest.raises(
        BadInputError, match=r"reads 1 visual tokens a picture, .* holds 4; .* with --visual-tokens 1, or"
    ):
        evaluate(run, store, device="cpu")


def assert_as_measured(run: Path, store: Path, source: Path, tmp_path: Path) -> None:
    """Assert that the test rows' files get the scores that `evaluate` measured."""
    evaluate(run, store, device="cpu")
    rows = [row for row in lines_of(source / "pairs.jsonl") if row["split"] == "test"]
    rows = [row | {"image": row["image"] and str(source / row["image"])} for row in rows]
    pairs = write_pairs(tmp_path / "test.jsonl", rows)
    done = predict([pairs], run, tmp_path / "out.jsonl", device="cpu", allow_outside=True)
    assert done == Counts(7, 0)
    measured = {line["id"]: line for line in lines_of(run / "predictions-test.jsonl")}
    labelled = lines_of(tmp_path / "out.jsonl")
    names = json.loads((run / "labels.json").read_text(encoding="utf-8"))["labels"]
    for line in labelled:
        expected = read_predictions(run / "predictions-test.jsonl", [label["name"] for label in names])
        scores = expected.scores[expected.ids.index(line["id"])]
        # a token of another batch may round to the next float16, which moves scores by some 1e-5
        np.testing.assert_allclose(list(line["scores"].values()), scores, atol=1e-4, rtol=0)
        assert line["labels"] == [max(line["scores"], key=line["scores"].get)]
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert [line["id"] for line in labelled] == [row["id"] for row in rows]
    assert measured.keys() == {line["id"] for line in labelled}


def test_predict_keeps_the_order_and_counts_what_cannot_be_read(run, source, tmp_path):
    folder = Path(shutil.copytree(source / "pictures", tmp_path / "pictures"))
    broken = folder / "cross-blue-one.png"
    broken.write_bytes(broken.read_bytes()[:150])
    (folder / "circle-red-one.txt").write_text("one red circle", encoding="utf-8")
    done = predict([folder], run, tmp_path / "out.jsonl", device="cpu")
    lines = lines_of(tmp_path / "out.jsonl")
    assert done == Counts(36, 1)
    assert [line["id"] for line in lines] == sorted(path.name for path in folder.glob("*.png"))
    for line in lines:
        assert list(line) == ["id", "image", "text", "labels", "scores", "model", "error"]
        if line["id"] == broken.name:
            assert (line["labels"], line["scores"]) == ([], {})
            assert broken.name in line["error"] or "truncated" in line["error"]
        else:
            assert (line["error"], len(line["labels"]), len(line["scores"])) == (None, 1, 3)
    assert lines[[line["id"] for line in lines].index("circle-red-one.png")]["text"] == "one red circle"


def test_bad_rows_get_a_line_each_in_their_place(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "text": "red"}\n{"id": "b"\n{"id": "c"}\n{"id": "d", "image": "no.png"}\n'
                    '{"id": "e", "image": "../x.png"}\n{"id": "f", "text": "blue"}\n', encoding="utf-8")  # fmt: skip
    assert predict([path], run, tmp_path / "out.jsonl", device="cpu") == Counts(6, 4)
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == ["a", "rows.jsonl:2", "c", "d", "e", "f"]
    assert [line["error"] is None for line in lines] == [True, False, False, False, False, True]
    assert "line 2" in lines[1]["error"]
    assert "neither an image nor a text" in lines[2]["error"]
    assert "no such file" in lines[3]["error"]
    assert "--allow-outside" in lines[4]["error"]


def test_batch_size_and_company_change_nothing(run, source, tmp_path):
    rows = lines_of(source / "pairs.jsonl")
    many = rows * (WINDOW // len(rows) + 1)
    pairs = write_pairs(source / "many.jsonl", [row | {"id": str(number)} for number, row in enumerate(many)])
    try:
        results = []
        for batch_size in (1, 7, 32):
            predict([pairs], run, tmp_path / "out.jsonl", device="cpu", batch_size=batch_size, force=True)
            results.append(lines_of(tmp_path / "out.jsonl"))
    finally:
        pairs.unlink()
    tables = np.array([[list(line["scores"].values()) for line in result] for result in results])
    assert tables.shape == (3, len(many), 3)
    np.testing.assert_allclose(tables, np.broadcast_to(tables[:1], tables.shape), atol=3e-6, rtol=0)
    np.testing.assert_allclose(tables[0, len(rows) : 2 * len(rows)], tables[0, : len(rows)], atol=3e-6, rtol=0)
    labels = [[line["labels"] for line in result] for result in results]
    assert labels[0] == labels[1] == labels[2]


def test_a_text_alone_and_a_picture_alone(run, source, tmp_path):
    picture = source / "pictures" / "circle-red-one.png"
    pairs = write_pairs(tmp_path / "pairs.jsonl", [{"text": "one red circle"}])
    assert predict([picture, pairs], run, tmp_path / "out.jsonl", device="cpu") == Counts(2, 0)
    image, text = lines_of(tmp_path / "out.jsonl")
    assert (image["id"], image["image"], image["text"]) == (picture.name, picture.name, None)
    assert (text["id"], text["image"], text["text"]) == ("pairs.jsonl:1", None, "one red circle")
    assert image["scores"] != text["scores"]
    assert len(image["labels"]) == len(text["labels"]) == 1


def test_an_empty_folder_gives_an_empty_file(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert predict([tmp_path / "empty"], run, tmp_path / "out.jsonl", device="cpu") == Counts(0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.state", "empty", "out.jsonl"]


def test_csv_holds_the_same_and_no_formula(run, tmp_path):
    texts = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", 'a "quoted", red\ncircle', "表情 🎉"]
    pairs = write_pairs(tmp_path / "pairs.jsonl", [{"id": f"={n}", "text": text} for n, text in enumerate(texts)])
    predict([pairs], run, tmp_path / "out.csv", device="cpu")
    predict([pairs], run, tmp_path / "out.jsonl", device="cpu")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["text"] for line in lines] == texts
    for cells, line in zip(table, lines, strict=True):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells.values())
        assert (cells["id"], cells["text"]) == (f"'{line['id']}", neutral(line["text"]))
        assert cells["labels"] == "|".join(line["labels"])
        assert {name: float(cells[f"score:{name}"]) for name in line["scores"]} == line["scores"]
    assert [neutral(text)[0] for text in texts[:4]] == ["'"] * 4
    assert [neutral(text) for text in (*texts[4:], "", None)] == [*texts[4:], "", ""]


def test_standard_output_and_formats(run, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.jsonl", [{"id": "a", "text": "one red circle"}])
    predict([pairs], run, device="cpu")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["id"] == "a"
    predict([pairs], run, format="csv", device="cpu")
    assert capsys.readouterr().out.startswith("id,image,text,labels,model,error,score:")


@pytest.mark.parametrize(("asked", "error", "match"), [
    ({"format": "xml"}, UsageError, "--format xml: expected jsonl or csv"),
    ({"batch_size": 0}, UsageError, "--batch-size 0: expected 1 or more"),
    ({"out": Path("/")}, BadInputError, "a folder; --out takes the file to write"),
    ({"inputs": [Path("no-such.jsonl")]}, BadInputError, "no-such.jsonl: no such file or folder"),
    ({"model": Path("no-such-run")}, BadInputError, "no-such-run: no such artifact folder; run `labeler train` first"),
])  # fmt: skip
def test_what_predict_refuses(run, source, asked, error, match):
    with pytest.raises(error, match=match):
        predict(**{"inputs": [source / "pictures"], "model": run, "device": "cpu"} | asked)


def test_an_image_tower_that_is_read_otherwise_than_in_training_is_refused(run):
    opened = load_run(run)
    image = opened.preprocessor["image"] | {"tokens": 9}
    with pytest.raises(
        LabelerError, match=r"gives \[4, 96\] a picture, and gave \[9, 96\] when .* make the store and the run"
    ):
        image_tower_of(opened._replace(preprocessor=opened.preprocessor | {"image": image}))


def test_an_image_tower_that_has_changed_is_refused(store, options, tmp_path, source, text_tower, image_tower):
    tower = Path(shutil.copytree(image_tower, tmp_path / "tower"))
    towers = {"text_encoder": str(text_tower), "image_encoder": str(tower)}
    preprocess(store.parent / "records", tmp_path / "store", **towers)
    train("resnet-gru", tmp_path / "store", tmp_path / "run", options, device="cpu")
    (tower / "config.json").write_text((tower / "config.json").read_text() + "\n", encoding="utf-8")
    with pytest.raises(LabelerError, match=r"not the image encoder that .* was made with \(sha256 differs\)"):
        predict([source / "pictures"], tmp_path / "run", device="cpu")


def test_many_labels_are_decided_by_their_thresholds(multi_store, options, tmp_path):
    run = train("visualbert", multi_store, tmp_path / "run", options, device="cpu").out
    evaluate(run, multi_store, device="cpu")
    pictures = multi_store.parent / "source" / "pictures"
    predict([pictures], run, tmp_path / "out.jsonl", device="cpu")
    limits = json.loads((run / "thresholds.json").read_text(encoding="utf-8"))["thresholds"]
    for line in lines_of(tmp_path / "out.jsonl"):
        reached = [name for (name, score), limit in zip(line["scores"].items(), limits, strict=True) if score >= limit]
        assert line["labels"] == reached
