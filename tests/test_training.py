"""Training: a run is whole or not there, equal seeds give equal weights, and nothing goes wrong in silence."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from labeler.artifacts import read_manifest, sha256_file, verify, work_folder
from labeler.cli import cli
from labeler.decisions import VALIDATION
from labeler.errors import BadInputError, LabelerError
from labeler.evaluating import describe, evaluate
from labeler.evaluation import read_predictions, scores_of
from labeler.fitting.arguments import training_arguments
from labeler.fitting.averaging import AveragedWeights
from labeler.fitting.fit import Fit
from labeler.fitting.trainer import LabelTrainer
from labeler.fitting.watching import Watch
from labeler.models import model_names
from labeler.preprocessing import preprocess
from labeler.runs import PICKLED, load_run
from labeler.store import Store
from labeler.training import over_seeds, train, train_seeds
from labeler.training_options import METRICS, TrainOptions, options_for, own_options, read_options

FILES = {"README.md", "calibration.json", "config.json", "history.json", "labels.json", "manifest.json", "model.safetensors",
         "preprocessor.json", "tensorboard", "tokenizer.json", "tokenizer_config.json", "validation.jsonl"}  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Return whether two runs hold the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", model_names())
def test_a_run_is_whole(trained, store, name):
    run = trained(name)
    # which `predict` keeps in a run that has labelled many items, as a test before this may have done
    kept = {"export"}
    assert {path.name for path in run.iterdir()} - kept == FILES
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


def test_the_weights_kept_are_the_average_of_those_after_each_step(store, options, tmp_path, monkeypatch):
    steps, before = [], AveragedWeights.update

    def note(self, model):
        before(self, model)
        steps.append({key: value.clone() for key, value in model.state_dict().items()})

    monkeypatch.setattr(AveragedWeights, "update", note)
    one = dataclasses.replace(options, epochs=1, ema=0.7)
    run = train("resnet-gru", store, tmp_path / "run", one, device="cpu").out
    assert len(steps) == 4
    expected = steps[0]
    for weights_after in steps[1:]:
        expected = {key: 0.7 * value + 0.3 * weights_after[key] for key, value in expected.items()}
    kept = weights(run)
    for key, value in expected.items():
        torch.testing.assert_close(kept[key], value)
    assert not torch.equal(kept["classifier.weight"], steps[-1]["classifier.weight"])
    assert_validation_is_scoring(run, store, options, "resnet-gru")


def test_the_chosen_loss_is_the_one_that_is_trained_by(trained, store, options, tmp_path):
    plain = json.loads((trained("late-fusion") / "history.json").read_text(encoding="utf-8"))
    smoothed = dataclasses.replace(options, label_smoothing=0.5)
    history = train("late-fusion", store, tmp_path / "run", smoothed, device="cpu").history
    assert history["epochs"][0]["train_loss"] > plain["epochs"][0]["train_loss"] + 0.1
    assert read_manifest(tmp_path / "run")["arguments"]["label_smoothing"] == 0.5


def test_the_head_starts_where_the_chosen_loss_wants_it(store, options):
    plain = Fit("late-fusion", store, options, 0, "cpu")
    adjusted = Fit("late-fusion", store, dataclasses.replace(options, logit_adjustment=1.0), 0, "cpu")
    for fit in (plain, adjusted):
        fit.start_head()
    priors = plain.store.truth(plain.train_pairs.rows).mean(axis=0)
    moved = plain.model.head.classifier.bias - adjusted.model.head.classifier.bias
    np.testing.assert_allclose(moved.detach().numpy(), np.log(priors), atol=1e-5)


def test_several_seeds_are_runs_of_their_own_and_found_again(store, options, tmp_path):
    one = dataclasses.replace(options, epochs=1)
    results = train_seeds("resnet-gru", store, tmp_path / "runs", one, range(3, 5), device="cpu")
    assert [result.out for result in results] == [tmp_path / "runs" / "seed-3", tmp_path / "runs" / "seed-4"]
    assert [verify(result.out, "train")["seed"] for result in results] == [3, 4]
    summary = over_seeds(results)
    values = [result.history["epochs"][0]["validation_metric"] for result in results]
    assert (summary["metric"], summary["mean"]) == ("macro_f1", pytest.approx(np.mean(values)))
    assert summary["sd"] == pytest.approx(np.std(values, ddof=1))
    more = train_seeds("resnet-gru", store, tmp_path / "runs", one, range(3, 6), device="cpu")
    assert [result.already for result in more] == [True, True, False]
    assert over_seeds(more[:1])["sd"] is None
    with pytest.raises(BadInputError, match="seed-3: a run itself; choose another --out"):
        train_seeds("resnet-gru", store, tmp_path / "runs" / "seed-3", one, range(1), device="cpu")


def test_the_command_trains_several_seeds(store, tmp_path, capsys):
    arguments = ["train", "resnet-gru", str(store), "--out", str(tmp_path / "runs"), "--epochs", "1", "--seeds", "2"]
    cli.main([*arguments, "--json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)
    assert [Path(run["out"]).name for run in answer["runs"]] == ["seed-0", "seed-1"]
    cli.main(arguments, standalone_mode=False)
    said = capsys.readouterr().err
    assert f"2 seeds, validation macro_f1 {answer['mean']:.4f} ± {answer['sd']:.4f} (standard deviation)" in said
    assert said.count("already made") == 2


def test_the_help_of_train_names_every_model(capsys):
    cli.main(["train", "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert [name for name in model_names() if name not in shown] == []


def test_a_run_that_lacks_weights_of_todays_model_is_refused(copied):
    kept = {key: value for key, value in weights(copied).items() if key != "head.absence"}
    save_file(kept, copied / "model.safetensors", metadata={"format": "pt"})
    manifest = read_manifest(copied)
    manifest["files"]["model.safetensors"] = sha256_file(copied / "model.safetensors")
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"not in it \(head.absence\), an older labeler made it; make it again"):
        load_run(copied)


@pytest.mark.parametrize(("other", "match"), [("late-fusion", "head.absence"), ("wider", "head.classifier.weight")])
def test_a_run_with_weights_of_another_architecture_is_refused(copied, trained, other, match):
    strange = weights(trained("late-fusion")) if other == "late-fusion" else weights(copied)
    if other == "wider":
        strange["head.classifier.weight"] = torch.zeros(3, 500)
    save_file(strange, copied / "model.safetensors", metadata={"format": "pt"})
    manifest = read_manifest(copied)
    manifest["files"]["model.safetensors"] = sha256_file(copied / "model.safetensors")
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(
        BadInputError, match=rf"visualbert has no place for its weights \({match}.*another architecture"
    ):
        load_run(copied)


def test_a_picture_tower_of_another_width_and_a_vocabulary_of_characters(store, text_tower, options, tmp_path):
    tower = tmp_path / "resnet18"
    tower.mkdir()
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), tower / "model.safetensors")
    config = {"library": "torchvision", "architecture": "resnet18", "num_classes": 3, "input_size": [3, 64, 64]}
    (tower / "config.json").write_text(json.dumps(config), encoding="utf-8")
    preprocess(store.parent / "records", tmp_path / "store", text_encoder=str(text_tower), image_encoder=str(tower))
    chosen = dataclasses.replace(options, vocabulary="character", epochs=1)
    run = load_run(train("resnet-gru", tmp_path / "store", tmp_path / "run", chosen, device="cpu").out)
    assert run.model.config.visual_width == 512
    assert run.tokenizer.tokenize("red one") == list("redone")
    assert evaluate(tmp_path / "run", tmp_path / "store", device="cpu").metrics["n"] == 7


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
    _, metric = fit.validate()
    metrics = evaluate(run, store, split="validation", device="cpu").metrics
    written = (run / "predictions-validation.jsonl").read_bytes()
    assert written == (run / "validation.jsonl").read_bytes()
    scores = scores_of(opened.label_set.task, fit.validation_logits(), opened.temperature)
    kept = read_predictions(run / "validation.jsonl", opened.label_set.names)
    assert np.array_equal(kept.scores, scores)
    said = metrics["calibration"]
    assert said["temperature"] == opened.temperature != 1.0
    assert sum(found["n"] for found in said["after"]["bins"]) == sum(found["n"] for found in said["before"]["bins"])
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


def test_a_text_tower_that_reaches_less_far_cuts_the_texts(store, options):
    fit = Fit("visualbert", store, dataclasses.replace(options, max_text_tokens=500), 0, "cpu")
    assert fit.max_tokens == 40


def test_the_records_are_no_store(store, tmp_path):
    with pytest.raises(BadInputError, match="made by `labeler ingest`, expected the output of `labeler preprocess`"):
        train("visualbert", store.parent / "records", tmp_path / "run", device="cpu")


@pytest.mark.parametrize("name", model_names())
def test_a_models_own_options_are_read_again(tmp_path, name):
    (tmp_path / "options.json").write_text(json.dumps(own_options(name, options_for(name))))
    assert options_for(name, read_options(tmp_path / "options.json")) == options_for(name)


def test_what_is_fitted_on_validation_is_fitted_to_the_scores_of_float32(store, options, tmp_path):
    """Training in bf16 leaves a model whose forward computes in bf16."""
    run = train("visualbert", store, tmp_path / "run", dataclasses.replace(options, precision="bf16"), device="cpu").out
    evaluate(run, store, split="validation", device="cpu")
    names = ["square", "circle", "cross"]
    fitted, measured = (read_predictions(run / name, names) for name in (VALIDATION, "predictions-validation.jsonl"))
    assert fitted.ids == measured.ids
    np.testing.assert_allclose(fitted.scores, measured.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("best", "warned"), [(0.79, True), (0.8, False), (0.9, False)])
def test_training_that_only_made_it_worse_is_said(caplog, best, warned):
    fit = SimpleNamespace(progress=SimpleNamespace(at_start=0.8), metric="macro_f1")
    Fit.tell_if_worse(fit, {"epochs": [{"validation_metric": 0.5}, {"validation_metric": best}]})
    assert (
        "no epoch is as good as the fitted head before training (validation macro_f1 0.8000" in caplog.text
    ) == warned
