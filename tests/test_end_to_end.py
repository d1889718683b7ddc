"""Image towers fine-tuned with the model: trained, kept, used everywhere; pictures as preprocess shows them, or augmented."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_prediction import assert_as_measured, lines_of, write_pairs
from test_resume import interrupt_at
from transformers import AutoTokenizer

from labeler.artifacts import read_manifest, verify
from labeler.batches import StorePairs, collate, without
from labeler.encoders.image import load_image_encoder
from labeler.encoders.weights import TOWER
from labeler.end_to_end import AugmentedPictures, EndToEnd, augmentation
from labeler.errors import BadInputError, InterruptedRun, LabelerError, UsageError
from labeler.evaluating import describe, evaluate, score_split
from labeler.evaluation import read_predictions
from labeler.exporting import export
from labeler.fitting.arguments import training_arguments
from labeler.fitting.fit import Fit
from labeler.fitting.objectives import right_for
from labeler.fitting.trainer import LabelTrainer
from labeler.ingestion import IngestOptions, ingest
from labeler.models import model_names
from labeler.pixels import FILE, pixels_for, records_of, stored_pixels
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.runs import load_run
from labeler.store import Store
from labeler.training import train
from labeler.training_options import TrainOptions, options_for

NAMES = ["square", "circle", "cross"]


@pytest.fixture(scope="module")
def tuning(options) -> TrainOptions:
    """Return settings that train a tiny model and its image tower."""
    return dataclasses.replace(options, epochs=1, finetune_image=True, image_learning_rate=1e-3, augment="light")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, store, tuning) -> Callable[[str], Path]:
    """Return a function from a model's name to its run with a tower of its own, trained once, which tests may evaluate."""
    folder = tmp_path_factory.mktemp("tuned")

    @functools.cache
    def run(name: str) -> Path:
        return train(name, store, folder / name, tuning, device="cpu").out

    return run


@pytest.mark.parametrize("name", model_names())
def test_the_tower_is_trained_and_its_batch_norms_statistics_are_not(tuned, image_tower, name):
    run = tuned(name)
    assert read_manifest(run)["arguments"]["finetune_image"] is True
    assert {f"{TOWER}/config.json", f"{TOWER}/model.safetensors"} <= verify(run, "train")["files"].keys()
    before, after = (load_file(folder / "model.safetensors") for folder in (image_tower, run / TOWER))
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    statistics = {key for key in before if "running_" in key or "num_batches" in key}
    assert len(statistics) > 9
    assert moved == before.keys() - statistics - {"fc.weight", "fc.bias"}  # no token hangs on the classifier
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("name", model_names())
def test_predict_gives_what_evaluate_measured_by_the_runs_own_tower(tuned, trained, store, tmp_path, monkeypatch, name):
    run, source = tuned(name), store.parent / "source"
    evaluate(run, store, device="cpu")
    rows = [row for row in lines_of(source / "pairs.jsonl") if row["split"] == "test"]
    rows = [row | {"image": row["image"] and str(source / row["image"])} for row in rows]
    pairs = write_pairs(tmp_path / "test.jsonl", rows)
    predict([pairs], run, tmp_path / "out.jsonl", device="cpu", allow_outside=True, batch_size=3)
    measured = read_predictions(run / "predictions-test.jsonl", NAMES)
    scores = np.array([list(line["scores"].values()) for line in lines_of(tmp_path / "out.jsonl")])
    assert measured.ids == [row["id"] for row in rows]
    np.testing.assert_allclose(scores, measured.scores, atol=1e-4, rtol=0)

    opened, data = load_run(run), Store(store)
    monkeypatch.setattr(Store, "visual_tokens", lambda *_: pytest.fail("the store's tokens are another tower's"))
    again, *_ = score_split(opened, data, "test", 4, pixels_for(opened, data))
    np.testing.assert_allclose(again.scores, measured.scores, atol=1e-4, rtol=0)
    original = load_image_encoder(opened.preprocessor["image"]["name"])
    opened.model.tower.load_state_dict(original.module.state_dict())
    other, *_ = score_split(opened, data, "test", 4, pixels_for(opened, data))
    changed = np.abs(other.scores - measured.scores).max(axis=1)
    # equal but for the last digit: the order in which a matrix product sums may differ with the place in memory
    assert changed[-1] < 1.5e-6, "a text alone is read without a tower"
    assert changed[:-1].max() > 1e-3


def test_a_run_says_what_it_is_and_its_tower_is_one_that_preprocess_takes(tuned, store):
    run = tuned("visualbert")
    preprocessor = json.loads((run / "preprocessor.json").read_text(encoding="utf-8"))
    towers = Store(store).towers
    assert preprocessor == {"max_text_tokens": 40, **towers, "image": towers["image"] | {"fine_tuned": True}}
    assert "`image-tower/` is the image tower" in (run / "README.md").read_text(encoding="utf-8")
    opened, data = load_run(run), Store(store)
    assert isinstance(opened.model, EndToEnd)
    assert not opened.model.training
    figures = describe(opened, data, "test", opened.manifest)
    assert (figures["settings"]["finetune_image"], figures["settings"]["augment"]) == (True, "light")
    classifier = sum(value.numel() for value in opened.model.tower.fc.parameters())
    assert figures["parameters"] - figures["trainable_parameters"] == classifier
    tower, pixels = load_image_encoder(str(run / TOWER)), stored_pixels(data, 64)
    picture = torch.from_numpy(pixels.of(0))[None]
    with torch.inference_mode():
        tokens, mask = opened.model.see(picture, torch.tensor([[True]]))
    assert mask.all()
    expected = tower.visual_tokens([picture[0].permute(1, 2, 0).numpy()]).float()
    torch.testing.assert_close(tokens, expected, atol=2e-3, rtol=2e-3)
    assert np.abs(tokens[0].numpy() - data.visual_tokens([0])[0][0]).max() > 1e-2


def test_pixels_are_what_preprocess_showed_the_tower(store, image_tower):
    data, tower = Store(store), load_image_encoder(str(image_tower))
    pixels = stored_pixels(data, tower.size)
    tokens, real = data.visual_tokens(range(38))
    assert (pixels.numbers >= 0).tolist() == real.any(axis=1).tolist()
    assert len(pixels.pictures) == 36
    for row in (0, 17, 35):
        seen = tower.visual_tokens([pixels.of(row).transpose(1, 2, 0)])[0].numpy()
        np.testing.assert_array_equal(seen, tokens[row])
    assert not pixels.of(37).any()
    assert pixels.of(37).shape == pixels.of(0).shape == (3, 64, 64)


def test_pixels_that_are_damaged_are_made_again_and_found_without_the_pictures(store, tmp_path):
    shutil.copytree(store.parent / "source", tmp_path / "source")
    shutil.copytree(store.parent / "records", tmp_path / "records")
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    manifest = read_manifest(folder)
    manifest["inputs"][0]["path"] = str(tmp_path / "records")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    data = Store(folder)
    first = np.array(stored_pixels(data, 64).pictures)
    file = tmp_path / "store-pixels-64" / FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(stored_pixels(data, 64).pictures, first)
    (tmp_path / "source/pictures/circle-red-one.png").write_bytes(b"other")
    np.testing.assert_array_equal(stored_pixels(data, 64).pictures, first)
    with pytest.raises(BadInputError, match=r"another picture than at ingest; run `labeler ingest` again"):
        stored_pixels(data, 32)
    shutil.rmtree(tmp_path / "records")
    with pytest.raises(BadInputError, match=r"records: no such .*store was made of them, and a fine-tuned image tower"):
        stored_pixels(data, 32)
    shutil.copytree(store.parent / "records", tmp_path / "records")
    manifest = read_manifest(tmp_path / "records") | {"content_sha256": "other"}
    (tmp_path / "records/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"records: other records by now; .*: run `labeler preprocess` again"):
        stored_pixels(data, 32)
    assert not (tmp_path / "store-pixels-32").exists()


@pytest.fixture
def some_pairs(store, text_tower) -> StorePairs:
    data = Store(store)
    rows = np.array([3, 20, 11, 37])  # the last has no picture
    return StorePairs(data, rows, AutoTokenizer.from_pretrained(text_tower), 8, stored_pixels(data, 64))


def test_a_batch_with_pixels(some_pairs):
    batch = collate(some_pairs.__getitems__([0, 1, 3]), 0)
    assert batch["pixels"].shape == (3, 3, 64, 64)
    assert (batch["pixels"].dtype, batch["visual_mask"].tolist()) == (torch.uint8, [[True], [True], [False]])
    assert "visual_tokens" not in batch
    assert not without(batch, "image")["visual_mask"].any()
    assert torch.equal(without(batch, "text")["pixels"], batch["pixels"])


def test_the_records_of_a_store_are_found_from_another_directory(store, tmp_path, monkeypatch):
    """They were named by a relative path where the store was made."""
    given = Store(store).manifest["inputs"][0]
    records = Path(given["path"])
    named = given | {"path": str(records.relative_to(records.parents[1]))}
    monkeypatch.chdir(tmp_path)
    assert records_of(SimpleNamespace(folder=store, manifest={"inputs": [named]})).samefile(records)


def test_augmentation_follows_from_seed_epoch_and_picture(some_pairs):
    augmented = AugmentedPictures(some_pairs, augmentation((64, 64)), seed=1)
    state = torch.random.get_rng_state()
    first = augmented.__getitems__([0, 1, 2, 3])
    assert torch.equal(torch.random.get_rng_state(), state)
    plain = some_pairs.__getitems__([0, 1, 2, 3])
    changed = [not np.array_equal(one.pixels, other.pixels) for one, other in zip(first, plain, strict=True)]
    assert changed == [True, True, True, False]
    torch.manual_seed(9)
    again = AugmentedPictures(some_pairs, augmentation((64, 64)), seed=1)
    assert np.array_equal(again[2].pixels, first[2].pixels)
    again.set_epoch(1)
    assert not np.array_equal(again[2].pixels, first[2].pixels)
    assert not np.array_equal(AugmentedPictures(some_pairs, augmentation((64, 64)), 2)[2].pixels, first[2].pixels)


def test_a_picture_with_several_texts_is_one_picture_in_an_epoch_and_none_of_its_texts_wrong(some_pairs):
    pixels = some_pairs[0].pixels
    pairs = [some_pairs[0]._replace(input_ids=[number], pixels=pixels) for number in range(5, 9)] + [some_pairs[1]]
    lists = SimpleNamespace(
        __getitems__=lambda indices: [pairs[index] for index in indices], __len__=lambda: len(pairs)
    )
    batch = collate(AugmentedPictures(lists, augmentation((64, 64)), seed=1).__getitems__(list(range(5))), 0)
    right = right_for(batch["input_ids"], batch["pixels"]) > 0
    assert right[:4, :4].all()
    assert right[4].tolist() == [False] * 4 + [True]


def test_an_augmented_picture_has_height_and_width_in_this_order_and_is_never_mirrored():
    torch.manual_seed(0)
    picture = torch.zeros(3, 40, 100, dtype=torch.uint8)
    picture[:, :, 50:] = 200
    for _ in range(20):
        seen = augmentation((48, 80))(picture)
        assert (seen.shape, seen.dtype) == ((3, 48, 80), torch.uint8)
        assert seen[:, :, -8:].float().mean() > seen[:, :, :8].float().mean()


def test_pictures_are_augmented_in_training_and_nowhere_else(store, tuning, tmp_path, monkeypatch):
    fit = Fit("visualbert", store, tuning, 0, "cpu")
    trainer = LabelTrainer(fit, args=training_arguments(tmp_path, tuning, 0, torch.device("cpu")))
    monkeypatch.setattr(AugmentedPictures, "drawn", lambda *_: pytest.fail("augmented"))
    fit.validate()
    fit.start_head()
    with pytest.raises(pytest.fail.Exception, match="augmented"):
        trainer.train_dataset.__getitems__([0])
    plain = Fit("visualbert", store, dataclasses.replace(tuning, augment="none"), 0, "cpu")
    trainer = LabelTrainer(plain, args=training_arguments(tmp_path, plain.options, 0, torch.device("cpu")))
    assert trainer.train_dataset is plain.train_pairs


def test_the_tower_learns_at_its_own_rate_and_without_decay_of_its_norms(store, tuning, tmp_path):
    fit = Fit("visualbert", store, dataclasses.replace(tuning, image_learning_rate=3e-6), 0, "cpu")
    trainer = LabelTrainer(fit, args=training_arguments(tmp_path, fit.options, 0, torch.device("cpu")))
    groups = {id(weight): group for group in trainer.create_optimizer().param_groups for weight in group["params"]}
    for name, weight in fit.model.named_parameters():
        if not weight.requires_grad:
            assert name.startswith("tower.fc.")
            continue
        new = name.startswith(("model.head.", "model.fused.embeddings.visual_"))
        rate = 3e-6 if name.startswith("tower.") else tuning.new_learning_rate if new else tuning.learning_rate
        assert groups[id(weight)]["lr"] == rate, name
        if name.startswith("tower."):
            assert (groups[id(weight)]["weight_decay"] == 0.0) == (weight.dim() == 1), name


def test_an_interrupt_changes_no_weight_of_the_tower(store, tuning, tmp_path, monkeypatch):
    special = dataclasses.replace(tuning, epochs=2, ema=0.8, modality_dropout=0.3)
    whole = train("late-fusion", store, tmp_path / "whole", special, device="cpu").out
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(InterruptedRun, match="stopped after step 6"):
            train("late-fusion", store, tmp_path / "run", special, device="cpu")
    run = train("late-fusion", store, tmp_path / "run", special, device="cpu", resume=True).out
    plain = train("late-fusion", store, tmp_path / "plain", dataclasses.replace(special, augment="none"), device="cpu")
    for file in ("model.safetensors", f"{TOWER}/model.safetensors"):
        one, other, third = (load_file(folder / file) for folder in (whole, run, plain.out))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert not all(torch.equal(one[key], third[key]) for key in one)


def test_a_run_that_was_killed_while_its_tower_was_saved_can_be_resumed(store, tuning, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("labeler.encoders.image.save_file", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(LabelerError, match=r"killed.*--resume goes on from the last checkpoint"):
            train("late-fusion", store, tmp_path / "run", tuning, device="cpu")
    run = train("late-fusion", store, tmp_path / "run", tuning, device="cpu", resume=True).out
    assert load_run(run).model.encoder.tokens == 4


def test_a_tower_whose_grid_was_averaged_is_averaged_in_the_run_too(store, tuning, text_tower, image_tower, tmp_path):
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower), "visual_tokens": 1}
    averaged = preprocess(store.parent / "records", tmp_path / "store", **towers).out
    run = train("visualbert", averaged, tmp_path / "run", tuning, device="cpu").out
    assert load_run(run).model.encoder.tokens == 1
    assert_as_measured(run, averaged, store.parent / "source", tmp_path)
    with pytest.raises(UsageError, match="--visual-tokens 1: the run's image tower gives no more; leave it out"):
        export(run, tmp_path / "export", visual_tokens=1, data=averaged)


def test_a_frozen_run_reads_no_picture_and_holds_no_tower(store, options, tmp_path, monkeypatch):
    monkeypatch.setattr("labeler.fitting.fit.stored_pixels", lambda *_: pytest.fail("read the pictures"))
    run = train("resnet-gru", store, tmp_path / "run", dataclasses.replace(options, epochs=1), device="cpu").out
    assert not (run / TOWER).exists()
    preprocessor = json.loads((run / "preprocessor.json").read_text(encoding="utf-8"))
    assert preprocessor == {"max_text_tokens": 64, **Store(store).towers}


@pytest.mark.parametrize(
    ("given", "match"),
    [({"augment": "light"}, "--augment: the image tower is frozen .* add --finetune-image, or leave it out"),
     ({"image_learning_rate": 1e-4}, "--image-learning-rate: the image tower is frozen"),
     ({"finetune_image": True, "augment": "lite"}, "unknown --augment 'lite'; did you mean 'light'"),
     ({"finetune_image": True, "image_learning_rate": 0.0}, "image-learning-rate is 0.0, expected more than 0")],
)  # fmt: skip
def test_settings_of_the_tower_that_cannot_be(given, match):
    with pytest.raises(LabelerError, match=match):
        options_for("visualbert", given)


def test_a_tower_that_is_fine_tuned_is_augmented_unless_it_is_said_otherwise():
    assert options_for("visualbert", {"finetune_image": True}).augment == "light"
    assert options_for("visualbert", {"finetune_image": True, "augment": "none"}).augment == "none"
    assert options_for("visualbert", {"finetune_image": False, "augment": None}) == options_for("visualbert")


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_tower_that_has_changed_since_preprocess_is_refused(store, tuning, tmp_path, kind):
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    towers = Store(folder).towers
    other = towers | {kind: towers[kind] | {"sha256": "0" * 64}}
    (folder / "towers.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(LabelerError, match=rf"not the {kind} encoder that .*store was made with \(sha256 differs\)"):
        Fit("visualbert", folder, tuning, 0, "cpu")


def test_texts_alone_leave_the_tower_as_it_is(store, tuning, text_tower, image_tower, tmp_path):
    rows = [row | {"image": None, "text": row["id"]} for row in lines_of(store.parent / "source/pairs.jsonl")]
    ingest([write_pairs(tmp_path / "pairs.jsonl", rows)], tmp_path / "records", IngestOptions(task="single"))
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower)}
    words = preprocess(tmp_path / "records", tmp_path / "store", **towers).out
    run = train("late-fusion", words, tmp_path / "run", tuning, device="cpu").out
    before, after = (load_file(folder / "model.safetensors") for folder in (image_tower, run / TOWER))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert evaluate(run, words, device="cpu").metrics["n"] > 0


def test_a_pickle_beside_the_tower_is_refused(tuned, tmp_path):
    run = Path(shutil.copytree(tuned("resnet-gru"), tmp_path / "run"))
    (run / TOWER / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(BadInputError, match=rf"{TOWER}/pytorch_model.bin: a pickle, which could run code"):
        load_run(run)
