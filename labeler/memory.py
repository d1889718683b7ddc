"""Errors that mean: too little memory. Each library has its own."""

from __future__ import annotations

# of PyTorch on a processor and on a GPU, oneDNN, C++'s allocator in onnxruntime and OpenVINO
SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
           "bad allocation", "failed to allocate")  # fmt: skip


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(saying in str(error).lower() for saying in SAYINGS)
