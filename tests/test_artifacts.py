"""Artifacts: published whole or not at all, found by hash, guarded by a lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from labeler import artifacts
from labeler.artifacts import (
    Input,
    Recipe,
    adding,
    already_made,
    beside,
    check_free,
    making,
    read_manifest,
    verify,
    work_folder,
    write_json,
    write_text,
)
from labeler.errors import BadInputError, InterruptedRun, LabelerError, LockedError, UsageError

RECIPE = Recipe("ingest", (Input("pairs.jsonl", "ab" * 32),), {"task": "auto", "fields": ("a", "b")}, seed=3)
HOLD_LOCK = """
import sys, time
from pathlib import Path
from labeler.artifacts import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
DIE_MAKING = """
import os, signal, sys
from pathlib import Path
from labeler.artifacts import Recipe, making
with making(Path(sys.argv[1]), Recipe("ingest", (), {})) as work:
    (work / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make(folder: Path, text: str = "content", recipe: Recipe = RECIPE) -> Path:
    """Publish an artifact of one nested file; return its folder."""
    with making(folder, recipe) as work:
        (work / "deep").mkdir()
        (work / "deep" / "file.txt").write_text(text)
    return folder


def fail(block: AbstractContextManager[Path], error: BaseException) -> None:
    """Raise an error when half of the artifact is written."""
    with block as work:
        (work / "half").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_artifact_says_how_it_was_made(tmp_path):
    out = make(tmp_path / "a" / "out")
    manifest = verify(out, "ingest")
    assert manifest["stage"] == "ingest"
    assert manifest["seed"] == 3
    assert manifest["inputs"] == [{"path": "pairs.jsonl", "sha256": "ab" * 32}]
    assert manifest["files"] == {"deep/file.txt": artifacts.sha256_bytes(b"content")}
    assert manifest["versions"]["python"]
    assert names(out.parent) == ["out"], "no lock, work or old folder stays behind"


def test_the_same_content_has_the_same_hash_and_other_content_another(tmp_path):
    hashes = [verify(make(tmp_path / name, text))["content_sha256"] for name, text in ("ax", "bx", "cy")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_content_can_be_told_where_bytes_are_not_reproducible(tmp_path):
    with making(tmp_path / "out", RECIPE, content="told") as work:
        (work / "file").write_text("x")
    assert read_manifest(tmp_path / "out")["content_sha256"] == "told"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt("stop")])
def test_an_error_in_the_block_leaves_the_old_artifact_and_nothing_else(tmp_path, error):
    out = make(tmp_path / "out", "old")
    with pytest.raises(type(error), match=str(error)):
        fail(making(out, RECIPE), error)
    assert (out / "deep" / "file.txt").read_text() == "old"
    verify(out)
    assert names(tmp_path) == ["out"]


def test_nothing_is_seen_as_done_before_the_block_ends(tmp_path):
    with making(tmp_path / "out", RECIPE) as work:
        (work / "file").write_text("x")
        assert not (tmp_path / "out").exists()
        assert not (work / "manifest.json").exists()
    assert verify(tmp_path / "out")["files"].keys() == {"file"}


def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", DIE_MAKING, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert work_folder(out).is_dir()
    make(out)
    assert verify(out)["files"].keys() == {"deep/file.txt"}, "the killed run's half is not taken in"
    assert names(tmp_path) == ["out"]


def test_keep_and_resume_go_on_with_what_was_left(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="stop"):
        fail(making(out, RECIPE, keep=True), ValueError("stop"))
    assert not out.exists()
    with making(out, RECIPE, resume=True) as work:
        assert (work / "half").read_text() == "half"
    assert verify(out)["files"].keys() == {"half"}


@pytest.mark.parametrize("out", [".", "..", "/", "down/.."])
def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch, out):
    (tmp_path / "here" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BadInputError, match="cannot be replaced, you may be in it; give --out a folder's name"):
        check_free(Path(out), "ingest")
    assert names(tmp_path) == ["here"]


def test_files_are_added_to_the_folder_that_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with adding(Path("."), RECIPE) as work:
        (work / "file").write_text("x")
        assert work == tmp_path / ".here.adding"
    assert names(tmp_path / "here") == ["file", "manifest.json"]
    assert names(tmp_path) == ["here"]
    with pytest.raises(BadInputError, match="/: cannot be made, nothing lies beside it; choose another --out"):
        beside(Path("/"), "lock")


def test_a_made_artifact_is_replaced_whole(tmp_path):
    out = make(tmp_path / "out", "old")
    with making(out, RECIPE) as work:
        (work / "other.txt").write_text("new")
    assert names(out) == ["manifest.json", "other.txt"]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk" / "real")
    for text in "abc":
        with making(out, RECIPE) as work:
            assert work == tmp_path / "disk" / ".real.making"
            assert names(tmp_path / "disk") == [".real.lock", ".real.making", "real"]
            (work / "file").write_text(text)
        assert (tmp_path / "disk" / "real" / "file").read_text() == text
        assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "out"], ["real"])
    assert out.is_symlink()
    (tmp_path / "disk" / "real").replace(tmp_path / "disk" / ".real.old")  # as a kill between two renames leaves it
    with pytest.raises(ValueError, match="stopped"), making(out, RECIPE):
        raise ValueError("stopped")
    assert (out / "file").read_text() == "c"


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_not_ours_is_left_alone(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("x")
    elif kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="was not made by labeler, so it is left alone; choose another --out"):
        make(out)
    assert names(tmp_path) == ["out"]
    assert kind != "folder" or names(out) == ["thesis.tex"]


@pytest.mark.parametrize("check", [lambda out: check_free(out, "train"), make])
def test_another_stage_s_artifact_is_left_alone(tmp_path, check):
    with making(tmp_path / "out", Recipe("preprocess", (), {}, None)) as folder:
        (folder / "rows").write_text("hours of work")
    with pytest.raises(
        BadInputError, match=r"made by `labeler preprocess`, and `labeler \w+` would replace it; choose another"
    ):
        check(tmp_path / "out")
    assert (tmp_path / "out" / "rows").read_text() == "hours of work"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    assert verify(make(tmp_path / "out"))["files"]


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInputError, match="cannot be made a folder"):
        make(tmp_path / "file" / "below" / "out")


def test_a_lock_held_by_another_process_is_refused_and_a_dead_one_taken_over(tmp_path):
    out = make(tmp_path / "out", "old")
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(out)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match="another labeler process is making it") as caught:
                make(out, "new")
            assert caught.value.exit_code == 5
            with pytest.raises(LockedError, match="choose another --out"), adding(out, RECIPE):
                pass
            assert (out / "deep" / "file.txt").read_text() == "old"
        finally:
            holder.kill()
    assert (tmp_path / ".out.lock").exists(), "a killed process leaves its lock file"
    assert (make(out, "new") / "deep" / "file.txt").read_text() == "new"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_found(tmp_path, damage):
    out = make(tmp_path / "out")
    path = out / "deep" / "file.txt"
    if damage == "flip":
        path.write_bytes(b"contenu")
    elif damage == "cut":
        path.write_bytes(b"cont")
    else:
        path.unlink()
    word = "missing" if damage == "remove" else "damaged"
    with pytest.raises(BadInputError, match=rf"file\.txt: {word}.*make it again with `labeler ingest --force`"):
        verify(out)
    assert not already_made(out, RECIPE)


def rewrite(out: Path, **changes) -> None:
    """Change fields of an artifact's manifest; None takes the field away."""
    manifest = json.loads((out / "manifest.json").read_text()) | changes
    write_json(out / "manifest.json", {key: value for key, value in manifest.items() if value is not None})


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "written by a newer labeler"),
        (0, "written by an older labeler"),
        ("2", "no readable"),
        (None, "no readable"),
    ],
)
def test_another_schema_is_refused(tmp_path, version, message):
    out = make(tmp_path / "out")
    rewrite(out, schema_version=version)
    with pytest.raises(BadInputError, match=message):
        verify(out)
    assert not already_made(out, RECIPE)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_broken_manifest_is_no_artifact(tmp_path, text):
    out = make(tmp_path / "out")
    (out / "manifest.json").write_text(text)
    with pytest.raises(BadInputError, match=r"no readable manifest\.json in it.*run `labeler ingest` first"):
        read_manifest(out, "ingest")


def test_a_missing_or_other_stage_is_named(tmp_path):
    with pytest.raises(BadInputError, match="no such artifact folder; run `labeler preprocess` first"):
        verify(tmp_path / "none", "preprocess")
    with pytest.raises(BadInputError, match="made by `labeler ingest`, expected the output of `labeler preprocess`"):
        verify(make(tmp_path / "out"), "preprocess")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"inputs": (Input("pairs.jsonl", "cd" * 32),)}, "an input has changed"),
        ({"inputs": ()}, "an input has changed"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"arguments": {"task": "multi", "fields": ["a", "b"]}}, "task was 'auto', is 'multi'"),
        ({"arguments": {**RECIPE.arguments, "new": 1}}, "new was None, is 1"),
    ],
)
def test_a_changed_recipe_is_made_again_and_says_why(tmp_path, caplog, change, line):
    out = make(tmp_path / "out")
    with caplog.at_level("INFO", "labeler"):
        assert not already_made(out, RECIPE._replace(**change))
    assert f"{line}; making it again" in caplog.text


def test_artifacts_inside_a_folder_that_is_given_in_their_place_are_named(tmp_path):
    for name, stage in (("best/seed-0", "train"), ("best/seed-1", "train"), ("best/other", "ingest"), ("tn", "tune"),
                        ("tn/run-2", "train"), ("empty", "tune")):  # fmt: skip
        make(tmp_path / name, recipe=RECIPE._replace(stage=stage))
    (tmp_path / "best" / "broken").mkdir()
    (tmp_path / "best" / "broken" / "manifest.json").write_text("[")
    for stage in ("train", None):
        with pytest.raises(
            BadInputError, match=r"no readable.*; give what lies in it: \S+best/seed-0, \S+best/seed-1$"
        ):
            read_manifest(tmp_path / "best", stage)
    with pytest.raises(BadInputError, match=r"output of `labeler train`; give what lies in it: \S+tn/run-2$"):
        read_manifest(tmp_path / "tn", "train")
    with pytest.raises(BadInputError, match=r"expected the output of `labeler train`$"):
        read_manifest(tmp_path / "empty", "train")


def test_the_same_recipe_is_already_made_wherever_its_inputs_lie(tmp_path):
    out = make(tmp_path / "out")
    assert already_made(out, RECIPE)
    assert already_made(out, RECIPE._replace(inputs=(Input("/elsewhere/pairs.jsonl", "ab" * 32),)))
    assert not already_made(tmp_path / "none", RECIPE)


def test_adding_keeps_what_else_is_there(tmp_path):
    out = make(tmp_path / "run")
    (out / "notes.md").write_text("mine")
    recipe = Recipe("evaluate", (), {"split": "test"})
    with adding(out, recipe, "manifest-test.json") as work:
        (work / "metrics.json").write_text("{}")
    assert names(out) == ["deep", "manifest-test.json", "manifest.json", "metrics.json", "notes.md"]
    assert verify(out, "ingest")["files"].keys() == {"deep/file.txt"}, "the run's own manifest still holds"
    assert verify(out, "evaluate", "manifest-test.json")["files"].keys() == {"metrics.json"}
    assert already_made(out, recipe, "manifest-test.json")
    assert names(tmp_path) == ["run"]


def test_adding_leaves_all_as_it_was_on_an_error(tmp_path):
    out = make(tmp_path / "run")
    before = artifacts.file_hashes(out)
    with pytest.raises(RuntimeError, match="broken"):
        fail(adding(out, RECIPE, "more.json"), RuntimeError("broken"))
    assert artifacts.file_hashes(out) == before
    assert names(tmp_path) == ["run"]


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(block: AbstractContextManager[Path]) -> None:
    """Write 2 MB in the work folder that the block yields."""
    with block as work:
        for number in range(4):
            (work / str(number)).write_bytes(b"x" * (512 << 10))


def test_a_full_disk_leaves_the_old_artifact(small_disk):
    out = make(small_disk / "out", "old")
    for maker in (making, adding):
        with pytest.raises(OSError, match="No space left on device"):
            fill(maker(out, RECIPE))
        verify(out)
        assert names(small_disk) == ["out"]
    with pytest.raises(OSError, match="No space left on device"):
        write_text(out / "deep" / "file.txt", "x" * (2 << 20))
    verify(out)


def test_a_written_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"emoji": "🎉", "list": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "emoji": "🎉",\n  "list": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"figure": float("nan")})
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_text(path, "\ud800")
    assert json.loads(path.read_text())["emoji"] == "🎉"
    assert names(tmp_path) == ["value.json"]


def test_every_error_has_its_exit_code():
    codes = {LabelerError: 1, UsageError: 2, BadInputError: 3, LockedError: 5, InterruptedRun: 130}
    assert {error: error.exit_code for error in codes} == codes
