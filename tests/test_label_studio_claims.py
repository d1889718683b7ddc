"""Which files are taken for Label Studio's exports, by their beginning alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_label_studio import annotation, choices, flat, task, write

from labeler.sources import label_studio
from labeler.sources.json_document import HEAD_BYTES


def claims(folder: Path, content: Any) -> bool:
    return label_studio.claims(write(folder, content))


@pytest.mark.parametrize(
    "content",
    [
        [task(1)],
        [task(1, annotation(choices("joy")))],
        [flat(1, {"mood": "joy"})],
        json.dumps([task(1)], indent=2),
        b"\xef\xbb\xbf \n" + json.dumps([task(1)]).encode(),
        [task(1, annotation(*[choices(control="x" * 90)] * 1000))],
        [flat(1, {}, text="x" * 900)],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_exports_are_claimed(tmp_path, content):
    assert claims(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"]}",
        b"[[[",
        b'{"id": 1, "text": "a", "label": "joy"}\n' * 3,
        b'{"data": {}, "annotations": []}\n{"data": {}, "annotations": []}\n',
        b'{"text": "a"}\n' + json.dumps([task(1)]).encode(),
        b'["data", "annotations", "result"]',
        json.dumps([{"text": '"data": {}, "annotations": []'}]),
        json.dumps([{"image": "a.jpg", "annotations": [{"label": "cat"}]}]),
        json.dumps({"images": [], "annotations": []}),
        json.dumps([{"text": '{"data": "annotations": ' + "\\" * HEAD_BYTES}]),
        "[" * HEAD_BYTES,
        '[{"":' * HEAD_BYTES,
        os.urandom(5000),
        b"\x00" * 5000,
        "[]".encode("utf-16"),
        "id,text,label\n1,a,joy\n",
    ],
    ids=lambda value: repr(value[:30]) if not isinstance(value, bytes) or len(value) < 4000 else "bytes",
)
def test_other_files_are_not_claimed(tmp_path, content):
    assert not claims(tmp_path, content)


def test_a_string_cut_off_is_passed_over_in_one_step(tmp_path):
    path = write(tmp_path, '[{"text": "' + '\\"' * HEAD_BYTES)
    begin = time.perf_counter()
    assert not label_studio.claims(path)
    assert time.perf_counter() - begin < 2


def test_what_is_no_file_is_not_claimed(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "pipe.json", tmp_path / ("x" * 300), Path("a\0b")):
        assert not label_studio.claims(path)
