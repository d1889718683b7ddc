"""Where labels are written: never over an input, never as an item of its own folder, and for paths of any bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from labeler.artifacts import locked
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.output import cache_folder
from labeler.predicting import predict


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


def test_an_output_does_not_become_the_metadata_of_its_own_folder(pictures, tmp_path, s3):
    folder = shutil.copytree(pictures, tmp_path / "pictures" / "below")
    for place, out in (
        (folder, folder / "metadata.jsonl"),
        (folder.parent, folder / "metadata.jsonl"),
        ("s3://pets/", "s3://pets/photos/metadata.jsonl"),
    ):
        with pytest.raises(
            UsageError, match=r"metadata\.jsonl in an input's folder names its pictures; choose another"
        ):
            predict([place], tmp_path / "none", out)
    with pytest.raises(BadInputError, match="none: no such artifact folder"):
        predict([folder], tmp_path / "none", tmp_path / "metadata.jsonl")


def test_a_link_is_written_through_and_gone_on_from(run, pictures, tmp_path):
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "labels.jsonl", tmp_path / "far" / "labels.jsonl"
    link.symlink_to(file)
    first = predict([pictures], run, link, device="cpu")
    assert link.readlink() == file
    assert len(file.read_text(encoding="utf-8").splitlines()) == first.items
    assert predict([pictures], run, link, device="cpu").kept == first.items
    assert link.is_symlink()


def test_a_stream_is_written_to_and_never_replaced(run, pictures, tmp_path, capsys):
    items = predict([pictures], run, Path("/dev/stdout"), device="cpu").items
    assert len(capsys.readouterr().out.splitlines()) == items
    (tmp_path / "null").symlink_to("/dev/null")
    assert predict([pictures], run, tmp_path / "null", device="cpu").items == items
    assert (tmp_path / "null").is_char_device()
    assert os.listdir(tmp_path) == ["null"]


@pytest.mark.parametrize("out", ["file/labels.jsonl", "held.jsonl", "s3://pets/held.jsonl"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(run, pictures, tmp_path, s3, monkeypatch, out):
    (tmp_path / "file").write_text("")
    place = out if out.startswith("s3:") else tmp_path / out
    monkeypatch.setattr("labeler.predicting.choose_engine", lambda *_, **__: pytest.fail("work was begun"))
    with (
        locked(cache_folder(place) if isinstance(place, str) else tmp_path / "held.jsonl"),
        pytest.raises(LabelerError, match=r"file: cannot be made a folder|held.jsonl\S*: another labeler process"),
    ):
        predict([pictures], run, place, device="cpu")


def test_a_user_without_a_home_is_told_to_name_a_cache(pictures, tmp_path, s3, monkeypatch):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(BadInputError, match=r"^s3://pets/a.jsonl: no home folder to make it in; .* in XDG_CACHE_HOME$"):
        predict([pictures], tmp_path / "none", "s3://pets/a.jsonl")


@pytest.mark.parametrize("out", ["labels/", "s3://pets/labels/"])
def test_an_output_with_a_slash_at_its_end_is_a_folder(pictures, tmp_path, labeler, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    done = labeler("predict", pictures, "--model", "none", "--out", out)
    assert (done.code, done.said) == (3, f"error: {out}: a folder; --out takes the file to write")


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
    monkeypatch.setattr("labeler.predicting.choose_engine", lambda *_, **__: pytest.fail("work was begun"))
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
