"""Picture files made byte by byte from arrays, so that what they show is known without Pillow; and broken ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray, colour_type: int, extra: bytes = b"", after: bytes = b"") -> bytes:
    """Return `pixels`, [H, W] or [H, W, C] uint8, uint16 or bool, as PNG; `extra` chunks stand before, `after` behind IDAT."""
    height, width = pixels.shape[:2]
    depth = {"b": 1, "u1": 8, "u2": 16}[pixels.dtype.str[1:] if pixels.dtype != bool else "b"]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
        + extra + chunk(b"IDAT", png_data(pixels)) + after + chunk(b"IEND", b"")
    )  # fmt: skip


def png_data(pixels: np.ndarray) -> bytes:
    """Return the compressed rows, each with filter 0."""
    rows = [np.packbits(row) if row.dtype == bool else row.astype(row.dtype.newbyteorder(">")) for row in pixels]
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data do not fill."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def apng(frames: list[np.ndarray], default_alone: bool = False) -> bytes:
    """Return RGB frames as an animated PNG; with `default_alone` the first is shown only where nothing is animated."""
    height, width = frames[0].shape[:2]
    count = len(frames) - default_alone
    control = [struct.pack(">IIIIIHHBB", 2 * n - (n > 0), width, height, 0, 0, 1, 10, 0, 0) for n in range(len(frames))]
    if default_alone:
        control = [b"", *(struct.pack(">I", 2 * n) + body[4:] for n, body in enumerate(control[1:]))]
    extra = chunk(b"acTL", struct.pack(">II", count, 0)) + (chunk(b"fcTL", control[0]) if control[0] else b"")
    after = b"".join(
        chunk(b"fcTL", body) + chunk(b"fdAT", struct.pack(">I", struct.unpack(">I", body[:4])[0] + 1) + png_data(frame))
        for body, frame in zip(control[1:], frames[1:], strict=True)
    )
    return png(frames[0], 2, extra, after)


def tiff(
    pixels: np.ndarray, photometric: int, order: str = "<", size: tuple[int, int] | None = None,
    palette: np.ndarray | None = None, extra_samples: int | None = None, orientation: int = 1,
) -> bytes:  # fmt: skip
    """Return `pixels` as an uncompressed TIFF of one strip, little (<) or big (>) endian; `size` is what the header claims."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    depth = 1 if pixels.dtype == bool else 8 * pixels.dtype.itemsize
    rows = np.packbits(pixels, axis=1) if pixels.dtype == bool else pixels.astype(pixels.dtype.newbyteorder(order))
    data = rows.tobytes()
    width, height = size or (width, height)
    tags: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [depth] * channels), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [8]), (274, 3, [orientation]), (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(data)]),
    ]  # fmt: skip
    if palette is not None:
        tags.append((320, 3, (palette.astype(int).T.ravel() * 257).tolist()))
    if extra_samples is not None:
        tags.append((338, 3, [extra_samples]))
    data += b"\0" * (len(data) % 2)
    far, entries = 8 + len(data), b""
    for tag, kind, values in tags:
        body = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(body) > 4:
            place, data = struct.pack(f"{order}I", far), data + body
            far += len(body)
        else:
            place = body.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", far)
    return mark + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def encode(image: Image.Image, form: str, **options) -> bytes:
    """Return what Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Return a smooth picture with something to compress."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def claiming(form: str, width: int, height: int) -> bytes:
    """Return a small file whose header claims a size."""
    data = bytearray() if form in ("PNG", "TIFF") else bytearray(encode(photo(), form))
    if form == "PNG":
        return huge_png(width, height)
    if form == "TIFF":
        return tiff(np.zeros((8, 8, 3), np.uint8), 2, size=(width, height))
    if form == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif form == "WEBP":
        place = data.index(b"\x9d\x01\x2a") + 3
        data[place : place + 4] = struct.pack("<HH", width, height)
    elif form == "AVIF":
        place = data.index(b"ispe") + 8
        data[place : place + 8] = struct.pack(">II", width, height)
    return bytes(data)
