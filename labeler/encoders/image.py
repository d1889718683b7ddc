"""Image towers: a frozen backbone that turns a picture into a grid of visual tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from labeler.artifacts import LabelerError
from labeler.encoders.weights import EMBEDDED, LITE0, embedded_path, from_hub

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(NamedTuple):
    """An image tower.

    name: as asked for; size: side in pixels of what it takes; mean, std: of its pixels in [0, 1];
    tokens, width: it gives [B, tokens, width]; module: the whole network; backbone: its part before pooling;
    classifier: pooled [B, width] -> ImageNet logits where the weights have it, else None.
    """

    name: str
    module: nn.Module
    backbone: Callable[[Tensor], Tensor]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: int
    width: int
    classifier: nn.Module | None = None

    def normalised(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Return RGB pictures, [size, size, 3] uint8 each (`labeler.images.stretch`), as [B, 3, size, size] float32."""
        values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std).view(1, 3, 1, 1)
        return ((values - mean) / std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def visual_tokens(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Return what the tower sees in RGB pictures, [size, size, 3] uint8 each: [B, tokens, width] float16, as stored."""
        values = self.normalised(pixels).to(next(self.module.parameters()).device)
        # float16 ends at 65,504; a backbone without a last normalisation may go beyond
        return self.backbone(values).clamp(-65504, 65504).half().cpu()


def load_image_encoder(name: str = EMBEDDED) -> ImageEncoder:
    """Return the image tower `name`.

    `embedded` is EfficientNet-Lite0; a folder holds `config.json` and `model.safetensors` as timm's
    `save_for_hf` writes them (or {"library": "torchvision", "architecture": ...}); `timm:NAME` and
    `torchvision:NAME` are pretrained models of those libraries; a bare name is looked for in torchvision first.

    Raises LabelerError: weights damaged, name unknown, or not here and the hub out of reach (within 10 s).
    """
    if name == EMBEDDED:
        return _embedded()
    if Path(name).is_dir():
        return _from_folder(Path(name))
    library, _, architecture = name.rpartition(":")
    library = library or ("torchvision" if architecture in torchvision.models.list_models() else "timm")
    if library == "torchvision" and architecture in torchvision.models.list_models():
        return _torchvision_pretrained(name, architecture)
    if library == "timm" and timm.is_model(architecture.removeprefix("timm/").split(".")[0]):
        return _timm_pretrained(name, architecture)
    raise LabelerError(f"image encoder {name!r}: no folder, and neither torchvision nor timm has a model of that name")


def _embedded() -> ImageEncoder:
    """Return EfficientNet-Lite0: the published tensors stand in the order of timm's `tf_` variant, which pads as they expect."""
    published = torch.load(embedded_path(LITE0), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in published.values()]:
        raise LabelerError("timm's tf_efficientnet_lite0 has changed its layers; install timm 1.0.20 or newer")
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))
    half_range = 127 / 255, 128 / 255  # the weights were trained on (x - 127) / 128
    return _encoder(EMBEDDED, model, 224, (half_range[0],) * 3, (half_range[1],) * 3)


def _from_folder(folder: Path) -> ImageEncoder:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        architecture, settings = config["architecture"], config.get("pretrained_cfg", config)
        model: nn.Module
        if config.get("library") == "torchvision":
            model = torchvision.models.get_model(architecture, num_classes=config.get("num_classes", 1000))
        else:
            model = timm.create_model(
                architecture, num_classes=config.get("num_classes", 1000), **config.get("model_args", {})
            )
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise LabelerError(
            f"{folder}: not an image encoder with config.json and model.safetensors ({error})"
        ) from error
    return _encoder(str(folder), model, settings.get("input_size", (3, 224, 224))[-1],
                    tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD)))  # fmt: skip


def _torchvision_pretrained(name: str, architecture: str) -> ImageEncoder:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    transform = weights.transforms()
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)

    def build(state: Any) -> nn.Module:
        model = torchvision.models.get_model(architecture)
        model.load_state_dict(state)
        return model

    model = from_hub(
        name, "image",
        lambda: build(torch.load(cached, map_location="cpu", weights_only=True)),
        lambda: torchvision.models.get_model(architecture, weights=weights),
        weights.url,
    )  # fmt: skip
    return _encoder(name, model, transform.crop_size[0], tuple(transform.mean), tuple(transform.std))


def _timm_pretrained(name: str, architecture: str) -> ImageEncoder:
    from huggingface_hub import constants, try_to_load_from_cache

    entry: Any = timm.create_model(architecture).pretrained_cfg
    repository = entry.get("hf_hub_id") or f"timm/{architecture}"

    def cached() -> nn.Module:
        if not isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
            raise OSError("not in the cache")
        return timm.create_model(architecture, pretrained=True)

    model = from_hub(
        name, "image", cached, lambda: timm.create_model(architecture, pretrained=True), constants.ENDPOINT
    )
    data = timm.data.resolve_model_data_config(model)
    return _encoder(name, model, data["input_size"][-1], data["mean"], data["std"])


def _encoder(name: str, model: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageEncoder:
    """Return `model` as a tower; its token count and width are found by running it once."""
    # channels last: a third faster on the CPU
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    grid = _grid(model)

    def backbone(pixels: Tensor) -> Tensor:
        features = grid(pixels)  # [B, C, H, W], or [B, N, C] from a transformer
        return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features

    with torch.inference_mode():
        _, tokens, width = backbone(torch.zeros(1, 3, size, size)).shape
    find_classifier = getattr(model, "get_classifier", lambda: None)  # timm's
    classifier = cast("Callable[[], nn.Module | None]", find_classifier)()
    return ImageEncoder(name, model, backbone, size, mean, std, tokens, width, classifier)


def _grid(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the part of `model` before its pooling, which gives [B, C, H, W] or [B, N, C]."""
    if hasattr(model, "forward_features"):  # timm
        return cast(Callable[[Tensor], Tensor], model.forward_features)
    if isinstance(getattr(model, "features", None), nn.Module):  # torchvision: VGG, MobileNet, EfficientNet, ConvNeXt
        return cast(nn.Module, model.features)
    if hasattr(model, "layer4"):  # torchvision: ResNet and its kin end in [average pool, linear layer]
        return nn.Sequential(*list(model.children())[:-2])
    raise LabelerError(
        f"{type(model).__name__} gives no grid of features; use a ResNet, EfficientNet or ConvNeXt, or a timm model"
    )
