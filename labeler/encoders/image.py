"""Image towers: a backbone that turns a picture into a grid of visual tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from labeler.artifacts import read_json, write_json
from labeler.encoders.flava import FLAVA, FLAVA_IMAGES, load_flava
from labeler.encoders.grids import Grid, averages, grid_of, without_registers
from labeler.encoders.pretrained import load_torchvision, load_transformers, quiet
from labeler.encoders.regions import LIBRARY, REGION_COUNT, Seen, load_detector, see_regions
from labeler.encoders.weights import (
    EMBEDDED,
    LITE0,
    REGIONS_PREFIX,
    embedded_path,
    first_line,
    from_folder_or_hub,
    from_hub,
    recorded_tower,
)
from labeler.errors import LabelerError, UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# what config.json says of a network of timm's or torchvision's
NETWORK = ("library", "architecture", "num_classes", "model_args")


class ImageEncoder(NamedTuple):
    """An image tower.

    name: as asked for; size: side in pixels of what it takes; mean, std: of its pixels in [0, 1];
    tokens, width: it gives [B, tokens, width]; module: the whole network; grid: its part before pooling;
    classifier: pooled [B, width] -> ImageNet logits where the weights have it, else None; regions: of a detector, pixels
    [B, 3, size, size] -> what is seen in its regions, which are then the tokens, else None; architecture: what config.json
    says of the network, or a transformers model's image processor; averaging: [tokens, cells] where the tokens are means over
    the grid's cells, else None.
    """

    name: str
    module: nn.Module
    grid: Grid
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: int
    width: int
    classifier: nn.Module | None = None
    regions: Callable[[Tensor], Seen] | None = None
    architecture: Any = None
    averaging: Tensor | None = None

    def backbone(self, values: Tensor) -> Tensor:
        """Return visual tokens [B, tokens, width] of normalised pixels [B, 3, size, size]."""
        features = self.grid(self.module, values)
        cells = features.flatten(2).transpose(1, 2) if features.dim() == 4 else features
        return cells if self.averaging is None else self.averaging.to(cells) @ cells

    def with_tokens(self, tokens: int) -> ImageEncoder:
        """Return the tower with its square grid averaged to a smaller one of `tokens`; itself where it gives so many.

        Raises UsageError where there is no such grid.
        """
        if tokens == self.tokens:
            return self
        if self.regions:
            raise UsageError(
                f"--visual-tokens {tokens}: {self.name} is a detector, whose regions are no grid; leave it out"
            )
        means = averages(self.tokens, tokens)
        return self._replace(tokens=tokens, averaging=means if self.averaging is None else means @ self.averaging)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return RGB pixels [B, 3, size, size] uint8 (`labeler.pictures.images.stretch`) as the network takes them, float32."""
        return normalised(pixels, self.mean, self.std)

    def visual_tokens(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Return what the tower sees in RGB pictures, [size, size, 3] uint8 each: [B, tokens, width] float16, as stored."""
        return self.see(pixels).tokens

    @torch.inference_mode()
    def see(self, pixels: Sequence[np.ndarray]) -> Seen:
        """Return `visual_tokens`, and of a detector the boxes [B, tokens, 4] float32 that they belong to."""
        device = next(self.module.parameters()).device
        # on a processor a few at a time, whose values stay in its caches: half the time of 32 at once
        size = 2 * torch.get_num_threads() if device.type == "cpu" else len(pixels)
        parts = [self.see_at_once(pixels[start : start + size], device) for start in range(0, len(pixels), size)]
        boxes = [part.boxes for part in parts if part.boxes is not None]
        return Seen(torch.cat([part.tokens for part in parts]), torch.cat(boxes) if boxes else None)

    def see_at_once(self, pixels: Sequence[np.ndarray], device: torch.device) -> Seen:
        """Return `see` of pictures that go through the network together."""
        stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        values = self.normalised(stacked.to(device))
        tokens, boxes = self.regions(values) if self.regions else Seen(self.backbone(values))
        # float16 ends at 65,504; a backbone without a last normalisation may go beyond
        return Seen(tokens.clamp(-65504, 65504).half().cpu(), None if boxes is None else boxes.cpu())

    def save(self, folder: Path) -> None:
        """Write the network with its present weights as a folder that `load_image_encoder` reads; not for a detector."""
        if not isinstance(self.architecture, dict):
            self.module.save_pretrained(folder)  # type: ignore[operator]
            self.architecture.save_pretrained(folder)
            return
        folder.mkdir(exist_ok=True)  # of a run that was killed while it was saved
        weights = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        settings = {"input_size": [3, self.size, self.size], "mean": self.mean, "std": self.std}
        write_json(folder / "config.json", {**self.architecture, "pretrained_cfg": settings})


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return pixels [B, 3, H, W] uint8 as a network takes them: float32, from each channel its `mean` taken, over its `std`."""
    means, stds = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
    return ((pixels.float() / 255 - means) / stds).contiguous(memory_format=torch.channels_last)


def load_image_encoder(name: str = EMBEDDED) -> ImageEncoder:
    """Return the image tower `name`.

    `embedded` is EfficientNet-Lite0; a folder holds `config.json` and `model.safetensors` as timm's `save_for_hf` writes
    them (or {"library": "torchvision", "architecture": ...}), or what transformers' models and image processors write;
    `timm:NAME` and `torchvision:NAME` are pretrained models of those libraries; `hf:NAME` and `OWNER/NAME` are transformers
    models of a hub; `regions:` before a detector's name or folder takes its regions (`labeler.encoders.regions`); any
    other name is looked for in torchvision first.

    Of a transformer the tokens are its class token, if it has one, and those of the picture's patches. The class token
    stays: in CLIP and in a ViT trained on labels it alone is what the last layer was trained to give. Registers go: they hold
    neither a place nor the whole, but notes of the layers below (Darcet et al. 2023, "Vision Transformers Need Registers").

    Raises LabelerError: weights damaged, name unknown, or not here and the hub out of reach (within 10 s).
    """
    if name == EMBEDDED:
        return _embedded()
    if name.startswith(REGIONS_PREFIX):
        return _regions(name)
    if Path(name).is_dir():
        return _from_folder(Path(name))
    library, _, architecture = name.rpartition(":")
    if architecture.startswith("timm/"):  # as timm's models are called on a hub
        library, architecture = "timm", architecture.removeprefix("timm/")
    if architecture in torchvision.models.list_models(torchvision.models.detection):
        raise LabelerError(
            f"image encoder {name!r}: a detector; {REGIONS_PREFIX}{architecture} takes what it sees in its regions"
        )
    if library == "hf" or (not library and re.fullmatch(r"\w[\w.-]*/[\w.-]+", architecture)):
        return from_folder_or_hub(name, "image", partial(_transformers, name), "an image encoder")
    library = library or ("torchvision" if architecture in torchvision.models.list_models() else "timm")
    if library == "torchvision" and architecture in torchvision.models.list_models():
        return _torchvision_pretrained(name, architecture)
    if library == "timm" and timm.is_model(architecture.split(".")[0]):
        return _timm_pretrained(name, architecture)
    raise LabelerError(f"image encoder {name!r}: no folder, and neither torchvision nor timm has a model of that name")


def recorded_image_encoder(record: dict[str, Any], user: Path) -> ImageEncoder:
    """Return the image tower that stands in towers.json or preprocessor.json, `record`, of the store or run `user`.

    Raises LabelerError when its weights have changed since or are not there, or what is read of them has changed.
    """
    name = recorded_tower(record, "image", user)
    tower = averaged_as_recorded(load_image_encoder(name), record)
    shapes = [[tower.tokens, tower.width], [record["tokens"], record["width"]]]
    if shapes[0] != shapes[1]:
        raise LabelerError(
            f"{name}: gives {shapes[0]} a picture, and gave {shapes[1]} when {user} was made; make the store and the run again, "
            "or use the labeler that made them"
        )
    return tower


def averaged_as_recorded(tower: ImageEncoder, record: dict[str, Any]) -> ImageEncoder:
    """Return the tower with its grid averaged to as many tokens as the `record` says, where it says that the grid was."""
    return tower.with_tokens(record["tokens"]) if record.get("grid") == tower.tokens else tower


def _embedded() -> ImageEncoder:
    """Return EfficientNet-Lite0: the published tensors stand in the order of timm's `tf_` variant, which pads as they expect."""
    published = torch.load(embedded_path(LITE0), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in published.values()]:
        raise LabelerError("timm's tf_efficientnet_lite0 has changed its layers; install timm 1.0.20 or newer")
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))
    half_range = 127 / 255, 128 / 255  # the weights were trained on (x - 127) / 128
    return _encoder(EMBEDDED, model, 224, (half_range[0],) * 3, (half_range[1],) * 3,
                    {"architecture": "tf_efficientnet_lite0"})  # fmt: skip


def _from_folder(folder: Path) -> ImageEncoder:
    try:
        config = read_json(folder / "config.json")
        if "model_type" in config:
            return _transformers(str(folder), str(folder), True)
        if config.get("library") == LIBRARY:
            raise LabelerError(f"{folder}: a detector; {REGIONS_PREFIX}{folder} takes what it sees in its regions")
        if "architecture" not in config:
            raise ValueError("config.json names no architecture, as timm's do, and no model_type, as transformers' do")
        weights = load_file(folder / "model.safetensors")
        architecture, settings = config["architecture"], config.get("pretrained_cfg", config)
        model: nn.Module
        if config.get("library") == "torchvision":
            model = torchvision.models.get_model(architecture, num_classes=config.get("num_classes", 1000))
        else:
            model = timm.create_model(
                architecture, num_classes=config.get("num_classes", 1000), **config.get("model_args", {})
            )
        _load_weights(model, weights)
    except LabelerError:
        raise
    except Exception as error:  # of a broken file, each library has its own
        raise LabelerError(
            f"{folder}: not an image encoder with config.json and model.safetensors ({first_line(error)})"
        ) from error
    return _encoder(str(folder), model, settings.get("input_size", (3, 224, 224))[-1],
                    tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD)),
                    {key: config[key] for key in NETWORK if key in config})  # fmt: skip


def _load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give `model` its weights; raises ValueError, naming some, unless every one has its place and shape."""
    shapes, given = ({name: value.shape for name, value in state.items()} for state in (model.state_dict(), weights))
    wrong = [name for name in sorted(shapes.keys() | given.keys()) if shapes.get(name) != given.get(name)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are missing, left over or of another shape, such as {', '.join(wrong[:3])}; is config.json "
            "the one that belongs to these weights?"
        )
    model.load_state_dict(weights)


def _transformers(name: str, source: str, local: bool) -> ImageEncoder:
    """Return a transformers model that takes pictures; of one that takes texts too, its half for pictures."""
    config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if config.model_type == FLAVA:
        model: PreTrainedModel = load_flava(name, source, config, local=local).image_model
    else:
        model = load_transformers(name, source, getattr(config, "vision_config", config), local=local)
    config = model.config
    if model.main_input_name != "pixel_values":
        raise LabelerError(f"{name}: a {config.model_type!r} model, which takes no pictures")
    # without its file there is an error: what models of one architecture take as mean and std differs
    with quiet():
        processor = AutoImageProcessor.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    size, mean, std = input_of(name, processor)

    def grid(network: Any, pixels: Tensor) -> Tensor:
        if config.model_type == FLAVA_IMAGES:
            return cast(Tensor, network(pixel_values=pixels, output_hidden_states=True).hidden_states[-1])
        return without_registers(
            network(pixel_values=pixels).last_hidden_state, getattr(config, "num_register_tokens", 0)
        )

    try:
        return _encoder(name, model, size, mean, std, processor, grid)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # a model of another kind
        raise LabelerError(
            f"{name}: a {config.model_type!r} model does not turn a picture of {size} x {size} pixels into a grid of features "
            f"({first_line(error)}); choose one like ViT, CLIP, SigLIP, DINOv2, Swin, ConvNeXt or ResNet"
        ) from error


def input_of(name: str, processor: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return side in pixels, mean and std as a transformers image processor has them: the size after its cropping."""
    size = (getattr(processor, "do_center_crop", None) and processor.crop_size) or processor.size
    side = size and (size.height or size.shortest_edge)
    if not side or (size.width or side) != side:
        raise LabelerError(f"{name}: preprocessor_config.json names no square size; choose another image encoder")
    if getattr(processor, "do_flip_channel_order", False) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise LabelerError(f"{name}: takes pixels that are not RGB in [0, 1]; choose another image encoder")
    if not processor.do_normalize:
        return side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return side, tuple(processor.image_mean), tuple(processor.image_std)


def _regions(name: str) -> ImageEncoder:
    detector, size = load_detector(name.removeprefix(REGIONS_PREFIX))

    def grid(network: Any, pixels: Tensor) -> Tensor:
        last: Tensor = list(network.backbone.body(pixels).values())[-1]
        return last

    detector.eval().requires_grad_(False)
    with torch.inference_mode():
        width = grid(detector, torch.zeros(1, 3, 64, 64)).shape[1]
    return ImageEncoder(name, detector, grid, size, tuple(detector.transform.image_mean),
                        tuple(detector.transform.image_std), REGION_COUNT, width,
                        regions=lambda pixels: see_regions(detector, pixels))  # fmt: skip


def _torchvision_pretrained(name: str, architecture: str) -> ImageEncoder:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    transform = weights.transforms()

    def build(state: dict[str, Any]) -> nn.Module:
        model = torchvision.models.get_model(architecture)
        model.load_state_dict(state)
        return model

    model = load_torchvision(name, weights, build)
    return _encoder(name, model, transform.crop_size[0], tuple(transform.mean), tuple(transform.std),
                    {"library": "torchvision", "architecture": architecture})  # fmt: skip


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
    return _encoder(name, model, data["input_size"][-1], data["mean"], data["std"],
                    {"architecture": architecture, "num_classes": model.num_classes})  # fmt: skip


def _encoder(
    name: str, model: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...], architecture: Any,
    grid: Grid | None = None,
) -> ImageEncoder:  # fmt: skip
    """Return `model` as a tower, `grid` its part before pooling; token count and width are found by running it once."""
    # channels last: a third faster on the CPU
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    find_classifier = getattr(model, "get_classifier", lambda: None)  # timm's
    classifier = cast("Callable[[], nn.Module | None]", find_classifier)()
    tower = ImageEncoder(
        name, model, grid or grid_of(model), size, mean, std, 0, 0, classifier, architecture=architecture
    )
    with torch.inference_mode():
        _, tokens, width = tower.backbone(torch.zeros(1, 3, size, size)).shape
    return tower._replace(tokens=tokens, width=width)
