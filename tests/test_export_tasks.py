"""Tasks for Label Studio: the labels come back through its export, both files hold, and what cannot be written is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from recording import record_from, write_records

from labeler.cli import cli
from labeler.errors import BadInputError, UsageError
from labeler.export_tasks import Exported, export_tasks
from labeler.records import Label, LabelSet, Record, Row
from labeler.sources import label_studio

ODD = [
    'say "no"',
    "it's",
    "two\r\nlines\ttab",
    "<b>&amp;</b>",
    "悲しい 生气",
    "a|b",
    "[draft]",
    "=cmd",
    'name="labels"',
    "1.0",
]


def line(number: int, *labels: str, names: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a line as `labeler predict` writes it: one label, or any number where `names` holds all labels."""
    low = 0.05 if names else 0.2 / (len(ODD) - 1)
    scores = {name: 0.8 if name in labels else low for name in names or ODD}
    pair = {"id": f"pair {number}", "image": f"a b/图+{number}#&.jpg", "text": f"text {number} <i>"}
    return pair | {"labels": list(labels), "scores": scores, "model": "runs/mine", "error": None} | fields


def write(folder: Path, *lines: Any, name: str = "labels.jsonl") -> Path:
    path = folder / name
    parts = [item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=False).encode() for item in lines]
    path.write_bytes(b"".join(part + b"\n" for part in parts))
    return path


def export(folder: Path, *lines: Any, **options: Any) -> tuple[list[dict[str, Any]], ElementTree.Element, Exported]:
    """Return the tasks, the interface and what was done."""
    done = export_tasks(write(folder, *lines), folder / "tasks.json", **options)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    return tasks, ElementTree.parse(folder / "tasks.xml").getroot(), done


def annotated(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tasks as Label Studio exports them once an annotator has accepted every prediction."""
    return [
        {"id": number, "data": task["data"], "annotations": [{"id": number, "was_cancelled": False, **prediction}]}
        for number, task in enumerate(tasks, 1000)
        for prediction in task["predictions"]
    ]


def back(folder: Path, tasks: list[dict[str, Any]]) -> list[Record]:
    """Return the records read from such an export."""
    path = folder / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return [record_from(row, {}) for row in label_studio.read(path) if isinstance(row, Row)]


def essence(item: Record) -> tuple:
    return item.id, item.image, item.text, item.labels


def test_a_task_holds_the_pair_and_its_prediction(tmp_path):
    tasks, view, done = export(tmp_path, line(1, "it's"))
    assert tasks == [
        {
            "data": {
                "id": "pair 1",
                "image": "/data/local-files/?d=a%20b/%E5%9B%BE%2B1%23%26.jpg",
                "text": "text 1 <i>",
            },
            "predictions": [
                {
                    "model_version": "runs/mine",
                    "score": 0.8,
                    "result": [
                        {"from_name": "labels", "to_name": "text", "type": "choices", "value": {"choices": ["it's"]}}
                    ],
                }
            ],
        }
    ]
    assert [(tag.tag, tag.attrib) for tag in view][:2] == [
        ("Image", {"name": "image", "value": "$image"}),
        ("Text", {"name": "text", "value": "$text"}),
    ]
    assert view[2].attrib == {"name": "labels", "toName": "text", "choice": "single"}
    assert [choice.attrib["value"] for choice in view[2]] == ODD, "every label, in the model's order"
    assert done == Exported(1, 0, ODD, "single", tmp_path / "tasks.xml")


def test_one_label_an_item_comes_back_through_label_studio(tmp_path):
    tasks, _, _ = export(tmp_path, *(line(number, name) for number, name in enumerate(ODD)))
    found = back(tmp_path, annotated(tasks))
    assert [item.labels for item in found] == [(name,) for name in ODD]
    assert [(item.id, item.image) for item in found] == [(f"pair {n}", f"a b/图+{n}#&.jpg") for n in range(len(ODD))]
    assert not any("labels" in item.meta for item in found), "the labels stand once in a record"


def test_any_number_of_labels_comes_back_through_label_studio(tmp_path):
    given = [ODD[:3], [], ODD[3:], ODD[:1]]
    tasks, view, done = export(tmp_path, *(line(n, *labels, names=ODD) for n, labels in enumerate(given)))
    assert (done.task, view[2].attrib["choice"]) == ("multi", "multiple")
    assert tasks[1]["predictions"][0] == {"model_version": "runs/mine", "score": 0.95, "result": []}
    assert [item.labels for item in back(tmp_path, annotated(tasks))] == [tuple(labels) for labels in given]


def test_one_label_each_is_single_only_where_scores_are_shares(tmp_path):
    assert export(tmp_path, line(1, "a", names=["a", "b"]), line(2, "b", names=["a", "b"]))[2].task == "multi"
    assert export(tmp_path, line(1, "a", scores={"a": 0.9996, "b": 0.0003}))[2].task == "single"
    assert export(tmp_path, line(1, "a", "b", scores={"a": 0.5, "b": 0.5}))[2].task == "multi"
    many = {str(number): round(1 / 6400, 6) for number in range(6400)}  # whose sum is 0.9984
    assert export(tmp_path, line(1, "7", scores=many))[2].task == "single"


def test_records_that_nobody_has_labelled_leave_the_interface_as_it_is(tmp_path):
    texts = {"1": ("a",), "2": None, "3": ("b",)}
    write_records(tmp_path / "records.jsonl", [Record(id=n, text=n, labels=labels) for n, labels in texts.items()])
    assert export_tasks(tmp_path / "records.jsonl", tmp_path / "tasks.json").task == "single"
    write_records(
        tmp_path / "records.jsonl", [Record(id="1", text="1", labels=("a",)), Record(id="2", text="2", labels=())]
    )
    assert export_tasks(tmp_path / "records.jsonl", tmp_path / "tasks.json").task == "multi"


def test_items_that_were_withheld_for_review_leave_the_interface_as_it_is(tmp_path):
    withheld = line(2, scores={"a": 0.6, "b": 0.4}, review=True)
    sure = line(1, "a", scores={"a": 0.9, "b": 0.1}, review=False)
    tasks, view, done = export(tmp_path, sure, withheld)
    assert (done.task, view[2].attrib["choice"]) == ("single", "single")
    assert [task["predictions"][0]["result"] for task in tasks][1] == []
    assert [task["predictions"][0]["score"] for task in tasks] == [0.9, 0.6]
    parents = line(3, scores={"a": 0.6, "b": 0.4, "letter": 1.0}, review=True, label=None)
    assert export(tmp_path, parents)[2].task == "single"
    several = line(4, scores={"a": 0.9, "b": 0.8}, review=True)
    assert export(tmp_path, several)[2].task == "multi"


def test_records_come_back_with_their_labels_as_annotations(tmp_path):
    records = [
        Record(id=str(n), image=f"{n}.jpg" if n else None, text="t", labels=(name,)) for n, name in enumerate(ODD)
    ]
    folder = tmp_path / "records"
    folder.mkdir()
    write_records(folder / "records.jsonl", records)
    for source in (folder, folder / "records.jsonl"):
        done = export_tasks(source, tmp_path / "tasks.json")
        tasks = json.loads((tmp_path / "tasks.json").read_text())
        assert [essence(item) for item in back(tmp_path, tasks)] == [essence(item) for item in records]
        assert done.task == "single"
    labels = LabelSet(
        task="multi", labels=(Label(name="sky", count=0), *(Label(name=r.labels[0], count=1) for r in records))
    )
    (folder / "labels.json").write_text(labels.model_dump_json())
    assert (export_tasks(folder, tmp_path / "tasks.json").task, done.labels[0]) == ("multi", ODD[0])
    assert export_tasks(folder, tmp_path / "tasks.json").labels == labels.names
    (folder / "labels.json").write_text("{")
    with pytest.raises(BadInputError, match="not a label set"):
        export_tasks(folder, tmp_path / "tasks.json")


def test_unlabelled_records_are_tasks_without_annotation(tmp_path):
    tasks, _, _ = export(tmp_path, {"id": "1", "text": "a", "labels": ["joy"]},
                         {"id": "2", "text": "b", "labels": None})  # fmt: skip
    assert tasks[1] == {"data": {"id": "2", "text": "b"}}


def test_fields_that_no_item_has_are_left_out_and_others_are_there_for_all(tmp_path):
    tasks, view, _ = export(tmp_path, line(1, "it's", image=None), line(2, "it's", image=None, text=None))
    assert [task["data"] for task in tasks] == [{"id": "pair 1", "text": "text 1 <i>"}, {"id": "pair 2", "text": ""}]
    assert [tag.tag for tag in view] == ["Text", "Choices"]
    tasks, view, _ = export(tmp_path, line(1, "it's", text=None), line(2, "it's", text=None, image=None))
    assert [tag.tag for tag in view] == ["Image", "Choices"]
    assert (view[1].attrib["toName"], tasks[0]["predictions"][0]["result"][0]["to_name"]) == ("image", "image")
    assert tasks[1]["data"] == {"id": "pair 2", "image": ""}


@pytest.mark.parametrize(
    ("folder", "place"), [("", "x"), ("photos", "photos/x"), ("/photos/2024/", "photos/2024/x"), ("a b", "a%20b/x")]
)
def test_pictures_may_lie_below_the_document_root(tmp_path, folder, place):
    tasks, _, _ = export(tmp_path, line(1, "it's", image="x"), image_folder=folder)
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={place}"


def test_pictures_of_several_inputs_that_are_called_alike_stay_apart(tmp_path, caplog):
    table = str(tmp_path / "b" / "rows.csv")
    lines = [line(1, "it's", image="1.jpg", source=str(tmp_path / "a")), line(2, "it's", image="in\\1.jpg", source=table),
             line(3, "it's", image=None, source=table), line(4, "it's", image="s3://pets/1.jpg", source="s3://pets"),
             line(5, "it's", image="in/lost.jpg", source=table),
             line(6, image="gone.jpg", source=str(tmp_path / "a"), labels=[], scores={}, error="no such file")]  # fmt: skip
    for picture in ("a/1.jpg", "b/in/1.jpg"):
        (tmp_path / picture).parent.mkdir(parents=True)
        (tmp_path / picture).touch()
    tasks, _, _ = export(tmp_path, *lines, image_folder="photos")
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=photos/a/1.jpg", "/data/local-files/?d=photos/b/in/1.jpg", "", "s3://pets/1.jpg",
        "/data/local-files/?d=photos/b/in/lost.jpg",
    ]  # fmt: skip
    (tmp_path / "a" / "1.jpg").unlink()
    tasks, _, _ = export(tmp_path, *lines)
    assert f"no pictures lie beside {tmp_path / 'a'}; places are written" in caplog.text
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=in/1.jpg", "as the line has it, but with slashes"
    lines[0]["image"] = "in\\1.jpg"
    with pytest.raises(BadInputError, match=r"a and .*rows\.csv both have a picture in.1\.jpg"):
        export(tmp_path, *lines)
    lines[0]["source"] = str(tmp_path / "b" / "more.csv")
    assert export(tmp_path, *lines)[0][0] == export(tmp_path, lines[0])[0][0], "two tables of one folder"


def test_items_with_an_error_are_left_out_and_counted(tmp_path):
    bad = line(2, labels=[], scores={}, error="line 2: not JSON")
    tasks, _, done = export(tmp_path, line(1, "it's"), bad, line(3, "it's"))
    assert ([task["data"]["id"] for task in tasks], done.tasks, done.errors) == (["pair 1", "pair 3"], 2, 1)
    with pytest.raises(BadInputError, match="no item without an error among 1"):
        export(tmp_path, bad)
    with pytest.raises(BadInputError, match="no item without an error among 0"):
        export(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"id,image,text,labels", "not JSON"),
        (b'{"id": "1", "scores"', "not JSON"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"id": "1", "id": "2"}', "the key 'id' stands twice"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000, "nested too deeply"),
        ([1], "a JSON list"),
        ({}, "id: Field required"),
        ({"id": "1", "scores": {}}, "image: Field required"),
        (line(1, "a", scores={"a": 2}), "scores.a: Input should be less than or equal to 1"),
        (line(1, "a", scores={"a": "high"}), "scores.a: Input should be a valid number"),
        (line(1, "a", labels="joy"), "labels: Input should be a valid"),
        (line(1, "a", text=["t"]), "text: Input should be a valid string"),
        (json.dumps(line(1, "a", text="\ud800")).encode(), "half a surrogate pair"),
        ({"id": "1", "text": "t", "labels": ["a"], "mood": 1}, "mood: Extra inputs are not permitted"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_line_that_is_none_is_named_and_nothing_written(tmp_path, bad, message):
    with pytest.raises(BadInputError, match=rf"labels.jsonl:2: ({message}).*; expected a line of `labeler predict`"):
        export(tmp_path, line(1, "it's"), bad)
    assert os.listdir(tmp_path) == ["labels.jsonl"]


def test_a_mark_at_the_beginning_and_blank_lines_change_nothing(tmp_path):
    expected = export(tmp_path, line(1, "it's"))[0]
    assert export(tmp_path, b"\xef\xbb\xbf" + json.dumps(line(1, "it's")).encode(), b"", b"  ")[0] == expected


@pytest.mark.parametrize("name", ["", "a\x01b", "\x0b", "\uffff"])
def test_a_label_that_xml_cannot_carry_is_refused(tmp_path, name):
    with pytest.raises(BadInputError, match="is empty or holds a character that XML cannot carry"):
        export(tmp_path, line(1, "a", scores={name: 0.5, "a": 0.5}))
    assert os.listdir(tmp_path) == ["labels.jsonl"]


def test_no_label_at_all_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no label in it"):
        export(tmp_path, {"id": "1", "text": "a"})


def test_what_would_be_overwritten_is_refused(tmp_path):
    source = write(tmp_path, line(1, "it's"))
    before = source.read_bytes()
    for out in (source, tmp_path / "x" / ".." / "labels.jsonl", tmp_path / "tasks.xml"):
        with pytest.raises(UsageError, match=r"expected a name other than labels.jsonl, ending in .json"):
            export_tasks(source, out)
    for out in (tmp_path, Path("."), Path("/")):
        with pytest.raises(BadInputError, match="a folder; --out takes the file to write"):
            export_tasks(source, out)
    with pytest.raises(BadInputError, match="no such file; give the jsonl"):
        export_tasks(tmp_path / "none.jsonl", tmp_path / "tasks.json")
    with pytest.raises(BadInputError, match="no such file; give the jsonl"):
        export_tasks(tmp_path, tmp_path / "tasks.json")
    assert source.read_bytes() == before
    assert os.listdir(tmp_path) == ["labels.jsonl"]


def test_a_full_disk_leaves_the_old_tasks_whole(tmp_path, monkeypatch):
    export(tmp_path, line(1, "it's"))
    before = {name: (tmp_path / name).read_bytes() for name in ("tasks.json", "tasks.xml")}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path, line(2, "=cmd"), line(3, "it's"))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(os.listdir(tmp_path)) == ["labels.jsonl", "tasks.json", "tasks.xml"]


def test_the_command_says_what_it_did_and_ends_with_4_after_errors(tmp_path, capsys):
    source = write(tmp_path, line(1, "it's"), line(2, labels=[], scores={}, error="gone"))
    out = tmp_path / "new/tasks.json"
    arguments = ["export-tasks", str(source), "--out", str(out), "--image-folder", "photos"]
    assert cli.main(arguments, standalone_mode=False) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{out}: 1 tasks, 1 items with an error left out\n  interface: {out.with_suffix('.xml')}\n"
    assert "?d=photos/a%20b/" in out.read_text()
    write(tmp_path, line(1, "it's"))
    assert cli.main([*arguments, "--json"], standalone_mode=False) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["tasks"], answer["errors"], answer["task"]) == (1, 0, "single")
    with pytest.raises(click.UsageError, match="out"):
        cli.main(arguments[:2], standalone_mode=False)


@pytest.mark.parametrize("several", [False, True])
def test_label_studio_s_own_reader_takes_interface_and_tasks(tmp_path, several):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    lines = [line(n, *(ODD[n : n + 1 + several]), names=ODD if several else None) for n in range(len(ODD))]
    lines[0] |= {"text": None}
    lines[1] |= {"image": None}
    tasks, _, done = export(tmp_path, *lines)
    reader = interface.LabelInterface((tmp_path / "tasks.xml").read_text(encoding="utf-8"))
    reader.validate()
    control = reader.get_control("labels")
    assert sorted(control.labels) == sorted(done.labels)
    assert control.is_multiple_choice is several
    for task in tasks:
        assert reader.validate_task({"data": task["data"]})
        assert reader.validate_prediction(task["predictions"][0], return_errors=True) == []
        assert reader.validate_annotation({"result": task["predictions"][0]["result"]})
    wrong = json.loads(json.dumps(tasks[0]["predictions"][0]))
    wrong["result"][0]["to_name"] = "sound"
    assert reader.validate_prediction(wrong, return_errors=True) != [], "the check itself finds what is wrong"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("form", ["json", "json_min"])
def test_label_studio_s_own_exports_of_the_tasks_give_the_labels_back(tmp_path, several, form):
    converter = pytest.importorskip("label_studio_sdk.converter")
    lines = [line(n, *(ODD[n : n + 1 + several]), names=ODD if several else None) for n in range(len(ODD))]
    tasks, _, _ = export(tmp_path, *lines)
    done = annotated(tasks)
    for task in done:
        task["annotations"][0]["completed_by"] = 1
    (tmp_path / "project.json").write_text(json.dumps(done))
    convert = converter.Converter((tmp_path / "tasks.xml").read_text(encoding="utf-8"), project_dir=None)
    getattr(convert, f"convert_to_{form}")(tmp_path / "project.json", tmp_path / "out", is_dir=False)
    path = tmp_path / "out" / "result.json"
    assert label_studio.claims(path)
    found = [record_from(item, {}) for item in label_studio.read(path) if isinstance(item, Row)]
    assert [(item.image, item.text, item.labels) for item in found] == [
        (item["image"], item["text"], tuple(item["labels"])) for item in lines
    ]
    assert [item.id for item in found] == [item["id"] for item in lines] or form == "json_min"


def test_what_something_else_wrote_is_left_alone_unless_forced(tmp_path):
    tasks, view = tmp_path / "tasks.json", tmp_path / "tasks.xml"
    export(tmp_path, line(1, "it's"))
    mine = export(tmp_path, line(2, "it's"), line(3, "=cmd"))[0]
    others = ['{"mine": 1}', "mine", "[]", '[{"data": {"id": "1"}}]', json.dumps(annotated(mine))]
    changed = view.read_text().replace("single", "multiple")
    for path, text in [(view, "<View/>"), (view, changed), *((tasks, other) for other in others)]:
        before = {place: place.read_bytes() for place in (tasks, view)}
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BadInputError, match=rf"{path.name}: was not written by `labeler export-tasks`.*--force"):
            export(tmp_path, line(4, "it's"))
        assert path.read_text(encoding="utf-8") == text
        other = view if path is tasks else tasks
        assert other.read_bytes() == before[other], "nothing is written where one of the two is refused"
        assert export(tmp_path, line(4, "it's"), force=True)[0][0]["data"]["id"] == "pair 4"
    write_records(tmp_path / "records.jsonl", [Record(id="1", text="t", labels=("a",))])
    for _ in range(2):
        export_tasks(tmp_path / "records.jsonl", tasks)
