"""Antialiased bicubic resizing without PyTorch, and its very pixels: for where few pictures are to be resized.

To import PyTorch takes as long as to resize some hundred pictures here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SUPPORT = 2.0  # pixels on either side that a bicubic filter reads
MOST_BITS = 22


class Weights(NamedTuple):
    """What each of M output pixels reads: from input pixel first [M] on, taps [M, K] int32 in units of 1 / 2 ** bits."""

    first: np.ndarray
    taps: np.ndarray
    bits: int


def resize(pixels: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Return [H, W, 3] uint8 with `length` pixels along `axis`, computed in whole numbers as PyTorch does."""
    size = pixels.shape[axis]
    if size == length:
        return pixels
    weights = bicubic(size, length)
    shape = [1, 1, 1]
    shape[axis] = length
    total = np.int32(1 << (weights.bits - 1))  # so that the shift rounds
    for tap in range(weights.taps.shape[1]):
        read = pixels.take(np.minimum(weights.first + tap, size - 1), axis=axis)
        total = total + read * weights.taps[:, tap].reshape(shape)
    clipped: np.ndarray = (total >> weights.bits).clip(0, 255)
    return clipped.astype(np.uint8)


def bicubic(size: int, length: int) -> Weights:
    """Return the weights with which `size` pixels become `length`; where they become fewer, the filter grows wider.

    Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", with a = -0.5. The weights have as many bits as
    fit into 16 with their sign.
    """
    scale = size / length
    wide = max(scale, 1.0)
    center = scale * (np.arange(length) + 0.5)
    first = np.maximum((center - SUPPORT * wide + 0.5).astype(int), 0)
    count = np.minimum((center + SUPPORT * wide + 0.5).astype(int), size) - first
    taps = np.arange(count.max())
    x = np.abs((taps + first[:, None] - center[:, None] + 0.5) / wide)
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    values = np.where(taps < count[:, None], np.where(x < 1, near, np.where(x < 2, far, 0.0)), 0.0)
    values /= values.sum(axis=1, keepdims=True)
    bits = next(
        bits for bits in range(MOST_BITS + 1) if bits == MOST_BITS or int(0.5 + values.max() * 2 ** (bits + 1)) >= 2**15
    )
    scaled = values * 2**bits
    return Weights(first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32), bits)
