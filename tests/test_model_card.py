"""The model card: figures as they were measured, Markdown that nothing breaks, and code that runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from labeler.artifacts import sha256_file, verify
from labeler.evaluating import evaluate
from labeler.model_card import cell, model_card
from labeler.predicting import label, predict
from labeler.runs import load_run
from labeler.training import train


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("late-fusion"), tmp_path / "a run"))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_card_is_told_anew_when_the_run_is_measured(run, store):
    before = (run / "README.md").read_text(encoding="utf-8")
    assert "Not measured on held-out pairs yet" in before
    assert ModelCard(before).data.eval_results is None
    metrics = evaluate(run, store, device="cpu").metrics
    card = ModelCard.load(run / "README.md")
    low, high = metrics["accuracy_ci95"]
    assert f"| late-fusion | {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}] |" in card.text
    assert f"| logistic-regression | {metrics['baselines'][1]['accuracy']:.3f}" in card.text
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {key: round(metrics[key], 4) for key in ("accuracy", "weighted_f1", "macro_f1")}
    assert card.data.library_name == "labeler"
    for row in metrics["per_class"]:
        assert f"| {row['label']} |" in card.text
    assert f"temperature of {metrics['calibration']['temperature']:.3f}" in card.text
    assert verify(run, "train")["stage"] == "train", "the card is no part of the run's hash"


def test_figures_of_the_validation_split_do_not_stand_in_the_card(run, store):
    before = (run / "README.md").read_bytes()
    evaluate(run, store, split="validation", device="cpu")
    assert (run / "README.md").read_bytes() == before


def test_a_card_that_belongs_to_an_older_run_is_left_alone(run, store):
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["README.md"] = sha256_file(run / "README.md")
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = (run / "README.md").read_bytes()
    evaluate(run, store, device="cpu")
    assert (run / "README.md").read_bytes() == before
    verify(run, "train")


def test_the_code_in_the_card_runs(run, tmp_path):
    card = (run / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 3
    code = code.replace(repr(re.search(r"load_run\('(.*?)'\)", code)[1]), repr(str(run)))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    [line] = eval(done.stdout)
    assert (line["error"], len(line["labels"]), line["text"]) == (None, 1, "its caption")


def test_the_library_labels_as_the_command_does(run, store, tmp_path):
    source = store.parent / "source"
    rows = lines_of(source / "pairs.jsonl")[:6]
    pairs = [row | {"image": row["image"] and str(source / row["image"])} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    predict([tmp_path / "pairs.jsonl"], run, tmp_path / "out.jsonl", device="cpu", allow_outside=True)
    written = lines_of(tmp_path / "out.jsonl")
    opened = load_run(run)
    found = label(opened, pairs)
    assert [line["scores"] for line in found] == [line["scores"] for line in written]
    held = [pair | {"image": pair["image"] and Path(pair["image"]).read_bytes()} for pair in pairs]
    assert [line["scores"] for line in label(opened, held)] == [line["scores"] for line in written]
    missing, empty = label(opened, [{"image": "no such file.jpg"}, {}])
    assert "no such file" in missing["error"]
    assert empty["error"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"text": "x"}, "pairs: expected a list of pairs, not one pair"),
        (["text"], "pair 1: expected a dict with an 'image', a 'text' or both, not str"),
        (
            [{}, {"image": Image.new("RGB", (4, 4))}],
            "pair 2: expected the path or the bytes of a picture's file .* not Image",
        ),
    ],
    ids=["one pair", "a text", "a picture"],
)
def test_what_is_no_pair_is_said_in_a_sentence(run, pairs, message):
    opened = load_run(str(run))
    assert opened.folder == run
    with pytest.raises(TypeError, match=message):
        label(opened, pairs)


def test_the_command_in_the_card_names_what_is_not_the_models_own(store, options, tmp_path):
    run = train("late-fusion", store, tmp_path / "run", options, seed=3, device="cpu").out
    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"labeler train late-fusion {store} --out {run} --epochs 2" in card
    assert card.count("--learning-rate") == (options.learning_rate != 1e-4)
    assert "--seed 3" in card
    card = (train("resnet-gru", store, tmp_path / "gru", options, device="cpu").out / "README.md").read_text(
        encoding="utf-8"
    )
    assert "--new-learning-rate" in card
    assert " --learning-rate" not in card


def test_several_labels_have_thresholds(multi_store, options, tmp_path):
    run = train("late-fusion", multi_store, tmp_path / "run", options, device="cpu").out
    thresholds = json.loads((run / "thresholds.json").read_text(encoding="utf-8"))["thresholds"]
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| label | pairs in the data | threshold |" in card
    assert f"| {thresholds[0]:.3f} |" in card
    evaluate(run, multi_store, device="cpu")
    assert "mean average precision" in (run / "README.md").read_text(encoding="utf-8")


def test_names_from_the_data_stay_text(run, store):
    labels = json.loads((run / "labels.json").read_text(encoding="utf-8"))
    labels["labels"][0]["name"] = "a|b\n<script>[x](y)"
    (run / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    trained = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    card = model_card(run, trained)
    assert "<script>" not in card
    widths = {line.replace("\\|", "").count("|") for line in card.splitlines() if line.startswith("|")}
    assert widths == {3}
    assert cell("a\nb") == "a b"
