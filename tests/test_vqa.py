"""Visual question answering: how far people agree with an answer, from ingest to the report, by the real commands."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from labeler.cli import cli
from labeler.errors import BadInputError
from labeler.evaluation import Predictions, read_predictions, statistics, vqa_accuracy, write_predictions
from labeler.ingestion import IngestOptions, ingest
from labeler.store import Store

CLIPART = Path(__file__).parent.parent / "data" / "clipart"
QUESTIONS = ("what is drawn here?", "what kind of thing is it?")


@pytest.mark.parametrize("count", range(11))
def test_vqa_accuracy_is_the_mean_over_all_nine_of_ten_people(count):
    given = ["cat"] * count + ["dog"] * (10 - count)
    terms = [min(nine.count("cat") / 3, 1) for nine in itertools.combinations(given, 9)]
    assert vqa_accuracy("cat", given) == pytest.approx(np.mean(terms))


def test_vqa_accuracy_of_few_people_and_of_none():
    assert vqa_accuracy("a", ["a"]) == pytest.approx(1 / 3)
    assert vqa_accuracy("<unk>", ["a"] * 10) == 0
    assert math.isnan(vqa_accuracy("a", None))


def test_rows_without_answers_count_for_nothing_and_files_keep_what_is_known(tmp_path):
    flags = np.eye(3, 2, dtype=bool) | [[False, False], [False, False], [True, False]]
    found = Predictions(list("abc"), list("abc"), flags, flags * 0.5, flags, np.array([0.3, 1.0, np.nan]))
    [value] = statistics("single", found, np.ones((3, 1)), ["vqa_accuracy"]).values()
    assert value[0] == pytest.approx(0.65)
    write_predictions(tmp_path / "file.jsonl", ["x", "y"], found)
    np.testing.assert_array_equal(read_predictions(tmp_path / "file.jsonl", ["x", "y"]).agreed, found.agreed)
    write_predictions(tmp_path / "file.jsonl", ["x", "y"], found._replace(agreed=None))
    assert read_predictions(tmp_path / "file.jsonl", ["x", "y"]).agreed is None


def asked(folder: Path) -> Path:
    """Ask two questions about 45 of the clip-art drawings; ten people say what it is, four of them in other words."""
    rows = []
    with open(CLIPART / "pairs.jsonl", encoding="utf-8") as file:
        drawings = [json.loads(line) for line in itertools.islice(file, 0, 45 * 41, 41)]
    for number, drawing in enumerate(drawings):
        split = ("train", "train", "train", "validation", "test")[number % 5]
        answers = [drawing["category"]] * 6 + [drawing["text"], "a drawing", "no idea", "art"]
        rows.append({"question_id": number, "question": QUESTIONS[number % 2], "answers": answers, "split": split,
                     "image": str(CLIPART / drawing["image"])})  # fmt: skip
    (folder / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "vqa.jsonl"


def run(*arguments: object) -> None:
    """Run a command of ours."""
    cli.main([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_tower, image_tower):
    """Return a folder with records and store of the questions."""
    made = tmp_path_factory.mktemp("vqa")
    run(
        "ingest",
        asked(made),
        "--out",
        made / "records",
        "--map",
        "id=question_id",
        "--top-answers",
        3,
        "--allow-outside",
    )
    run(
        "preprocess",
        made / "records",
        "--out",
        made / "store",
        "--text-encoder",
        text_tower,
        "--image-encoder",
        image_tower,
    )
    return made


def test_the_store_keeps_all_answers(folder):
    store = Store(folder / "store")
    assert "<unk>" in store.label_set.names
    for labels, answers in zip(store.rows["labels"], store.answers, strict=True):
        name, best = store.label_set.names[labels[0]], Counter(answers).most_common(1)[0]
        assert len(answers) == 10
        assert best[1] == 6
        assert name in ("<unk>", best[0])


@pytest.mark.parametrize("model", ["visualbert", "flava", "albef"])
def test_questions_are_answered_and_measured_by_the_real_commands(folder, tmp_path, model):
    out, report = tmp_path / "run", tmp_path / "report"
    run("train", model, folder / "store", "--out", out, "--epochs", 1, "--precision", "fp32", "--device", "cpu")
    run("evaluate", out, "--data", folder / "store", "--device", "cpu")
    metrics = json.loads((out / "metrics-test.json").read_text(encoding="utf-8"))
    store = Store(folder / "store")
    answers = dict(zip(store.rows["id"], store.answers, strict=True))
    lines = [json.loads(line) for line in (out / "predictions-test.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = [vqa_accuracy(line["predicted"][0], answers[line["id"]]) for line in lines]
    assert [line["vqa_accuracy"] for line in lines] == expected
    assert metrics["vqa_accuracy"] == pytest.approx(np.mean(expected))
    assert all(0 <= base["vqa_accuracy"] <= 1 for base in metrics["baselines"])
    assert "VQA accuracy" in (out / "README.md").read_text(encoding="utf-8")
    run("report", out, "--out", report)
    comparison = json.loads((report / "comparison.json").read_text(encoding="utf-8"))
    assert [row["vqa_accuracy"] for row in comparison["models"]][-1] == metrics["vqa_accuracy"]
    for page, name in (
        ("index.html", "VQA accuracy"),
        ("comparison.md", "VQA accuracy"),
        ("comparison.csv", "vqa_accuracy"),
    ):
        assert name in (report / page).read_text(encoding="utf-8")


def test_a_vocabulary_of_other_data_is_an_error(tmp_path):
    (tmp_path / "answers.txt").write_text("left\nright\n", encoding="utf-8")
    options = IngestOptions(answers=tmp_path / "answers.txt", allow_outside=True)
    with pytest.raises(
        BadInputError, match=r"answers\.txt: none of its answers is the most frequent one to any of 45 questions"
    ):
        ingest([asked(tmp_path)], tmp_path / "records", options)


def test_a_run_with_another_vocabulary_is_refused(folder, tmp_path, text_tower, image_tower):
    run("train", "resnet-gru", folder / "store", "--out", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    run(
        "ingest",
        asked(tmp_path),
        "--out",
        tmp_path / "records",
        "--map",
        "id=question_id",
        "--top-answers",
        1,
        "--allow-outside",
    )
    run("preprocess", tmp_path / "records", "--out", tmp_path / "store", "--text-encoder", text_tower, "--image-encoder",
        image_tower)  # fmt: skip
    with pytest.raises(
        BadInputError, match=r"trained for other labels than .* \(4 for task single, 2 for single\): it lacks \[\]"
    ):
        run("evaluate", tmp_path / "run", "--data", tmp_path / "store", "--device", "cpu")
