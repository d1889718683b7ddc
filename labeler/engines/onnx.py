"""onnxruntime: runs the graphs of an exported model in float32 or int8, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labeler.engines.exported import Graph
from labeler.processes import cores


def open_graph(path: Path) -> Graph:
    """Return what runs the ONNX file `path` on all cores.

    Its threads do not spin while they wait: they would take the cores from those that decode pictures.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        output: np.ndarray = session.run(None, inputs)[0]
        return output

    return run
