"""OpenVINO: runs the graphs of an exported model in bf16, float32 or int8, without torch."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from labeler.decoding import cores
from labeler.engines.exported import Graph


def open_graph(path: Path, precision: str) -> Graph:
    """Return what runs the ONNX file `path` on all cores, `precision` bf16 or fp32 (int8 stays what it is in either)."""
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": cores(),
        "NUM_STREAMS": 1,
    }
    request = core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        # copied: the next call writes where this one's output lies
        return np.array(request.infer(inputs)[0], dtype=np.float32)

    return run


def has_bf16() -> bool:
    """Return whether the processor computes in bf16 itself."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def core() -> Any:
    """Return OpenVINO's one core in this process, which is never destroyed before its end.

    It gives the thread that makes it an alternate signal stack. Where it is destroyed, that memory is freed, and the next signal
    ends the process by a segmentation fault (OpenVINO 2026.4).
    """
    return load().Core()


def load() -> Any:
    """Return OpenVINO without its converter, which takes half of the time to import and tells its maker of every import."""
    modules, converter = cast("dict[str, Any]", sys.modules), "openvino.tools.ovc"
    if converter not in modules:
        modules[converter] = None  # importing it is then an ImportError, which OpenVINO expects
    import openvino

    if modules[converter] is None:
        del modules[converter]
    return openvino
