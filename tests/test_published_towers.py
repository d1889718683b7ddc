"""Published contrastive models as teachers of zero-shot labels: their own answers, in each released form."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from test_weak_labels import half_labelled
from transformers import (
    AutoModel,
    AutoTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from labeler.artifacts import read_manifest
from labeler.encoders.weights import is_published
from labeler.errors import LabelerError
from labeler.fitting.distillation import ZeroShotTeacher, teachers_say
from labeler.pixels import stored_pixels
from labeler.published_towers import load_published
from labeler.store import Store
from labeler.training import train
from labeler.zero_shot import TEMPLATES

SIDE, LENGTH = 32, 24
KINDS = {
    "clip": (CLIPConfig, CLIPModel, CLIPImageProcessor),
    "chinese_clip": (ChineseCLIPConfig, ChineseCLIPModel, CLIPImageProcessor),
    "metaclip_2": (MetaClip2Config, MetaClip2Model, CLIPImageProcessor),
    "siglip": (SiglipConfig, SiglipModel, SiglipImageProcessor),
}


def released(folder, kind, text_tower):
    """Write a small model of `kind` as such models are released: weights, tokenizer, image processor."""
    tokenizer = AutoTokenizer.from_pretrained(text_tower)
    configure, model, processor = KINDS[kind]
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id,
            "bos_token_id": tokenizer.cls_token_id}  # fmt: skip
    widths = {"projection_size": 32} if kind == "siglip" else {}
    if kind == "siglip":
        ends.pop("pad_token_id")  # as in SigLIP 2's files: the tokenizer alone knows it
    config = configure(
        text_config={**small, **ends, **widths, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH},
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        **({} if kind == "siglip" else {"projection_dim": 16}),
    )
    torch.manual_seed(0)
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    processor(size=size, crop_size=size, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory, text_tower):
    """A folder with a published model of each kind."""
    return released(tmp_path_factory.mktemp("published") / request.param, request.param, text_tower)


@pytest.fixture(scope="module")
def part(tmp_path_factory, text_tower, image_tower):
    """A store, every second of whose rows is labelled; some have no picture, and some no text."""
    return half_labelled(tmp_path_factory.mktemp("part"), "single", text_tower, image_tower)


def by_transformers(folder, store, rows):
    """Return the probabilities that transformers' own model and processors give each row's label, one row at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = KINDS[model.config.model_type][2].from_pretrained(folder)
    padding = {"padding": "max_length" if model.config.model_type == "siglip" else True, "max_length": LENGTH}

    def embedded(texts):
        ids = tokenizer(texts, return_tensors="pt", truncation=True, **padding)
        mask = {} if model.config.model_type == "siglip" else {"attention_mask": ids["attention_mask"]}
        found = model.get_text_features(ids["input_ids"], **mask).pooler_output
        return found / found.norm(dim=-1, keepdim=True)

    prompts = [embedded([template.replace("{}", name) for template in TEMPLATES]).mean(0)
               for name in store.label_set.names]  # fmt: skip
    labels = torch.stack([prompt / prompt.norm() for prompt in prompts])
    pixels, found = stored_pixels(store, SIDE), []
    for row in rows:
        if store.has_image[row]:
            picture = processor(pixels.of(row).transpose(1, 2, 0), do_resize=False, return_tensors="pt")["pixel_values"]
            seen = model.get_image_features(pixel_values=picture).pooler_output
            place = seen / seen.norm(dim=-1, keepdim=True)
        else:
            place = embedded([store.rows["text"][row]])
        found.append((model.logit_scale.exp() * place @ labels.T).softmax(-1)[0])
    return torch.stack(found).numpy()


def test_it_says_what_the_model_itself_says(published, part):
    store = Store(part)
    rows = store.rows_of("train", unlabelled=True)
    unlabelled = ~store.labelled[rows]
    with torch.inference_mode():
        expected = by_transformers(published, store, rows[unlabelled])
    assert not store.has_image[rows[unlabelled]].all()
    said = teachers_say([ZeroShotTeacher(str(published))], store, rows, 1.0, "cpu")
    assert np.isnan(said[~unlabelled]).all()
    np.testing.assert_allclose(said[unlabelled], expected, atol=2e-5)
    assert np.ptp(expected, axis=0).max() > 1e-4  # rows are told apart


@pytest.mark.parametrize("published", ["clip"], indirect=True)
def test_any_model_is_trained_by_it_from_the_command_line(part, published, tmp_path, labeler):
    command = ("train", "late-fusion", part, "--out", tmp_path / "run", "--epochs", "1", "--device", "cpu", "--teacher",
               f"zero-shot:{published}", "--template", "a drawing of {}")  # fmt: skip
    assert labeler(*command).code == 0
    manifest = read_manifest(tmp_path / "run", "train")
    assert [item["path"] for item in manifest["inputs"]] == [str(part), str(published)]
    assert f"--teacher zero-shot:{published}" in (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert "already" in labeler(*command).said
    changed = json.loads((published / "config.json").read_text(encoding="utf-8")) | {"note": "other bytes"}
    other = shutil.copytree(published, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    assert ZeroShotTeacher(str(other)).as_input().sha256 != manifest["inputs"][1]["sha256"]


def test_what_is_published_is_told_from_a_run(trained, image_tower, tmp_path):
    assert is_published("openai/clip-vit-base-patch32")
    assert is_published("hf:clip")
    assert is_published(str(image_tower))
    assert not is_published(str(trained("late-fusion")))
    assert not is_published(str(tmp_path))
    assert not is_published("clip")


@pytest.mark.parametrize("published", ["clip"], indirect=True)
def test_what_cannot_teach_is_said(part, text_tower, published, tmp_path, options):
    with pytest.raises(LabelerError, match=r"a 'bert' model; expected one of clip, chinese_clip, metaclip_2, siglip"):
        load_published(str(text_tower))
    with pytest.raises(
        LabelerError, match=r"'nobody/clip' is not on this machine and its hub is out of reach .*; take a run"
    ):
        load_published("nobody/clip")
    broken = shutil.copytree(published, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(LabelerError, match="not a transformers folder with model, tokenizer and image processor"):
        load_published(str(broken))
    silent = shutil.copytree(published, tmp_path / "silent")
    for path in silent.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(LabelerError, match=r"silent: (no tokenizer beside the model|not a transformers folder)"):
        load_published(str(silent))
    alone = dataclasses.replace(options, epochs=1)
    with pytest.raises(LabelerError, match="expected one of clip"):
        train("late-fusion", part, tmp_path / "run", alone, device="cpu", teachers=[ZeroShotTeacher(str(text_tower))])
