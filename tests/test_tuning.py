"""Tuning: what is stored goes on as if nothing had happened, time is kept to, and the best is what its options make."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from labeler import tuning
from labeler.artifacts import locked, verify
from labeler.cli import cli
from labeler.errors import BadInputError, InterruptedRun, LabelerError, UsageError
from labeler.fitting.watching import Watch
from labeler.models import model_names
from labeler.store import Store
from labeler.training_options import options_for, search_space
from labeler.tuning import clear, tune

FIXED = {"epochs": 2, "batch_size": 2, "new_learning_rate": 1e-2, "ema": 0.0, "precision": "fp32"}
ONE = FIXED | {"epochs": 1, "batch_size": 8}
SEARCHED = ["warmup", "weight_decay", "label_smoothing", "modality_dropout", "vocabulary"]


def search(store: Path, out: Path, fixed: dict | None = None, **how) -> dict:
    how = {"device": "cpu"} | how
    return tune("resnet-gru", store, out, fixed=FIXED if fixed is None else fixed, **how)


def table(out: Path) -> list[dict[str, str]]:
    """Return trials.csv without what no two searches share."""
    with open(out / "trials.csv", encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def found(store, tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of a search of three trials, and its summary; not to be changed by a test."""
    out = tmp_path_factory.mktemp("found") / "search"
    return out, search(store, out, trials=3, seed=2)


def test_a_search_writes_what_it_tried_and_keeps_the_best_run_alone(found):
    out, summary = found
    rows = table(out)
    assert list(rows[0]) == ["number", "state", *SEARCHED, "validation_metric"]
    assert [(row["number"], row["state"]) for row in rows] == [("0", "complete"), ("1", "complete"), ("2", "complete")]
    default = options_for("resnet-gru", FIXED)
    assert {name: rows[0][name] for name in SEARCHED} == {name: str(getattr(default, name)) for name in SEARCHED}
    assert len({row["weight_decay"] for row in rows}) == 3
    values = [float(row["validation_metric"]) for row in rows]
    assert summary["defaults"] == values[0]
    assert (summary["best"]["number"], summary["best"]["value"]) == (values.index(max(values)), max(values))
    assert (summary["trials"], summary["stopped"], summary["failed"]) == (3, 0, 0)
    assert (summary["metric"], summary["validation_pairs"]) == ("macro_f1", 6)
    run = out / f"run-{summary['best']['number']}"
    assert {path.name for path in out.iterdir()} == {"best.json", "manifest.json", "study.db", "trials.csv", run.name}
    assert verify(run, "train")["seed"] == verify(out, "tune")["seed"] == 2


def test_training_with_the_best_options_makes_the_best_run(found, store, tmp_path, capsys):
    out, summary = found
    best = json.loads((out / "best.json").read_text(encoding="utf-8"))
    assert best == {name: best[name] for name in best} | FIXED | summary["best"]["options"]
    assert "coattention" not in best
    arguments = ["train", "resnet-gru", str(store), "--out", str(tmp_path / "run"), "--seed", "2", "--device", "cpu"]
    cli.main([*arguments, "--options", str(out / "best.json")], standalone_mode=False)
    ours = load_file(tmp_path / "run" / "model.safetensors")
    theirs = load_file(Path(summary["run"]) / "model.safetensors")
    assert all(bool((ours[name] == value).all()) for name, value in theirs.items())
    assert verify(tmp_path / "run")["arguments"] == verify(Path(summary["run"]))["arguments"]


def test_a_search_that_is_over_trains_nothing_more_and_one_that_is_not_goes_on(found, store, monkeypatch, tmp_path):
    out, summary = found
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_begin", lambda *_, **__: pytest.fail("trained again"))
        assert search(store, out, trials=3, seed=2) == summary
    part = tmp_path / "search"
    assert search(store, part, trials=1, seed=2)["best"]["number"] == 0
    search(store, part, trials=3, seed=2)
    assert table(part) == table(out)


def test_a_device_that_is_not_there_costs_no_trial_and_a_folder_may_have_braces(store, tmp_path):
    out = tmp_path / "{a}{}"
    search(store, out, trials=1, seed=2)
    with pytest.raises(UsageError, match="--device cuda:7"):
        search(store, out, trials=3, seed=2, device="cuda:7")
    assert len(table(out)) == 1


def test_the_test_split_is_not_read(store, monkeypatch, tmp_path):
    read, before = set(), Store.rows_of
    monkeypatch.setattr(Store, "rows_of", lambda self, split: (read.add(split), before(self, split))[1])
    search(store, tmp_path / "search", ONE, trials=1)
    assert read == {"train", "validation"}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from labeler.fitting.watching import Watch
from labeler.tuning import tune

begun, before = [], Watch.on_step_end
def kill(self, args, state, control, **kwargs):
    begun.append(state.global_step)
    if begun.count(1) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, args, state, control, **kwargs)
Watch.on_step_end = kill
tune("resnet-gru", Path(sys.argv[1]), Path(sys.argv[2]), trials=3, seed=2, fixed=json.loads(sys.argv[3]), device="cpu")
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_and_finds_what_another_finds(found, store, tmp_path):
    out = tmp_path / "search"
    command = [sys.executable, "-c", KILLED, str(store), str(out), json.dumps(FIXED)]
    assert subprocess.run(command, check=False, capture_output=True, timeout=100).returncode == -signal.SIGKILL
    assert (out / ".run-1.making").is_dir()
    whole, before = table(found[0]), table(out)
    assert before == whole[:1]
    summary = search(store, out, trials=3, seed=2)
    rows = table(out)
    assert [(row["number"], row["state"]) for row in rows] == [
        ("0", "complete"), ("1", "failed"), ("2", "complete"), ("3", "complete")]  # fmt: skip
    failed = rows.pop(1)
    assert {name: failed[name] for name in SEARCHED} == {name: whole[1][name] for name in SEARCHED}
    for one, other in zip(rows, whole, strict=True):
        assert one | {"number": ""} == other | {"number": ""}
    assert summary["failed"] == 1
    assert summary["best"]["value"] == found[1]["best"]["value"]
    assert not [path for path in out.iterdir() if path.name.startswith((".run", "run")) and str(path) != summary["run"]]


def test_ctrl_c_stops_a_trial_and_the_same_command_goes_on(store, monkeypatch, tmp_path):
    def press(self, args, state, control, **kwargs):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_begin", press)
        with pytest.raises(InterruptedRun, match="stopped in trial 0; the same command goes on"):
            search(store, tmp_path / "search", ONE, trials=1)
    assert search(store, tmp_path / "search", ONE, trials=1)["best"]["number"] == 1
    assert [row["state"] for row in table(tmp_path / "search")] == ["failed", "complete"]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Return a clock for the search on which an epoch takes `epoch` seconds, and nothing else any."""
    clock = SimpleNamespace(now=0.0, epoch=60.0)
    before = Watch.on_epoch_end

    def tick(self, *arguments, **options):
        clock.now += clock.epoch
        return before(self, *arguments, **options)

    monkeypatch.setattr(Watch, "on_epoch_end", tick)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_no_trial_is_begun_that_would_end_too_late_but_the_first(store, clock, tmp_path, caplog):
    out = tmp_path / "search"
    assert search(store, out, ONE, minutes=0.5)["seconds"] == 60
    caplog.set_level("INFO", "labeler")
    assert search(store, out, ONE, minutes=2.9)["trials"] == 2
    assert "120 of 174 s are spent, and another trial may take 60 s" in caplog.text
    assert search(store, out, ONE, minutes=60, trials=3)["trials"] == 3


def test_a_trial_that_is_not_over_when_the_time_is_up_is_stopped_after_its_epoch(store, clock, tmp_path):
    two = ONE | {"epochs": 2}
    search(store, tmp_path / "search", two, trials=1)
    clock.epoch = 200.0
    summary = search(store, tmp_path / "search", two, minutes=5)
    assert (summary["trials"], summary["stopped"], summary["seconds"]) == (2, 1, 320)


def test_hopeless_trials_and_those_that_diverge_are_stopped(store, monkeypatch, tmp_path, caplog):
    import optuna

    monkeypatch.setattr(tuning, "JUDGES", 1)
    space = {"new_learning_rate": (1e-9, 1e38, "log")}
    monkeypatch.setattr(tuning, "search_space", lambda model, fixed: space)
    out, fixed = tmp_path / "search", {"epochs": 3, "batch_size": 2, "precision": "fp32", "warmup": 0.0}
    search(store, out, fixed, trials=1)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    for rate in (1e-2, 1e-9, 1e38):
        study.enqueue_trial({"new_learning_rate": rate})
    caplog.set_level("INFO", "labeler")
    summary = search(store, out, fixed, trials=4)
    assert "trial 2 stopped: worse than the median of the trials before" in caplog.text
    assert "trial 3 stopped: the loss is " in caplog.text
    assert [row["state"] for row in table(out)] == ["complete", "complete", "stopped", "stopped"]
    assert len(study.trials[2].intermediate_values) == tuning.FIRST_JUDGED_EPOCH
    assert (summary["best"]["number"], summary["stopped"]) == (1, 2)
    assert summary["best"]["value"] > summary["defaults"]
    assert [path.name for path in out.iterdir() if "run-" in path.name] == ["run-1"]


def test_what_a_dead_trial_has_left_goes_and_what_somebody_else_put_there_stays(found, tmp_path):
    run = shutil.copytree(found[1]["run"], tmp_path / "run-1")
    for name in ("run-1-copy", "run-10", ".run-1.making", ".run-1.adding", ".run-10.making"):
        (tmp_path / name).mkdir()
    for name in ("run-notes.txt", ".run-1.lock"):
        (tmp_path / name).touch()
    with locked(run):  # as `evaluate` holds it
        clear(run, keep=False)
        assert (run / "manifest.json").is_file()
        assert (tmp_path / ".run-1.adding").is_dir()
    clear(run, keep=True)
    assert (run / "manifest.json").is_file()
    clear(run, keep=False)
    assert {path.name for path in tmp_path.iterdir()} == {"run-1-copy", "run-10", ".run-10.making", "run-notes.txt"}
    clear(tmp_path / "run-2", keep=False)
    (tmp_path / "run-3").mkdir()
    clear(tmp_path / "run-3", keep=False)
    assert (tmp_path / "run-3").is_dir(), "no run of a trial"


def test_a_proposal_that_the_model_cannot_take_is_stopped(store, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tuning, "search_space", lambda model, fixed: {"n_coattn": [1, 2]})
    fixed = {"epochs": 1, "batch_size": 8, "precision": "fp32", "coattn_place": "between"}  # in a tower of two layers
    caplog.set_level("INFO", "labeler")
    # seed 0 proposes two blocks after the defaults
    summary = tune("visualbert-coattn", store, tmp_path / "search", trials=2, fixed=fixed, seed=0, device="cpu")
    assert "trial 1 stopped: --n-coattn is 2, but between the text tower's 2 layers is room for 1" in caplog.text
    assert (summary["best"]["number"], summary["stopped"]) == (0, 1)


def test_defaults_that_diverge_are_said(store, tmp_path):
    wild = ONE | {"new_learning_rate": 1e38, "warmup": 0.0}
    with pytest.raises(LabelerError, match=r"no trial came to its end \(of 1\), .* give lower rates in --options"):
        search(store, tmp_path / "search", wild, trials=1)


def test_another_search_in_the_same_folder_is_an_error(found, store, multi_store, tmp_path):
    out, _ = found
    with pytest.raises(BadInputError, match=r"holds another search \(seed was 2, is 3\); choose another --out"):
        search(store, out, trials=3, seed=3)
    with pytest.raises(BadInputError, match="an input has changed"):
        search(multi_store, out, trials=3, seed=2)
    with pytest.raises(BadInputError, match="model was 'resnet-gru', is 'late-fusion'"):
        tune("late-fusion", store, out, trials=3, seed=2, fixed=FIXED)
    with pytest.raises(BadInputError, match="batch_size was 2, is 9"):
        search(store, out, FIXED | {"batch_size": 9}, trials=3, seed=2)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadInputError, match="exists and holds no search"):
        search(store, tmp_path, trials=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(BadInputError, match=r"study.db: not readable as a study"):
        search(store, tmp_path / "broken", trials=1)


def test_what_cannot_be_searched_is_a_usage_error(store, tmp_path):
    with pytest.raises(UsageError, match="Give --trials N, --budget MINUTES or both"):
        search(store, tmp_path / "search")
    everything = {name: getattr(options_for("resnet-gru"), name) for name in search_space("resnet-gru")}
    with pytest.raises(UsageError, match="every option of resnet-gru that could be searched is fixed"):
        search(store, tmp_path / "search", everything, trials=1)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("name", model_names())
def test_the_defaults_lie_in_the_search_space(name):
    default, space = options_for(name), search_space(name, {"warmup": 0.1})
    for option, values in space.items():
        assert tuning.distribution(values)._contains(
            tuning.distribution(values).to_internal_repr(getattr(default, option))
        )
    assert ("coattention" in space) == ("coattn" in name)
    assert ("visual_token_dropout" in space) == (name == "visualbert")
    assert "visual_token_dropout" not in search_space(name, {"finetune_image": True})
    assert "warmup" not in space
    assert ("learning_rate" in space) == (name != "resnet-gru")


def test_the_command_searches_and_says_that_the_best_is_flattered(store, tmp_path, capsys, caplog):
    (tmp_path / "fixed.json").write_text(json.dumps(ONE))
    out = tmp_path / "search"
    arguments = ["tune", "resnet-gru", str(store), "--out", str(out), "--device", "cpu", "--trials", "2"]
    arguments += ["--options", str(tmp_path / "fixed.json")]
    cli.main([*arguments, "--json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)
    assert (
        "the best of 2 trials on one validation split (6 pairs) is flattered: part of its lead is luck" in caplog.text
    )
    cli.main([*arguments, "--budget", "600"], standalone_mode=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    best = answer["best"]
    assert f"trial {best['number']}, validation macro_f1 {best['value']:.4f}; the defaults reached " in shown.err


def test_settings_of_teachers_that_are_not_there_are_refused(store, tmp_path):
    with pytest.raises(UsageError, match="teacher_weight: tune has no teachers"):
        search(store, tmp_path / "search", {"teacher_weight": 0.9}, trials=1)


def test_a_search_that_failed_on_its_options_leaves_the_folder_to_the_next(store, tmp_path):
    out = tmp_path / "search"
    with pytest.raises(UsageError, match="resnet-gru has no transformer layers"):
        search(store, out, ONE | {"activation_checkpointing": True}, trials=1)
    assert search(store, out, ONE, trials=1)["trials"] == 1
    with pytest.raises(BadInputError, match="holds another search"):
        search(store, out, ONE | {"epochs": 2}, trials=1)


def test_a_search_takes_what_another_found(found, store, tmp_path):
    best = json.loads((found[0] / "best.json").read_text(encoding="utf-8"))
    assert "teacher_weight" in best
    fixed = {name: value for name, value in best.items() if name != "warmup"} | {"epochs": 1}
    assert search(store, tmp_path / "search", fixed, trials=1)["trials"] == 1
