"""Damaged pictures without end: whatever is done to a file, it gives an RGB picture within the limits or an ImageError.

LABELER_FUZZ_EXAMPLES=100000 makes a long run of it.
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from crashing import fuzzed
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from picture_files import apng, chunk, encode, photo, png, tiff
from PIL import Image

from labeler.pictures.images import MAX_PIXELS, ImageError, decode_image
from labeler.processes import WorkError, Workers

EXAMPLES = int(os.environ.get("LABELER_FUZZ_EXAMPLES", "150"))
VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
WORST = 3 << 29  # bytes; the largest picture allowed takes Pillow 200 MB as RGB, as much as 16-bit grey, and is copied


def small_files() -> dict[str, bytes]:
    """Return valid small files of every format and of many kinds."""
    image, other = photo(24, 16), photo(24, 16, seed=1)
    pixels = np.asarray(image)
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": [other, image], "duration": 40}
    return {
        "jpeg": encode(image, "JPEG", exif=exif), "progressive jpeg": encode(image, "JPEG", progressive=True),
        "grey jpeg": encode(image.convert("L"), "JPEG"), "cmyk jpeg": encode(image.convert("CMYK"), "JPEG"),
        "png": png(pixels, 2), "16 bit png": png(pixels[..., 0].astype(np.uint16) * 257, 0), "apng": apng([pixels, pixels]),
        "palette png": encode(image.quantize(16), "PNG", transparency=3), "interlaced rgba": encode(image.convert("RGBA"), "PNG"),
        "gif": encode(image, "GIF"), "moving gif": encode(image, "GIF", **moving),
        "webp": encode(image, "WEBP"), "lossless webp": encode(image, "WEBP", lossless=True, exif=exif),
        "moving webp": encode(image, "WEBP", **moving), "avif": encode(image, "AVIF", exif=exif),
        "bmp": encode(image, "BMP"), "rle bmp": encode(image.quantize(8), "BMP"),
        "tiff": tiff(pixels, 2), "big tiff": tiff(pixels, 2, ">"),
        "16 bit tiff": tiff(pixels[..., 0].astype(np.uint16), 1, ">"),
    } | {f"{name} tiff": encode(image, "TIFF", compression=name)
         for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")}  # fmt: skip


FILES = small_files()


def repaired(data: bytes) -> bytes:
    """Return a PNG with right checksums as far as its chunks can be followed, so that damage gets beyond them."""
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[place + 4 : end]))
        place = end + 4
    return bytes(out)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file with one to six damages: bits flipped, numbers put in, parts cut out, doubled or taken from another."""
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["flip", "header", "number", "cut", "part", "double", "splice"]))
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 64))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind in ("number", "header"):
            at = place % 64 if kind == "header" else place
            order, size = draw(st.sampled_from("<>")), draw(st.sampled_from("BHI"))
            value = draw(st.sampled_from(VALUES)) & (1 << 8 * struct.calcsize(size)) - 1
            data[at : at + struct.calcsize(size)] = struct.pack(order + size, value)
        elif kind == "cut":
            del data[place:]
        elif kind == "part":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        elif kind == "splice":
            other = FILES[draw(st.sampled_from(sorted(FILES)))]
            start = draw(st.integers(0, len(other) - 1))
            data[place : place + length] = other[start : start + length]
    return repaired(bytes(data)) if data.startswith(b"\x89PNG") and draw(st.booleans()) else bytes(data)


@pytest.fixture(scope="module")
def workers():
    """Return the processes in which decoding is tried, as a stage would."""
    workers = Workers(20, yielded=(ImageError, WorkError))
    yield workers
    workers.kill()
    workers.close()


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_whole_before_it_is_damaged(workers, name):
    size = (16, 24) if name in ("jpeg", "lossless webp", "avif") else (24, 16)  # those are rotated
    assert workers.call(fuzzed, (FILES[name],))[:2] == ("RGB", size)


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 1000,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(data=damaged())
@example(data=b"")
def test_damage_ends_in_a_picture_or_an_image_error(workers, data):
    answer = workers.call(fuzzed, (data,))
    if isinstance(answer, (ImageError, WorkError)):
        assert answer.code in ("image-unreadable", "image-too-large", "too-large"), str(answer)
        return
    mode, (width, height), said, memory = answer
    assert mode == "RGB"
    assert 0 < width * height <= MAX_PIXELS
    assert said == []
    assert memory < WORST


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"MM", b"Exif\0\0MM", b"no tags at all"])
def test_broken_exif_leaves_the_pixels_whole(form, exif):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert (np.array(decode_image(buffer.getvalue())) == pixels).all()


@pytest.mark.parametrize("place", ["extra", "after"])
@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"Note\0\0"), (b"iTXt", b"Note\0\1\0\0\0")])
def test_a_long_note_in_a_png_leaves_the_pixels_whole(place, kind, head):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    note = chunk(kind, head + zlib.compress(b"x" * (3 << 20)))
    assert (np.array(decode_image(png(pixels, 2, **{place: note}))) == pixels).all()
