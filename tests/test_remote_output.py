"""An output on S3: corrections by hand are never lost, whatever happened to the run before them; what is whole is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

from labeler import output
from labeler.errors import BadInputError, InterruptedRun, LabelerError
from labeler.labeller import Labeller
from labeler.output import cache_folder
from labeler.predicting import predict
from labeler.shards import Counts

OUT, PLACE = "s3://pets/labels.jsonl", "pets/labels.jsonl"


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("resnet-gru")


@pytest.fixture
def inputs(s3, pictures) -> list[str]:
    """Return two pictures on S3."""
    drawn = sorted(pictures.glob("*.png"))[:2]
    for picture in drawn:
        copy_files(str(picture), f"pets/{picture.name}", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    return [f"s3://pets/{picture.name}" for picture in drawn]


def held(s3: S3FileSystem, data: bytes | None = None) -> bytes:
    """Return what the output holds, which is `data` from now on where that is given."""
    if data is not None:
        with s3.open_output_stream(PLACE) as file:
            file.write(data)
    with s3.open_input_file(PLACE) as file:
        return file.read()


def corrected(s3: S3FileSystem) -> bytes:
    """Correct the output by hand, and return what it holds now."""
    return held(s3, held(s3).replace(b'"labels": [', b'"labels": ["mine", '))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def no_connection(*_: object) -> None:
    raise LabelerError("no connection")


@pytest.mark.parametrize(("broken", "how", "error"), [("labeler.labeller.Labeller.logits", interrupted, InterruptedRun),
                                                      ("labeler.output.upload", no_connection, LabelerError)])  # fmt: skip
def test_corrections_survive_an_unfinished_run_before_them(s3, inputs, run, monkeypatch, broken, how, error):
    predict(inputs[:1], run, OUT, device="cpu")
    finished = held(s3)
    with monkeypatch.context() as patched:
        patched.setattr(broken, how)
        with pytest.raises(error, match=r"^s3://pets/labels.jsonl: interrupted|^no connection"):
            predict(inputs[1:], run, OUT, device="cpu")
    correction = corrected(s3)
    for _ in range(2):
        with pytest.raises(
            BadInputError, match=r"^s3://pets/labels.jsonl: has been changed since .*--force replaces it"
        ):
            predict(inputs[1:], run, OUT, device="cpu")
    assert held(s3) == correction
    held(s3, finished)
    assert predict(inputs[1:], run, OUT, device="cpu").items == 1
    assert not cache_folder(OUT).exists()


def test_corrections_survive_a_run_with_force_that_was_interrupted(s3, inputs, run, monkeypatch):
    predict(inputs, run, OUT, device="cpu")
    correction = corrected(s3)
    with monkeypatch.context() as patched:
        patched.setattr(Labeller, "logits", interrupted)
        with pytest.raises(InterruptedRun, match=r"^s3://pets/labels.jsonl: interrupted"):
            predict(inputs, run, OUT, device="cpu", force=True)
    with pytest.raises(BadInputError, match=r"^s3://pets/labels.jsonl: has been changed since"):
        predict(inputs, run, OUT, device="cpu")
    assert held(s3) == correction
    assert predict(inputs, run, OUT, device="cpu", force=True) == Counts(2, 0)
    assert held(s3) != correction
    assert predict(inputs, run, OUT, device="cpu") == Counts(2, 0, kept=2)


def test_an_output_that_was_refused_is_written_once_it_is_gone(s3, inputs, run):
    predict(inputs, run, OUT, device="cpu")
    held(s3, b"mine\n")
    with pytest.raises(BadInputError, match=r"^s3://pets/labels.jsonl: has been changed since"):
        predict(inputs, run, OUT, device="cpu")
    assert not cache_folder(OUT).exists()
    s3.delete_file("pets/.labels.jsonl.state")
    with pytest.raises(BadInputError, match=r"^s3://pets/labels.jsonl: was not written by `labeler predict`"):
        predict(inputs, run, OUT, device="cpu")
    s3.delete_file(PLACE)
    assert predict(inputs, run, OUT, device="cpu") == Counts(2, 0)


def test_corrections_that_are_made_while_it_labels_survive(s3, inputs, run, monkeypatch):
    logits = Labeller.logits
    predict(inputs[:1], run, OUT, device="cpu")
    monkeypatch.setattr(Labeller, "logits", lambda *given: held(s3, b"mine\n") and logits(*given))
    with pytest.raises(
        BadInputError, match=r"^s3://pets/labels.jsonl: has been changed meanwhile; what was labelled lies in"
    ):
        predict(inputs, run, OUT, device="cpu")
    assert held(s3) == b"mine\n"
    [kept] = cache_folder(OUT).parent.glob("*.unsent")
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 2
    assert predict(inputs, run, OUT, device="cpu", force=True) == Counts(2, 0)


def test_a_whole_output_that_is_not_uploaded_yet_is_kept_when_the_object_has_changed(
    s3, inputs, run, monkeypatch, caplog
):
    predict(inputs[:1], run, OUT, device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr("labeler.output.upload", no_connection)
        with pytest.raises(LabelerError, match="no connection"):
            predict(inputs, run, OUT, device="cpu")
    corrected(s3)
    with pytest.raises(BadInputError, match=r"^s3://pets/labels.jsonl: has been changed since"):
        predict(inputs, run, OUT, device="cpu")
    [kept] = cache_folder(OUT).parent.glob("*.unsent")
    assert f"not uploaded, lies in {kept}" in caplog.text
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 2


def test_what_was_forced_over_a_foreign_object_is_uploaded_by_the_next_run_that_is_forced(s3, inputs, run, monkeypatch):
    held(s3, b"mine\n")
    with monkeypatch.context() as patched:
        patched.setattr("labeler.output.upload", no_connection)
        with pytest.raises(LabelerError, match="no connection"):
            predict(inputs, run, OUT, device="cpu", force=True)
    labelled = (cache_folder(OUT) / "labels.jsonl").read_bytes()
    assert predict(inputs, run, OUT, device="cpu", force=True).items == 2
    assert held(s3) == labelled


def test_an_output_whose_description_could_not_be_uploaded_is_finished_by_the_next_run(s3, inputs, run, monkeypatch):
    upload = output.upload
    predict(inputs[:1], run, OUT, device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr("labeler.output.upload", lambda path, url: upload(path, url) if url == OUT else no_connection())
        with pytest.raises(LabelerError, match="no connection"):
            predict(inputs, run, OUT, device="cpu")
    for _ in range(2):
        assert predict(inputs, run, OUT, device="cpu") == Counts(2, 0, kept=2)
        assert not cache_folder(OUT).exists()
