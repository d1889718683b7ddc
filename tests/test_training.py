"""Training: a run is whole or not there, equal seeds give equal weights, and nothing goes wrong in silence."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labeler.artifacts import (
    BadInputError,
    InterruptedRun,
    LabelerError,
    UsageError,
    read_manifest,
    verify,
    work_folder,
)
from labeler.evaluation import read_predictions
from labeler.fitting import Fit, LabelTrainer, Watch, training_arguments
from labeler.models import model_names
from labeler.runs import PICKLED, load_run
from labeler.scoring import describe, evaluate
from labeler.store import Store
from labeler.training import train
from labeler.training_options import METRICS, TrainOptions, options_for

FILES = {"README.md", "config.json", "history.json", "labels.json", "manifest.json", "model.safetensors",
         "preprocessor.json", "tensorboard", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Return whether two runs hold the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", model_names())
def test_a_run_is_whole(trained, store, name):
    run = trained(name)
    assert {path.name for path in run.iterdir()} == FILES
    assert any((run / "tensorboard").iterdir())
    manifest = verify(run, "train")
    assert manifest["inputs"] == [{"path": str(store), "sha256": read_manifest(store)["content_sha256"]}]
    assert (manifest["arguments"]["model"], manifest["arguments"]["epochs"], manifest["seed"]) == (name, 2, 0)
    assert not work_folder(run).exists()
    preprocessor = json.loads((run / "preprocessor.json").read_text(encoding="utf-8"))
    assert preprocessor["max_text_tokens"] == (TrainOptions().max_text_tokens if name == "resnet-gru" else 40)
    assert preprocessor["image"]["sha256"] == manifest_of_towers(store)["image"]["sha256"]
    assert f"labeler train {name}" in (run / "README.md").read_text(encoding="utf-8")


def manifest_of_towers(store: Path) -> dict:
    return json.loads((store / "towers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", model_names())
def test_the_history_is_a_learning_curve(trained, name):
    history = json.loads((trained(name) / "history.json").read_text(encoding="utf-8"))
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert [step["step"] for step in history["steps"]] == [5]
    values = [epoch["validation_metric"] for epoch in history["epochs"]]
    assert history["best_epoch"] == 1 + int(np.argmax(values))
    assert all(0 < epoch["validation_loss"] < 5 and 0 <= epoch["validation_metric"] <= 1 for epoch in history["epochs"])
    assert 0 < history["steps"][0]["loss"] < 5
    assert (history["train_pairs"], history["validation_pairs"]) == (25, 6)
    assert (history["metric"], history["precision"], history["device"]) == (METRICS["single"], "fp32", "cpu")
    assert history["train_seconds"] > 0
    assert history["pairs_per_second"] > 0


def test_a_second_call_trains_nothing(trained, store, options, monkeypatch):
    run = trained("visualbert")
    monkeypatch.setattr(Fit, "run", lambda *_, **__: pytest.fail("trained again"))
    again = train("visualbert", store, run, options, device="cpu")
    assert again.already
    assert again.history == json.loads((run / "history.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["resnet-gru", "visualbert-coattn"])
def test_equal_seeds_give_equal_weights(trained, store, options, tmp_path, name):
    same = train(name, store, tmp_path / "same", options, device="cpu").out
    other = train(name, store, tmp_path / "other", options, seed=1, device="cpu").out
    assert equal(same, trained(name))
    assert not equal(other, same)
    assert read_manifest(same)["content_sha256"] != read_manifest(other)["content_sha256"]


def test_force_trains_again_and_other_options_too(store, options, tmp_path):
    one = dataclasses.replace(options, epochs=1)
    assert not train("resnet-gru", store, tmp_path / "run", one, device="cpu").already
    assert not train("resnet-gru", store, tmp_path / "run", one, device="cpu", force=True).already
    other = dataclasses.replace(one, batch_size=5)
    assert not train("resnet-gru", store, tmp_path / "run", other, device="cpu").already
    assert read_manifest(tmp_path / "run")["arguments"]["batch_size"] == 5


def interrupt_at(monkeypatch, step: int) -> None:
    """Press Ctrl-C during that step."""
    before = Watch.on_step_end

    def press(self, args, state, control, **kwargs):
        if state.global_step == step:
            signal.raise_signal(signal.SIGINT)
        before(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", press)


@pytest.fixture
def resumed(store, options, tmp_path, monkeypatch):
    """Return a function that trains until Ctrl-C at that step, goes on with --resume, and returns the run."""

    def make(name: str, step: int) -> Path:
        out, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(InterruptedRun, match=f"stopped after step {step}; .* --resume"):
                train(name, store, out, options, device="cpu")
        assert not out.exists()
        assert signal.getsignal(signal.SIGINT) == handler
        assert (work_folder(out) / "trainer" / f"checkpoint-{step}").is_dir()
        steps = []
        before = Watch.on_step_end
        monkeypatch.setattr(Watch, "on_step_end", lambda self, args, state, *rest, **options: (
            steps.append(state.global_step), before(self, args, state, *rest, **options))[1])  # fmt: skip
        train(name, store, out, options, device="cpu", resume=True)
        assert steps == list(range(step + 1, 9))
        return out

    return make


def test_an_interrupted_run_goes_on_from_its_last_step_and_ends_whole(resumed):
    run = resumed("visualbert-coattn", 6)
    verify(run, "train")
    assert {path.name for path in run.iterdir()} == FILES
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert load_run(run).name == "visualbert-coattn"


@pytest.mark.parametrize(
    ("name", "step"),
    [("resnet-gru", 4), ("visualbert", 2), ("visualbert", 8), ("visualbert-coattn", 6)],
)
def test_an_interrupt_changes_no_weight(trained, resumed, name, step):
    run = resumed(name, step)
    ours, theirs = (
        json.loads((folder / "history.json").read_text(encoding="utf-8")) for folder in (run, trained(name))
    )
    for epoch in ours["epochs"] + theirs["epochs"]:
        del epoch["train_loss"]  # the mean since the last logged step or the start
    assert ours["epochs"] == theirs["epochs"]
    assert equal(run, trained(name))


def test_resuming_with_other_settings_is_refused(store, options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(InterruptedRun, match="--resume"):
            train("resnet-gru", store, tmp_path / "run", options, device="cpu")
    with pytest.raises(BadInputError, match="the interrupted run had other arguments or data"):
        train("resnet-gru", store, tmp_path / "run", options, seed=3, device="cpu", resume=True)
    checkpoint = work_folder(tmp_path / "run") / "trainer" / "checkpoint-1" / "model.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="no whole checkpoint to resume from; leave out --resume"):
        train("resnet-gru", store, tmp_path / "run", options, device="cpu", resume=True)
    assert not train("resnet-gru", store, tmp_path / "run", options, device="cpu").already


def test_resume_with_nothing_to_resume_starts_at_the_first_step(trained, store, options, tmp_path):
    assert equal(
        train("resnet-gru", store, tmp_path / "a", options, device="cpu", resume=True).out, trained("resnet-gru")
    )


@pytest.mark.parametrize("rate", [math.inf, 1e38])
def test_a_rate_out_of_bounds_stops_at_the_first_loss_that_is_none(store, options, tmp_path, rate):
    wild = dataclasses.replace(options, new_learning_rate=rate, warmup=0.0)
    with pytest.raises(LabelerError, match=r"the loss is (nan|inf) at step [23]; .* try a lower --learning-rate"):
        train("resnet-gru", store, tmp_path / "run", wild, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_poisoned_weight_stops_training_and_the_last_good_checkpoint_stays(store, options, tmp_path, monkeypatch):
    before = Watch.on_epoch_begin

    def poison(self, args, state, control, **kwargs):
        before(self, args, state, control, **kwargs)
        if state.global_step == 4:
            with torch.no_grad():
                self.fit.model.head.classifier.weight[0, 0] = math.nan

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_epoch_begin", poison)
        with pytest.raises(LabelerError, match="the loss is nan at step 5"):
            train("visualbert", store, out, options, device="cpu")
    assert not out.exists()
    kept = work_folder(out) / "trainer" / "checkpoint-4"
    assert all(torch.isfinite(weight).all() for weight in load_file(kept / "model.safetensors").values())
    train("visualbert", store, out, options, device="cpu", resume=True)
    verify(out, "train")


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("visualbert"), tmp_path / "copy"))


@pytest.mark.parametrize("suffix", PICKLED)
def test_a_pickle_in_a_run_is_refused(copied, suffix):
    (copied / f"pytorch_model{suffix}").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(BadInputError, match=rf"pytorch_model\{suffix}: a pickle, which could run code"):
        load_run(copied)


@pytest.mark.parametrize("file", ["model.safetensors", "labels.json", "preprocessor.json", "tokenizer.json"])
def test_a_flipped_byte_in_a_run_is_found(copied, file):
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content)
    with pytest.raises(BadInputError, match=f"{file}: damaged .*make it again with `labeler train --force`"):
        load_run(copied)


def test_a_missing_file_in_a_run_is_found(copied):
    (copied / "labels.json").unlink()
    with pytest.raises(BadInputError, match=r"labels.json: missing"):
        load_run(copied)


@pytest.mark.parametrize("name", ["resnet-gru", "visualbert-coattn"])
def test_many_labels(multi_store, options, tmp_path, name):
    run = train(name, multi_store, tmp_path / "run", options, device="cpu")
    assert run.history["metric"] == "mean_average_precision"
    opened = load_run(run.out)
    assert len(opened.thresholds) == len(opened.label_set.names) == 7
    assert all(0 <= threshold <= 1 for threshold in opened.thresholds)
    saved = json.loads((run.out / "thresholds.json").read_text(encoding="utf-8"))
    assert saved == {"fitted_on": "validation", "thresholds": opened.thresholds}
    assert {path.name for path in run.out.iterdir()} == FILES | {"thresholds.json"}
    assert_validation_is_scoring(run.out, multi_store, options, name)


@pytest.mark.parametrize("name", model_names())
def test_validation_is_scoring(trained, store, options, tmp_path, name):
    run = Path(shutil.copytree(trained(name), tmp_path / "run"))
    assert_validation_is_scoring(run, store, options, name)


def assert_validation_is_scoring(run: Path, store: Path, options: TrainOptions, name: str) -> None:
    """Assert that what training validated by is what `evaluate` gives on the validation split."""
    opened = load_run(run)
    fit = Fit(name, store, options, 5, "cpu")
    fit.model = opened.model
    _, metric, scores = fit.validate()
    metrics = evaluate(run, store, split="validation", device="cpu").metrics
    written = read_predictions(run / "predictions-validation.jsonl", opened.label_set.names)
    assert np.array_equal(written.scores, scores)
    best = opened.history["epochs"][opened.history["best_epoch"] - 1]["validation_metric"]
    assert metric == pytest.approx(best, abs=1e-9), "the weights kept are not the best epoch's"
    assert metric == pytest.approx(metrics[METRICS[opened.label_set.task]], abs=1e-9)


def groups_of(name: str, store: Path, options: TrainOptions, tmp_path: Path) -> tuple[Fit, dict[int, dict]]:
    """Return a fit, and the optimizer's group of every parameter by the parameter's id."""
    fit = Fit(name, store, options, 0, "cpu")
    trainer = LabelTrainer(fit, args=training_arguments(tmp_path, options, 0, torch.device("cpu")))
    groups = trainer.create_optimizer().param_groups
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(fit.model.parameters()))
    return fit, found


def test_new_weights_learn_at_the_higher_rate(store, options, tmp_path):
    several = dataclasses.replace(options, n_coattn=2)
    fit, groups = groups_of("visualbert-coattn", store, several, tmp_path)
    for name, parameter in fit.model.named_parameters():
        new = name.startswith(("coattention.", "head.", "fused.embeddings.visual_"))
        group = groups[id(parameter)]
        assert group["lr"] == (several.new_learning_rate if new else several.learning_rate), name
        kept = name.endswith("bias") or "norm" in name.lower()
        assert group["weight_decay"] == (0.0 if kept else several.weight_decay), name
    blocks = {name for name in fit.model.state_dict() if name.startswith("coattention.")}
    assert {name.split(".")[1] for name in blocks} == {"0", "1"}
    assert blocks <= {name for name, _ in fit.model.named_parameters()}


def test_everything_in_the_baseline_is_new(store, options, tmp_path):
    _, groups = groups_of("resnet-gru", store, options, tmp_path)
    assert {group["lr"] for group in groups.values()} == {options.new_learning_rate}


@pytest.mark.parametrize(
    ("given", "match"),
    [({"epochs": 0}, "epochs is 0, expected more than 0"), ({"learning_rate": -1.0}, "learning-rate is -1.0"),
     ({"new_learning_rate": math.nan}, "new-learning-rate is nan"), ({"n_coattn": -1}, "n-coattn must be 0 or more"),
     ({"warmup": 1.0}, "warmup a share"), ({"batch_size": 0}, "batch-size is 0")],
)  # fmt: skip
def test_settings_out_of_range_are_named(given, match):
    with pytest.raises(LabelerError, match=match):
        options_for("visualbert", given)


@pytest.mark.parametrize(
    ("model", "given", "match"),
    [("visualbert-coattn", {"coattention": "hico"}, "unknown co-attention 'hico'; did you mean 'hieco'"),
     ("visualbert-coattn", {"coattn_place": "after"}, "unknown place of co-attention 'after'; .*There are: before, between"),
     ("visualbert", {"coattention": "seed"}, "no co-attention; leave out --coattention, or train visualbert-coattn"),
     ("resnet-gru", {"n_coattn": 2}, "resnet-gru has no co-attention; leave out --n-coattn,")],
)  # fmt: skip
def test_co_attention_that_there_is_not_is_refused(model, given, match):
    with pytest.raises(UsageError, match=match):
        options_for(model, given)


def test_a_saved_run_has_the_co_attention_that_it_was_trained_with(store, options, tmp_path):
    chosen = {"n_coattn": 1, "coattention": "hieco", "coattn_place": "between"}
    train("visualbert-coattn", store, tmp_path / "run", dataclasses.replace(options, epochs=1, **chosen), device="cpu")
    run = load_run(tmp_path / "run")
    assert {name: getattr(run.model.config, name) for name in chosen} == chosen
    assert {name: run.manifest["arguments"][name] for name in chosen} == chosen
    assert "coattention.0.affinity.weight" in run.model.state_dict()
    settings = describe(run, Store(store), "test", run.manifest)["settings"]
    assert {name: settings[name] for name in chosen} == chosen
    for name in ("coattention", "coattn_place"):
        del run.manifest["arguments"][name]
    settings = describe(run, Store(store), "test", run.manifest)["settings"]
    assert (settings["coattention"], settings["coattn_place"]) == ("vilbert", "before")


def test_a_given_setting_wins_and_none_does_not():
    own = options_for("visualbert")
    assert options_for("visualbert", {"epochs": 99, "patience": None}) == dataclasses.replace(own, epochs=99)


def test_a_text_tower_that_reaches_less_far_cuts_the_texts(store, options):
    fit = Fit("visualbert", store, dataclasses.replace(options, max_text_tokens=500), 0, "cpu")
    assert fit.max_tokens == 40


def test_the_records_are_no_store(store, tmp_path):
    with pytest.raises(BadInputError, match="made by `labeler ingest`, expected the output of `labeler preprocess`"):
        train("visualbert", store.parent / "records", tmp_path / "run", device="cpu")
