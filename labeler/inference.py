"""The one inference path: validation, test and batch labelling all score pairs here, so they cannot differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from labeler.batches import Pair, collate
from labeler.errors import UsageError

if TYPE_CHECKING:
    from labeler.end_to_end import EndToEnd

BATCH_SIZE = 32


class Pairs(Protocol):
    """Pairs that can be read many at a time."""

    @property
    def lengths(self) -> list[int]:
        """Return each pair's number of text tokens."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitems__(self, indices: list[int]) -> list[Pair]:
        """Return those with the numbers `indices`."""


class PairList:
    """Pairs that are held in memory."""

    def __init__(self, pairs: Sequence[Pair]):
        """Keep `pairs`."""
        self.pairs = pairs

    @property
    def lengths(self) -> list[int]:
        """Return each pair's number of text tokens."""
        return [len(pair.input_ids) for pair in self.pairs]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pairs)

    def __getitems__(self, indices: list[int]) -> list[Pair]:
        """Return those with the numbers `indices`."""
        return [self.pairs[index] for index in indices]


def logits(
    model: PreTrainedModel | EndToEnd,
    pairs: Pairs,
    pad_token_id: int,
    *,
    batch_size: int = BATCH_SIZE,
    progress: str | None = None,
) -> np.ndarray:
    """Return logits [N, L] float32 in the order of `pairs`. With `progress`, a bar of that name is drawn on a terminal."""
    return model_outputs(model, pairs, pad_token_id, lambda **batch: model(**batch).logits, progress, batch_size)


def model_outputs(
    model: PreTrainedModel | EndToEnd,
    pairs: Pairs,
    pad_token_id: int,
    function: Callable[..., torch.Tensor],
    progress: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Return what `function`, called with a batch's tensors, gives for every pair: [N, ...] float32 in the order of `pairs`.

    Pairs are worked in order of their length, which leaves little padding; in float32, so that the batch a pair
    happens to be in does not change its label. The model is left in evaluation mode.
    """
    model.eval()
    lengths = pairs.lengths
    order = sorted(range(len(pairs)), key=lambda index: (lengths[index], index))
    result: list[Any] = [None] * len(pairs)
    with (
        torch.inference_mode(),
        tqdm(total=len(order), desc=progress, unit="pair", disable=None if progress else True) as bar,
    ):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = collate(pairs.__getitems__(indices), pad_token_id)
            for name in ("labels", "soft_targets"):
                batch.pop(name, None)
            inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items()}
            outputs = function(**inputs).float().cpu().numpy()
            for index, output in zip(indices, outputs, strict=True):
                result[index] = output
            bar.update(len(indices))
    return np.stack(result)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device `name`; `auto` is a GPU where there is one.

    Raises UsageError when there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}; try --device cpu") from error
