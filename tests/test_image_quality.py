"""Suspicious pictures: each kind is found where it is made, and ordinary pictures are not suspected."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from labeler.pictures.images import decode_image, load_image, thumbnail
from labeler.pictures.quality import THRESHOLDS, quality_scores, suspicious

CLIPART = Path(__file__).parent.parent / "data" / "clipart" / "images"


def photo(width: int = 480, height: int = 360, brightness: float = 1.0) -> Image.Image:
    """Return scikit-learn's photo of a palace, at that size."""
    image = Image.fromarray(load_sample_images().images[0]).resize((width, height))
    return image.point(lambda value: min(round(value * brightness), 255))


MADE = {
    "black": (Image.new("RGB", (300, 200)), {"dark", "low information"}),
    "white": (Image.new("RGB", (300, 200), "white"), {"light", "low information"}),
    "flat colour": (Image.new("RGB", (300, 200), (200, 30, 90)), {"low information"}),
    "dark photo": (photo(brightness=0.2), {"dark"}),
    "blurred photo": (photo().filter(ImageFilter.GaussianBlur(40)), {"blurred"}),
    "1:20": (photo(40, 800), {"odd shape"}),
    "20:1": (photo(800, 40), {"odd shape"}),
    "photo": (photo(), set()),
    "photo, bright": (photo(brightness=1.2), set()),
    "panorama": (photo(640, 250), set()),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_wrong_with_a_picture_is_found_on_its_thumbnail_too(name):
    image, expected = MADE[name]
    for seen in (image, decode_image(thumbnail(image.copy()))):
        scores = quality_scores(seen)
        assert set(suspicious(scores)) == expected
        assert scores.keys() == THRESHOLDS.keys()
        assert all(0 <= score <= 1 for score in scores.values())


def test_a_score_falls_as_the_fault_grows():
    dark = [quality_scores(photo(brightness=share))["dark"] for share in (1.0, 0.5, 0.2)]
    blurred = [quality_scores(photo().filter(ImageFilter.GaussianBlur(radius)))["blurred"] for radius in (0, 5, 10, 40)]
    assert dark == sorted(dark, reverse=True)
    assert blurred == sorted(blurred, reverse=True)


def test_tiny_pictures_have_scores():
    for size in ((1, 1), (1, 900), (2, 3)):
        assert quality_scores(Image.new("RGB", size, "red"))["odd shape"] == min(size) / max(size)


def test_few_drawings_are_suspected_and_none_of_being_dark_or_blurred():
    paths = sorted(CLIPART.iterdir())[::12]
    found = [suspicious(quality_scores(load_image(path))) for path in paths]
    assert len(found) > 100
    assert sum(bool(kinds) for kinds in found) < 0.15 * len(found)
    assert not {kind for kinds in found for kind in kinds} & {"dark", "blurred", "odd shape"}
