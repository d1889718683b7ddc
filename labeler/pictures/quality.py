"""Suspicious pictures: dark, light, blurred, of an odd shape, or with hardly anything on them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps, ImageStat

# A score below its threshold makes a picture suspicious. CleanVision's, but for two that were chosen by looking at tweets
# and clip art (docs/LOG.md): blurred was 0.29, with the border; low information 0.3, for grey pictures too.
THRESHOLDS = {"dark": 0.32, "light": 0.05, "blurred": 0.23, "odd shape": 0.35, "low information": 0.2}
SHARPNESS_SIDE = 64
EVEN_TONES = 0.18


def quality_scores(image: Image.Image) -> dict[str, float]:
    """Return for each kind in THRESHOLDS a score in 0..1, low where the picture is suspicious.

    Args:
        image: RGB; a thumbnail of 320 px will do, since sharpness is judged at 64 px and the rest hardly depends on size.

    Source: the measures of CleanVision 0.3.7; ours leave out the border that its edge filter copies.
    """
    dark, light = np.percentile(brightness(image), [99, 5])
    return {
        "dark": float(dark),
        "light": float(1 - light),
        "blurred": sharpness(image),
        "odd shape": min(image.size) / max(image.size),
        "low information": min(image.entropy() / 10, 1.0),
    }


def suspicious(scores: dict[str, float]) -> list[str]:
    """Return the kinds of which the picture is suspected."""
    return [kind for kind, threshold in THRESHOLDS.items() if scores[kind] < threshold]


def brightness(image: Image.Image) -> np.ndarray:
    """Return the perceived brightness of every pixel, [H, W] in 0..1. Source: the HSP colour model (Finley 2006)."""
    squares = np.asarray(image, dtype=np.float32) ** 2
    return np.sqrt(squares @ np.array([0.241, 0.691, 0.068], dtype=np.float32)) / 255


def sharpness(image: Image.Image) -> float:
    """Return a score in 0..1, low where a picture with many tones has hardly an edge.

    A drawing of few tones has few edges and is sharp all the same: how unevenly the tones are spread counts in its favour.
    """
    small = image
    if max(image.size) > SHARPNESS_SIDE:
        shrink = max(image.size) / SHARPNESS_SIDE
        small = small.resize((max(int(image.width // shrink), 1), max(int(image.height // shrink), 1)))
    grey = small.convert("L")
    # Pillow's filter copies the outermost pixels, which would count as edges
    found = ImageOps.crop(grey.filter(ImageFilter.FIND_EDGES), 1) if min(grey.size) > 2 else grey
    edges = 1 - np.exp(-ImageStat.Stat(found).stddev[0] / 100)
    tones = 1 - np.exp(-np.std(grey.histogram()) / 100)
    return float(min(edges + (tones if tones > EVEN_TONES else 0.0), 1.0))
