"""A run's image tower and fusion model as ONNX graphs, as `labeler.engines.exported` draws them; batch and length are dynamic."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional

from labeler.encoders.image import ImageEncoder
from labeler.encoders.weights import first_line
from labeler.errors import LabelerError

OPSET = 17


class Tower(nn.Module):
    """An image tower from pixels on."""

    scale: Tensor
    shift: Tensor

    def __init__(self, tower: ImageEncoder):
        """Take the network with explicit pads; (x / 255 - mean) / std becomes x * scale + shift."""
        super().__init__()
        self.network = explicit_pads(tower)
        self.tower = tower._replace(module=self.network)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return visual tokens [B, V, D] for RGB pixels [B, S, S, 3] uint8."""
        return self.tower.backbone(pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift)


class Fusion(nn.Module):
    """A fusion model whose output is its logits alone."""

    def __init__(self, model: nn.Module):
        """Take a model of `labeler.models`."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return logits [B, L]."""
        logits: Tensor = self.model(input_ids, text_mask, visual_tokens, visual_mask).logits
        return logits


class PaddedConv(torch.autograd.Function):
    """A convolution that pads each side as it is told: one node, where padding and convolution would be two.

    Runtimes are a third faster by it, and onnxruntime's quantisation gives another grid where padding is a node.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, pads: tuple[int, ...]) -> Tensor:
        """Return the convolution of x [B, C, H, W]; `pads` are left, right, top, bottom."""
        return functional.conv2d(functional.pad(x, pads), weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, conv: nn.Conv2d, pads: tuple[int, ...]) -> Any:
        """Return ONNX's node for it."""
        left, right, top, bottom = pads
        return g.op(
            "Conv", x, weight, bias, kernel_shape_i=conv.kernel_size, strides_i=conv.stride, group_i=conv.groups,
            dilations_i=conv.dilation, pads_i=(top, left, bottom, right),
        )  # fmt: skip


class ExplicitConv(nn.Module):
    """A convolution of TensorFlow's padding at a fixed size of its input."""

    def __init__(self, conv: Conv2dSame, size: torch.Size):
        """Take the layer and its input's [H, W]."""
        super().__init__()
        self.conv = conv
        self.bias = nn.Parameter(torch.zeros(conv.out_channels)) if conv.bias is None else conv.bias
        sides = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
        high, wide = (get_same_padding(*side) for side in sides)
        self.pads = wide // 2, wide - wide // 2, high // 2, high - high // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x [B, C, H, W]."""
        result: Tensor = PaddedConv.apply(x, self.conv.weight, self.bias, self.conv, self.pads)
        return result


@torch.no_grad()
def explicit_pads(tower: ImageEncoder) -> nn.Module:
    """Return a copy of the tower's network, each Conv2dSame an ExplicitConv for the tower's size of picture."""
    network = copy.deepcopy(tower.module).cpu()
    sizes: dict[str, torch.Size] = {}
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Conv2dSame)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: sizes.update({name: inputs[0].shape[-2:]}))
    tower.grid(network, torch.zeros(1, 3, tower.size, tower.size))
    for name, size in sizes.items():
        layers[name]._forward_pre_hooks.clear()
        network.set_submodule(name, ExplicitConv(layers[name], size))
    return network


def write_tower(tower: ImageEncoder, path: Path) -> None:
    """Write the image tower as an ONNX file.

    Raises LabelerError for a detector, and for a network that torch's exporter cannot write.
    """
    if tower.regions:
        raise LabelerError(
            f"the image encoder {tower.name!r} is a detector, which cannot be exported: what it finds differs in number from "
            "picture to picture; label with `--runtime native`, or train on another --image-encoder"
        )
    pixels = torch.randint(0, 256, (2, tower.size, tower.size, 3), dtype=torch.uint8)
    write_graph(Tower(tower), (pixels,), path, {"pixels": {0: "B"}, "visual_tokens": {0: "B"}}, tower.name)


def write_fusion(model: Any, width: int, tokens: int, path: Path) -> None:
    """Write the fusion model, which takes `tokens` visual tokens of `width`, as an ONNX file."""
    text_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    inputs = torch.ones(2, 5, dtype=torch.long), text_mask, torch.rand(2, tokens, width), torch.ones(2, tokens).bool()
    axes = {name: {0: "B", 1: "T"} for name in ("input_ids", "text_mask")}
    axes |= {name: {0: "B", 1: "V"} for name in ("visual_tokens", "visual_mask")}
    write_graph(Fusion(copy.deepcopy(model).cpu()), inputs, path, axes | {"logits": {0: "B"}}, type(model).__module__)


def write_graph(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, axes: dict[str, dict[int, str]], name: str
) -> None:
    """Write `module` as an ONNX file; `axes` names inputs and, last, the output, each with its dynamic dimensions.

    By torch's exporter that traces: the newer one takes ten times as long, and cannot write packed sequences.

    Raises LabelerError where it cannot.
    """
    *names, output = axes
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # that it is the older one, and of sizes that are fixed on purpose
            torch.onnx.export(
                module.eval(), inputs, str(path), input_names=names, output_names=[output], dynamic_axes=axes,
                opset_version=OPSET, do_constant_folding=False, dynamo=False,
            )  # fmt: skip
    except Exception as error:  # of what it cannot write, many types
        raise LabelerError(
            f"{name}: cannot be written as ONNX ({first_line(error)}); `labeler predict --runtime native` labels with it"
        ) from error
