"""Looks: copies are found, other pictures are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeler.pictures.images import difference_hash, load_image
from labeler.rows.looks import NEAR, look_groups, near_pairs

CLIPART = Path(__file__).parent.parent / "data" / "clipart" / "images"


def hashes(pictures: list[Image.Image]) -> np.ndarray:
    found = [difference_hash(picture) for picture in pictures]
    assert all(found)
    return np.array([list(bytes.fromhex(item or "")) for item in found], np.uint8)


def again(picture: Image.Image, form: str, **options) -> Image.Image:
    """Return the picture as another file would hold it."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    sklearn = pytest.importorskip("sklearn.datasets")
    return [Image.fromarray(sklearn.load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_a_plain_comparison(seed):
    draw = np.random.default_rng(seed)
    bits = draw.random((300, 64)) < 0.3
    bits[150:] = bits[:150] ^ (draw.random((150, 64)) < draw.choice([0.01, 0.05], (150, 1)))
    expected = {
        (a, b) for a in range(300) for b in range(a + 1, 300)
        if (bits[a] ^ bits[b]).sum() <= NEAR * (bits[a] | bits[b]).sum()
    }  # fmt: skip
    assert len(expected) > 50
    assert set(zip(*(rows.tolist() for rows in near_pairs(np.packbits(bits, axis=1), NEAR)), strict=True)) == expected


def test_blocks_do_not_matter(monkeypatch):
    import labeler.rows.looks

    bits = np.random.default_rng(0).random((50, 64)) < 0.3
    bits[25:] = bits[:25]
    whole = look_groups(np.packbits(bits, axis=1))
    monkeypatch.setattr(labeler.rows.looks, "BLOCK", 7)
    assert look_groups(np.packbits(bits, axis=1)).tolist() == whole.tolist() == [*range(25), *range(25)]


def test_copies_of_photos_are_found(photos):
    copies = [photos[0], photos[1]]
    for photo in photos:
        copies += [
            again(photo, "JPEG", quality=40),
            again(photo, "WEBP", quality=60),
            photo.resize((200, 140)),
            photo.convert("L").convert("RGB"),
        ]
    assert look_groups(hashes(copies)).tolist() == [0, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_drawings_are_told_apart_and_their_copies_found():
    """Two hundred drawings of the repository: nearly all re-encoded copies are found."""
    drawings = [load_image(path) for path in sorted(CLIPART.iterdir())[:200]]
    drawings = [picture for picture in drawings if difference_hash(picture)]
    copies = [again(picture, "JPEG", quality=75) for picture in drawings]
    some = [number for number, copy in enumerate(copies) if difference_hash(copy)]
    originals = hashes([drawings[number] for number in some])
    groups = look_groups(np.concatenate([originals, hashes([copies[number] for number in some])]))
    assert (groups[: len(some)] == groups[len(some) :]).mean() > 0.95
    assert len(set(groups[: len(some)].tolist())) > 0.8 * len(some)
