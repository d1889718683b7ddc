"""Questions with answers: the label is the answer that most people gave, one of a vocabulary, or <unk>."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from labeler.cli import cli
from labeler.errors import BadInputError, UsageError
from labeler.ingestion import Ingested, IngestOptions, ingest
from labeler.records import Record, Row, read_label_set, read_records
from labeler.sources.answers import given_answers, with_answer

# In train: red 3, two 2, Two. 1, blue 1; blue is the most frequent of all rows, as test and validation say it.
GIVEN = {
    "train": ["red", "red", "red", "two", "two", "Two.", "blue"],
    "validation": ["blue", "red"],
    "test": ["blue"] * 3,
}


def answers(best: str) -> list[str]:
    """Return ten answers of which `best` is the most frequent."""
    return ["other", best, best, "else", best, *"abcde"]


def questions(path: Path, *, split: bool = True, **fields) -> Path:
    """Write a row for every answer of GIVEN as jsonl."""
    rows = [{"question_id": f"{part}{number}", "question": f"what is {part} {number}?", "answers": answers(best)}
            | ({"split": part} if split else {}) | fields
            for part, given in GIVEN.items() for number, best in enumerate(given)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(tmp_path: Path, **options) -> Ingested:
    return ingest([questions(tmp_path / "vqa.jsonl")], tmp_path / "records", IngestOptions(**options))


def labels(result: Ingested, split: str = "train") -> list[str]:
    return [record.labels[0] for record in read_records(result.out) if record.split == split]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (["2011"] * 10, "2011"),
        (["b", "a", "a", "b", "c"], "b"),
        (["a", "b", "b"], "b"),
        (["Red", "red", "RED."], "Red"),
        (["yes|no", "yes|no"], "yes|no"),
        (["[a]", "[a]"], "[a]"),
        ([{"answer": "x", "answer_confidence": "yes"}, {"answer": "y"}, {"answer": "y"}], "y"),
        (("t", "t"), "t"),
        (["two", 2, 2], "2"),
        ([{"answer": 1.5}, 3, {"answer": 1.5}], "1.5"),
        ([True, float("nan"), float("inf"), "yes"], "yes"),
    ],
)
def test_the_label_is_the_most_frequent_answer_and_of_equals_the_first(given, label):
    row = with_answer(Row("s", 1, {"question": "what?", "answers": given}), {})
    assert row.fields["label"] == (label,)


@pytest.mark.parametrize(
    ("fields", "mapping"),
    [
        ({"Question": "what?", " ANSWERS": ["a", "b", "b"]}, {}),
        ({"query": "what?", "answers": ["a", "b", "b"]}, {"text": "query"}),
        ({"Query": "what?", "answers": ["a", "b", "b"]}, {"text": "query"}),
    ],
)
def test_question_and_answers_are_found_as_other_fields_are(fields, mapping):
    assert with_answer(Row("s", 1, fields), mapping).fields["label"] == ("b",)


def test_what_people_said_is_kept_whatever_its_field_is_spelt_like():
    assert given_answers({"Answers": ["two", 2, None]}) == ["two", "2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "what?", "answers": ["a"], "label": "own"},
        {"answers": ["a"]},
        {"question": "what?", "answers": "a"},
        {"question": "what?", "answers": {"text": ["a"]}},
        {"question": "what?", "answers": []},
        {"question": "what?", "answers": [None, {"text": "a"}]},
        {"question": "what?", "answers": [True, 10**5000]},
        {"question": "what?"},
    ],
)
def test_any_other_row_stays_as_it_is(fields):
    assert with_answer(Row("s", 1, fields), {}).fields == fields


def test_a_label_that_was_named_goes_before_the_answers(tmp_path):
    result = ingest([questions(tmp_path / "vqa.jsonl")], tmp_path / "records", IngestOptions(label="answers"))
    assert result.profile["task"] == "multi"
    assert "else" in read_label_set(result.out).names


def test_the_text_is_the_question_and_the_answers_stay_in_the_record(tmp_path):
    result = run(tmp_path, mapping={"id": "question_id"})
    first: Record = next(read_records(result.out))
    assert (first.id, first.text, first.labels) == ("train0", "what is train 0?", ("red",))
    assert first.meta["answers"] == answers("red")
    assert result.profile["task"] == "single"
    assert read_label_set(result.out).names == ["blue", "red", "two", "Two."]


def test_only_train_rows_say_which_answers_are_frequent(tmp_path):
    result = run(tmp_path, top_answers=2)
    assert labels(result) == ["red", "red", "red", "two", "two", "<unk>", "<unk>"]
    assert labels(result, "test") == ["<unk>"] * 3
    assert labels(result, "validation") == ["<unk>", "red"]
    assert [(label.name, label.count) for label in read_label_set(result.out).labels] == [
        ("<unk>", 6), ("red", 4), ("two", 2)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [4, 5, 1000])
def test_more_than_there_are_change_nothing(tmp_path, count):
    assert labels(run(tmp_path, top_answers=count)) == GIVEN["train"]


def test_equally_frequent_answers_are_cut_by_name(tmp_path):
    assert labels(run(tmp_path, top_answers=3)) == ["red", "red", "red", "two", "two", "Two.", "<unk>"]


def test_splits_that_are_drawn_are_drawn_first(tmp_path):
    source = questions(tmp_path / "vqa.jsonl", split=False)
    result = ingest([source], tmp_path / "records", IngestOptions(top_answers=1))
    plain = ingest([source], tmp_path / "plain")
    counts = plain.profile["labels"]["train"]
    best = min(counts, key=lambda name: (-counts[name], name))
    for ours, theirs in zip(read_records(result.out), read_records(plain.out), strict=True):
        assert (ours.id, ours.split) == (theirs.id, theirs.split)
        assert ours.labels == (theirs.labels if theirs.labels == (best,) else ("<unk>",))
    assert result.profile["labels"]["train"] == {best: counts[best], "<unk>": sum(counts.values()) - counts[best]}


def test_a_vocabulary_file_decides(tmp_path):
    (tmp_path / "vocabulary.txt").write_bytes(b"\xef\xbb\xbf<unk>\r\nblue\r\n\r\n Two. \r\nnever\r\n")
    result = run(tmp_path, answers=tmp_path / "vocabulary.txt")
    assert labels(result) == ["<unk>"] * 5 + ["Two.", "blue"]
    assert read_label_set(result.out).names == ["<unk>", "blue", "Two."]
    assert run(tmp_path, answers=tmp_path / "vocabulary.txt").already
    (tmp_path / "vocabulary.txt").write_text("red\ntwo\n")
    again = run(tmp_path, answers=tmp_path / "vocabulary.txt")
    assert not again.already
    assert labels(again) == ["red", "red", "red", "two", "two", "<unk>", "<unk>"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no label in it"),
        (b"\n \n", "no label in it"),
        (b"\xff", "a label a line in UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, data, message):
    if data is not None:
        (tmp_path / "vocabulary.txt").write_bytes(data)
    with pytest.raises(BadInputError, match=rf"vocabulary\.txt.*{message}"):
        run(tmp_path, answers=tmp_path / "vocabulary.txt")


def test_two_vocabularies_are_refused(tmp_path):
    for other in ({"top_answers": 3}, {"labels": tmp_path / "labels.txt"}):
        with pytest.raises(UsageError, match="--labels, --answers and --top-answers: expected one of them"):
            run(tmp_path, answers=tmp_path / "vocabulary.txt", **other)


def test_answers_that_are_secret_are_rejects(tmp_path):
    path = questions(tmp_path / "vqa.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["answers"] = [""] * 10
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = ingest([path], tmp_path / "records")
    assert result.profile["rejects"] == {"label-missing": 1}


def test_on_the_command_line(tmp_path):
    source = questions(tmp_path / "vqa.jsonl")
    given = ["ingest", str(source), "--out", str(tmp_path / "records"), "--map", "id=question_id", "--top-answers", "1"]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 0, result.output
    assert read_label_set(tmp_path / "records").names == ["<unk>", "red"]


def test_questions_about_pictures_as_bytes(tmp_path, picture_bytes):
    import lance
    import pyarrow

    rows = [{"image": picture_bytes(number // 2), "question": f"what is {number}?", "answers": answers("ab"[number % 2])}
            for number in range(20)]  # fmt: skip
    lance.write_dataset(pyarrow.Table.from_pylist(rows), str(tmp_path / "vqa.lance"))
    result = ingest([tmp_path / "vqa.lance"], tmp_path / "records", IngestOptions(top_answers=2))
    assert result.profile["leaked_rows"] == 0, "questions about one picture stay together"
    assert len(list((tmp_path / "records" / "pictures").rglob("*.jpg"))) == 10
    assert sorted(read_label_set(result.out).names) == ["a", "b"]
