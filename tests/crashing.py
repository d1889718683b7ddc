"""Decoders that end their process, hang or take memory where a picture's name says so. Light, since every worker imports it."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labeler.pictures.images import Examined, ImageError, Prepared, decode_image, examine_image, prepare_image

if TYPE_CHECKING:
    from labeler.rows.chunks import Chunk, RowReading
    from labeler.sources.jsonl import Piece

ENDS = {"abort": os.abort, "segfault": lambda: ctypes.string_at(0), "exit": lambda: os._exit(0)}


def decode(path: Path) -> str:
    """Return the path's name, in place of decoding it; do what the name asks for first."""
    for word, end in ENDS.items():
        if word in path.name:
            end()
    if "memory" in path.name:
        bytearray(10 << 30)
    while "hang" in path.name:
        pass
    if "stuck" in path.name:
        ctypes.PyDLL(None).pause()  # in C, and no other thread of the interpreter can run
    if "slow" in path.name:
        time.sleep(0.3)
    if "stderr" in path.name:
        os.write(2, b"a library's opinion")
    if "bug" in path.name:
        raise ZeroDivisionError("a bug of ours")
    if "refused" in path.name:
        raise ImageError("image-unreadable", f"{path}: refused")
    return path.name


def crashing_examine(path: Path) -> Examined:
    """Return `examine_image` of the picture, unless its name says otherwise."""
    decode(path)
    return examine_image(path)


def crashing_prepare(
    path: Path, side: int, sha256: str | None = None, data: bytes | None = None, look: bool = True
) -> Prepared:
    """Return `prepare_image` of the picture, unless its name says otherwise."""
    decode(path)
    return prepare_image(path, side, sha256, data, look)


def arrays(path: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """Return the array that came, and others of every kind that goes another way between processes."""
    return [
        pixels,
        pixels[::2, ::-1],
        pixels[:0],
        np.array(3.5),
        np.array(["a", None], object),
        np.asfortranarray(pixels),
    ]


def fuzzed(data: bytes) -> tuple[str, tuple[int, int], list[str], int]:
    """Return mode and size of the picture in `data`, the warnings that were given, and the most memory held so far, bytes."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = decode_image(data)
    return image.mode, image.size, [str(item.message) for item in said], most_memory()


def most_memory() -> int:
    """Return the most resident memory that this process has held, in bytes."""
    # getrusage's figure begins with that of the process which started this one
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def crashing_chunk(place: str, piece: Piece, how: RowReading) -> Chunk:
    """Return `chunk_of_lines`, but for the second piece of a file."""
    if piece.first > 1:
        os.abort()
    from labeler.rows.chunks import chunk_of_lines

    return chunk_of_lines(place, piece, how)
