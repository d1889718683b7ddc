"""Regions: the detector's own boxes, the most confident first, seen alike by preprocess and predict; what is none is masked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from labeler.batches import StorePairs, collate
from labeler.encoders.image import load_image_encoder
from labeler.encoders.regions import REGION_COUNT, _build, _with_weights, see_regions
from labeler.encoders.weights import tower_sha256
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.evaluation import scores_of
from labeler.inference import logits
from labeler.ingestion import IngestOptions, ingest
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.runs import load_run
from labeler.store import Store
from labeler.training import train
from labeler.training_options import TrainOptions

SIDE = 64
CONFIG = {"library": "torchvision-detection", "architecture": "fasterrcnn_resnet18_fpn", "num_classes": 4,
          "input_size": [3, SIDE, SIDE]}  # fmt: skip


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """Return a folder with an untrained Faster R-CNN on a ResNet-18, 512 wide, whose frozen norms count no batches."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    state = _build(CONFIG["architecture"], SIDE, 4).state_dict()
    # larger weights of the boxes, so that they move and their scores differ
    state = {name: value * (30 if "box_predictor" in name else 1) for name, value in state.items()}
    save_file({name: value for name, value in state.items() if "num_batches" not in name}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tower(detector):
    return load_image_encoder(f"regions:{detector}")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)


def test_regions_are_the_most_confident_boxes_of_the_detector(tower, picture):
    tokens, boxes = tower.see([picture])
    assert (tokens.shape, tokens.dtype) == ((1, REGION_COUNT, 512), torch.float16)
    assert (boxes.shape, boxes.dtype) == ((1, REGION_COUNT, 4), torch.float32)
    with torch.inference_mode():  # torchvision's own way from picture to boxes
        (found,) = tower.module([torch.from_numpy(picture).permute(2, 0, 1) / 255])
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    kept: list[torch.Tensor] = []
    for box in found["boxes"]:
        overlaps = [torchvision.ops.box_iou(box[None], other[None]).item() for other in kept]
        if max(overlaps, default=0) <= 0.5 and len(kept) < REGION_COUNT:
            kept.append(box)
    assert 3 < len(kept) < len(found["boxes"])
    torch.testing.assert_close(boxes[0, : len(kept)] * SIDE, torch.stack(kept), atol=1e-3, rtol=0)
    assert not boxes[0, len(kept) :].any()
    assert not tokens[0, len(kept) :].any()


def test_features_are_pooled_from_the_last_stage(tower, picture):
    tokens, boxes = tower.see([picture])
    real = boxes[0, :, 2] > 0
    with torch.inference_mode():
        pixels = tower.normalised(torch.from_numpy(picture).permute(2, 0, 1)[None])
        stage = tower.module.backbone.body(pixels)["3"]  # [1, 512, 2, 2]
        cells = torchvision.ops.roi_align(stage, [boxes[0, real] * 2], 7, 1.0, 2, True)
    torch.testing.assert_close(tokens[0, real].float(), cells.mean(dim=(2, 3)), atol=2e-3, rtol=2e-3)
    assert len({row.numpy().tobytes() for row in tokens[0, real]}) > 1


def test_a_picture_alone_is_seen_as_in_a_batch(tower, picture):
    other = np.zeros_like(picture)
    for alone, both in zip(tower.see([picture]), tower.see([other, picture]), strict=True):
        assert torch.equal(alone[0], both[1])


def spoiled(detector: Path, folder: Path, **changes) -> str:
    """Return the name of a detector with another config; its weights are a link."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(detector / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    return f"regions:{folder}"


def test_a_picture_in_which_nothing_is_found_is_one_region(detector, picture, tmp_path):
    strict = load_image_encoder(spoiled(detector, tmp_path / "strict", model_args={"box_score_thresh": 1.0}))
    tokens, boxes = strict.see([picture])
    assert boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert not boxes[0, 1:].any()
    assert tokens[0, 0].any()
    assert not tokens[0, 1:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"architecture": "fasterrcnn_resnet19_fpn"}, "unknown detector 'fasterrcnn_resnet19_fpn'; there are fasterrcnn_resnet50"),
     ({"architecture": "fasterrcnn_resnet34_fpn"}, "not this detector's weights"), ({"num_classes": 5}, "not a detector with"),
     ({"input_size": [3, 70, 70]}, "input_size is 70, expected a multiple of 32"),
     ({"library": "timm"}, "no detector: config.json does not name"),
     ({"model_args": {"colour": 1}}, "FasterRCNN has no colour")],
)  # fmt: skip
def test_a_folder_that_is_no_detector_is_refused(changes, message, detector, tmp_path):
    with pytest.raises(LabelerError, match=message):
        load_image_encoder(spoiled(detector, tmp_path / "spoiled", **changes))


def test_a_detector_that_is_damaged_unknown_or_misplaced_is_refused(detector, tmp_path):
    name = spoiled(detector, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").unlink()
    with open(detector / "model.safetensors", "rb") as file:
        (tmp_path / "damaged/model.safetensors").write_bytes(file.read(1000))
    with pytest.raises(LabelerError, match=r"damaged: not a detector with config.json and model.safetensors"):
        load_image_encoder(name)
    with pytest.raises(
        LabelerError, match="detector 'yolo': no folder, and torchvision has none; choose from fasterrcnn"
    ):
        load_image_encoder("regions:yolo")
    with pytest.raises(LabelerError, match=f"a detector; regions:{detector} takes what it sees"):
        load_image_encoder(str(detector))


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_are_as_torchvision_has_them(frozen):
    torch.manual_seed(0)
    norm = torchvision.ops.FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm
    )
    theirs = torchvision.models.detection.FasterRCNN(backbone, 4).eval()
    for module in theirs.modules():
        if isinstance(module, norm):
            module.running_var.fill_(1e-4)  # so small that epsilon matters
            module.eps = 0.0 if frozen else 1e-5
    ours = _with_weights(_build("fasterrcnn_resnet18_fpn", SIDE, 4), theirs.state_dict()).eval()
    pixels = torch.randn(1, 3, SIDE, SIDE) * 1e-9
    with torch.inference_mode():
        expected = theirs.backbone.body(pixels)["3"]
        assert expected.std() > 0
        torch.testing.assert_close(ours.backbone.body(pixels)["3"], expected, rtol=1e-3, atol=0)


def test_the_published_architecture_is_as_wide_as_visualbert_takes_it():
    detector = _build("fasterrcnn_resnet50_fpn", SIDE).eval()
    with torch.inference_mode():
        tokens, boxes = see_regions(detector, torch.randn(1, 3, SIDE, SIDE))
    assert (tokens.shape, boxes.shape) == ((1, REGION_COUNT, 2048), (1, REGION_COUNT, 4))


def test_the_hash_of_a_detector_follows_its_files(detector, tmp_path):
    same, other = (
        spoiled(detector, tmp_path / name, num_classes=number) for name, number in (("same", 4), ("other", 5))
    )
    assert tower_sha256(same) == tower_sha256(f"regions:{detector}") != tower_sha256(other)


@pytest.fixture(scope="module")
def few(store, detector, text_tower, image_tower, tmp_path_factory) -> Path:
    """Return a folder with records of eight pictures and one text, and their store with regions."""
    folder = tmp_path_factory.mktemp("few")
    shutil.copytree(store.parent / "source/pictures", folder / "pictures")
    lines = (store.parent / "source/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in (*lines[:6], *lines[24:26], lines[36])]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([folder / "pairs.jsonl"], folder / "records", IngestOptions())
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=f"regions:{detector}")
    return folder


def test_a_store_of_regions_masks_what_is_none(few, text_tower):
    opened = Store(few / "store")
    (tokens, mask), boxes = opened.visual_tokens(range(9)), opened.visual_boxes(range(9))
    assert (tokens.shape, mask.shape, boxes.shape) == ((9, 36, 512), (9, 36), (9, 36, 4))
    assert mask.any(axis=1).tolist() == [True] * 8 + [False]
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (mask == (boxes[..., 3] > boxes[..., 1])).all()
    assert (mask[:, 1:] <= mask[:, :-1]).all()  # real ones first
    assert not tokens[~mask].any()
    image, _ = opened.features(np.arange(9))
    mean = tokens[0][mask[0]].astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(image[0], mean, atol=1e-4)
    tokenizer = load_text(text_tower)
    batch = collate(StorePairs(opened, np.arange(9), tokenizer, 8).__getitems__(list(range(9))), 0)
    assert batch["visual_mask"].numpy().tolist() == mask.tolist()


def load_text(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_predict_sees_what_preprocess_saw(few, tmp_path):
    options = TrainOptions(epochs=1, batch_size=4, precision="fp32")
    run = load_run(train("resnet-gru", few / "store", tmp_path / "run", options, device="cpu").out)
    opened = Store(few / "store")
    pairs = StorePairs(opened, np.arange(9), run.tokenizer, run.preprocessor["max_text_tokens"])
    expected = scores_of("single", logits(run.model, pairs, run.tokenizer.pad_token_id), run.temperature)
    predict([few / "pairs.jsonl"], tmp_path / "run", tmp_path / "labels.jsonl", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == opened.rows["id"]
    np.testing.assert_allclose([list(line["scores"].values()) for line in lines], expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 1e-3


def test_a_detector_cannot_be_fine_tuned(few, tmp_path):
    options = TrainOptions(epochs=1, batch_size=4, finetune_image=True)
    with pytest.raises(UsageError, match=r"is a detector, which cannot be fine-tuned: .*; leave out --finetune-image"):
        train("resnet-gru", few / "store", tmp_path / "run", options, device="cpu")
    assert not (few / "store-pixels-64").exists()


def test_boxes_go_and_come_back_with_their_tower(few, detector, text_tower, image_tower, tmp_path):
    shutil.copytree(few / "records", tmp_path / "records")
    shutil.copytree(few / "store", tmp_path / "store")
    before = Store(tmp_path / "store")
    tokens, boxes = before.visual_tokens(range(9)), before.visual_boxes(range(9))
    (tmp_path / "pairs.jsonl").write_bytes((few / "pairs.jsonl").read_bytes())
    shutil.copytree(few / "pictures", tmp_path / "pictures")
    preprocess(tmp_path / "records", tmp_path / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    other = Store(tmp_path / "store")
    assert other.visual_tokens(range(9))[0].shape == (9, 4, 96)
    with pytest.raises(BadInputError, match="gives no boxes; preprocess with regions:NAME"):
        other.visual_boxes([0])
    shutil.rmtree(tmp_path / "pictures")
    name = f"regions:{detector}"
    preprocess(tmp_path / "records", tmp_path / "store", text_encoder=str(text_tower), image_encoder=name)
    again = Store(tmp_path / "store")
    for ours, theirs in zip(again.visual_tokens(range(9)), tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.visual_boxes(range(9)), boxes)
