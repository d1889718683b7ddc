"""Engines: what stands between decoded items and logits. Labelling knows a model by nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from labeler.artifacts import read_json, verify
from labeler.errors import UsageError
from labeler.values import UNKNOWN_SHARE

if TYPE_CHECKING:
    import numpy as np

    from labeler.decisions import Rule
    from labeler.items import Item
    from labeler.zero_shot import Prompts

log = logging.getLogger("labeler")

Precision = Literal["auto", "int8", "bf16", "fp32"]
CHECK = "export.json"  # an export's: what each way of running it gave, measured when it was made
SAME_LABELS = 0.99  # share of rows on which a runtime must agree with PyTorch to be chosen unasked


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


class Way(NamedTuple):
    """A way to run an export: by which runtime, in which precision of what is not int8 in the graphs themselves."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}"


WAYS = (Way("onnx", "fp32"), Way("openvino", "fp32"), Way("openvino", "bf16"), Way("openvino", "int8"))


class Choice(NamedTuple):
    """A folder and what computes: a run in PyTorch, with `prompts` one of `labeler pretrain`, or an export in some way."""

    folder: Path
    way: Way | None = None
    prompts: Prompts | None = None


def open_engine(choice: Choice, device: str = "auto") -> Engine:
    """Return the engine of what was chosen; `choose_way` has checked an export's files, a run's are checked here.

    Raises BadInputError when it is no whole run; UsageError when there is no such device.
    """
    if choice.way is None:
        from labeler.engines.native import Native
        from labeler.inference import choose_device
        from labeler.runs import load_run
        from labeler.zero_shot import zero_shot_run

        if choice.prompts:
            return Native(zero_shot_run(choice.folder, choice.prompts, device=choose_device(device)))
        return Native(load_run(choice.folder, choose_device(device)))
    from labeler.engines.exported import Exported

    if choice.way.runtime == "onnx":
        from labeler.engines.onnx import open_graph

        return Exported(choice.folder, open_graph)
    from labeler.engines import openvino

    precision = choice.way.precision
    return Exported(choice.folder, lambda path: openvino.open_graph(path, precision))


class Reader:
    """Warns, once, where the vocabulary of an engine does not know most of the texts' tokens."""

    told = False

    def note_unknown(self, ids: Sequence[Sequence[int]], unknown: int | None) -> None:
        """Warn, the first time that over a third of the tokens are the `unknown` one: such texts look alike to the model."""
        total = sum(map(len, ids))
        if not self.told and unknown is not None and sum(row.count(unknown) for row in ids) > UNKNOWN_SHARE * total:
            self.told = True
            log.warning("over a third of these texts' tokens are unknown to the model's vocabulary: their labels are guesses, "
                        "unless pictures say enough; a model trained with another --text-encoder may read them")  # fmt: skip


def choose_way(folder: Path, runtime: str = "auto", precision: Precision = "auto") -> Choice:
    """Return the way to run the export in `folder`: of those asked for the one that was fastest when the export was made.

    Those that gave other labels than PyTorch on over 1 % of the rows are taken only when they are asked for by name.

    Raises BadInputError when it is no whole export; UsageError when no way is what was asked for, or can be gone here.
    """
    verify(folder, "export")
    ways = usable_ways(runtime, precision)
    if not ways:
        there = ", ".join(f"--runtime {way.runtime} --precision {way.precision}" for way in usable_ways())
        raise UsageError(f"--runtime {runtime} --precision {precision}: not possible here; there are {there}")
    checks: dict[str, Any] = read_json(folder / CHECK)["ways"]
    known = [way for way in ways if str(way) in checks]
    if not known:
        raise UsageError(
            f"--runtime {runtime} --precision {precision}: not checked when {folder} was made, or found to give other scores "
            f"than PyTorch; there are {', '.join(checks)}. `labeler export RUN --out {folder} --force` on this machine tries all "
            "that it can"
        )
    agreeing = [way for way in known if checks[str(way)]["same_labels"] >= SAME_LABELS]
    return Choice(folder, max(agreeing or known, key=lambda way: checks[str(way)]["pairs_per_second"]))


def usable_ways(runtime: str = "auto", precision: Precision = "auto") -> list[Way]:
    """Return the ways asked for that this machine has the packages and, for bf16, the processor for."""
    ways = [way for way in WAYS if runtime in ("auto", way.runtime) and precision in ("auto", way.precision)]
    if all(way.runtime != "openvino" for way in ways):
        return ways
    if find_spec("openvino") is None:
        return [way for way in ways if way.runtime != "openvino"]
    from labeler.engines.openvino import has_bf16

    return [way for way in ways if way.precision != "bf16" or has_bf16()]
