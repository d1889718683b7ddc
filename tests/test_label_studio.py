"""Label Studio's exports: labels by their controls, local files, annotators, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recording import record_from

from labeler.errors import BadInputError
from labeler.pictures.images import ImageError, resolve_image
from labeler.records import Record, Reject, Row
from labeler.rows.chunks import RowReading, chunk_of
from labeler.sources import Reading, label_studio, read_source
from labeler.values import RowError

ODD = ['say "no"', "two\nlines", "<b>&amp;</b>", "悲しい 生气", "a|b", "[draft]", "=cmd", "émoi 🎉"]


def choices(*names: str, control: str = "mood", **others: Any) -> dict[str, Any]:
    """Return one item of an annotation's result."""
    return {"from_name": control, "to_name": "text", "type": "choices", "value": {"choices": list(names)}} | others


def annotation(*results: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"id": 1, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": list(results)} | others


def task(number: int, *annotations: Any, **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": list(annotations),
        "data": {"text": f"text {number}"} | data,
        "predictions": [],
    }


def flat(number: int, answers: dict[str, Any], annotator: int = 1, **data: Any) -> dict[str, Any]:
    """Return one object of JSON_MIN, its keys in the order in which Label Studio writes them."""
    annotated = {
        "annotator": annotator,
        "annotation_id": 10 * number + annotator,
        "created_at": "2024",
        "lead_time": 1.5,
    }
    return {"text": f"text {number}"} | data | {"id": number} | answers | annotated


def write(folder: Path, content: Any) -> Path:
    path = folder / "export.json"
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: Any) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Return the fields of the rows and the rejects."""
    items = list(label_studio.read(write(folder, content)))
    rows = [item.fields for item in items if isinstance(item, Row)]
    return rows, [item for item in items if isinstance(item, Reject)]


def records(folder: Path, content: Any, **mapping: str) -> list[Record]:
    """Return the rows of an export without rejects as records."""
    items = list(label_studio.read(write(folder, content)))
    assert [item for item in items if isinstance(item, Reject)] == []
    return [record_from(item, mapping) for item in items if isinstance(item, Row)]


def codes(rejects: list[Reject]) -> list[tuple[int, str | None, str]]:
    return [(reject.line, reject.id, reject.code) for reject in rejects]


def test_a_single_choice_is_one_label(tmp_path):
    found = records(tmp_path, [task(1, annotation(choices("joy"))), task(2, annotation(choices("anger")), likes=3)])
    assert [(item.id, item.text, item.labels) for item in found] == [
        ("1", "text 1", ("joy",)),
        ("2", "text 2", ("anger",)),
    ]
    assert found[1].meta["likes"] == 3


def test_several_choices_make_every_label_a_list(tmp_path):
    rows, _ = read(tmp_path, [task(1, annotation(choices("joy"))), task(2, annotation(choices("joy", "sky"))),
                              task(3, annotation())])  # fmt: skip
    assert [row["label"] for row in rows] == [["joy"], ["joy", "sky"], []]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("form", ["JSON", "JSON_MIN"])
def test_odd_labels_stay_one_label_as_they_are(tmp_path, name, form):
    full = [task(1, annotation(choices(name))), task(2, annotation(choices("joy")))]
    content = full if form == "JSON" else [flat(1, {"mood": name}), flat(2, {"mood": "joy"})]
    assert [item.labels for item in records(tmp_path, content)] == [(name,), ("joy",)]
    rows = [item for item in label_studio.read(tmp_path / "export.json") if isinstance(item, Row)]
    assert not chunk_of(rows, RowReading(tmp_path)).several


def test_the_id_of_the_data_goes_before_the_task_s(tmp_path):
    found = records(tmp_path, [task(1, annotation(choices("joy")), id="mine"), task(2, annotation(choices("joy")))])
    assert [item.id for item in found] == ["mine", "2"]


def test_a_label_among_the_data_is_not_taken_for_an_annotation(tmp_path):
    content = [
        task(1, annotation(choices("joy")), label="old", category="x"),
        task(2, label="old"),
        task(3, tags="old"),
    ]
    rows, rejects = read(tmp_path, content)
    assert [row["label"] for row in rows] == [("joy",), None, None]
    assert rejects == []


def test_a_task_without_annotation_is_kept_to_be_labelled(tmp_path):
    rows = list(label_studio.read(write(tmp_path, [task(1), task(2, annotation(choices("joy")))])))
    assert record_from(rows[0], {}, labelled=False).labels is None
    with pytest.raises(RowError, match="no label"):
        record_from(rows[0], {})


def test_cancelled_annotations_do_not_count(tmp_path):
    skipped = annotation(choices("anger"), was_cancelled=True)
    rows, rejects = read(tmp_path, [task(1, skipped), task(2, skipped, annotation(choices("joy"))),
                                    task(3, annotation(choices("joy")), annotation(choices("sad"), skipped=True))])  # fmt: skip
    assert [row["label"] for row in rows] == [None, ("joy",), ("joy",)]
    assert rejects == []


def test_annotators_agree_or_their_task_is_rejected(tmp_path):
    joy, anger = annotation(choices("joy")), annotation(choices("anger"))
    rows, rejects = read(tmp_path, [task(1, joy, joy), task(2, joy, anger), task(3, joy, annotation()),
                                    task(4, joy, anger | {"ground_truth": True})])  # fmt: skip
    assert [row["label"] for row in rows] == [("joy",), ("anger",)]
    assert codes(rejects) == [(2, "2", "annotators-disagree"), (3, "3", "annotators-disagree")]
    assert rejects[0].message == "mood: annotators chose anger / joy; mark one annotation as ground truth"
    assert "joy / nothing" in rejects[1].message or "nothing / joy" in rejects[1].message


def read_for(label: str | None, folder: Path, content: Any) -> tuple[list[Record], list[str]]:
    """Return an export's rows, read for the labels of one control, as records, and the rejects' codes."""
    mapping = {"labels": label} if label else {}
    items = list(read_source(write(folder, content), Reading("label-studio", mapping=mapping)))
    codes = [item.code for item in items if isinstance(item, Reject)]
    return [record_from(item, mapping, labelled=False) for item in items if isinstance(item, Row)], codes


def test_annotators_need_to_agree_on_the_label_alone(tmp_path):
    one, two = (annotation(choices("joy"), choices(topic, control="topic")) for topic in ("sky", "sea"))
    found, rejected = read_for("mood", tmp_path, [task(1, one, two)])
    assert [item.labels for item in found] == [("joy",)]
    assert (found[0].meta["topic"], rejected) == (None, [])
    assert read_for("MOOD", tmp_path, [task(1, one, two)])[0][0].labels == ("joy",)
    assert read_for("topic", tmp_path, [task(1, one, two)]) == ([], ["annotators-disagree"])
    assert read_for("source", tmp_path, [task(1, one, two, source="web")])[0][0].labels == ("web",)
    alone = [annotation(choices("joy"))] * 2
    for name in ("label", "Label", None):  # the field that a control's choices come in, whatever it is called
        assert read_for(name, tmp_path, [task(1, *alone)])[0][0].labels == ("joy",)
    tagged = [annotation(choices("joy", control="tags"), choices(topic, control="topic")) for topic in ("sky", "sea")]
    assert read_for(None, tmp_path, [task(1, *tagged)])[0][0].labels == ("joy",)


def test_comments_of_json_min_that_differ_are_no_disagreement(tmp_path):
    content = [flat(1, {"mood": "joy", "note": f"says annotator {number}"}, number) for number in (1, 2)]
    found, rejected = read_for("mood", tmp_path, content)
    assert [item.labels for item in found] == [("joy",)]
    assert rejected == []
    differing = [flat(1, {"mood": mood, "note": "unsure"}, number) for number, mood in enumerate(["joy", "sad"])]
    assert read_for("mood", tmp_path, differing) == ([], ["annotators-disagree"])


def test_the_order_of_several_choices_is_no_disagreement(tmp_path):
    both = [annotation(choices("a", "b")), annotation(choices("b", "a"))]
    assert read(tmp_path, [task(1, *both)])[0][0]["label"] == ["a", "b"]


def test_with_several_controls_one_called_like_a_label_is_taken_else_each_by_its_name(tmp_path):
    content = [task(1, annotation(choices("joy"), choices("sky", "sea", control="topic")))]
    rows, _ = read(tmp_path, content)
    assert (rows[0]["label"], rows[0]["mood"], rows[0]["topic"]) == (None, ("joy",), ["sky", "sea"])
    assert records(tmp_path, content, labels="mood")[0].labels == ("joy",)
    assert records(tmp_path, content, labels="topic")[0].labels == ("sky", "sea")
    rows, _ = read(tmp_path, [task(1, annotation(choices("joy", control="tags"), choices("sky", control="topic")))])
    assert rows[0]["tags"] == ("joy",)
    assert "label" not in rows[0]


def test_other_results_than_choices_are_no_labels_and_no_control_hides_a_field(tmp_path):
    other = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": {"rectanglelabels": ["cat"]}}
    rows, rejects = read(
        tmp_path, [task(1, annotation(other, choices("joy", control="text"))), task(2, annotation(other))]
    )
    assert [(row["text"], row["label"]) for row in rows] == [("text 1", ("joy",)), ("text 2", None)]
    assert rejects == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/local-files/?d=sub/dir/x.jpg", "sub/dir/x.jpg"),
        ("/data/local-files?d=x.jpg", "x.jpg"),
        ("/data/local-files/?d=a%20b/%E5%9B%BE%2B1%26%23.jpg", "a b/图+1&#.jpg"),
        ("/data/local-files/?d=a+b.jpg", "a b.jpg"),
        ("/data/local-files/?d=./a//b.jpg", "a/b.jpg"),
        ("/data/local-files/?d=/a/b.jpg", "a/b.jpg"),
        ("http://localhost:8080/data/local-files/?d=a.jpg", "a.jpg"),
        ("https://example.org/studio/data/local-files/?d=a.jpg", "a.jpg"),
        ("/data/upload/7/1a2b3c4d-my%20cat.jpg", "1a2b3c4d-my cat.jpg"),
        ("/data/upload/7/there.jpg", "upload/7/there.jpg"),
        ("/storage-data/uploaded/?filepath=upload/7/there.jpg", "upload/7/there.jpg"),
        ("images/what?.jpg", "images/what?.jpg"),
        ("C:\\x.jpg", "C:\\x.jpg"),
        ("", ""),
    ],
)
def test_local_files_are_paths_below_the_export(tmp_path, url, name):
    (tmp_path / "upload/7").mkdir(parents=True)
    (tmp_path / "upload/7/there.jpg").write_bytes(b"x")
    rows, rejects = read(tmp_path, [task(1, annotation(choices("joy")), image=url)])
    assert rejects == []
    assert rows[0]["image"] == name


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/a.jpg", "image-url"),
        ("http://localhost:8080/data/upload/7/a.jpg", "image-url"),
        ("s3://bucket/a.jpg", "image-url"),
        ("file:///a.jpg", "image-url"),
        ("http://[broken", "image-url"),
        ("/data/local-files/?d=", "image-url"),
        ("/data/local-files/", "image-url"),
        ("/data/upload/", "image-url"),
        ("data:image/png;base64,iVBORw0KGgo=", "image-embedded"),
    ],
)
def test_a_picture_that_is_no_local_file_is_rejected(tmp_path, url, code):
    rows, rejects = read(
        tmp_path, [task(1, annotation(choices("joy")), image=url), task(2, annotation(choices("joy")))]
    )
    assert codes(rejects) == [(1, "1", code)]
    assert rejects[0].message.startswith("image: ")
    assert len(rejects[0].message) < 300
    assert [row["id"] for row in rows] == [2]


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png"])
def test_a_path_out_of_the_folder_stays_one_and_is_refused(tmp_path, path):
    (item,) = records(tmp_path, [task(1, annotation(choices("joy")), image=f"/data/local-files/?d={path}")])
    with pytest.raises(ImageError, match="lies outside"):
        resolve_image(tmp_path, item.image)


def test_a_picture_in_a_field_of_another_name_is_found(tmp_path):
    joy = annotation(choices("joy"))
    rows, _ = read(tmp_path, [task(1, joy, photo="/data/local-files/?d=a.jpg", page="https://example.org")])
    assert (rows[0]["image"], rows[0]["photo"], rows[0]["page"]) == ("a.jpg", "a.jpg", "https://example.org")
    two = {"left": "/data/local-files/?d=a.jpg", "right": "/data/local-files/?d=b.jpg"}
    assert "image" not in read(tmp_path, [task(1, joy, **two)])[0][0], "which of two cannot be known"
    assert records(tmp_path, [task(1, joy, **two)], image="right")[0].image == "b.jpg"


def test_json_min_gives_the_same_as_json(tmp_path):
    full = [task(1, annotation(choices("joy"))), task(2, annotation(choices("joy", "sky")), source="web")]
    small = [flat(1, {"mood": "joy"}), flat(2, {"mood": {"choices": ["joy", "sky"]}}, source="web")]
    assert records(tmp_path, small) == records(tmp_path, full)


def test_json_min_with_ids_of_the_data_s_own_takes_the_control_called_like_a_label(tmp_path):
    item = {
        "id": 7,
        "image": "a.jpg",
        "text": "t",
        "source": "web",
        "labels": "joy",
        "annotator": 1,
        "annotation_id": 3,
    }
    rows, _ = read(tmp_path, [item])
    assert rows[0]["labels"] == ("joy",)
    item = {"id": 7, "text": "t", "source": "web", "mood": "joy", "annotator": 1, "annotation_id": 3}
    assert records(tmp_path, [item], labels="mood")[0].labels == ("joy",)


def test_json_min_joins_the_annotations_of_one_task(tmp_path):
    content = [flat(1, {"mood": "joy"}), flat(2, {"mood": "joy"}), flat(1, {"mood": "joy"}, 2), flat(2, {"mood": "sad"}, 2),
               flat(3, {}), flat(1, {"mood": "sad"}, text="another project's first task")]  # fmt: skip
    items = list(label_studio.read(write(tmp_path, content)))
    assert [(item.line, getattr(item, "code", "row")) for item in items] == [
        (1, "row"), (2, "annotators-disagree"), (5, "row"), (6, "row"),
    ]  # fmt: skip
    assert [item.fields["label"] for item in items if isinstance(item, Row)] == [("joy",), None, ("sad",)]


def test_tasks_of_json_with_the_same_data_stay_apart(tmp_path):
    twice = [task(number, annotation(choices("joy")), id="mine", text="a") for number in (1, 2)]
    assert [item.id for item in records(tmp_path, twice)] == ["mine", "mine"], "their count is ingest's to tell"


def test_json_min_without_annotation_has_no_label(tmp_path):
    item = flat(1, {}) | {"annotator": "None", "annotation_id": None}
    rows, _ = read(tmp_path, [item | {"mood": "data"}, flat(2, {"mood": "joy"})])
    assert [row["label"] for row in rows] == [None, ("joy",)]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (3, "not-an-object"),
        ("text", "not-an-object"),
        (None, "not-an-object"),
        ([], "not-an-object"),
        ({}, "not-a-task"),
        ({"id": 1, "text": "t", "label": "joy"}, "not-a-task"),
        ({"id": 1, "annotations": [], "data": None}, "not-a-task"),
        ({"id": 1, "annotations": [], "data": "text"}, "not-a-task"),
        (task(1, 17), "annotation-invalid"),
        (task(1) | {"annotations": {"result": []}}, "annotation-invalid"),
        (task(1, annotation() | {"result": {"a": 1}}), "annotation-invalid"),
        (task(1, annotation("joy")), "annotation-invalid"),
        (task(1, annotation(choices("joy", from_name=None))), "annotation-invalid"),
        (task(1, annotation(choices("joy", from_name=["a"]))), "annotation-invalid"),
        (task(1, annotation(choices("joy", value=None))), "annotation-invalid"),
        (task(1, annotation(choices("joy", value={"choices": "joy"}))), "annotation-invalid"),
        (task(1, annotation(choices("joy", value={"choices": [1]}))), "annotation-invalid"),
    ],
    ids=str,
)
def test_what_is_no_task_costs_one_row(tmp_path, value, code):
    good = task(2, annotation(choices("joy")))
    rows, rejects = read(tmp_path, [good, value, good | {"id": 3}])
    assert [row["id"] for row in rows] == [2, 3]
    assert [(reject.line, reject.code) for reject in rejects] == [(2, code)]
    assert rejects[0].source == str(tmp_path / "export.json")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            '{"id": 1, "data": {"text": "a", "text": "b"}, "annotations": []}',
            "duplicate-key",
            "the key 'text' stands twice",
        ),
        ('{"id": 1, "id": 1, "data": {"text": "a"}, "annotations": []}', "duplicate-key", "the key 'id' stands twice"),
        ('{"id": 1, "data": {"text": "a", "n": [NaN]}, "annotations": []}', "not-json", "NaN is not JSON"),
        ('{"id": 1, "data": {"text": -Infinity}, "annotations": []}', "not-json", "-Infinity is not JSON"),
    ],
)
def test_a_key_that_stands_twice_and_a_nan_cost_one_row(tmp_path, text, code, message):
    rows, rejects = read(tmp_path, f"[{text}, {json.dumps(task(2, annotation(choices('joy'))))}]")
    assert [row["id"] for row in rows] == [2]
    assert [(reject.line, reject.code, reject.message) for reject in rejects] == [(1, code, message)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[{", "not JSON .*line 1, column 3"),
        (json.dumps([task(1)])[:-1], "not JSON"),
        ("[] []", "not JSON"),
        ("{}", "a JSON dict on top"),
        (json.dumps(task(1)), "a JSON dict on top"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("3", "a JSON int on top"),
        ("null", "a JSON NoneType on top"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ('[{"id": ' + "1" * 5000 + "}]", "a number of over 4,300 digits"),
        (b"[\xff]", r"not UTF-8 \(byte 1\)"),
        ("[]".encode("utf-16"), "not UTF-8"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_file_that_is_no_export_is_refused_whole(tmp_path, content, message):
    with pytest.raises(BadInputError, match=f"export.json: {message}.*; expected a Label Studio export"):
        read(tmp_path, content)


def test_a_mark_at_the_beginning_changes_nothing(tmp_path):
    data = json.dumps([task(1, annotation(choices("joy")))]).encode()
    assert read(tmp_path, b"\xef\xbb\xbf" + data) == read(tmp_path, data)
    assert read(tmp_path, "[]") == ([], [])
