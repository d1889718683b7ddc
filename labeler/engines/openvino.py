"""OpenVINO: runs the graphs of an exported model in int8, bf16 or float32, without torch."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from labeler.engines.exported import Graph
from labeler.processes import cores

FEWEST = 64  # outputs of a matrix product that is worth 8 bits: what a head says is left as it is
GROUP = 128  # numbers of a token that share a scale: more are no faster, fewer are slower (docs/LOG.md)


def open_graph(path: Path, precision: str) -> Graph:
    """Return what runs the ONNX file `path` on all cores; what is int8 in the file stays so.

    `precision` is fp32, bf16, or int8: then weights of matrix products are rounded to 8 bits, one scale an output, and what
    they are multiplied by is rounded as it comes, one scale for GROUP numbers of one token. So no item's depends on another's.
    All else is then bf16 where the processor has that.
    """
    model = core().read_model(str(path))
    half = precision == "bf16" or (precision == "int8" and has_bf16())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "INFERENCE_NUM_THREADS": cores(),
        "NUM_STREAMS": 1,
    }
    if precision == "int8":
        round_weights(model)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(GROUP)
    request = core().compile_model(model, "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        # copied: the next call writes where this one's output lies
        return np.array(request.infer(inputs)[0], dtype=np.float32)

    return run


def round_weights(model: Any) -> None:
    """Let the weights of the model's matrix products be int8 times a scale for each output, in place."""
    opset = load().opset13
    for product in model.get_ordered_ops():
        weights = weights_of(product)
        if weights is None or weights.shape[1] < FEWEST:
            continue
        scales = np.maximum(np.abs(weights).max(axis=0, keepdims=True), np.finfo(np.float32).tiny) / 127  # [1, D_out]
        rounded = opset.constant(np.round(weights / scales).astype(np.int8))
        product.input(1).replace_source_output(
            opset.multiply(opset.convert(rounded, "f32"), opset.constant(scales.astype(np.float32))).output(0)
        )
        product.set_attribute("transpose_b", False)


def weights_of(node: Any) -> np.ndarray | None:
    """Return the weights [D_in, D_out] of a matrix product with a constant; None of any other node."""
    if node.get_type_name() != "MatMul":
        return None
    source, turned = node.input_value(1).get_node(), node.get_attributes()["transpose_b"]
    if source.get_type_name() == "Transpose":
        source, turned = source.input_value(0).get_node(), not turned
    if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) != 2:
        return None
    weights: np.ndarray = source.get_data()
    return weights.T if turned else weights


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
