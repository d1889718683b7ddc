"""Gradient caching: the loss and the gradients of the uncached batch, dropout included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labeler.batches import collate
from labeler.fitting.contrastive import in_chunks, pairs_loss
from labeler.fitting.grad_cache import cached_backward
from labeler.models import model_module


@pytest.fixture
def towers(text_tower):
    torch.manual_seed(0)
    return model_module("clip").build_towers(str(text_tower), 96)[0]


@pytest.fixture
def batch(pairs):
    whole = [pair for pair in pairs(40) if pair.has_image and pair.input_ids]
    batch = collate(whole, 0)
    batch["labels"] = torch.stack([torch.arange(len(whole)) % 20, torch.arange(len(whole))], dim=1)
    return batch


def step(towers: nn.Module, batch: dict, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch in chunks of `size`, and the gradients."""
    towers.zero_grad()
    chunks = in_chunks(batch, size)
    keys = torch.cat([chunk.pop("labels") for chunk in chunks])
    loss = cached_backward(
        chunks, lambda chunk: towers(**chunk), lambda text, image: pairs_loss(text, image, towers.logit_scale(), keys)
    )
    return loss, {name: weight.grad.clone() for name, weight in towers.named_parameters() if weight.grad is not None}


def test_chunks_change_no_loss_and_no_gradient(towers, batch):
    towers.eval()
    whole, slopes = step(towers, batch, 100)
    for size in (1, 4, 7):
        loss, cached = step(towers, batch, size)
        assert loss.item() == pytest.approx(whole.item(), abs=1e-5)
        assert cached.keys() == slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(cached[name], slope, atol=1e-5, rtol=1e-5)
    assert slopes["logit_scale.log"].abs() > 1e-4


def test_dropout_draws_the_same_in_both_passes(towers, batch):
    towers.train()
    torch.manual_seed(1)
    loss, cached = step(towers, batch, 8)
    after = torch.get_rng_state()
    towers.zero_grad()
    torch.manual_seed(1)
    chunks = in_chunks(batch, 8)
    keys = torch.cat([chunk.pop("labels") for chunk in chunks])
    text, image = (torch.cat(part) for part in zip(*(towers(**chunk) for chunk in chunks), strict=True))
    expected = pairs_loss(text, image, towers.logit_scale(), keys)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, weight in towers.named_parameters():
        torch.testing.assert_close(cached[name], weight.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(after, torch.get_rng_state())
    assert step(towers.eval(), batch, 8)[0].item() != pytest.approx(loss.item(), abs=1e-3)  # there was some dropout


def test_a_chunk_is_no_wider_than_its_longest_text(batch):
    chunks = in_chunks(batch, 9)
    assert [len(chunk["input_ids"]) for chunk in chunks] == [9, 9, 9, 1]
    assert sum(len(chunk["labels"]) for chunk in chunks) == len(batch["labels"])
    assert all(chunk["text_mask"].any(dim=0).all() for chunk in chunks)
    assert chunks[0]["input_ids"].shape[1] < chunks[-1]["input_ids"].shape[1]
    assert sorted(torch.cat([chunk["labels"] for chunk in chunks]).tolist()) == sorted(batch["labels"].tolist())
