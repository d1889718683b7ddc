"""Where labels are written: never over an input, never as an item of its own folder, and for paths of any bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from labeler.errors import UsageError
from labeler.labelling import predict


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("visualbert-coattn")


def test_an_output_is_no_input(run, pictures, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"id": "a", "text": "one red circle"}) + "\n", encoding="utf-8")
    before = pairs.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(pairs)
    for out in (pairs, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="an input itself, which the labels would replace"):
            predict([pairs], run, out, device="cpu")
    assert pairs.read_bytes() == before
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    first = predict([folder], run, folder / "labels.jsonl", device="cpu")
    again = predict([folder], run, folder / "labels.jsonl", device="cpu")
    assert again == first._replace(kept=first.items - first.errors)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_path_that_is_not_utf_8_gets_its_line(run, pictures, tmp_path, form):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(pictures, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    before = predict([pictures], run, tmp_path / f"before.{form}", device="cpu")
    done = predict([folder], run, tmp_path / f"out.{form}", device="cpu")
    assert (done.items, done.errors) == (before.items + 1, before.errors + 1)
    assert "caf?" in (tmp_path / f"out.{form}").read_text(encoding="utf-8")


def test_a_file_of_something_else_is_left_alone_before_any_work(run, pictures, tmp_path, labeler, monkeypatch):
    notes = tmp_path / "notes.jsonl"
    notes.write_text("mine\n", encoding="utf-8")
    monkeypatch.setattr("labeler.labelling.choose_engine", lambda *_, **__: pytest.fail("work was begun"))
    done = labeler("predict", pictures, "--model", run, "--out", notes)
    assert done.code == 3
    assert "notes.jsonl: was not written by `labeler predict`, so it is left alone; --force replaces it" in done.said
    assert notes.read_text() == "mine\n"
    with pytest.raises(
        UsageError, match=r"labels\.xlsx: \.xlsx is not written; end it in \.csv or \.jsonl, or say --format"
    ):
        predict([pictures], run, tmp_path / "labels.xlsx")


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz", ".zip"])
def test_nothing_is_written_uncompressed_under_a_name_that_says_it_is(pictures, tmp_path, suffix):
    with pytest.raises(
        UsageError, match=rf"labels\.jsonl\{suffix}: \{suffix} is not written; end it in \.csv or \.jsonl"
    ):
        predict([pictures], tmp_path / "none", tmp_path / f"labels.jsonl{suffix}")


def test_a_failure_leaves_the_old_file(run, pictures, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old", encoding="utf-8")
    monkeypatch.setattr("labeler.engines.native.make_pairs", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        predict([pictures], run, tmp_path / "out.jsonl", device="cpu", force=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.jsonl", "old")]


def test_an_explanation_replaces_its_own_drawing_and_no_photo(trained, pictures, tmp_path, labeler):
    out, photo = tmp_path / "e.png", next(pictures.glob("*.png"))
    command = ["explain", trained("resnet-gru"), "--text", "a red circle", "--out", out, "--device", "cpu"]
    shutil.copy(photo, out)
    done = labeler(*command)
    assert done.code == 3
    assert "e.png: was not written by `labeler explain`, so it is left alone; --force replaces it" in done.said
    assert out.read_bytes() == photo.read_bytes()
    assert labeler(*command, "--force").code == 0
    assert labeler(*command).code == 0
    idle = labeler(*(word for word in command if word not in ("--out", out)), "--force")
    assert idle.code == 2
    assert "--force replaces the file of --out; leave it out, or add --out FILE.png" in idle.said
