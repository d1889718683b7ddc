"""Towers: the embedded ones are the real ones; folders are read; what is damaged, wrong or out of reach is said."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from transformers import VisualBertConfig, VisualBertModel

from labeler.encoders import image, text, visualbert, weights
from labeler.encoders.grids import averages
from labeler.encoders.image import IMAGENET_MEAN, ImageEncoder, load_image_encoder
from labeler.encoders.text import load_text_encoder
from labeler.encoders.visualbert import load_visualbert
from labeler.encoders.weights import (
    LITE0,
    MINILM,
    MINILM_TOKENIZER,
    embedded_path,
    from_hub,
    recorded_tower,
    tower_sha256,
)
from labeler.errors import LabelerError, UsageError
from labeler.pictures.images import stretch

PARAPHRASES = [("A dog runs along the beach.", "A puppy is running by the sea."),
               ("He was furious about the delay.", "The late arrival made him very angry."),
               ("How do I bake bread?", "What is a recipe for making a loaf?")]  # fmt: skip
BUILDINGS = ("palace", "monastery", "bell cote", "castle", "boathouse")


def sample(name: str, side: int) -> np.ndarray:
    """Return a photo that comes with scikit-learn as [side, side, 3] uint8."""
    return stretch(load_sample_image(name).copy(), side)


@pytest.fixture(scope="module")
def embedded():
    return load_image_encoder("embedded")


def upright(picture: np.ndarray) -> torch.Tensor:
    """Return a picture [H, W, 3] as pixels [1, 3, H, W]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize(("picture", "names", "among"), [("china.jpg", BUILDINGS, 5), ("flower.jpg", ("daisy",), 1)])
def test_the_embedded_image_tower_sees(embedded, picture, names, among):
    tokens = embedded.visual_tokens([sample(picture, 224)])
    assert (tokens.shape, tokens.dtype) == ((1, embedded.tokens, embedded.width), torch.float16)
    assert (embedded.tokens, embedded.width, embedded.size) == (49, 1280, 224)
    best = embedded.classifier(tokens.float().mean(dim=1))[0].topk(among).indices.tolist()
    described = [timm.data.ImageNetInfo().index_to_description(number).lower() for number in best]
    assert any(name in description for name in names for description in described), described


@pytest.mark.parametrize("side", [1, 3, 4, 6])
def test_a_grid_is_averaged_by_area(embedded, side):
    fewer = embedded.with_tokens(side * side)
    picture = sample("china.jpg", 224)
    cells = embedded.visual_tokens([picture]).float().numpy().reshape(7, 7, -1)
    fine = cells.repeat(side, axis=0).repeat(side, axis=1)  # 7 of its squares a token, each way
    expected = fine.reshape(side, 7, side, 7, -1).mean(axis=(1, 3)).reshape(1, side * side, -1)
    found = fewer.visual_tokens([picture]).float().numpy()
    assert found.shape == (1, fewer.tokens, 1280)
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=2e-3)  # both rounded to float16
    np.testing.assert_allclose(found.mean(axis=1)[0], cells.mean(axis=(0, 1)), atol=2e-3)


def test_a_grid_that_was_averaged_can_be_averaged_again(embedded):
    assert embedded.with_tokens(49) is embedded
    picture = sample("flower.jpg", 224)
    twice, once = embedded.with_tokens(16).with_tokens(4), embedded.with_tokens(4)
    torch.testing.assert_close(twice.visual_tokens([picture]), once.visual_tokens([picture]), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("cells", "tokens", "message"),
    [
        (49, 15, "--visual-tokens 15: the image tower gives 49; choose from 1, 4, 9, 16, 25, 36"),
        (49, 64, "gives 49; choose from"),
        (49, 0, "gives 49; choose from"),
        (50, 16, "--visual-tokens 16: the image tower's 50 tokens are no square grid; leave it out"),
    ],
)
def test_other_numbers_of_tokens_are_refused(cells, tokens, message):
    with pytest.raises(UsageError, match=message):
        averages(cells, tokens)


def test_pixels_are_stretched_and_normalised_as_the_weights_were_trained(embedded):
    pixels = embedded.normalised(upright(stretch(np.full((90, 30, 3), (255, 127, 0), np.uint8), 224)))
    assert pixels.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 0.0, -127 / 128]), atol=1e-5, rtol=0)


def test_a_picture_alone_is_seen_as_in_a_batch(embedded):
    flower, china = (sample(name, 224) for name in ("flower.jpg", "china.jpg"))
    both = embedded.visual_tokens([flower, china]).float()
    torch.testing.assert_close(both[1:], embedded.visual_tokens([china]).float(), atol=5e-3, rtol=5e-3)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_the_embedded_text_tower_reads():
    tower = load_text_encoder("embedded")
    features = tower.features([text for pair in PARAPHRASES for text in pair])
    unit = torch.nn.functional.normalize(features, dim=1)
    near = (unit @ unit.T).reshape(3, 2, 3, 2)[:, 0, :, 1]  # [3, 3]: first sentences by second ones
    strangers = near[~torch.eye(3, dtype=torch.bool)]
    assert near.diagonal().min() > strangers.max() + 0.1, near
    assert near.argmax(dim=1).tolist() == [0, 1, 2]


def test_text_features_are_the_mean_over_real_tokens(text_tower):
    tower = load_text_encoder(str(text_tower))
    together = tower.features(["a red circle", "two very green squares drawn by hand", None])
    for row, one in enumerate(["a red circle", "two very green squares drawn by hand", ""]):
        hidden = tower.model(**tower.tokenizer(one, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(together[row], hidden[0].mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["text_tower", "roberta_tower"])
def test_a_text_longer_than_the_tower_is_cut(tower, request):
    loaded = load_text_encoder(str(request.getfixturevalue(tower)))
    assert loaded.max_tokens == 40
    assert torch.isfinite(loaded.features(["red " * 500])).all()


@pytest.mark.parametrize(("name", "load"), [("LITE0", load_image_encoder), ("MINILM", load_text_encoder),
                                            ("MINILM_TOKENIZER", load_text_encoder)])  # fmt: skip
def test_damaged_weights_are_refused(name, load, tmp_path, monkeypatch):
    file = {"LITE0": LITE0, "MINILM": MINILM, "MINILM_TOKENIZER": MINILM_TOKENIZER}[name]
    copy = tmp_path / "weights"
    shutil.copyfile(embedded_path(file), copy)
    with open(copy, "r+b") as opened:
        opened.seek(copy.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 1]))
    # an absolute path below the package's folder is that path
    monkeypatch.setattr(image if name == "LITE0" else text, name, file._replace(path=str(copy)))
    with pytest.raises(LabelerError, match=rf"{copy}: not the weights that were published .* reinstall {file.package}"):
        load("embedded")


def test_a_package_that_is_missing_is_named():
    with pytest.raises(LabelerError, match="the package no-such-package is not installed; `make setup`"):
        embedded_path(MINILM._replace(package="no_such_package"))
    with pytest.raises(LabelerError, match="not the weights that were published"):
        embedded_path(MINILM._replace(path="model/none.safetensors"))


def test_an_image_tower_from_a_timm_folder(image_tower, tmp_path):
    tower = load_image_encoder(str(image_tower))
    assert (tower.size, tower.mean, tower.std) == (64, (0.5,) * 3, (0.25,) * 3)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    grid = tower.module.forward_features(tower.normalised(upright(picture)))  # [1, 96, 2, 2]
    by_hand = torch.stack([grid[0, :, row, column] for row in (0, 1) for column in (0, 1)])
    torch.testing.assert_close(tower.visual_tokens([picture])[0].float(), by_hand, atol=2e-3, rtol=2e-3)
    assert not any(parameter.requires_grad for parameter in tower.module.parameters())
    assert not tower.module.training
    assert_saved_alike(tower, tmp_path / "saved")


def assert_saved_alike(tower: ImageEncoder, folder: Path) -> None:
    """Assert that a tower, with weights that have changed, is the same when it is saved and loaded."""
    with torch.no_grad():
        next(tower.module.parameters()).mul_(1.5)
    tower.save(folder)
    loaded = load_image_encoder(str(folder))
    assert loaded._replace(module=None, grid=None, classifier=None, architecture=None, name="") == tower._replace(
        module=None, grid=None, classifier=None, architecture=None, name=""
    )
    state = tower.module.state_dict()
    assert loaded.module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())
    picture = np.random.default_rng(1).integers(0, 255, (tower.size, tower.size, 3), dtype=np.uint8)
    assert torch.equal(loaded.visual_tokens([picture]), tower.visual_tokens([picture]))


def test_the_embedded_image_tower_can_be_saved(tmp_path):
    assert_saved_alike(load_image_encoder("embedded"), tmp_path / "saved")


def test_an_image_tower_from_a_torchvision_folder(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"library": "torchvision", "architecture": "resnet18", "num_classes": 5, "input_size": [3, 96, 96]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tower = load_image_encoder(str(tmp_path))
    assert (tower.tokens, tower.width, tower.size, tower.mean) == (9, 512, 96, IMAGENET_MEAN)
    pixels = tower.normalised(upright(sample("china.jpg", 96)))
    with torch.inference_mode():
        pooled = model.eval().fc(tower.backbone(pixels).mean(dim=1))
        torch.testing.assert_close(pooled, model(pixels), atol=1e-4, rtol=1e-4)
    assert_saved_alike(tower, tmp_path / "saved")


@pytest.mark.parametrize(
    "spoil", ["no config", "no weights", "half weights", "other architecture", "unknown architecture"]
)
def test_a_folder_that_is_no_image_tower_is_refused(image_tower, tmp_path, spoil):
    folder = shutil.copytree(image_tower, tmp_path / "tower")
    config, file = folder / "config.json", folder / "model.safetensors"
    if spoil == "no config":
        config.unlink()
    elif spoil == "no weights":
        file.unlink()
    elif spoil == "half weights":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        name = "resnet10t" if spoil == "other architecture" else "resnet10x"
        config.write_text(config.read_text(encoding="utf-8").replace("test_resnet", name), encoding="utf-8")
    why = r".*weights are missing, left over or of another shape, such as .* is config.json" if "other" in spoil else ""
    with pytest.raises(LabelerError, match=rf"tower: not an image encoder with config.json and model.safetensors{why}"):
        load_image_encoder(str(folder))


def test_a_roberta_folder_keeps_its_positions(roberta_tower):
    start = load_visualbert(str(roberta_tower), 96)
    assert start.config_values["position_offset"] == 2
    types = start.visual_bert.embeddings.token_type_embeddings.weight
    assert torch.equal(types[0], types[1])


def save_visual_bert(folder, text_tower, width: int) -> VisualBertModel:
    """Write a VisualBERT in the size of the text tower, with its tokenizer."""
    config = json.loads((text_tower / "config.json").read_text(encoding="utf-8"))
    values = {key: config[key] for key in visualbert.TAKEN_OVER}
    model = VisualBertModel(VisualBertConfig(**values, visual_embedding_dim=width))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(text_tower / name, folder / name)
    return model


def test_a_visual_bert_folder_keeps_every_weight(text_tower, tmp_path):
    model = save_visual_bert(tmp_path, text_tower, 96)
    torch.nn.init.normal_(model.embeddings.visual_projection.bias)
    model.save_pretrained(tmp_path)
    taken = load_visualbert(str(tmp_path), 96).visual_bert.state_dict()
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[key], expected[key]) for key in expected)


def test_a_visual_bert_folder_of_another_width_is_refused(text_tower, tmp_path):
    save_visual_bert(tmp_path, text_tower, 48)
    with pytest.raises(LabelerError, match="takes visual tokens of width 48, the image encoder gives 96; choose"):
        load_visualbert(str(tmp_path), 96)


def test_visual_embeddings_start_as_the_texts(text_tower):
    embeddings = load_visualbert(str(text_tower), 96).visual_bert.embeddings
    assert torch.equal(embeddings.visual_token_type_embeddings.weight, embeddings.token_type_embeddings.weight)
    assert torch.equal(embeddings.visual_position_embeddings.weight, embeddings.position_embeddings.weight)
    assert embeddings.visual_projection.weight.shape == (32, 96)


def test_half_a_text_tower_is_refused(text_tower, tmp_path):
    folder = shutil.copytree(text_tower, tmp_path / "tower")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LabelerError, match="tower: not a transformers folder with model and tokenizer"):
        load_text_encoder(str(folder))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(LabelerError, match="not a transformers folder with model and tokenizer"):
        load_text_encoder(str(tmp_path))


def test_the_hash_of_a_tower_follows_its_files(image_tower, tmp_path):
    folder = shutil.copytree(image_tower, tmp_path / "tower")
    assert tower_sha256(str(folder)) == tower_sha256(str(image_tower))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert tower_sha256(str(folder)) != tower_sha256(str(image_tower))
    assert len({tower_sha256(name) for name in ("embedded", "bert-base-uncased", "torchvision:resnet50")}) == 3


@pytest.fixture
def no_hub(monkeypatch):
    """Send every question to a port of this machine on which nothing listens; return the addresses asked for."""
    asked, real = [], weights.urlopen

    def refused(url, timeout):
        asked.append(url)
        return real("http://127.0.0.1:1", timeout=timeout)

    monkeypatch.setattr(weights, "urlopen", refused)
    assert constants.ENDPOINT == "http://127.0.0.1:1"
    return asked


@pytest.mark.parametrize(
    ("load", "name", "kind"),
    [(load_text_encoder, "bert-base-uncased", "text"), (load_image_encoder, "torchvision:resnet50", "image"),
     (load_image_encoder, "resnet18", "image"), (load_image_encoder, "timm:resnet50.a1_in1k", "image"),
     (load_text_encoder, "uclanlp/visualbert-vqa-coco-pre", "text"), (load_text_encoder, "hf:bert-base-chinese", "text"),
     (load_image_encoder, "hf:facebook/dinov2-base", "image"), (load_image_encoder, "openai/clip-vit-base-patch32", "image"),
     (load_image_encoder, "regions:fasterrcnn_resnet50_fpn", "image")],
)  # fmt: skip
def test_a_hub_out_of_reach_is_said_within_ten_seconds(no_hub, load, name, kind):
    started = time.monotonic()
    with pytest.raises(
        LabelerError, match=rf"the {kind} encoder '{name}' is not on this machine and its hub is out of reach \(.*refused.*"
                            rf"use `--preset embedded` .*`--{kind}-encoder FOLDER`"):  # fmt: skip
        load(name)
    assert time.monotonic() - started < 10
    assert len(no_hub) == 1


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    assert weights.HUB_SECONDS < 9.5
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(weights, "urlopen", silent)
    started = time.monotonic()
    with pytest.raises(LabelerError, match=r"'some/model' .* out of reach \(no answer in time\)"):
        from_hub("some/model", "text", missing, lambda: pytest.fail("not to be asked"), "http://127.0.0.1:1")
    assert time.monotonic() - started < 3


def silent(url, timeout):
    """Stand for a hub that takes the connection and says nothing."""
    time.sleep(5)
    raise OSError("closed")


def missing():
    """Stand for a model that is not in the cache."""
    raise OSError("not in the cache")


def test_what_the_cache_holds_of_a_wrong_kind_is_said_at_once():
    def wrong():
        raise LabelerError("a 'distilbert' model")

    with pytest.raises(LabelerError, match=r"^a 'distilbert' model$"):
        from_hub("some/model", "text", wrong, lambda: pytest.fail("not to be asked"), "http://127.0.0.1:1")


def test_what_is_in_the_cache_needs_no_hub(monkeypatch):
    monkeypatch.setattr(weights, "urlopen", lambda url, timeout: pytest.fail("not to be asked"))
    assert from_hub("some/model", "text", lambda: "cached", missing, "http://127.0.0.1:1") == "cached"


def test_a_hub_that_does_not_have_it_is_said(monkeypatch):
    monkeypatch.setattr(weights, "unreachable", lambda url: None)
    with pytest.raises(
        LabelerError, match=r"'some/model' could not be loaded \(OSError: not in the cache\); use `--preset embedded`"
    ):
        from_hub("some/model", "text", missing, missing, "http://127.0.0.1:1")


def test_an_unknown_image_tower_is_said():
    with pytest.raises(LabelerError, match="image encoder 'timm:nothing': no folder, and neither torchvision nor timm"):
        load_image_encoder("timm:nothing")


@pytest.mark.parametrize("prefix", ["", "regions:"])
def test_a_tower_s_folder_is_found_from_any_directory_and_after_a_move(tmp_path, monkeypatch, prefix):
    (tmp_path / "project" / "towers" / "mine").mkdir(parents=True)
    (tmp_path / "project" / "towers" / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "project")
    name = f"{prefix}towers/mine"
    record = {"name": name, "sha256": tower_sha256(name)}
    assert recorded_tower(record, "text", Path("data/store")) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").rename(tmp_path / "moved")
    place = tmp_path / "moved" / "towers" / "mine"
    assert recorded_tower(record, "text", tmp_path / "moved" / "data" / "store") == f"{prefix}{place}"
    (place / "config.json").write_text("{ }")
    with pytest.raises(
        LabelerError, match=r"towers/mine: not the text encoder that .* was made with \(no such folder\)"
    ):
        recorded_tower(record, "text", tmp_path / "moved" / "data" / "store")
