"""FLAVA as released: each weight has its place, what it gives is transformers' own, and it goes through all stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FlavaConfig, FlavaForPreTraining, FlavaImageProcessor, FlavaModel

from labeler.batches import Pair, collate
from labeler.encoders.image import load_image_encoder
from labeler.encoders.text import load_text_encoder
from labeler.errors import LabelerError
from labeler.evaluating import evaluate
from labeler.models import Building, model_module
from labeler.preprocessing import preprocess
from labeler.training import train
from tests.conftest import SPECIALS, WORDS, save_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Return a folder like `facebook/flava-full`: all that its pretraining had, codebook and heads too, but small."""
    folder = tmp_path_factory.mktemp("flava")
    config = FlavaConfig(
        text_config=SIZES | {"vocab_size": len(SPECIALS + WORDS), "max_position_embeddings": 40},
        image_config=SIZES | {"image_size": 32, "patch_size": 16, "vocab_size": 20}, multimodal_config=SIZES,
        image_codebook_config={"hidden_size": 8, "vocab_size": 20}, hidden_size=32, projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = FlavaForPreTraining(config)
    with torch.no_grad():  # what starts at zero, or at one, would hide what is mixed up
        for parameter in model.flava.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder, SPECIALS)
    FlavaImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(released) -> FlavaModel:
    return FlavaModel.from_pretrained(released).eval()


@pytest.fixture
def built(released, label_set):
    made = model_module("flava").build(Building(label_set, str(released), 32, []))
    made.model.eval()
    return made


def test_the_file_is_in_the_released_form(released):
    first = {name.split(".")[0] for name in load_file(released / "model.safetensors")}
    assert first == {"flava", "image_codebook", "mim_head", "mlm_head", "mmm_image_head", "mmm_text_head", "itm_head"}


def test_its_towers_see_what_flavas_encoders_hand_on(released, theirs):
    pixels = [np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in range(2)]
    tower = load_image_encoder(str(released))
    values = tower.normalised(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = theirs.image_model(pixel_values=values, output_hidden_states=True).hidden_states[-1]
    assert (tower.tokens, tower.width, tower.size) == (5, 32, 32)
    torch.testing.assert_close(tower.visual_tokens(pixels).float(), expected, atol=2e-3, rtol=2e-3)
    text = load_text_encoder(str(released))
    encoded = text.tokenizer(["a red circle", "one very blue square by hand"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        own, other = text.model(**encoded).last_hidden_state, theirs.text_model(**encoded).last_hidden_state
    torch.testing.assert_close(own, other)


def test_fusion_is_transformers_with_padding_masked(built, theirs):
    texts, pixels = ["a red circle", "one very blue square drawn by hand"], torch.randn(2, 3, 32, 32)
    encoded = built.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        whole = theirs(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], pixel_values=pixels)
        tokens = theirs.image_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        mask = encoded["attention_mask"].bool()
        own = built.model.fused(encoded["input_ids"], mask, tokens, torch.ones(2, 5, dtype=torch.bool))
    expected, places = whole.multimodal_embeddings, mask.shape[1]  # [CLS; visual; text]
    assert not mask.all()
    torch.testing.assert_close(own[:, 0], expected[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(own[:, 1 : 1 + places][mask], expected[:, 6:][mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(own[:, 1 + places :], expected[:, 1:6], atol=1e-5, rtol=0)


def test_padding_changes_no_logit(built):
    rng = np.random.default_rng(0)
    short, long = (Pair(ids, rng.normal(size=(5, 32)).astype(np.float16), True) for ids in ([5, 6, 7], [8] * 30))
    with torch.inference_mode():
        alone, padded = (built.model(**collate(batch, 0)).logits for batch in ([short], [short, long]))
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("flava.multimodal_model.cls_token", "1 weights missing"),
     ("flava.text_model.encoder.layer.9.output.dense.bias", "1 weights left over")],
)  # fmt: skip
def test_a_weight_without_its_place_is_an_error(released, tmp_path, name, message):
    for file in released.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(released / "model.safetensors")
    if weights.pop(name, None) is None:
        weights[name] = torch.zeros(32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (load_text_encoder, load_image_encoder):
        with pytest.raises(LabelerError, match=message):
            load(str(tmp_path))


def test_the_older_form_of_the_file_is_read_too(released, tmp_path):
    for file in released.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors") | {
        "flava.text_model.embeddings.position_ids": torch.arange(40)[None]
    }
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    own, other = (load_text_encoder(str(folder)).model.state_dict() for folder in (tmp_path, released))
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_visual_tokens_of_another_width_are_refused(released, label_set):
    with pytest.raises(
        LabelerError, match="takes visual tokens of width 32, the image encoder gives 96; preprocess with --image"
    ):
        model_module("flava").build(Building(label_set, str(released), 96, []))


@pytest.mark.parametrize("name", ["visualbert", "albef"])
def test_berts_kin_say_that_they_have_no_place_for_it(released, label_set, name):
    with pytest.raises(LabelerError, match=r"its layers are not BERT's.*train flava or late-fusion"):
        model_module(name).build(Building(label_set, str(released), 32, []))


def test_it_goes_through_all_stages_and_its_image_encoder_is_fine_tuned(store, released, options, tmp_path):
    towers = {"text_encoder": str(released), "image_encoder": str(released)}
    data = preprocess(store.parent / "records", tmp_path / "store", **towers).out
    frozen = train("flava", data, tmp_path / "frozen", options, device="cpu")
    config = json.loads((frozen.out / "config.json").read_text(encoding="utf-8"))
    assert (config["pretrained_fusion"], config["tower"]["model_type"]) == (True, "flava_text_model")
    tuned = train(
        "flava", data, tmp_path / "tuned", options.__class__(**vars(options) | {"finetune_image": True}), device="cpu"
    )
    for run in (frozen, tuned):
        assert evaluate(run.out, data, device="cpu").metrics["n"] == 7
