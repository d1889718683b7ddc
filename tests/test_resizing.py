"""Resizing without PyTorch gives PyTorch's pixels."""

import subprocess
import sys

import numpy as np
import pytest
import torch  # noqa: F401 (so that `stretch` uses it)

from labeler.pictures.images import stretch
from labeler.pictures.resizing import bicubic, resize


@pytest.mark.parametrize("seed", range(40))
def test_pixels_are_those_of_pytorch(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(2 ** rng.uniform(0, 9.5)) for _ in range(2))
    side = int(rng.choice([1, 37, 64, 224]))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = np.where(pixels > 127, 255, 0).astype(np.uint8) if seed % 2 else pixels  # where it is cut off at 0 and 255
    upright = height > max(side, 2 * width - side)
    found = pixels
    for axis in (0, 1) if upright else (1, 0):
        found = resize(found, axis, side)
    assert np.array_equal(found, stretch(pixels, side))


def test_weights_sum_to_one():
    weights = bicubic(500, 224)
    assert np.abs(weights.taps.sum(axis=1) / 2**weights.bits - 1).max() < 1e-3


def test_a_process_without_pytorch_stretches_without_it():
    code = (
        "import sys, numpy; from labeler.pictures import images; picture = numpy.zeros((9, 7, 3), numpy.uint8)\n"
        "images.stretch(picture, 5); print('torch' in sys.modules)\n"
        "images.FEW = 0; images.stretch(picture, 5); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
