"""The only place where image and video bytes are decoded: formats by whitelist, limits first, right RGB out."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import stat
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from simplejpeg import decode_jpeg

from labeler.artifacts import sha256_bytes
from labeler.errors import CodedError
from labeler.pictures.resizing import resize

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow opens over forty by default
# What a video's bytes begin with: mp4 and mov (after a length of four bytes), webm and mkv, avi.
VIDEO = re.compile(rb"....ftyp(?!hei[cx]|hevc|mif1|msf1|avi[fs])|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)
# what phones write; under mif1 and msf1 it may be AVIF too
PHOTO = re.compile(rb"....ftyp(?:hei[cx]|hevc|mif1|msf1)", re.DOTALL)
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")  # what such files are called
BEGINNINGS = [(re.compile(beginning, re.DOTALL), suffix) for beginning, suffix in (
    (rb"\xff\xd8\xff", ".jpg"), (rb"\x89PNG\r\n", ".png"), (rb"RIFF....WEBP", ".webp"), (rb"GIF8", ".gif"), (rb"BM", ".bmp"),
    (rb"II\*\0|MM\0\*", ".tif"), (rb"....ftypavi[fs]", ".avif"), (PHOTO.pattern, ".heic"),
    (rb"....ftyp", ".mp4"), (rb"\x1aE\xdf\xa3", ".mkv"), (rb"RIFF....AVI ", ".avi"),
)]  # fmt: skip
# what helps where a picture is not where its row says
TEXTS_ALONE = "--allow-missing-image reads the texts without them"
MISSING = f". --image-folder DIR says where pictures lie; {TEXTS_ALONE}"
ADDRESS = re.compile(r"(^|/)(https?|ftp|s3|gs):/")
FRAME = re.compile(r"(.+)#frame=([1-9]\d{0,5})of([1-9]\d{0,5})", re.DOTALL)
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # 150 MB as RGB
THUMBNAIL_SIDE = 320
STRETCHED_BY = "torch bicubic"  # a store records it: its tokens are those of these pixels
STRETCHED, FEW = itertools.count(), 256  # pictures of this process; so many take as long as importing PyTorch
MAX_SENT = 4_000_000  # pixels of a picture that is stretched in another process than it is decoded in
# a long note beside a picture, which Pillow would refuse, is not read here
PngImagePlugin.MAX_TEXT_CHUNK = MAX_FILE_BYTES
HASH_SIDE = 16
NOISE = 2


class ImageError(CodedError):
    """A picture that cannot be used; `code` is the reject's code."""


class Examined(NamedTuple):
    """What `ingest` keeps of a picture: its file's sha256, its width and height upright, its difference hash."""

    sha256: str
    width: int
    height: int
    look: str | None


class Prepared(NamedTuple):
    """What the towers and the store take of a picture: [H, W, 3] uint8 RGB, and a JPEG's bytes to look at."""

    pixels: np.ndarray
    thumbnail: bytes | None


def examine_image(path: Path) -> Examined:
    """Return what `ingest` keeps of the picture at `path`, its file read once.

    Raises ImageError (see `read_image_file`, `decode_image`).
    """
    data = read_image_file(path)
    # not scaled while it is decoded: the hash of a picture must not depend on its file's format
    image = decode_file(path, data)
    return Examined(sha256_bytes(data), *image.size, difference_hash(image))


def prepare_image(
    path: Path | str, side: int, sha256: str | None = None, data: bytes | None = None, look: bool = True
) -> Prepared:
    """Return the picture at `path`, or in `data`, ready for `stretch` to `side` x `side` pixels; for a `look`, its thumbnail.

    It is as small as `decode_image` gives it. One of over 4 million pixels comes stretched, by Pillow.

    Raises ImageError: as `read_image_file` and `decode_image` do, and when the file's sha256 is not `sha256`.
    """
    data = read_image_file(path) if data is None else data
    if sha256 not in (None, sha256_bytes(data)):
        raise ImageError("image-changed", f"{path}: another picture than at ingest")
    pixels = scaled_jpeg(data, side)
    image = decode_file(path, data, side) if pixels is None else Image.fromarray(pixels)
    if image.width * image.height > MAX_SENT:  # takes long to send; stretching the longest takes a gigabyte
        pixels = np.array(image.resize((side, side), Image.Resampling.BICUBIC))
    elif pixels is None:
        pixels = np.array(image)
    return Prepared(pixels, thumbnail(image) if look else None)


def decode_file(path: Path | str, data: bytes, side: int | None = None) -> Image.Image:
    """Return `decode_image` of the bytes of the file at `path`; an ImageError names the file."""
    try:
        return decode_image(data, frame_of(path)[1], side)
    except ImageError as error:
        raise ImageError(error.code, f"{path}: {error}") from None


def resolve_image(root: Path, name: str, *, allow_outside: bool = False) -> Path:
    """Return the path of the image `name` below `root`.

    Raises ImageError when it lies outside `root`, by `..`, as an absolute path or through a link, unless
    `allow_outside`.
    """
    path = spelt(root, name)
    if allow_outside:
        return path
    real, real_root = Path(os.path.realpath(frame_of(path)[0])), Path(os.path.realpath(root))
    if not real.is_relative_to(real_root):
        raise ImageError("image-outside", f"{name} lies outside {root}; --allow-outside reads it all the same")
    return path


def spelt(root: Path, name: str, there: Callable[[Path], bool] = os.path.lexists) -> Path:
    """Return the path of `name` below `root`; where that is `there`, without outer blanks, or with accents composed or apart,
    or with slashes in place of backslashes.

    A list and the disk it was written for may have another form of Unicode than this disk: macOS takes accents apart.
    Windows parts folders by backslashes, which may stand in a name here.
    """
    tidy = name.strip()
    if name.isascii() and name == tidy and "\\" not in name:
        return root / name
    forms = [name, tidy, unicodedata.normalize("NFC", tidy), unicodedata.normalize("NFD", tidy)]
    forms += [form.replace("\\", "/") for form in forms if "\\" in name]
    return next((root / form for form in forms if there(frame_of(root / form)[0])), root / tidy)


def frame_of(path: Path | str) -> tuple[Path, float]:
    """Return the file of a picture and the place of its frame: `clip.mp4#frame=2of4` is the one a quarter into the clip.

    Frames are spaced evenly from the start, which is the frame of a path that names none. A file that really has
    such a name is that file.
    """
    match = FRAME.fullmatch(str(path))
    if match is None or os.path.exists(path):
        return Path(path), 0.0
    number, count = int(match[2]), int(match[3])
    return Path(match[1]), min(number - 1, count - 1) / count


def read_image_file(path: Path | str) -> bytes:
    """Return the bytes of a picture's or video's file; `path` may name one of its frames.

    Raises ImageError when it is missing, no regular file (a FIFO or a device would hang), empty or over 64 MiB.
    """
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(frame_of(path)[0], os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        far = "; pictures are not fetched from the web" if ADDRESS.search(str(path)) else ""
        raise ImageError("image-missing", f"{path}: no such file{far}") from None
    except OSError as error:
        raise ImageError("image-unreadable", f"{path}: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)  # fdopen would raise on a folder
        raise ImageError("image-unreadable", f"{path}: not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        check_size(status.st_size, f"{path}: ")
        return file.read()


def check_size(size: int, name: str = "") -> None:
    """Raise ImageError when a picture's or video's file of `size` bytes is empty or over 64 MiB."""
    if size == 0:
        raise ImageError("image-unreadable", f"{name}empty")
    if size > MAX_FILE_BYTES:
        raise ImageError("image-too-large", f"{name}{size:,} bytes, at most {MAX_FILE_BYTES:,} are read")


def suffix_of(data: bytes) -> str:
    """Return the file name suffix for what the bytes of a picture or video begin like; `.bin` where that is none we read."""
    return next((suffix for beginning, suffix in BEGINNINGS if beginning.match(data)), ".bin")


def decode_image(data: bytes, place: float = 0.0, side: int | None = None) -> Image.Image:
    """Return the picture in `data` as RGB: upright, its first frame, transparency over white.

    Of a video it is the frame at `place`, a share of its length from 0 up to 1. Where `side` is given a JPEG may come
    smaller than it is, by 2, 4 or 8, but large enough for a square of `side` pixels and for a thumbnail.

    Raises ImageError when the format is not in FORMATS, it has over 50 million pixels (found before any is
    decoded), or its data are cut off or broken.
    """
    if VIDEO.match(data):
        return video_frame(data, place)
    if PHOTO.match(data) and not is_avif(data):
        raise ImageError("image-unreadable", "HEIC is not read; convert it to JPEG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    "image-too-large", f"{image.width}x{image.height}, at most {MAX_PIXELS:,} pixels are decoded"
                )
            if side:
                image.draft(None, enough(image.size, side))
            image.load()  # verify() would pass a truncated JPEG
            turn_upright(image)
            return to_rgb(image)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, checked before ours can be
        raise ImageError("image-too-large", f"at most {MAX_PIXELS:,} pixels are decoded") from None
    except UnidentifiedImageError:
        raise ImageError("image-unreadable", f"not a picture of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken data
        raise ImageError("image-unreadable", f"a broken picture ({error})"[:300]) from None


def turn_upright(image: Image.Image) -> None:
    """Turn the picture as its EXIF says, in place; leave it as it stands where that is broken, since its pixels are not."""
    try:
        ImageOps.exif_transpose(image, in_place=True)  # else an upright picture is copied
    except MemoryError:
        raise
    except Exception:  # of as many kinds as there are broken tags
        return


def is_avif(data: bytes) -> bool:
    """Return whether a file that begins with `ftyp` and its brands, four bytes each, says that it is AVIF."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return any(brands[place : place + 4] in (b"avif", b"avis") for place in range(0, len(brands), 4))


def scaled_jpeg(data: bytes, side: int) -> np.ndarray | None:
    """Return the pixels [H, W, 3] uint8 of the JPEG in `data` as `decode_image` gives them with `side`, a fifth sooner.

    None where it is no upright RGB JPEG, or anything is wrong with it: then `decode_image` is to judge.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if image.mode != "RGB" or not upright or image.width * image.height > MAX_PIXELS:
            return None
        least = enough(image.size, side)
        for factor in (8, 4, 2, 1):  # others are slower: only these are written for the processor's wide instructions
            width, height = (-(-length // factor) for length in image.size)
            if width >= least[0] and height >= least[1]:
                break
        return decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except Exception:  # as many kinds as there are broken files
        return None


def enough(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the width and height that a picture of `size` needs for a square of `side` pixels and a thumbnail."""
    scale = min(1.0, THUMBNAIL_SIDE / max(size))
    return max(side, math.ceil(size[0] * scale)), max(side, math.ceil(size[1] * scale))


def video_frame(data: bytes, place: float) -> Image.Image:
    """Return the frame of a video at `place`, a share of its length from 0 up to 1, upright, as RGB.

    Raises ImageError when its frames are over 50 million pixels, or it cannot be read as far as that.
    """
    # both write what they think of a broken file to standard error; read when OpenCV is loaded
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    import cv2

    stream: Any = io.BytesIO(data)
    try:
        video = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        try:
            width, height = (video.get(name) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > MAX_PIXELS:
                raise ImageError(
                    "image-too-large", f"{width:.0f}x{height:.0f}, at most {MAX_PIXELS:,} pixels are decoded"
                )
            if place:
                video.set(cv2.CAP_PROP_POS_FRAMES, int(place * video.get(cv2.CAP_PROP_FRAME_COUNT)))
            found, pixels = video.read()
        finally:
            video.release()
    except cv2.error as error:
        raise ImageError("image-unreadable", f"a broken video ({error})"[:300]) from None
    if not found:
        raise ImageError("image-unreadable", "a video that cannot be read, or ends before this frame")
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as RGB; transparent parts become white, 16-bit grey keeps its shades."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns 16-bit grey white.
        values = np.array(image, dtype=np.float32)
        wide = image.mode.startswith("I;16") or (image.mode == "I" and values.max(initial=0) > 255)
        values /= 257 if wide else 1  # in place: such a picture may have 50 million pixels
        image = Image.fromarray(np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def load_image(path: Path) -> Image.Image:
    """Return the picture at `path` as RGB; raises ImageError (see `read_image_file`, `decode_image`)."""
    return decode_file(path, read_image_file(path))


def stretch(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return [side, side, 3] uint8: the picture [H, W, 3] uint8 stretched to a square so that no edge is lost, antialiased.

    PyTorch takes an eighth of the time of Pillow's bicubic; a value may differ from Pillow's by 2. The first FEW pictures of a
    process without PyTorch get the same pixels without it.
    """
    height, width = pixels.shape[:2]
    # upright ones first in height, as by Pillow: it shows where the first pass is cut off at 0 and 255
    upright = height > max(side, 2 * width - side)
    if "torch" not in sys.modules and next(STRETCHED) < FEW:
        for axis in (0, 1) if upright else (1, 0):
            pixels = resize(pixels, axis, side)
        return pixels
    import torch

    def resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(picture, (height, width), mode="bicubic", antialias=True)

    picture = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # stored by pixel, which is the fast way
    if upright:
        picture = resized(picture, side, width)
    return resized(picture, side, side)[0].permute(1, 2, 0).contiguous().numpy()


def thumbnail(image: Image.Image) -> bytes:
    """Return `image` as JPEG with no side over 320 pixels; `image` itself is made as small."""
    # WebP takes ten times as long to write; the gap lets whole pixels be averaged first
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC, reducing_gap=1.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def difference_hash(image: Image.Image) -> str | None:
    """Return 256 bits as hex: where a picture grows brighter from left to right, on a grid of 17x16.

    A difference of up to two of 256 shades counts as none, so that a copy's noise on plain ground sets no bits.
    `labeler.rows.looks` compares them. None for pictures so even that the bits would say nothing (a blank page matches
    every blank page). Source: the "dHash" of Krawetz (2013).
    """
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.int16)
    bits = pixels[:, 1:] > pixels[:, :-1] + NOISE
    if not HASH_SIDE <= bits.sum() <= bits.size - HASH_SIDE:
        return None
    return np.packbits(bits).tobytes().hex()
