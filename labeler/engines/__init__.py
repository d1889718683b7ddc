"""Engines: what stands between decoded items and logits. Labelling knows a model by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from labeler.decisions import Rule
    from labeler.items import Item
    from labeler.zero_shot import Prompts


class Engine(Protocol):
    """A model that is ready to say something of items."""

    @property
    def rule(self) -> Rule:
        """Return what makes labels of its logits."""

    @property
    def size(self) -> int:
        """Return the side in pixels of the pictures that it takes."""

    def logits(self, items: Sequence[Item], batch_size: int) -> np.ndarray:
        """Return logits [N, L] float32 of N items without an error; no item changes what is said of another."""


def open_engine(model: Path, device: str = "auto", prompts: Prompts | None = None) -> Engine:
    """Return the engine for the run in `model`; with `prompts` it is one of `labeler pretrain`, for zero-shot labels.

    Raises BadInputError when it is no whole run; UsageError when there is no such device.
    """
    from labeler.engines.native import Native
    from labeler.prediction import choose_device
    from labeler.runs import load_run
    from labeler.zero_shot import zero_shot_run

    if prompts:
        return Native(zero_shot_run(model, prompts, device=choose_device(device)))
    return Native(load_run(model, choose_device(device)))
