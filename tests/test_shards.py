"""Shards: whole or not there, found again, kept where nothing has changed, joined in the order of the rows."""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from labeler.artifacts import work_folder
from labeler.errors import BadInputError, LabelerError, LockedError
from labeler.shards import ERROR, PLAIN, REVIEW, Counts, Line, sharded, state_of

RECIPE = {"model": "m", "aim": ""}


def line(row: int, run: str = "a") -> Line:
    """Return a line of the row, with what tells by which run it was written."""
    return Line(f"{row} {run} ü\n", ERROR if row % 10 == 9 else REVIEW if row % 10 == 8 else PLAIN)


def label(
    out: Path, rows: list[int], run: str = "a", stop: int | None = None, window: int = 3, **options
) -> Counts | None:
    """Label `rows`, each of which is its own key; stop after `stop` windows, as if killed."""
    with sharded(out, options.pop("recipe", RECIPE), options.pop("header", ""), **options) as shards:
        unknown = (row for row in rows if not shards.known(row))
        for number in range(1000):
            if number == stop:
                return None
            if not (chunk := list(islice(unknown, window))):
                return shards.join()
            shards.publish([line(row, run) for row in chunk])


def lines_of(out: Path) -> list[str]:
    return [text.removesuffix(" ü") for text in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "labels.jsonl"


def test_the_output_is_in_the_order_of_the_rows_and_counted(out):
    assert label(out, list(range(20)), header="top\n") == Counts(20, 2, 2)
    assert lines_of(out) == ["top", *(f"{row} a" for row in range(20))]
    assert sorted(os.listdir(out.parent)) == [".labels.jsonl.state", "labels.jsonl"]


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 7])
def test_a_run_goes_on_after_whole_shards_and_gives_what_an_uninterrupted_one_does(out, stop):
    """Equal rows too: their first line is the first one's, and only that."""
    rows = [*range(8), 3, 3, *range(8, 20)]
    label(out.with_name("other"), rows)
    assert label(out, rows, stop=stop) is None
    assert not out.exists()
    (out.parent / ".labels.jsonl.making" / ".000007.lines.partial").parent.mkdir(exist_ok=True)
    (out.parent / ".labels.jsonl.making" / ".000007.lines.partial").write_text("cut of")
    assert label(out, rows, "b") == Counts(22, 2, 2)
    assert [text[-1] for text in lines_of(out)] == ["a"] * min(22, 3 * stop) + ["b"] * max(0, 22 - 3 * stop)
    assert [text[:-1] for text in lines_of(out)] == [text[:-1] for text in lines_of(out.with_name("other"))]
    assert not work_folder(out).exists()


def test_windows_of_what_is_left_begin_where_they_did(out):
    """Else batches would have other company, and scores another last digit."""
    label(out, [0, 1, 2])
    label(out, [0, 5, 6, 1, 7, 8, 9, 10, 2], "b", stop=1)
    windows = []
    with sharded(out, RECIPE, "") as shards:
        unknown = (row for row in [0, 5, 6, 1, 7, 8, 9, 10, 2] if not shards.known(row))
        while chunk := list(islice(unknown, 3)):
            windows.append(chunk)
            shards.publish([line(row, "c") for row in chunk])
        shards.join()
    assert windows == [[8, 9, 10]]
    assert lines_of(out) == ["0 a", "5 b", "6 b", "1 a", "7 b", "8 c", "9 c", "10 c", "2 a"]


def test_only_what_is_new_or_had_an_error_is_labelled_again(out):
    label(out, list(range(20)), header="top\n")
    assert label(out, [*range(5, 12), 30, *range(12, 25), 3], "b", header="top\n") == Counts(
        22, 2, 2, kept=14, dropped=4
    )
    expected = [*range(5, 12), 30, *range(12, 25), 3]
    assert lines_of(out) == ["top", *(f"{row} {'b' if row >= 20 or row % 10 == 9 else 'a'}" for row in expected)]


def test_an_output_in_which_nothing_has_changed_is_left_alone(out):
    rows = list(range(9))
    label(out, rows)
    before = out.stat()
    assert label(out, rows, "b") == Counts(9, 0, 1, kept=9)
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    label(out, rows, "b", force=True)
    assert {text[-1] for text in lines_of(out)} == {"b"}


def test_what_was_labelled_of_rows_that_are_gone_does_not_stay_beside_an_output_that_has_not_changed(out):
    label(out, list(range(9)))
    label(out, [*range(9), 10], "b", stop=1)
    assert list(work_folder(out).iterdir())
    assert label(out, list(range(9)), "c").kept == 9
    assert not work_folder(out).exists()


def test_a_forced_run_goes_on_too_and_keeps_nothing_else(out):
    rows = list(range(9))
    label(out, rows)
    label(out, rows, "b", stop=1, force=True)
    label(out, rows, "c", force=True)
    assert [text[-1] for text in lines_of(out)] == ["b"] * 3 + ["c"] * 6


@pytest.mark.parametrize("finished", [True, False])
def test_lines_of_another_recipe_are_not_kept_and_that_is_said(out, finished, caplog):
    caplog.set_level(logging.INFO, "labeler")
    label(out, list(range(9)), stop=None if finished else 2)
    label(out, list(range(9)), "b", recipe=RECIPE | {"aim": "recall=0.9"})
    assert {text[-1] for text in lines_of(out)} == {"b"}
    assert caplog.text.count("aim was '', is 'recall=0.9'") == 1


def test_what_computes_is_called_by_its_name(out, caplog):
    caplog.set_level(logging.INFO, "labeler")
    label(out, [1], recipe=RECIPE | {"way": "onnx fp32"})
    label(out, [1], recipe=RECIPE | {"way": "None"})
    assert "way was 'onnx fp32', is PyTorch; every item is labelled again" in caplog.text


def test_a_run_that_labels_nothing_takes_nothing_from_an_interrupted_one_by_another_recipe(out):
    label(out, list(range(9)), stop=2)
    label(out, list(range(9)), stop=0, recipe=RECIPE | {"aim": "recall=0.9"})
    label(out, list(range(9)), "b", stop=1)
    assert len(list(work_folder(out).glob("*.lines"))) == 3
    label(out, list(range(9)), "c", stop=1, recipe=RECIPE | {"aim": "recall=0.9"})
    assert len(list(work_folder(out).glob("*.lines"))) == 1
    label(out, list(range(9)), "d", recipe=RECIPE | {"aim": "recall=0.9"})
    assert "".join(text[-1] for text in lines_of(out)) == "cccdddddd"


def test_an_output_that_was_changed_by_hand_is_replaced_when_forced_alone(out):
    label(out, list(range(9)))
    changed = out.read_text(encoding="utf-8").replace("1 a", "1 x")
    out.write_text(changed, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"labels.jsonl: has been changed since .* wrote it; --force replaces it"):
        label(out, list(range(9)), "b")
    assert out.read_text(encoding="utf-8") == changed
    assert not work_folder(out).exists()
    label(out, list(range(9)), "b", force=True)
    assert {text[-1] for text in lines_of(out)} == {"b"}


def test_a_file_of_another_program_is_left_alone(out):
    out.write_text("my own notes\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"labels.jsonl: was not written by .* so it is left alone; --force"):
        label(out, [1, 2])
    assert out.read_text(encoding="utf-8") == "my own notes\n"
    out.write_text("", encoding="utf-8")
    label(out, [1, 2])
    assert len(lines_of(out)) == 2


def test_an_output_that_becomes_shorter_meanwhile_ends_in_an_error(out):
    label(out, list(range(9)))
    with sharded(out, RECIPE, "") as shards:
        assert [shards.known(row) for row in range(1, 9)] == [True] * 8
        out.write_text("", encoding="utf-8")
        with pytest.raises(LabelerError, match=r"labels.jsonl: became shorter while it was read"):
            shards.join()


@pytest.mark.parametrize("name", ["000001.lines", "000001.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:9] + b"x" + data[10:], lambda data: b""])
def test_a_damaged_shard_is_labelled_again_and_no_other(out, name, damage):
    label(out, list(range(12)), stop=3)
    path = work_folder(out) / name
    path.write_bytes(damage(path.read_bytes()))
    label(out, list(range(12)), "b")
    assert [text[-1] for text in lines_of(out)] == list("aaabbbaaabbb")


@pytest.mark.parametrize("moment", range(6))
def test_killed_while_the_output_is_put_in_its_place_it_is_put_there_by_the_next_run(out, moment, monkeypatch):
    """With what it holds; whatever of the last steps were done."""
    label(out, [0, 1, 2, 3])
    done = []

    def killed(function):
        def step(*arguments, **options):
            if len(done) == moment:
                raise KeyboardInterrupt
            done.append(function.__name__)
            return function(*arguments, **options)

        return step

    with monkeypatch.context() as patched:
        for name in ("unlink", "replace"):
            patched.setattr(Path, name, killed(getattr(Path, name)))
        patched.setattr("shutil.rmtree", killed(shutil.rmtree))
        patched.setattr("labeler.shards.write_whole", lambda path, data: path.write_bytes(data))
        with suppress(KeyboardInterrupt):
            label(out, [4, 0, 2, 5], "b", window=2)
    assert len(done) == moment
    assert label(out, [4, 0, 2, 5], "c").items == 4
    assert lines_of(out) == ["4 b", "0 a", "2 a", "5 b"]
    assert sorted(os.listdir(out.parent)) == [".labels.jsonl.state", "labels.jsonl"]


def test_keys_are_64_bits_and_survive_as_they_are(out):
    rows = [2**64 - 1, 2**64 - 2, 2**63 + 3, 2**53 + 1, 0]
    label(out, rows, stop=1)
    label(out, rows, "b")
    label(out, rows, "c")
    assert lines_of(out) == [f"{row} {'a' if number < 3 else 'b'}" for number, row in enumerate(rows)]
    assert json.loads(state_of(out).read_bytes())["keys"] == rows


def test_fault_21_two_runs_on_one_output(out):
    with (
        sharded(out, RECIPE, ""),
        pytest.raises(LockedError, match=r"labels.jsonl: another labeler process is making it"),
    ):
        label(out, [1])
    assert label(out, [1]).items == 1


def test_fault_20_an_output_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"file: cannot be made a folder \(.*\); choose another --out"):
        label(tmp_path / "file" / "labels.jsonl", [1])
    with pytest.raises(BadInputError, match=r"labels.jsonl: cannot be made there \(.*\); choose another --out"):
        label(Path("/sys/kernel/labels.jsonl"), [1])


def test_many_equal_rows_take_no_longer_than_others(out):
    rows = [7] * 20_000
    label(out, rows, window=10_000)
    assert label(out, rows, "b").kept == 20_000
    assert np.unique(lines_of(out)).tolist() == ["7 a"]
