"""int8: an exported image tower whose convolutions compute in 8 bits, their ranges taken from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

BATCH = 8


class Pictures(CalibrationDataReader):
    """Pictures, some at a time, as onnxruntime asks for them."""

    def __init__(self, pictures: Sequence[np.ndarray]):
        """Take pictures [S, S, 3] uint8."""
        self.batches = iter([np.stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last one."""
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def quantize_tower(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Let the image tower in the ONNX file `path` compute in int8.

    Weights have a scale for each channel, activations one for each tensor, from the smallest to the largest value that the
    pictures give: fixed, so that no picture's tokens hang on the others in its batch.
    """
    settings: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        # with what cuts a convolution's output off: else its range is that of what is cut off (LOG.md, "Exports")
        "op_types_to_quantize": ["Conv", "Clip", "Relu", "Add", "Gemm", "MatMul"],
        "calibrate_method": CalibrationMethod.MinMax,
    }
    simpler, quantised = path.with_suffix(".simpler"), path.with_suffix(".int8")
    quant_pre_process(str(path), str(simpler), skip_symbolic_shape=True)
    quantize_static(str(simpler), str(quantised), Pictures(pictures), **settings)
    simpler.unlink()
    quantised.replace(path)
