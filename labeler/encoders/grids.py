"""The grid of features that a network has before its pooling, and smaller ones that it is averaged to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from labeler.errors import LabelerError, UsageError

# a network and its pixels [B, 3, size, size] -> what it has before its pooling: [B, C, H, W], or [B, N, C] from a transformer
Grid = Callable[[Any, Tensor], Tensor]


def grid_of(model: nn.Module) -> Grid:
    """Return how to run the part of such a model that lies before its pooling.

    What is returned holds no weights: it runs any copy of the model.
    """
    if hasattr(model, "forward_features"):
        return timm_grid(model)
    if isinstance(model, torchvision.models.SwinTransformer):
        return lambda network, pixels: network.permute(network.norm(network.features(pixels)))
    if isinstance(getattr(model, "features", None), nn.Module):  # torchvision: VGG, MobileNet, EfficientNet, ConvNeXt
        return lambda network, pixels: network.features(pixels)
    if hasattr(model, "layer4"):  # torchvision: ResNet and its kin end in [average pool, linear layer]
        return lambda network, pixels: nn.Sequential(*list(network.children())[:-2])(pixels)
    raise LabelerError(
        f"{type(model).__name__} gives no grid of features; use a ResNet, EfficientNet or ConvNeXt, or a timm model"
    )


def timm_grid(model: Any) -> Grid:
    """Return how to run the part of a timm model that lies before its pooling."""
    registers = model.reg_token.shape[1] if getattr(model, "reg_token", None) is not None else 0

    def grid(network: Any, pixels: Tensor) -> Tensor:
        features = network.forward_features(pixels)
        # Swin's are [B, H, W, C]
        if features.dim() == 4 and features.shape[-1] == network.num_features != features.shape[1]:
            return features.permute(0, 3, 1, 2)
        return without_registers(features, registers, getattr(network, "num_prefix_tokens", 0) - registers)

    return grid


def without_registers(features: Tensor, count: int, first: int = 1) -> Tensor:
    """Return features [B, N, C] without the `count` tokens from number `first` on, which are registers."""
    return torch.cat([features[:, :first], features[:, first + count :]], dim=1) if count else features


def averages(cells: int, tokens: int) -> Tensor:
    """Return the matrix [tokens, cells] that averages a square grid to a smaller one.

    Each token is the mean over its share of the picture's area, of a cell that lies in two shares a part in each; so that the
    mean of all tokens is the mean of all cells.

    Raises UsageError unless both are squares, and the second the smaller one.
    """
    side, small = math.isqrt(cells), math.isqrt(tokens) if tokens > 0 else 0
    if side * side != cells:
        raise UsageError(f"--visual-tokens {tokens}: the image tower's {cells} tokens are no square grid; leave it out")
    if small * small != tokens or not 0 < small < side:
        squares = ", ".join(str(number**2) for number in range(1, side))
        raise UsageError(f"--visual-tokens {tokens}: the image tower gives {cells}; choose from {squares}")
    edges, starts = torch.arange(small + 1) * side / small, torch.arange(side)
    shared = torch.minimum(edges[1:, None], starts + 1) - torch.maximum(edges[:-1, None], starts)
    weights = shared.clamp(min=0) * small / side  # [small, side]: of one direction
    return torch.kron(weights, weights)
