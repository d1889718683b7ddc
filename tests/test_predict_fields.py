"""The fields of what is labelled: which are read, which are carried into the lines, what is said of those that are missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from labeler.errors import BadInputError, UsageError
from labeler.predicting import predict
from labeler.shards import Counts


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("late-fusion")


def table(path: Path, header: str, *rows: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_field_that_no_row_has_is_an_error_and_nothing_is_written(run, tmp_path):
    rows = table(tmp_path / "a.csv", "id,words,file", "1,a red circle,a.png")
    with pytest.raises(
        UsageError, match=r"--map: no row has the field 'wrods' \(for text\); there are: id, words, file"
    ):
        predict([rows], run, tmp_path / "out.jsonl", mapping={"text": "wrods"}, device="cpu")
    with pytest.raises(UsageError, match="--keep: no row has the field 'author'; there are: id, words, file"):
        predict([rows], run, tmp_path / "out.jsonl", mapping={"text": "words"}, keep=["author"], device="cpu")
    with pytest.raises(UsageError, match="--keep scores: a line has a field of that name already"):
        predict([rows], run, tmp_path / "out.jsonl", mapping={"text": "words"}, keep=["scores"], device="cpu")
    with pytest.raises(
        BadInputError, match=r"a\.csv: neither an image nor a text in its fields \(id, words, file\); --map"
    ):
        predict([rows], run, tmp_path / "out.jsonl", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_what_is_not_read_as_a_picture_is_said(run, tmp_path, caplog):
    rows = table(tmp_path / "a.csv", "id,text,bild", "1,a red circle,a.png", "2,a blue square,b.png")
    assert predict([rows], run, tmp_path / "out.jsonl", device="cpu") == Counts(2, 0)
    assert "no item has a picture; is it in one of these fields? bild: --map image=FIELD" in caplog.text
    caplog.clear()
    alone = table(tmp_path / "b.csv", "id,text", "1,a red circle")
    assert predict([alone], run, tmp_path / "b.jsonl", device="cpu") == Counts(1, 0)
    assert caplog.text == ""


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_fields_are_carried_and_a_change_in_them_is_labelled_again(run, tmp_path, form):
    rows = table(tmp_path / "a.csv", "id,text,author,date", "1,a red circle,=Ann,2026", "2,a blue square,,2025")
    out = tmp_path / f"out.{form}"

    def labelled() -> tuple[Counts, list[dict]]:
        counts = predict([rows], run, out, keep=["author", "date", "author"], device="cpu")
        return counts, lines_of(out) if form == "jsonl" else list(
            csv.DictReader(out.open(encoding="utf-8", newline=""))
        )

    counts, lines = labelled()
    assert counts == Counts(2, 0)
    assert [(line["author"], line["date"]) for line in lines] == [
        ("'=Ann" if form == "csv" else "=Ann", "2026"),
        ("", "2025"),
    ]
    table(tmp_path / "a.csv", "id,text,author,date", "1,a red circle,Eve,2026", "2,a blue square,,2025")
    counts, lines = labelled()
    assert counts == Counts(2, 0, kept=1)
    assert lines[0]["author"] == "Eve"
    table(tmp_path / "a.csv", "id,text,author,date", "1,a red circle,Ada,2026", '"3, ""x""",a green circle,,2025')
    assert labelled()[0] == Counts(2, 0, dropped=1), "one has changed, one is new, and one is gone"


def test_a_field_to_keep_is_found_in_capitals_or_not(run, tmp_path):
    rows = table(tmp_path / "a.csv", "id,Words,author,Date,date", "1,a red circle,Ann,2026,May")
    predict([rows], run, tmp_path / "out.jsonl", mapping={"text": "words"}, keep=["Author", "date"], device="cpu")
    line = lines_of(tmp_path / "out.jsonl")[0]
    assert (line["text"], line["Author"], line["date"]) == ("a red circle", "Ann", "May")
    with pytest.raises(
        UsageError, match="--keep: no row has the field 'DATE'; there are: id, Words, author, Date, date"
    ):
        predict([rows], run, tmp_path / "b.jsonl", mapping={"text": "words"}, keep=["DATE"], device="cpu")


def test_of_several_inputs_each_line_says_its_own(run, tmp_path):
    inputs = [table(tmp_path / name / "rows.csv", "text", f"a {name} circle") for name in ("red", "blue")]
    assert predict(inputs, run, tmp_path / "out.jsonl", device="cpu") == Counts(2, 0)
    lines = lines_of(tmp_path / "out.jsonl")
    assert [(line["id"], line["source"]) for line in lines] == [("rows.csv:2", str(path)) for path in inputs]
    assert predict(inputs[:1], run, tmp_path / "one.jsonl", device="cpu") == Counts(1, 0)
    assert "source" not in lines_of(tmp_path / "one.jsonl")[0]


def test_a_row_without_its_picture_may_be_labelled_by_its_text(run, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "there.png").write_bytes(next(pictures.glob("*.png")).read_bytes())
    rows = table(tmp_path / "a.csv", "id,image,text", "1,gone.png,a red circle", "2,gone.png,", "3,broken.png,a red circle",
                 "4,there.png,a red circle")  # fmt: skip
    assert predict([rows], run, tmp_path / "out.jsonl", device="cpu") == Counts(4, 3)
    assert predict([rows], run, tmp_path / "out.jsonl", allow_missing_image=True, device="cpu") == Counts(4, 2)
    first, second, third, fourth = lines_of(tmp_path / "out.jsonl")
    assert (first["image"], first["error"]) == (None, None)
    assert first["labels"]
    assert "no such file" in second["error"]
    assert third["error"]
    assert fourth["image"] == "there.png"
    words = table(tmp_path / "words.csv", "id,text", "1,a red circle")
    predict([words], run, tmp_path / "words.jsonl", device="cpu")
    assert lines_of(tmp_path / "words.jsonl")[0]["scores"] == pytest.approx(first["scores"], abs=1e-5)


def test_another_encoding_can_be_named_and_a_guess_is_said(run, tmp_path, caplog, labeler):
    rows = table(tmp_path / "a.csv", "id,text", "1,un café très fort", "2,ça va très bien là-bas", encoding="cp1252")
    done = labeler(
        "predict", rows, "--model", run, "--out", tmp_path / "out.jsonl", "--encoding", "cp850", "--device", "cpu"
    )
    assert done.code == 0, done.said
    assert lines_of(tmp_path / "out.jsonl")[0]["text"] == "un café très fort".encode("cp1252").decode("cp850")
    predict([rows], run, tmp_path / "guessed.jsonl", device="cpu")
    assert "rows that are not UTF-8 were read as cp" in caplog.text
