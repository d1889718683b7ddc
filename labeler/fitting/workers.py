"""Workers that train one model together: which one this process is, and what they agree on. A process alone is the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Sampler


def count() -> int:
    """Return how many workers there are."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def number() -> int:
    """Return this worker's number, from 0."""
    return torch.distributed.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Return whether this is the worker that validates, writes and says what there is to say."""
    return number() == 0


def mean(value: Tensor) -> Tensor:
    """Return the mean of all workers' values."""
    if count() > 1:
        torch.distributed.all_reduce(value)
        value /= count()
    return value


def from_first(value: Any) -> Any:
    """Return the first worker's value."""
    values = [value]
    if count() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def any_of(value: bool) -> bool:
    """Return whether it holds of any worker."""
    values: list[Any] = [value] * count()
    if count() > 1:
        torch.distributed.all_gather_object(values, value)
    return any(values)


def wait() -> None:
    """Wait until all workers have come here."""
    if count() > 1:
        torch.distributed.barrier()


class OwnPart(Sampler[list[int]]):
    """This worker's part of every batch of an epoch: each one's pairs are dealt out in turn, so that lengths are alike.

    Batches are those that one worker would have. One with fewer pairs than workers gives each at least one, which is not counted.
    """

    def __init__(self, order: Sampler[int], batch_size: int):
        """Take the pairs of `order`, `batch_size` at a time for all workers together."""
        self.order, self.batch_size = order, batch_size

    def __len__(self) -> int:
        """Return how many batches there are."""
        return -(-len(self.order) // self.batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each part."""
        for batch in self.batches():
            yield own_part(batch) or batch[:1]

    def batches(self) -> list[list[int]]:
        """Return the indices of each batch of the epoch."""
        indices = list(self.order)
        return [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]


def own_part(batch: list[int]) -> list[int]:
    """Return this worker's part of a batch; nothing where it has fewer pairs than there are workers before this one."""
    return batch[number() :: count()]
