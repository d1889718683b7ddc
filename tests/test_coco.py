"""COCO: a row a caption, objects as their images' labels; entries that cannot be used cost one row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from recording import record_from

from labeler.errors import BadInputError
from labeler.records import Reject, Row
from labeler.sources import coco, label_studio

IMAGES = [{"id": 9, "file_name": "a.jpg", "height": 3}, {"id": 4, "file_name": "sub/b.jpg"}]
CAPTIONS = [
    {"id": 1, "image_id": 4, "caption": "a bird"},
    {"id": 2, "image_id": 9, "caption": '表情 <b>"q"\n🎉'},
    {"id": 3, "image_id": 4, "caption": "two birds"},
]
CATEGORIES = [{"id": 1, "name": "bird|s", "supercategory": "animal"}, {"id": 90, "name": 'le "<chat>"\n猫'}]


def document(**parts: Any) -> dict[str, Any]:
    return {"info": {"year": 2017}, "images": IMAGES, "annotations": CAPTIONS} | parts


def write(folder: Path, content: Any) -> Path:
    path = folder / "captions.json"
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: Any) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Return the fields of the rows and the rejects."""
    items = list(coco.read(write(folder, content)))
    rows = [item.fields for item in items if isinstance(item, Row)]
    return rows, [item for item in items if isinstance(item, Reject)]


def test_every_caption_is_a_pair_and_those_of_an_image_a_group(tmp_path):
    rows, rejects = read(tmp_path, document())
    assert rows == [
        {"id": "4-1", "image": "sub/b.jpg", "text": "a bird", "group": "4"},
        {"id": "9-2", "image": "a.jpg", "text": '表情 <b>"q"\n🎉', "group": "9"},
        {"id": "4-3", "image": "sub/b.jpg", "text": "two birds", "group": "4"},
    ]
    assert rejects == []
    assert [item.line for item in coco.read(write(tmp_path, document()))] == [1, 2, 3]


def test_an_image_without_caption_is_a_row_too(tmp_path):
    rows, rejects = read(tmp_path, document(annotations=CAPTIONS[1:2]))
    assert rows[1:] == [{"id": "4", "image": "sub/b.jpg", "text": None, "group": "4"}]
    assert rejects == []


def test_objects_are_the_set_of_their_names(tmp_path):
    objects = [{"id": n, "image_id": 9, "category_id": c, "bbox": [0, 0, 1, 1]} for n, c in enumerate([90, 1, 90])]
    path = write(tmp_path, document(annotations=objects, categories=CATEGORIES))
    rows = list(coco.read(path))
    assert [(row.fields["id"], row.fields["label"]) for row in rows] == [
        ("9", ['le "<chat>"\n猫', "bird|s"]),
        ("4", []),
    ]
    assert record_from(rows[0], {}).labels == ('le "<chat>"\n猫', "bird|s")
    assert record_from(rows[1], {}).labels == (), "an image in which nothing was found has no label, and is labelled so"


@pytest.mark.parametrize(
    "entry",
    [
        {"category_id": 2},
        {"category_id": None},
        {"category_id": [1]},
        {"category_id": 1, "bbox": [float("nan")]},
        {"bbox": [0, 0, 1, 1]},
        {"caption": "two cats", "category_id": 2},
    ],
    ids=str,
)
def test_an_image_of_which_an_object_was_rejected_has_no_known_labels(tmp_path, entry):
    rejected = {"id": 8, "image_id": 4} | entry
    objects = [{"id": n, "image_id": image, "category_id": c} for n, (image, c) in enumerate([(9, 90), (4, 1)])]
    images = [*IMAGES, {"id": 5, "file_name": "c.jpg"}]
    content = document(images=images, annotations=[*objects, rejected], categories=CATEGORIES)
    rows, rejects = read(tmp_path, content)
    assert [(row["id"], row["label"]) for row in rows] == [("9", ['le "<chat>"\n猫']), ("4", None), ("5", [])]
    assert [reject.line for reject in rejects] == [3]


def test_a_caption_that_was_rejected_leaves_the_labels_of_its_image(tmp_path):
    annotations = [{"id": 7, "image_id": 4, "category_id": 1}, {"id": 8, "image_id": 4, "caption": float("nan")}]
    rows, rejects = read(tmp_path, document(annotations=annotations, categories=CATEGORIES))
    assert [row["label"] for row in rows] == [[], ["bird|s"]]
    assert [reject.line for reject in rejects] == [2]


def test_captions_and_objects_in_one_file_meet(tmp_path):
    both = [*CAPTIONS, {"id": 7, "image_id": 4, "category_id": 1}]
    rows, _ = read(tmp_path, document(annotations=both, categories=CATEGORIES))
    assert [(row["id"], row["text"], row["label"]) for row in rows] == [
        ("4-1", "a bird", ["bird|s"]), ("9-2", CAPTIONS[1]["caption"], []), ("4-3", "two birds", ["bird|s"]),
    ]  # fmt: skip


def test_a_label_field_of_the_annotation_or_else_of_the_image_is_taken(tmp_path):
    images = [IMAGES[0] | {"category": "joy", "split": "val"}, IMAGES[1]]
    annotations = [CAPTIONS[0] | {"label": "sad"}, CAPTIONS[1], CAPTIONS[2]]
    rows, _ = read(tmp_path, document(images=images, annotations=annotations))
    assert [row.get("label") for row in rows] == ["sad", "joy", None]
    assert "label" not in rows[2]
    assert rows[1]["split"] == "val"


@pytest.mark.parametrize(
    ("entry", "code", "identity"),
    [
        (3, "not-an-object", None),
        (None, "not-an-object", None),
        (["caption"], "not-an-object", None),
        ({}, "field-missing", None),
        ({"id": 8, "caption": "x"}, "field-missing", "8"),
        ({"id": 8, "image_id": [4], "caption": "x"}, "field-missing", "8"),
        ({"id": 8, "image_id": 5, "caption": "x"}, "image-unknown", "5-8"),
        ({"id": 8, "image_id": "4", "caption": "x"}, "image-unknown", "4-8"),
        ({"id": 8, "image_id": 4}, "field-missing", "4-8"),
        ({"id": 8, "image_id": 4, "category_id": 2}, "category-unknown", "4-8"),
        ({"id": 8, "image_id": 4, "category_id": [1]}, "category-unknown", "4-8"),
    ],
    ids=str,
)
def test_an_annotation_that_cannot_be_used_costs_one_row(tmp_path, entry, code, identity):
    rows, rejects = read(tmp_path, document(annotations=[CAPTIONS[0], entry, *CAPTIONS[1:]]))
    assert [row["id"] for row in rows] == ["4-1", "9-2", "4-3"]
    assert [(reject.line, reject.id, reject.code) for reject in rejects] == [(2, identity, code)]
    assert rejects[0].message.startswith("annotation 2: ")


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (3, "not-an-object"),
        ({"file_name": "a.jpg"}, "field-missing"),
        ({"id": 7}, "field-missing"),
        ({"id": {}, "file_name": "a.jpg"}, "field-missing"),
        ({"id": 7, "file_name": None}, "field-missing"),
        ({"id": 4, "file_name": "c.jpg"}, "id-conflict"),
    ],
    ids=str,
)
def test_an_image_that_cannot_be_used_costs_what_hangs_on_it(tmp_path, entry, code):
    rows, rejects = read(tmp_path, document(images=[*IMAGES, entry]))
    assert len(rows) == 3
    assert [(reject.line, reject.code) for reject in rejects] == [(3, code)]
    rows, rejects = read(tmp_path, document(images=IMAGES[:1]))
    assert [row["id"] for row in rows] == ["9-2"]
    assert [(reject.line, reject.code) for reject in rejects] == [(1, "image-unknown"), (3, "image-unknown")]


def test_a_key_that_stands_twice_and_a_nan_cost_one_row(tmp_path):
    text = (
        json.dumps(document())
        .replace('"caption": "a bird"', '"caption": "a", "caption": "b"')
        .replace('"id": 3', '"id": NaN')
    )
    rows, rejects = read(tmp_path, text)
    assert [row["id"] for row in rows] == ["9-2", "4"]
    assert [(reject.line, reject.code) for reject in rejects] == [(1, "duplicate-key"), (3, "not-json")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        (json.dumps(document())[:-1], "not JSON"),
        ("[]", "a JSON list on top"),
        ('{"images": [], "images": []}', "the key 'images' stands twice"),
        ("{}", "no list 'images'"),
        ({"images": IMAGES}, "no list 'annotations'"),
        (document(images={"9": "a.jpg"}), "no list 'images'"),
        (document(annotations=None), "no list 'annotations'"),
        ('{"images": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        (b'{"images": "\xff"}', r"not UTF-8 \(byte 12\)"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_coco_is_refused_whole(tmp_path, content, message):
    with pytest.raises(BadInputError, match=f"captions.json: {message}.*; expected COCO: an object with the lists"):
        read(tmp_path, content)


@pytest.mark.parametrize("categories", [[{"id": 1}], [3], {"1": "bird"}, [{"id": [1], "name": "bird"}], "bird"])
def test_a_category_without_id_or_name_is_refused(tmp_path, categories):
    with pytest.raises(BadInputError, match=r"category 1: .*; expected objects with `id` and `name`"):
        read(tmp_path, document(categories=categories))


def test_a_mark_at_the_beginning_changes_nothing(tmp_path):
    data = json.dumps(document()).encode()
    assert read(tmp_path, b"\xef\xbb\xbf" + data) == read(tmp_path, data)
    assert read(tmp_path, document(images=[], annotations=[])) == ([], [])


@pytest.mark.parametrize(
    "content",
    [
        document(),
        {"annotations": CAPTIONS, "images": IMAGES},
        json.dumps(document(), indent=1),
        b"\xef\xbb\xbf" + json.dumps(document()).encode(),
        {"info": {}, "images": IMAGES * 5000, "annotations": []},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_coco_is_claimed_and_by_nobody_else(tmp_path, content):
    path = write(tmp_path, content)
    assert coco.claims(path)
    assert not label_studio.claims(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"id": 1, "image": "a.jpg", "text": "images", "label": "annotations"}\n' * 3,
        {"id": 1, "images": ["a.jpg"], "annotations": ["joy"]},
        {"text": '"images": [{"id": 1, "file_name": "a"}]'},
        [{"images": IMAGES, "annotations": CAPTIONS}],
        "{" * 70_000,
        os.urandom(5000),
        "id,text\n1,a\n",
    ],
    ids=lambda value: repr(value)[:30] if len(value) < 4000 else "long",
)
def test_other_files_are_not_claimed(tmp_path, content):
    assert not coco.claims(write(tmp_path, content))


def test_what_is_no_file_is_not_claimed(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "pipe.json"):
        assert not coco.claims(path)
