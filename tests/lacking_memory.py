"""Models that run out of memory."""

from __future__ import annotations

from typing import Any


def lacking_memory(model: Any, limit: int) -> None:
    """Let `model`, without its dropout, run out of memory with batches of over `limit` pairs."""
    import torch

    from labeler.layers import FastDropout

    for module in model.modules():
        if isinstance(module, (FastDropout, torch.nn.Dropout)):
            module.p = 0.0
    model.register_forward_pre_hook(
        lambda _, inputs, named: torch.empty(1 << 50) if len(named["input_ids"]) > limit else None, with_kwargs=True
    )
