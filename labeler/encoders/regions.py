"""Regions: the boxes that a torchvision Faster R-CNN is most sure of, and what its backbone's last stage sees in each.

VisualBERT's papers take such visual tokens from the detector of Anderson et al. 2018 ("Bottom-Up and Top-Down Attention"):
36 regions a picture, 2048 wide. Here the detector is one that torchvision publishes, trained on COCO's 80 classes instead of
Visual Genome's 1,600, and the features are pooled from the last stage of its ResNet, below the feature pyramid.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

from labeler.artifacts import read_json
from labeler.encoders.pretrained import load_torchvision
from labeler.encoders.weights import REGIONS_PREFIX, first_line
from labeler.errors import LabelerError

DETECTORS = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")  # those with published weights
LIBRARY = "torchvision-detection"
REGION_COUNT = 36
SIDE = 800  # pixels: the shorter side that they were trained with
STRIDE = 32  # of a ResNet's last stage
GRID = 7  # RoIAlign's cells a side


class Seen(NamedTuple):
    """What an image tower sees in pictures: tokens [B, V, D], and of a detector the boxes [B, V, 4] that they belong to.

    A box is x1 y1 x2 y2 as shares of the picture's width and height. Where a picture has fewer than V regions, its
    last tokens and boxes are zeros, and no visual tokens (see `labeler.store.region_mask`).
    """

    tokens: Tensor
    boxes: Tensor | None = None


class Detector(NamedTuple):
    """A Faster R-CNN on a ResNet, and the side in pixels of the square pictures that it takes."""

    module: FasterRCNN
    size: int


def load_detector(name: str) -> Detector:
    """Return the detector `name`: one of DETECTORS, or a folder with `config.json` and `model.safetensors`.

    config.json holds {"library": "torchvision-detection", "architecture": "fasterrcnn_resnet50_fpn"}, and where they are
    others than its defaults "num_classes" (91, the ground counted), "input_size" ([3, 800, 800]), "model_args" (settings of
    torchvision's FasterRCNN) and "norm_eps" (of frozen batch norms: 0 for DETECTORS, as torchvision sets it for what it has
    published; else 1e-5). The architecture may have another ResNet in its name.

    Raises LabelerError: unknown, weights damaged or not the architecture's, or not here and the hub out of reach.
    """
    if Path(name).is_dir():
        return _from_folder(Path(name))
    if name not in DETECTORS:
        raise LabelerError(
            f"detector {name!r}: no folder, and torchvision has none; choose from {', '.join(DETECTORS)}"
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    module = load_torchvision(
        f"{REGIONS_PREFIX}{name}", weights, lambda state: _with_weights(_build(name, SIDE), state)
    )
    assert isinstance(module, FasterRCNN)
    return Detector(module, SIDE)


def _from_folder(folder: Path) -> Detector:
    try:
        config = read_json(folder / "config.json")
        if config.get("library") != LIBRARY:
            raise LabelerError(f"no detector: config.json does not name the library {LIBRARY!r}")
        side = config.get("input_size", (3, SIDE, SIDE))[-1]
        if side % STRIDE:
            raise LabelerError(f"input_size is {side}, expected a multiple of {STRIDE}")
        architecture = config["architecture"]
        module = _build(architecture, side, config.get("num_classes", 91), config.get("model_args", {}))
        norm_eps = config.get("norm_eps", 0.0 if architecture in DETECTORS else 1e-5)
        return Detector(_with_weights(module, load_file(folder / "model.safetensors"), norm_eps), side)
    except LabelerError as error:
        raise LabelerError(f"{folder}: {error}") from error
    except Exception as error:  # what stands in a config may fail in many ways
        raise LabelerError(
            f"{folder}: not a detector with config.json and model.safetensors ({first_line(error)})"
        ) from error


def _build(architecture: str, side: int, num_classes: int = 91, model_args: dict[str, Any] | None = None) -> FasterRCNN:
    """Return an untrained detector for square pictures of `side` pixels."""
    unknown = (model_args or {}).keys() - inspect.signature(FasterRCNN).parameters.keys()
    if unknown:  # torchvision would pass over them
        raise LabelerError(f"model_args: FasterRCNN has no {', '.join(sorted(unknown))}")
    settings: dict[str, Any] = {"min_size": side, "max_size": side, **(model_args or {})}
    if architecture in DETECTORS:
        model = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=num_classes, **settings
        )
        assert isinstance(model, FasterRCNN)
        return model
    match = re.fullmatch(r"fasterrcnn_(resnet\d+)_fpn", architecture)
    if match is None or match[1] not in torchvision.models.list_models():
        known = ", ".join(DETECTORS)
        raise LabelerError(f"unknown detector {architecture!r}; there are {known} and fasterrcnn_RESNET_fpn")
    backbone = resnet_fpn_backbone(backbone_name=match[1], weights=None, norm_layer=nn.BatchNorm2d)
    return FasterRCNN(backbone, num_classes, **settings)


def _with_weights(model: FasterRCNN, state: dict[str, Tensor], norm_eps: float = 0.0) -> FasterRCNN:
    """Return the detector with its weights, every one in its place.

    Frozen batch norms count no batches, which tells them; `norm_eps` is theirs.
    """
    counter = ".num_batches_tracked"
    missing, left_over = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith(counter)]
    if missing or left_over:
        raise LabelerError(f"not this detector's weights (missing {missing[:3]}, left over {left_over[:3]})")
    if not any(key.endswith(counter) for key in state):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_eps
    return model


def see_regions(model: FasterRCNN, pixels: Tensor) -> Seen:
    """Return the REGION_COUNT most confident regions of each picture in pixels [B, 3, S, S], the most confident first.

    After the detector's own non-maximum suppression, which goes class by class, comes one over all classes: what two classes
    claim is one region. A picture in which nothing is found has one region, the picture as a whole, so that it still differs
    from a missing one. Tokens are the mean of RoIAlign (He et al. 2017) over a box, on the last stage of the backbone.
    Pictures are seen one by one: memory does not grow with B, and no picture's tokens hang on another's.
    """
    tokens, boxes = zip(*(_see_one(model, picture.unsqueeze(0)) for picture in pixels), strict=True)
    return Seen(torch.stack(tokens), torch.stack(boxes))


def _see_one(model: FasterRCNN, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [V, D] and boxes [V, 4] of one picture, pixels [1, 3, S, S]."""
    side = pixels.shape[-1]
    stages = model.backbone.body(pixels)  # {number: [1, D, S / stride, S / stride]}
    pyramid = model.backbone.fpn(stages)
    images = ImageList(pixels, [(side, side)])
    proposals, _ = model.rpn(images, pyramid)
    (found,), _ = model.roi_heads(pyramid, proposals, images.image_sizes)
    kept = torchvision.ops.nms(found["boxes"], found["scores"], model.roi_heads.nms_thresh)[:REGION_COUNT]
    corners = found["boxes"][kept]  # [n, 4] pixels
    if not len(corners):
        corners = pixels.new_tensor([[0, 0, side, side]])
    last = list(stages.values())[-1]
    # [n, D, 7, 7]
    cells = torchvision.ops.roi_align(
        last, [corners], GRID, spatial_scale=last.shape[-1] / side, sampling_ratio=2, aligned=True
    )
    padding = (0, 0, 0, REGION_COUNT - len(corners))
    return nn.functional.pad(cells.mean(dim=(2, 3)), padding), nn.functional.pad(corners / side, padding)
