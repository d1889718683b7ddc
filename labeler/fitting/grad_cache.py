"""Gradient caching: a contrastive batch as large as its embeddings allow, while the towers hold the graph of one chunk only.

    1. every chunk through the towers, without a graph -> embeddings of the whole batch
    2. the loss on them                                -> its gradient at each embedding
    3. every chunk again, with a graph                 -> that gradient carried on to the weights

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3. The random state before
each chunk is kept, so that dropout draws the same in 1 and 3. It costs a forward pass more; a batch of one chunk goes straight
through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Embed = Callable[[Any], Sequence[Tensor]]


def cached_backward(chunks: Sequence[Any], embed: Embed, loss_of: Callable[..., Tensor]) -> Tensor:
    """Return the loss of the batch that `chunks` are parts of, detached, after adding its gradient to the weights'.

    `embed` gives a chunk's embeddings, some tensors [b, S]; `loss_of` takes them for the whole batch, [B, S] each, in the order
    of the chunks, and gives a number.
    """
    if len(chunks) == 1:
        loss = loss_of(*embed(chunks[0]))
        loss.backward()
        return loss.detach()
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(random_state())
            parts.append(embed(chunk))
    embeddings = [torch.cat(part).requires_grad_() for part in zip(*parts, strict=True)]
    loss = loss_of(*embeddings)
    loss.backward()
    sizes = [len(part[0]) for part in parts]
    slopes = zip(*(cast(Tensor, embedding.grad).split(sizes) for embedding in embeddings), strict=True)
    for chunk, state, slope in zip(chunks, states, slopes, strict=True):
        set_random_state(state)
        torch.autograd.backward(embed(chunk), slope)
    return loss.detach()


def random_state() -> tuple[Tensor, list[Tensor]]:
    """Return the random state of the CPU and of every GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all()


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Go back to a state that `random_state` gave."""
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1])
