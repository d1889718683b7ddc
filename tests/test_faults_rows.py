"""Bad rows, end to end through the command line: each test's number is the fault's in the list of what bad input gets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from labeler.cli import cli

ROWS = [{"id": f"r{n}", "text": f"text {n}", "label": "joy" if n % 2 else "anger", "likes": n} for n in range(20)]
GOOD = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
KEPT = [row["id"] for row in ROWS]
# Nothing here may act: not in a page, not in a table, not on the way from stage to stage.
EVIL_TEXTS = [
    "<script>alert(1)</script>", '"quotes" and \'more\'', "=cmd|' /C calc'!A0", "@SUM(1+1)", "+1", "-1", "＝1+1",
    "two\nlines",
    "tab\tand {{ 7*7 }}", "表情 识别 🎉👨‍👩‍👧", "\u202eright to left\u202c", "\u2066isolated", "a,b;c|d", "]]>&amp;<!--",
    "</title><img src=x onerror=alert(1)>", "e\u0301 composed",
]  # fmt: skip
EVIL_LABELS = ["=cmd|' /C calc'!\"A0\"", "<b onclick=alert(1)>two\nlines</b>"]
EVIL_NAMES = ["=cmd.png", 'a"b.png', "<img src=x>.png", "new\nline.png", "表情 🎉.png", "-1,2;3.png"]


class Answer(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


def labeler(*arguments: object, cwd: Path, command: str | None = None) -> Answer:
    """Run `labeler` with the arguments, or a whole shell `command` in which {labeler} stands for it, in the folder `cwd`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONIOENCODING": "utf-8"}
    program: list[str] = [sys.executable, "-m", "labeler", *map(str, arguments)]
    if command:
        program = ["bash", "-c", "set -o pipefail; " + command.format(labeler=f"'{sys.executable}' -m labeler")]
    done = subprocess.run(program, cwd=cwd, env=environment, capture_output=True, timeout=120, check=False)
    return Answer(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def ingest(folder: Path, data: bytes, *options: object, name: str = "pairs.jsonl") -> Answer:
    """Write `data` as `folder`/NAME and ingest it into `folder`/records; nothing ends in a traceback."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    answer = labeler("ingest", name, "--out", "records", "--force", *options, cwd=folder)
    assert "Traceback" not in answer.err
    assert "a bug" not in answer.err
    return answer


def lines(path: Path) -> list[dict]:
    """Return the objects in a jsonl file, whose lines end in line feeds alone."""
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def kept(folder: Path) -> list[str]:
    return [record["id"] for record in lines(folder / "records" / "records.jsonl")]


def rejects(folder: Path) -> list[tuple]:
    found = lines(folder / "records" / "rejects.jsonl")
    assert all(set(item) == {"source", "line", "id", "code", "message"} for item in found)
    assert all(item["source"] == "pairs.jsonl" and item["message"] for item in found)
    return [(item["line"], item["id"], item["code"]) for item in found]


def as_json(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_fault_01_a_cut_off_last_line_is_rejected(tmp_path):
    whole = as_json({"id": "last", "text": "a text", "label": "joy"})
    for length in (1, 5, len(whole) // 2, len(whole) - 2):
        answer = ingest(tmp_path, GOOD + whole[:length])
        assert answer.code == 4
        assert "20 of 21 rows kept, 1 rejected (not-json 1)" in answer.err
        assert rejects(tmp_path) == [(21, None, "not-json")]
        assert kept(tmp_path) == KEPT
    answer = ingest(tmp_path, GOOD + whole[:5], "--strict", "--out", "none")
    assert (answer.code, answer.err.count("\n")) == (3, 1)
    assert answer.err.startswith("error: pairs.jsonl:21: not JSON")
    assert ingest(tmp_path, GOOD + whole[:-1]).code == 0, "only the line's end is missing"


MARKS = {
    "BOM": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "blank lines": lambda data: b"\n \n" + data.replace(b"\n", b"\n\n\t\n"),
    "all of it": lambda data: b"\xef\xbb\xbf\r\n" + data.replace(b"\n", b"\r\n\r\n"),
    "no last line end": lambda data: data.rstrip(b"\n"),
}


@pytest.mark.parametrize("form", ["jsonl", "csv", "without ids"])
def test_fault_02_marks_and_blank_lines_give_the_same_records_byte_for_byte(tmp_path, form):
    data, name = GOOD, "pairs.jsonl"
    if form == "csv":
        data = "".join(f"{row['id']},é {row['text']},{row['label']}\n" for row in ROWS).encode()
        data, name = b"id,text,label\n" + data, "pairs.csv"
    if form == "without ids":
        data = as_json(*({key: value for key, value in row.items() if key != "id"} for row in ROWS))
    assert ingest(tmp_path / "clean", data, name=name).code == 0
    clean = (tmp_path / "clean" / "records" / "records.jsonl").read_bytes()
    assert clean.count(b"\n") == 20
    for how, mark in MARKS.items():
        marked = mark(data)
        if form == "csv" and "blank" in how:
            marked = b"\n \n" + data.replace(b"\n", b"\n\n")
        answer = ingest(tmp_path / how, marked, name=name)
        assert (answer.code, how) == (0, how)
        assert (tmp_path / how / "records" / "records.jsonl").read_bytes() == clean, how


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"id": "x", "text": "x", "label": "joy", "likes": NaN}', "not-json"),
        (b'{"id": "x", "text": "x", "label": "joy", "likes": [1, -Infinity]}', "not-json"),
        (b'{"id": "x", "text": "x", "label": "joy", "label": "joy"}', "duplicate-key"),
        (b"{'id': 'x', 'text': 'x', 'label': 'joy', 'id': 'y'}", "duplicate-key"),
        (b'["x", "a text", "joy"]', "not-an-object"),
        (b'"x"', "not-an-object"),
        (b"null", "not-an-object"),
    ],
)
def test_fault_03_nan_duplicate_keys_and_arrays_are_rejected(tmp_path, line, code):
    halves = GOOD.splitlines(keepends=True)
    assert ingest(tmp_path, b"".join([*halves[:7], line, b"\n", *halves[7:]])).code == 4
    assert rejects(tmp_path) == [(8, None, code)]
    assert kept(tmp_path) == KEPT


def test_fault_04_a_duplicate_id_counts_once_or_is_rejected_with_its_twin(tmp_path):
    same = ingest(tmp_path, GOOD + as_json(ROWS[3], ROWS[3]))
    assert same.code == 4
    assert rejects(tmp_path) == [(21, "r3", "duplicate"), (22, "r3", "duplicate")]
    assert kept(tmp_path) == KEPT
    for change in ({"text": "other"}, {"label": "anger"}, {"likes": 99}, {"image": None, "note": ""}):
        assert ingest(tmp_path, GOOD + as_json(ROWS[3] | change)).code == 4
        assert rejects(tmp_path) == [(4, "r3", "id-conflict"), (21, "r3", "id-conflict")]
        assert kept(tmp_path) == [identity for identity in KEPT if identity != "r3"]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b'{"id": "x", "text": "caf\xe9", "label": "joy"}', "not-utf8"),
        ('{"id": "x", "text": "é", "label": "joy"}'.encode("utf-16-le"), "not-utf8"),
        (rb'{"id": "x", "text": "half \ud83d", "label": "joy"}', "text-invalid"),
        (rb'{"id": "half \udc00", "text": "x", "label": "joy"}', "id-invalid"),
        (rb'{"id": "x", "text": "nul \u0000", "label": "joy"}', "text-invalid"),
        (rb'{"id": "x", "text": "x", "label": "nul \u0000"}', "label-invalid"),
        (b'{"id": "x", "text": "' + b"x" * (1 << 20) + b'", "label": "joy"}', "text-too-long"),
        (b'{"id": "' + b"x" * (1 << 20) + b'", "text": "x", "label": "joy"}', "id-too-long"),
    ],
)
def test_fault_12_text_that_no_export_can_carry_is_rejected(tmp_path, bad, code):
    assert ingest(tmp_path, bad + b"\n" + GOOD).code == 4
    assert [(line, found) for line, _, found in rejects(tmp_path)] == [(1, code)]
    assert kept(tmp_path) == KEPT


def test_fault_12_other_text_is_cleaned_by_the_written_rule(tmp_path):
    given = ["  e\u0301 \n", "\u202eback\u202c", "bell \x07 and escape \x1b[31m", "line\u2028separator", "\ufefffirst"]
    wanted = ["\u00e9", "\u202eback\u202c", "bell \x07 and escape \x1b[31m", "line\u2028separator", "\ufefffirst"]
    rows = [{"id": f"x{n}", "text": text, "label": "joy"} for n, text in enumerate(given)]
    rows.append({"id": "y", "text": "x", "label": "joy", "note": "half \ud83d"})
    assert ingest(tmp_path, as_json(*rows) + GOOD).code == 0
    records = lines(tmp_path / "records" / "records.jsonl")
    assert [record["text"] for record in records[:5]] == wanted
    assert records[5]["meta"]["note"] == "half ?"
    assert labeler("export-tasks", "records", "--out", "tasks.json", cwd=tmp_path).code == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["text"] for task in tasks[:5]] == wanted


def test_fault_12_a_table_in_another_encoding_is_read_and_counted(tmp_path):
    table = "id,text,label\n" + "".join(f"r{n},今天的天气非常好，我们去公园吧 {n},{'喜怒'[n % 2]}\n" for n in range(20))
    answer = ingest(tmp_path, table.encode("gb18030"), name="pairs.csv")
    assert answer.code == 0
    assert "20 rows were not UTF-8, read as gb" in answer.err
    assert lines(tmp_path / "records" / "records.jsonl")[0]["text"] == "今天的天气非常好，我们去公园吧 0"


def test_fault_14_a_label_outside_the_vocabulary_is_rejected_with_the_closest(tmp_path):
    tmp_path.joinpath("labels.txt").write_text("joy\r\nanger\n\nsurprise\n", encoding="utf-8")
    bad = [{"id": "x", "text": "x", "label": "jyo"}, {"id": "y", "text": "y", "label": "Surprised"}]
    answer = ingest(tmp_path, GOOD + as_json(*bad), "--labels", "labels.txt")
    assert answer.code == 4
    assert "20 of 22 rows kept, 2 rejected (label-unknown 2)" in answer.err
    assert rejects(tmp_path) == [(21, "x", "label-unknown"), (22, "y", "label-unknown")]
    messages = [item["message"] for item in lines(tmp_path / "records" / "rejects.jsonl")]
    assert messages == [
        "the label 'jyo' is not in labels.txt; the closest is 'joy'",
        "the label 'Surprised' is not in labels.txt; the closest is 'surprise'",
    ]
    many = as_json(*({"id": f"m{n}", "text": f"m {n}", "label": ["joy", "anger", "glee"][: n % 4]} for n in range(8)))
    assert ingest(tmp_path, many, "--labels", "labels.txt").code == 4
    assert [identity for _, identity, _ in rejects(tmp_path)] == ["m3", "m7"]
    assert ingest(tmp_path, GOOD + as_json(*bad)).code == 0, "without the vocabulary they are labels like others"


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


class Pipeline(NamedTuple):
    """A folder in which every stage was run on EVIL_TEXTS, EVIL_LABELS and EVIL_NAMES, and the rows that went in."""

    folder: Path
    rows: list[dict]
    run: Callable[..., None]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, picture_bytes, text_tower, image_tower) -> Pipeline:
    folder = tmp_path_factory.mktemp("evil")
    (folder / "pictures").mkdir()
    for number, name in enumerate(EVIL_NAMES):
        (folder / "pictures" / name).write_bytes(picture_bytes(number, "PNG"))
    rows = []
    for number in range(3 * len(EVIL_TEXTS)):
        text, split = EVIL_TEXTS[number % len(EVIL_TEXTS)], ("test", "train", "validation")[number // len(EVIL_TEXTS)]
        row = {"id": f"{text}#{number}", "text": text, "label": (EVIL_LABELS[number % 2],), "split": split}
        rows.append(row | ({"image": f"pictures/{EVIL_NAMES[number]}"} if number < len(EVIL_NAMES) else {}))
    rows += [{"id": f"no text {number}", "text": "", "image": f"pictures/{EVIL_NAMES[number]}", "split": "train",
              "label": (EVIL_LABELS[number % 2],)} for number in range(len(EVIL_NAMES))]  # fmt: skip
    # as Python writes them: a tuple is one label, even one that holds the separator
    (folder / "pairs.jsonl").write_text("".join(f"{row!r}\n" for row in rows), encoding="utf-8")

    def run(*arguments: object) -> None:
        # in this process: torch takes long to load, and `labeler` above has shown that the command is there
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output

    run("ingest", "pairs.jsonl", "--out", "records")
    run("preprocess", "records", "--out", "store", "--text-encoder", text_tower, "--image-encoder", image_tower)
    run("train", "visualbert", "store", "--out", "run", "--epochs", 1, "--batch-size", 16, "--device", "cpu")
    run("evaluate", "run", "--data", "store")
    run("report", "run", "--out", "report")
    for name in ("jsonl", "csv"):
        run("predict", "pairs.jsonl", "--model", "run", "--out", f"out.{name}", "--device", "cpu")
    return Pipeline(folder, rows, run)


def expected_text(row: dict) -> str | None:
    """Return the text as the written rule leaves it: composed, and None where there is none."""
    return row["text"].replace("e\u0301", "\u00e9") or None


def test_fault_13_emoji_chinese_no_text_and_script_come_back_exactly(pipeline):
    records = lines(pipeline.folder / "records" / "records.jsonl")
    assert [record["text"] for record in records] == list(map(expected_text, pipeline.rows))
    predicted = lines(pipeline.folder / "out.jsonl")
    assert [line["text"] for line in predicted] == list(map(expected_text, pipeline.rows))
    assert all(line["error"] is None for line in predicted)
    assert {record["text"] for record in records} >= {"表情 识别 🎉👨‍👩‍👧", "<script>alert(1)</script>", None}


def test_fault_13_texts_are_inert_on_the_page(pipeline):
    page = Page((pipeline.folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "form"}
    assert not {name for name in page.attributes if name.startswith("on")}
    shown = [text for text in map(expected_text, pipeline.rows[: len(EVIL_TEXTS)]) if text and text in page.text]
    assert len(shown) >= 12, "the page shows what it was asked to show"
    assert "<b onclick=alert(1)>" in page.text
    assert any("<" in text for text in shown)


def test_fault_32_labels_names_and_texts_are_exact_in_jsonl(pipeline):
    predicted = lines(pipeline.folder / "out.jsonl")
    for line, row in zip(predicted, pipeline.rows, strict=True):
        assert (line["id"], line["image"]) == (row["id"].replace("e\u0301", "\u00e9"), row.get("image"))
        assert set(line["scores"]) == set(EVIL_LABELS)
    records = lines(pipeline.folder / "records" / "records.jsonl")
    assert [record["labels"] for record in records] == [list(row["label"]) for row in pipeline.rows]
    assert {record["image"] for record in records if record["image"]} == {f"pictures/{name}" for name in EVIL_NAMES}


def test_fault_32_no_cell_of_a_table_is_a_formula(pipeline):
    with open(pipeline.folder / "out.csv", encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, strict=True))
    assert len(table) == len(pipeline.rows) + 1
    assert {len(cells) for cells in table} == {len(table[0])}
    cells = [cell for row in table for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@＝＋－＠\t\r\n") and cell]
    texts = [row[table[0].index("text")] for row in table[1:]]
    assert [text.removeprefix("'") for text in texts] == [expected_text(row) or "" for row in pipeline.rows]
    assert any(text.startswith("'=cmd") for text in texts), "a formula was there to be made neutral"


def test_fault_32_labels_are_escaped_on_the_page_and_in_tasks(pipeline):
    page = Page((pipeline.folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert all(label in page.text for label in EVIL_LABELS)
    pipeline.run("export-tasks", "out.jsonl", "--out", "tasks.json")
    choices = [item.get("value") for item in ElementTree.parse(pipeline.folder / "tasks.xml").iter("Choice")]
    assert sorted(choices) == sorted(EVIL_LABELS)
    tasks = json.loads((pipeline.folder / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["text"] for task in tasks] == [expected_text(row) or "" for row in pipeline.rows]


def test_fault_32_a_folder_with_such_names_is_labelled(pipeline):
    pipeline.run("predict", "pictures", "--model", "run", "--out", "folder.csv", "--device", "cpu")
    with open(pipeline.folder / "folder.csv", encoding="utf-8", newline="") as file:
        images = [row["image"] for row in csv.DictReader(file, strict=True)]
    neutral = {f"'{name}" if name[0] in "=-" else name for name in EVIL_NAMES}
    assert set(images) == neutral


def test_fault_31_a_reader_that_has_seen_enough_ends_it_quietly(pipeline):
    def through_head(command: str) -> Answer:
        return labeler(cwd=pipeline.folder, command=f"{{labeler}} {command} | head -n 1")

    many = as_json(*({"id": str(number), "text": "x" * 2000} for number in range(300)))  # more than a pipe holds
    (pipeline.folder / "many.jsonl").write_bytes(many)
    first = through_head("predict many.jsonl --model run --device cpu")
    assert (first.code, json.loads(first.out)["id"]) == (0, "0")
    assert "Error" not in first.err
    assert "Traceback" not in first.err
    for command, line in (
        ("inspect records", "rows "), ("ingest pairs.jsonl --out records --json", "{"), ("--quiet report run --json", "{"),
        ("--help", "Usage: labeler"),
    ):  # fmt: skip
        answer = through_head(command)
        assert (answer.code, answer.err) == (0, ""), command
        assert answer.out.startswith(line)
