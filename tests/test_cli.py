"""The command line as a user meets it: exit codes, what stands on which stream, and how fast help is there."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from labeler.cli import COMMANDS, cli, main, system_error
from labeler.errors import BadInputError

HEAVY = {"torch", "transformers", "pandas", "pydantic", "numpy", "PIL", "lance"}
ROWS = "".join(json.dumps({"id": n, "text": f"text {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20))


class Result:
    """What a command answered."""

    def __init__(self, done: subprocess.CompletedProcess):
        """Keep the exit code and both streams, the messages without importtime's lines."""
        self.code, self.out = done.returncode, done.stdout
        lines = done.stderr.splitlines()
        self.imported = {line.rpartition("|")[2].strip().split(".")[0] for line in lines if "import time:" in line}
        self.err = "\n".join(line for line in lines if "import time:" not in line)


def labeler(*arguments: object, cwd: Path, python: tuple[str, ...] = (), **options) -> Result:
    """Run `python -m labeler` with the arguments in the folder `cwd`."""
    # the package is found by its folder, since the tests run the command elsewhere
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "100"}
    command = [sys.executable, *python, "-m", "labeler", *map(str, arguments)]
    options = {"capture_output": True} | options
    return Result(subprocess.run(command, cwd=cwd, env=environment, text=True, timeout=60, check=False, **options))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with rows that are good, `good.jsonl`, and some that are not, `bad.jsonl`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "good.jsonl").write_text(ROWS)
    (folder / "bad.jsonl").write_text(ROWS + '{"id": "cut o')
    return folder


@pytest.fixture(scope="module")
def ingested(place) -> Result:
    """Return the answer of a first `ingest` that prints JSON."""
    return labeler("ingest", "good.jsonl", "--out", "records", "--json", cwd=place)


def test_help_lists_the_stages_in_order_and_imports_nothing_heavy(place):
    result = labeler("--help", cwd=place, python=("-X", "importtime"))
    assert result.code == 0
    shown = result.out.partition("Stages, in their order:")[2]
    places = [shown.index(f"\n  {name} ") for name in COMMANDS]
    stages = ["ingest", "inspect", "preprocess", "pretrain", "train", "tune", "evaluate", "report", "export", "predict", "index",
              "search", "explain", "export-tasks"]  # fmt: skip
    assert list(COMMANDS) == stages
    assert places == sorted(places)
    assert "click" in result.imported, "importtime was read"
    assert not result.imported & HEAVY
    assert result.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_itself_and_every_option(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.name == name
    assert command.help
    for option in command.params:
        assert option.name
        if isinstance(option, click.Option) and option.name not in ("batch_size", "split"):
            assert option.help, f"labeler {name} {option.opts[0]} has no help"


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_examples_in_a_help_text_stand_on_lines_of_their_own(name):
    command = cli.get_command(click.Context(cli), name) if name else cli
    shown = command.get_help(click.Context(command, info_name="labeler"))
    assert "\\b" not in shown
    examples = [line for line in shown.splitlines() if line.strip().startswith("labeler ")]
    assert not [line for line in examples if line.count("labeler ") > 1]
    assert len(examples) == {None: 6, "ingest": 3}.get(name, 0)


def test_every_command_is_a_file_and_every_file_a_command():
    folder = Path(importlib.util.find_spec("labeler.cli").origin).parent
    assert {path.stem for path in folder.glob("*.py")} == {
        *(name.replace("-", "_") for name in COMMANDS),
        "__init__",
        "options",
    }


def test_a_command_s_help_and_usage_errors_need_no_torch(place):
    result = labeler("train", "--help", cwd=place, python=("-X", "importtime"))
    assert (result.code, result.err) == (0, "")
    assert "--resume" in result.out
    assert not result.imported & HEAVY


def test_an_unknown_command_is_answered_with_the_closest(place):
    result = labeler("trian", cwd=place)
    assert (result.code, result.out) == (2, "")
    assert "no such command 'trian'. Did you mean 'train'?" in result.err


def test_an_unknown_model_is_answered_before_torch_is_imported(place):
    result = labeler("train", "visualbrt", "store", "--out", "run", cwd=place, python=("-X", "importtime"))
    assert (result.code, result.out) == (2, "")
    assert "error: unknown model 'visualbrt'; did you mean 'visualbert'? There are: " in result.err
    assert not result.imported & {"torch", "transformers", "pandas"}
    assert not (place / "run").exists()


def test_json_alone_stands_on_standard_output(ingested, place):
    assert ingested.code == 0
    assert ingested.err == ""
    answer = json.loads(ingested.out)
    assert (answer["out"], answer["already"], answer["kept"], answer["rejected"]) == ("records", False, 20, 0)
    assert answer["splits"] == {"train": 14, "validation": 3, "test": 3}


def test_a_second_call_says_that_it_is_made_and_writes_messages_to_standard_error(ingested, place):
    before = (place / "records" / "manifest.json").stat()
    result = labeler("ingest", "good.jsonl", "--out", "records", cwd=place)
    assert (result.code, result.out) == (0, "")
    assert "records: already made from the same inputs (--force makes it again)" in result.err
    assert "20 of 20 rows kept, 0 rejected" in result.err
    assert (place / "records" / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns


def test_rejects_end_with_4_and_strict_with_3(place):
    result = labeler("ingest", "bad.jsonl", "--out", "some", cwd=place)
    assert (result.code, result.out) == (4, "")
    assert "20 of 21 rows kept, 1 rejected (not-json 1)" in result.err
    assert "the rejected rows, with reasons: some/rejects.jsonl" in result.err
    result = labeler("ingest", "bad.jsonl", "--out", "none", "--strict", cwd=place)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: bad.jsonl:21: ")
    assert "Traceback" not in result.err
    assert not (place / "none").exists()


@pytest.mark.parametrize("words", [("--debug", "ingest"), ("ingest", "--debug")], ids=["before", "behind"])
def test_a_traceback_is_shown_when_asked_for(place, words):
    result = labeler(*words, "none.jsonl", "--out", "none", cwd=place)
    assert (result.code, result.out) == (3, "")
    assert "Traceback (most recent call last)" in result.err
    assert result.err.endswith("error: none.jsonl: no such file or folder")


@pytest.mark.parametrize("words", [("--quiet", "ingest"), ("ingest", "--quiet")], ids=["before", "behind"])
def test_nothing_but_warnings_is_said_when_asked_for(place, words):
    result = labeler(*words, "good.jsonl", "--out", "quietly", cwd=place)
    assert (result.code, result.out) == (0, "")
    assert {line.split(":")[0] for line in result.err.splitlines()} == {"warning"}, "20 rows are too few to learn from"


@pytest.mark.parametrize("options", [["--map", "mood=x"], ["--split", "0.5,0.5,0.5"], ["--task", "both"]])
def test_what_the_command_cannot_take_ends_with_2(place, options):
    result = labeler("ingest", "good.jsonl", "--out", "none", *options, cwd=place)
    assert (result.code, result.out) == (2, "")
    assert options[0] in result.err
    assert not (place / "none").exists()


def test_a_held_output_ends_with_5(place):
    with open(place / ".held.lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = labeler("ingest", "good.jsonl", "--out", "held", cwd=place)
    assert (result.code, result.out) == (5, "")
    assert result.err == "error: held: another labeler process is making it; wait for it or choose another --out"


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["preprocess", "none", "--out", "x"], "ingest"),
        (["evaluate", "none", "--data", "none"], "train"),
        (["train", "visualbert", "none", "--out", "x"], "preprocess"),
    ],
)
def test_a_missing_artifact_names_the_stage_to_run_first(monkeypatch, place, arguments, first):
    monkeypatch.chdir(place)
    with pytest.raises(BadInputError, match=f"run `labeler {first}` first") as caught:
        cli.main(arguments, standalone_mode=False)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("arguments", [["ingest", "good.jsonl", "--out", "records", "--json"], ["--help"]])
def test_a_reader_that_goes_away_ends_it_quietly(ingested, place, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = labeler(*arguments, cwd=place, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(writing)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(("left", "code"), [(None, 0), (1, 0), (15, 15)])
def test_who_leaves_otherwise_leaves_with_his_own_code(monkeypatch, left, code):
    def leave(**how):
        raise SystemExit(left)

    monkeypatch.setattr(cli, "main", leave)
    with pytest.raises(SystemExit, match=rf"^{code}$"):
        main()


def test_head_takes_the_first_line(ingested, place):
    command = f"'{sys.executable}' -m labeler ingest good.jsonl --out records --json | head -1"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_costs_nothing_but_what_it_would_have_said(place, tmp_path, closed):
    command = f"'{sys.executable}' -m labeler ingest '{place}/good.jsonl' --out '{tmp_path}/records' --json {closed}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "bug" in done.stderr) == (0, False)
    assert (tmp_path / "records" / "manifest.json").is_file()


def test_a_system_error_is_a_sentence():
    assert system_error(OSError(28, "No space left on device", "out/x")) == (
        "out/x: No space left on device; free some space or choose another --out"
    )
    assert system_error(PermissionError(13, "Permission denied", "out")) == "out: Permission denied"
