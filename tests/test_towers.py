"""Towers of any make: transformers' vision models, BERT's kin, VisualBERT as its authors release it, and what is none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    DebertaV2Config,
    DebertaV2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    MPNetConfig,
    MPNetModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SwinConfig,
    SwinModel,
    VisualBertConfig,
    VisualBertForPreTraining,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from labeler.encoders.grids import grid_of
from labeler.encoders.image import _encoder, load_image_encoder
from labeler.encoders.text import BERT_WORDS, load_text_encoder
from labeler.encoders.visualbert import load_visualbert
from labeler.errors import LabelerError
from labeler.layers import FusedEncoder, masked_mean, unit
from labeler.models import Building, late_fusion
from labeler.records import Label, LabelSet

transformers.logging.set_verbosity_error()  # of sizes as small as these it says that they are unusual
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
       "patch_size": 8}  # fmt: skip
WORDS = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SQUARE = {"height": 32, "width": 32}

# name: the model, its part that sees, its image processor, tokens, width
VISION = {
    "vit": (lambda: ViTForImageClassification(ViTConfig(**VIT)), "vit", ViTImageProcessor(size=SQUARE), 17, 32),
    "dinov2": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT)), None,
               BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE), 17, 32),
    "clip": (lambda: CLIPModel(CLIPConfig(vision_config=VIT, text_config=WORDS)), "vision_model",
             CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE), 17, 32),
    "siglip": (lambda: SiglipModel(SiglipConfig(vision_config=VIT, text_config=WORDS)), "vision_model",
               SiglipImageProcessor(size=SQUARE), 16, 32),
    "swin": (lambda: SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
                                          window_size=4)), None, ViTImageProcessor(size=SQUARE), 64, 16),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1])), None,
                 ConvNextImageProcessor(size={"shortest_edge": 64}), 4, 40),
}  # fmt: skip


def save_vision(kind: str, folder: Path) -> torch.nn.Module:
    """Write a tiny model and its image processor; return its part that sees."""
    build, part, processor, _, _ = VISION[kind]
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # as few weights start at zero as a trained model has
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    processor.image_mean, processor.image_std = MEAN, STD
    processor.save_pretrained(folder)
    return getattr(model, part) if part else model


@pytest.mark.parametrize("kind", VISION)
def test_a_transformers_folder_gives_the_models_own_tokens(kind, tmp_path):
    model = save_vision(kind, tmp_path)
    tower = load_image_encoder(str(tmp_path))
    side = 64 if kind == "convnext" else 32
    assert (tower.size, tower.mean, tower.std, tower.tokens, tower.width) == (side, MEAN, STD, *VISION[kind][3:])
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    pixels = torch.from_numpy((picture / 255 - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1).unsqueeze(0).float()
    with torch.inference_mode():
        own = model(pixel_values=pixels).last_hidden_state
        if kind == "convnext":
            own = torch.stack([own[:, :, row, column] for row in (0, 1) for column in (0, 1)], dim=1)
        elif kind == "dinov2":
            assert own.shape[1] == 21  # class token, registers, patches
            own = own[:, [0, *range(5, 21)]]
        torch.testing.assert_close(
            tower.backbone(tower.normalised(torch.from_numpy(picture).permute(2, 0, 1)[None])), own, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(tower.visual_tokens([picture]).float(), own, atol=2e-2, rtol=2e-3)
        next(tower.module.parameters()).mul_(1.5)
        tower.save(tmp_path / "saved")
        again = load_image_encoder(str(tmp_path / "saved"))
        assert torch.equal(again.visual_tokens([picture]), tower.visual_tokens([picture]))
        assert not torch.equal(again.visual_tokens([picture]).float(), own)
        assert (again.size, again.mean, again.std) == (side, MEAN, STD)
    assert own.std(dim=1).max() > 1e-3, "all tokens alike: nothing would be shown"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_for_both_the_pictures_half_alone_is_loaded(kind, tmp_path):
    save_vision(kind, tmp_path)
    names = [name for name, _ in load_image_encoder(str(tmp_path)).module.named_parameters()]
    assert names
    assert not any("text" in name for name in names)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("no preprocessor", "not an image encoder .*preprocessor_config.json"), ("half weights", "not an image encoder"),
     ("a weight less", r"1 weights missing \(.*0\..*\); is config.json the one"),
     ("a weight more", r"1 weights left over \(.*7\.weight\); is config.json the one"),
     ("no square", "preprocessor_config.json names no square size"), ("BGR", "takes pixels that are not RGB"),
     ("no type", "names no architecture, as timm's do, and no model_type"), ("unknown type", "not an image encoder"),
     ("text", "a 'bert' model, which takes no pictures"), ("other size", "does not turn a picture of 48 x 48 pixels")],
)  # fmt: skip
def test_a_transformers_folder_that_is_no_image_tower_is_refused(spoil, message, text_tower, tmp_path):
    folder = tmp_path / "tower"
    save_vision("vit", folder)
    preprocessor, weights, config = (
        folder / name for name in ("preprocessor_config.json", "model.safetensors", "config.json")
    )
    changes = {"no square": {"size": {"height": 32, "width": 48}}, "BGR": {"rescale_factor": 1.0},
               "other size": {"size": {"height": 48, "width": 48}}}  # fmt: skip
    if spoil == "no preprocessor":
        preprocessor.unlink()
    elif spoil == "half weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif spoil.startswith("a weight"):
        state = load_file(weights)
        if spoil == "a weight less":
            state.pop(next(name for name in sorted(state) if "layer.0" in name))
        else:
            state["vit.encoder.layer.7.weight"] = torch.zeros(3)
        save_file(state, weights, {"format": "pt"})
    elif spoil in changes:
        preprocessor.write_text(json.dumps(json.loads(preprocessor.read_text()) | changes[spoil]))
    elif spoil in ("no type", "unknown type"):
        values = {key: value for key, value in json.loads(config.read_text()).items() if key != "model_type"}
        config.write_text(json.dumps(values | ({"model_type": "vitt"} if spoil == "unknown type" else {})))
    else:
        folder = text_tower
    with pytest.raises(LabelerError, match=message):
        load_image_encoder(str(folder))


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "torchvision:maskrcnn_resnet50_fpn"])
def test_a_detector_is_no_grid_of_features(name):
    with pytest.raises(LabelerError, match=f"a detector; regions:{name.rpartition(':')[2]} takes what it sees"):
        load_image_encoder(name)


@pytest.mark.parametrize(
    ("architecture", "arguments", "tokens", "width"),
    [("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "reg_tokens": 3},
      17, 32),
     ("swin_tiny_patch4_window7_224", {"img_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
      16, 16)],
)  # fmt: skip
def test_a_timm_transformers_tokens_are_its_patches(architecture, arguments, tokens, width, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "input_size": [3, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tower = load_image_encoder(str(tmp_path))
    assert (tower.tokens, tower.width) == (tokens, width)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        own = model.forward_features(pixels)
        own = own.flatten(1, 2) if own.dim() == 4 else own[:, [0, *range(4, 20)]]
        torch.testing.assert_close(tower.backbone(pixels), own, atol=1e-5, rtol=0)


def test_a_torchvision_swins_grid_is_what_its_head_reads():
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=3).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        grid = grid_of(model)(model, pixels)
        assert grid.shape == (2, 16, 4, 4)
        torch.testing.assert_close(model.head(grid.mean(dim=(2, 3))), model(pixels), atol=1e-5, rtol=0)


def test_a_resnet50s_grid_is_as_wide_as_visualbert_takes_it():
    tower = _encoder("resnet50", torchvision.models.resnet50(), 64, MEAN, STD, {})
    assert (tower.tokens, tower.width) == (4, 2048)


# name: the model, and whose tokenizer it has
TEXT = {
    "bert": (lambda: BertForMaskedLM(BertConfig(**WORDS, pad_token_id=0)), "text_tower"),
    "electra": (lambda: ElectraForPreTraining(ElectraConfig(**WORDS, embedding_size=32)), "text_tower"),
    "distilbert": (lambda: DistilBertModel(DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64)),
                   "text_tower"),
    "xlm-roberta": (lambda: XLMRobertaModel(XLMRobertaConfig(**WORDS, type_vocab_size=1, pad_token_id=1)), "roberta_tower"),
}  # fmt: skip


def save_text(model: torch.nn.Module, tokenizer: Path, folder: Path) -> None:
    """Write a model with the tokenizer of another folder."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


@pytest.mark.parametrize("kind", TEXT)
def test_what_is_berts_kin_becomes_visualberts_text_side(kind, tmp_path, request):
    build, tokenizer = TEXT[kind]
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_text(model, request.getfixturevalue(tokenizer), tmp_path)
    tower, start = load_text_encoder(str(tmp_path)), load_visualbert(str(tmp_path), 96)
    assert start.visual_bert.config.pad_token_id == start.tokenizer.pad_token_id == (1 if kind == "xlm-roberta" else 0)
    encoded = tower.tokenizer(["a red circle", "two very green squares by hand"], padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    fused = FusedEncoder(start.visual_bert, start.config_values["position_offset"]).eval()
    with torch.inference_mode():
        theirs = tower.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        streams = fused.embed(ids, torch.randn(2, 4, 96))
        own = fused(streams, mask, torch.zeros(2, 4, dtype=torch.bool)).text
    assert not mask.all()
    torch.testing.assert_close(own[mask], theirs[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", TEXT)
def test_what_is_berts_kin_is_late_fusions_text_side(kind, tmp_path, request):
    build, tokenizer = TEXT[kind]
    save_text(build(), request.getfixturevalue(tokenizer), tmp_path)
    tower = load_text_encoder(str(tmp_path))
    labels = LabelSet(task="single", labels=(Label(name="a", count=1), Label(name="b", count=1)))
    model = late_fusion.build(Building(labels, str(tmp_path), 96, [])).model.eval()
    encoded = tower.tokenizer(["a red circle", "two very green squares by hand"], padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    with torch.inference_mode():
        hidden = tower.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        nothing = torch.zeros(2, 4, dtype=torch.bool)
        features = model.features(ids, mask, torch.randn(2, 4, 96), nothing)
    torch.testing.assert_close(features[:, : hidden.shape[2]], unit(masked_mean(hidden, mask)), atol=1e-5, rtol=0)
    assert not features[:, hidden.shape[2] :].any()
    model.save_pretrained(tmp_path / "saved")
    loaded = late_fusion.Model.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


OTHERS = {
    "mpnet": lambda: MPNetModel(MPNetConfig(**WORDS)),
    "albert": lambda: AlbertModel(AlbertConfig(**WORDS, embedding_size=8)),
    "deberta-v2": lambda: DebertaV2Model(DebertaV2Config(**WORDS)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_text_tower_of_another_kind_is_refused(kind, text_tower, tmp_path):
    save_text(OTHERS[kind](), text_tower, tmp_path)
    with pytest.raises(LabelerError, match=f"a '{kind}' model; expected one of bert, roberta, .*, electra, distilbert"):
        load_text_encoder(str(tmp_path))


def test_an_electra_of_two_widths_is_refused(text_tower, tmp_path):
    save_text(ElectraForPreTraining(ElectraConfig(**WORDS, embedding_size=8)), text_tower, tmp_path)
    with pytest.raises(LabelerError, match="its words are 8 wide and its layers 32, and VisualBERT has no place"):
        load_text_encoder(str(tmp_path))


def test_a_tokenizer_that_is_missing_or_anothers_is_said(text_tower, tmp_path):
    BertModel(BertConfig(**WORDS)).save_pretrained(tmp_path)
    with pytest.raises(LabelerError, match=r"no tokenizer beside the model; copy tokenizer.json"):
        load_text_encoder(str(tmp_path))
    save_text(BertModel(BertConfig(**WORDS | {"vocab_size": 20})), text_tower, tmp_path)
    with pytest.raises(LabelerError, match=r"the tokenizer does not belong to the model \(\d+ tokens, 20 embeddings"):
        load_text_encoder(str(tmp_path))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Return a VisualBERT in the form of `uclanlp/visualbert-vqa-coco-pre`: a pickle with pretraining heads, no tokenizer."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    config = VisualBertConfig(**WORDS | {"vocab_size": BERT_WORDS}, visual_embedding_dim=2048,
                              architectures=["VisualBertForPreTraining"])  # fmt: skip
    state = dict(VisualBertForPreTraining(config).state_dict())
    state["visual_bert.embeddings.position_ids"] = torch.arange(512).unsqueeze(0)
    config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_visualbert_as_released_keeps_every_weight(released):
    state = torch.load(released / "pytorch_model.bin", weights_only=True)
    start = load_visualbert(str(released), 2048)
    taken = start.visual_bert.state_dict()
    left = {name for name in state if name.removeprefix("visual_bert.") not in taken}
    assert all(name.startswith(("cls.", "visual_bert.pooler.", "visual_bert.embeddings.position_ids")) for name in left)
    assert len(state) - len(left) == len(taken)
    assert all(torch.equal(value, state[f"visual_bert.{name}"]) for name, value in taken.items())
    # numbers of bert-base-uncased
    assert start.tokenizer("A dog on the beach.")["input_ids"] == [101, 1037, 3899, 2006, 1996, 3509, 1012, 102]
    assert start.visual_bert.config.pad_token_id == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("less", r"1 weights missing \(encoder.layer.0.output.dense.bias\)"),
     ("no visual", r"1 weights missing \(embeddings.visual_projection.weight\)"),
     ("more", r"1 weights left over \(banana.weight\)"), ("code", "UnpicklingError: Weights only load failed"),
     ("noise", "not a transformers folder")],
)  # fmt: skip
def test_a_release_that_is_not_whole_is_refused(spoil, message, released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "tower")
    weights, run = folder / "pytorch_model.bin", tmp_path / "code-was-run"
    state = torch.load(weights, weights_only=True)
    if spoil == "code":
        state = {"weight": Code(run)}
    elif spoil == "more":
        state["banana.weight"] = torch.zeros(2)
    elif spoil != "noise":
        state.pop("visual_bert." + message.partition("(")[2][:-2])
    torch.save(state, weights)
    if spoil == "noise":
        weights.write_bytes(b"hello")
    with pytest.raises(LabelerError, match=message):
        load_visualbert(str(folder), 2048)
    assert not run.exists()


class Code:
    """What a pickle runs when it is opened without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
