"""Memory: errors that say there is too little, and what the C library does with what is freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# of PyTorch on a processor and on a GPU, oneDNN, C++'s allocator in onnxruntime and OpenVINO
SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
           "bad allocation", "failed to allocate", "could not create a primitive")  # fmt: skip


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(saying in str(error).lower() for saying in SAYINGS)


def halving(function: Callable[[Sequence[T]], R], items: Sequence[T], join: Callable[[R, R], R]) -> R:
    """Return `function(items)`; where memory does not suffice for that, what `join` makes of its results for both halves.

    Raises MemoryError where it does not suffice for a single item, and whatever else `function` raises.
    """
    try:
        return function(items)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        said = str(error)
    if len(items) == 1:
        raise MemoryError(said)
    middle = len(items) // 2  # out of the block, so that the error's frames hold no memory any more
    return join(halving(function, items[:middle], join), halving(function, items[middle:], join))


def give_back_freed_memory() -> None:
    """Let the C library give what has been freed back to the system; where it is not glibc, change nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_few_shapes() -> None:
    """Let oneDNN keep what it has prepared for 512 shapes, which an epoch does not reach, in place of 1,024, which take 300 MB.

    It reads this at its first product, and then never again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one; where it is not glibc, change nothing.

    By default it gives large blocks back to the system, and every step then pays for zeroed pages anew: a tenth of
    the training time on a CPU, for no smaller peak.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
