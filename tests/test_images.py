"""Images: right colours out of every kind of file, and nothing decoded or opened that should not be."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from labeler.pictures.images import (
    FORMATS,
    MAX_FILE_BYTES,
    MAX_SENT,
    ImageError,
    decode_image,
    difference_hash,
    load_image,
    prepare_image,
    read_image_file,
    resolve_image,
    scaled_jpeg,
    stretch,
    thumbnail,
)

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(left=RED, right=BLUE, size=(16, 8), mode="RGB") -> Image.Image:
    """Return a picture of two colours side by side."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def photo(side: int = 64, seed: int = 0) -> Image.Image:
    """Return a smooth picture with something to compress."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def assert_halves(data: bytes, left=RED, right=BLUE, tolerance=0) -> None:
    """Assert that the picture is RGB and of these two colours."""
    image = decode_image(data)
    assert image.mode == "RGB"
    assert image.size == (16, 8)
    for place, colour in (((2, 4), left), ((13, 4), right)):
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= tolerance


def refused(data: bytes) -> str:
    with pytest.raises(ImageError, match=r"\w") as caught:
        decode_image(data)
    return caught.value.code


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_colours(form):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True},
               "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(form, {})  # fmt: skip
    assert_halves(encode(halves(), form, **options), tolerance=3 if form in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_photos_of_phones_are_refused_with_what_to_do_and_avif_under_their_brands_is_read(brand):
    with pytest.raises(ImageError, match=r"^HEIC is not read; convert it to JPEG$"):
        decode_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + b"\0" * 99)
    avif = encode(photo(), "AVIF")
    assert avif[8:12] == b"avif"
    if brand in (b"mif1", b"msf1"):
        assert decode_image(avif[:8] + brand + avif[12:]).size == photo().size


def test_cmyk_gives_rgb():
    image = halves((0, 255, 255, 0), (255, 255, 0, 0), mode="CMYK")
    assert_halves(encode(image, "TIFF"))
    assert_halves(encode(image, "JPEG", quality=95), tolerance=8)


def test_a_palette_gives_its_colours():
    assert_halves(encode(halves().quantize(4), "PNG"))


def test_a_transparent_palette_entry_becomes_white():
    image = halves().quantize(2)
    assert_halves(encode(image, "PNG", transparency=image.getpixel((13, 4))), right=WHITE)


def test_transparency_becomes_white_and_half_of_it_half():
    image = halves((255, 0, 0, 255), (0, 0, 255, 0), mode="RGBA")
    assert_halves(encode(image, "PNG"), right=WHITE)
    assert_halves(encode(image, "WEBP", lossless=True), right=WHITE)
    image = halves((0, 0, 0, 255), (0, 0, 0, 127), mode="RGBA")
    assert_halves(encode(image, "PNG"), (0, 0, 0), GREY, tolerance=1)
    assert_halves(encode(halves((0, 255), (0, 0), mode="LA"), "PNG"), (0, 0, 0), WHITE)


def test_16_bit_grey_keeps_its_shades():
    values = np.zeros((8, 16), dtype=np.uint16)
    values[:, 8:] = 128 * 257
    assert_halves(encode(Image.fromarray(values), "PNG"), (0, 0, 0), GREY)
    assert_halves(encode(Image.fromarray(values), "TIFF"), (0, 0, 0), GREY)
    assert_halves(encode(Image.fromarray(values.astype(np.int32)), "TIFF"), (0, 0, 0), GREY)


def test_grey_and_black_and_white_give_rgb():
    assert_halves(encode(halves(0, 128, mode="L"), "PNG"), (0, 0, 0), GREY)
    assert_halves(encode(halves(0, 1, mode="1"), "PNG"), (0, 0, 0), WHITE)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(form):
    options = {"lossless": True} if form == "WEBP" else {}
    frames = [halves(GREEN, RED), halves(WHITE, WHITE)]
    assert_halves(encode(halves(), form, save_all=True, append_images=frames, **options))


@pytest.mark.parametrize(
    ("orientation", "operation"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_rotated_photo_stands_upright(orientation, operation):
    upright = halves()
    upright.paste(GREEN, (0, 0, 4, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(upright.transpose(operation), "PNG", exif=exif)
    assert decode_image(data).tobytes() == upright.tobytes()


def test_a_colour_profile_and_comments_do_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_halves(encode(halves(), "PNG", icc_profile=profile))


def test_a_truncated_jpeg_is_rejected():
    whole = encode(photo(), "JPEG")
    assert decode_image(whole).size == (64, 64)
    for length in (3, 100, len(whole) // 2, len(whole) - 20):
        assert refused(whole[:length]) == "image-unreadable"


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_half_a_picture_is_rejected(form):
    whole = encode(photo(), form)
    assert refused(whole[: len(whole) // 2]) == "image-unreadable"


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 8_000), (50_000_001, 1)])
def test_a_huge_picture_is_rejected_without_being_decoded(monkeypatch, size):
    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded)
    start = time.process_time()
    with pytest.raises(ImageError, match="at most 50,000,000 pixels are decoded") as caught:
        decode_image(png(*size))
    assert caught.value.code == "image-too-large"
    assert time.process_time() - start < 1


def test_the_largest_picture_allowed_is_tried():
    assert refused(png(10_000, 5_000)) == "image-unreadable"  # too few data, found by decoding


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"%PDF-1.4\n",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        random.Random(0).randbytes(999),
        b"\0" * 999,
    ],
    ids=["empty", "html", "svg", "eps", "pdf", "jpeg mark", "png mark", "gif mark", "noise", "zeros"],
)
def test_what_is_no_picture_is_rejected(data):
    assert refused(data) == "image-unreadable"


@pytest.mark.parametrize("form", ["PPM", "PCX", "TGA", "EPS", "ICO"])
def test_other_formats_are_rejected_though_pillow_reads_them(form):
    assert refused(encode(halves(), form)) == "image-unreadable"


def test_the_content_counts_and_not_the_name(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(halves(), "PNG"))
    assert load_image(path).tobytes() == halves().tobytes()
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ImageError, match="not a picture of a known format"):
        load_image(path)


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "FIFO", "device", "loop", "below a file", "name"])
def test_what_is_no_regular_file_is_rejected_at_once(tmp_path, kind):
    path, message, code = tmp_path / "a.png", "not a regular file", "image-unreadable"
    if kind == "missing":
        message, code = "no such file", "image-missing"
    elif kind == "empty":
        path.touch()
        message = "empty"
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
        message = "symbolic links"
    elif kind == "below a file":
        path.touch()
        path, message = path / "b.png", "Not a directory"
    else:
        path, message = tmp_path / ("x" * 300), "File name too long"
    before = os.listdir("/dev/fd")
    start = time.monotonic()
    with pytest.raises(ImageError, match=message) as caught:
        read_image_file(path)
    assert caught.value.code == code
    assert time.monotonic() - start < 2
    assert len(os.listdir("/dev/fd")) == len(before), "every file is closed again"


def test_a_file_over_64_mib_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match="67,108,865 bytes, at most 67,108,864 are read") as caught:
        read_image_file(tmp_path / "a.png")
    assert caught.value.code == "image-too-large"


def test_images_outside_the_root_are_refused_unless_allowed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "sub").mkdir(parents=True)
    outside.write_bytes(encode(halves(), "PNG"))
    (root / "link.png").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "root-too").mkdir()
    names = ["../outside.png", "sub/../../outside.png", str(outside), "link.png", "up/outside.png", "../root-too/a.png"]
    for name in names:
        with pytest.raises(ImageError, match=r"lies outside .*--allow-outside reads it all the same") as caught:
            resolve_image(root, name)
        assert caught.value.code == "image-outside"
        assert resolve_image(root, name, allow_outside=True) == root / name
    assert load_image(resolve_image(root, "../outside.png", allow_outside=True)).size == (16, 8)


def test_images_inside_the_root_are_found_through_links_too(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(encode(halves(), "PNG"))
    (root / "link.png").symlink_to("a.png")
    (tmp_path / "alias").symlink_to(root)
    for name in ("a.png", "sub/../a.png", "link.png", str(root / "a.png")):
        assert resolve_image(root, name).is_file()
        assert resolve_image(tmp_path / "alias", name).is_file()


def test_a_thumbnail_is_a_small_jpeg():
    small = Image.open(io.BytesIO(thumbnail(photo(640))))
    assert (small.format, small.size) == ("JPEG", (320, 320))
    assert Image.open(io.BytesIO(thumbnail(halves()))).size == (16, 8), "nothing is made larger"


def test_pixels_are_not_those_of_the_thumbnail(tmp_path):
    photo(640).save(tmp_path / "a.png")
    with_look, without = (prepare_image(tmp_path / "a.png", 224, look=look) for look in (True, False))
    assert (with_look.pixels == without.pixels).all()
    assert with_look.pixels.shape[:2] == (640, 640)


def test_the_difference_hash_finds_copies_and_tells_pictures_apart():
    image = photo(256)
    again = decode_image(encode(image, "PNG"))
    assert difference_hash(image) == difference_hash(again)
    assert len(bytes.fromhex(difference_hash(image))) == 32
    assert difference_hash(image) != difference_hash(photo(256, seed=1))
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(difference_hash(one)), np.uint8)) for one in
            (image, decode_image(encode(image, "JPEG", quality=60)), image.resize((100, 100)), photo(256, 1))]  # fmt: skip
    near, small, far = (int((bits[0] != other).sum()) for other in bits[1:])
    assert max(near, small) < 16 < far


@pytest.mark.parametrize("colour", [WHITE, (0, 0, 0), GREY])
def test_an_even_picture_has_no_hash(colour):
    assert difference_hash(Image.new("RGB", (50, 50), colour)) is None


def test_pillow_decodes_in_no_other_module():
    folder = Path(__file__).parent.parent / "labeler"
    users = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "Image.open(" in path.read_text()]
    assert users == ["pictures/images.py"]


def test_importing_images_is_cheap():
    code = "import sys, labeler.pictures.images; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "size", [(640, 360), (360, 640), (300, 280), (90, 500), (500, 90), (7, 3), (1, 900), (224, 224)], ids=str
)
@pytest.mark.parametrize("kind", ["photo", "noise", "edges"])
def test_a_picture_is_stretched_as_by_pillow(size, kind):
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if kind == "photo":
        pixels = np.array(photo(900).resize(size))
    elif kind == "edges":  # a bicubic goes beyond them, and is cut off after each of its two passes
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    found = stretch(pixels, 224)
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    away = np.abs(found.astype(int) - expected)
    assert away.max() <= 2
    assert (away > 1).mean() < 1e-3


def test_pictures_are_sent_small_and_giants_stretched(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "giant.png")]
    photo(900).resize((1280, 720)).save(paths[0])
    photo(300).save(paths[1])
    giant = photo(30).resize((2500, MAX_SENT // 2500 + 1))
    giant.save(paths[2], compress_level=0)
    found = [prepare_image(path, 64).pixels for path in paths]
    assert [pixels.shape for pixels in found] == [(180, 320, 3), (300, 300, 3), (64, 64, 3)]
    np.testing.assert_array_equal(found[1], np.asarray(photo(300)))
    np.testing.assert_array_equal(found[2], np.asarray(giant.resize((64, 64), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(stretch(found[2], 64), found[2])


@pytest.mark.parametrize(
    "size", [(1280, 720), (1281, 723), (719, 1283), (3001, 2003), (640, 480), (225, 223), (30, 900)]
)
@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}]
)
def test_the_fast_way_gives_the_same_pixels(size, options):
    data = encode(photo(200).resize(size), "JPEG", quality=80, **options)
    found = scaled_jpeg(data, 224)
    assert found is not None
    np.testing.assert_array_equal(found, np.asarray(decode_image(data, side=224)))


def test_what_the_fast_way_does_not_know_is_left_to_the_other():
    picture = photo(900)
    turned = Image.Exif()
    turned[0x0112] = 6
    whole = encode(picture, "JPEG")
    left = [encode(picture, "JPEG", exif=turned), encode(picture.convert("L"), "JPEG"), encode(picture.convert("CMYK"), "JPEG"),
            encode(picture, "PNG"), whole[: len(whole) // 2], b"", b"\xff\xd8\xff"]  # fmt: skip
    assert [scaled_jpeg(data, 224) for data in left] == [None] * len(left)
    rotated = decode_image(left[0], side=224)
    assert rotated.size == (450, 450)
    assert abs(np.asarray(rotated).astype(int) - np.rot90(scaled_jpeg(whole, 224), -1)).max() <= 1
