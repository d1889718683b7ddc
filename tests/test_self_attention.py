"""VisualBERT's self-attention: transformers' numbers in float32, and as near to them in bf16 as PyTorch's own steps come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import VisualBertConfig
from transformers.models.visual_bert.modeling_visual_bert import VisualBertSelfAttention

from labeler.layers import attention_bias
from labeler.self_attention import Attend, SelfAttention


@pytest.fixture
def theirs() -> VisualBertSelfAttention:
    """Return transformers' own layer: 4 heads over 48 numbers."""
    torch.manual_seed(0)
    config = VisualBertConfig(hidden_size=48, num_attention_heads=4, attention_probs_dropout_prob=0.0)
    return VisualBertSelfAttention(config)


@pytest.fixture
def bias() -> Tensor:
    """Return what is added to the logits of two rows of 5 words and 4 visual tokens, one of them with 2 words alone."""
    text_mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return attention_bias(text_mask, torch.tensor([[True] * 4, [False] * 4]))


def called(layer: torch.nn.Module, bias: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return what `layer` makes of random tokens, under autocast to `dtype` if any, and the gradients of tokens and weights."""
    hidden = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        [attended] = layer(hidden, bias)
    layer.zero_grad()
    (attended.float() * torch.linspace(-1, 1, 48)).sum().backward()
    weights = {f"{name}'s gradient": value.grad for name, value in layer.named_parameters()}
    return {"attended": attended, "tokens' gradient": hidden.grad} | weights  # type: ignore[dict-item]


def test_in_float32_every_number_is_transformers(theirs, bias):
    expected, found = called(theirs, bias), called(SelfAttention(theirs), bias)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_in_bf16_it_is_as_near_to_float32_as_transformers_steps_are(theirs, bias):
    exact = called(theirs, bias)
    usual, found = called(theirs, bias, torch.bfloat16), called(SelfAttention(theirs), bias, torch.bfloat16)
    assert found["attended"].dtype == usual["attended"].dtype == torch.bfloat16
    for name, value in exact.items():
        # zero but for rounding: the same number on all logits of a row changes no weight
        if name == "key.bias's gradient":
            continue
        error, usual_error = ((other[name].float() - value).norm() / value.norm() for other in (found, usual))
        assert error < 1.5 * usual_error + 1e-3, name
        assert error < 0.02, name


def test_the_backward_pass_is_that_of_the_steps(bias):
    parts = torch.randn(3, 2, 4, 9, 12, requires_grad=True)
    found = Attend.apply(parts, bias)
    query, key, value = parts
    expected = ((query @ key.transpose(2, 3)) * 12**-0.5 + bias).softmax(dim=-1) @ value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((outcome * weights).sum(), parts)[0] for outcome in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_masked_changes_nothing(theirs, bias, dtype):
    layer = SelfAttention(theirs)
    hidden = torch.randn(2, 9, 48)
    other = hidden.clone()
    other[1, 2:] = 100.0  # all but the two words of the second row
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        [before], [after] = layer(hidden, bias), layer(other, bias)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1, :2], after[1, :2])
    assert not torch.equal(before[1, 2:], after[1, 2:])


def test_elsewhere_than_on_a_processor_shapes_are_the_same(theirs, bias):
    layer = SelfAttention(theirs).to("meta")
    [attended] = layer(torch.empty(2, 9, 48, device="meta"), bias.to("meta"))
    assert attended.shape == (2, 9, 48)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_numbers_are_those_of_a_processor(theirs, bias):
    hidden = torch.randn(2, 9, 48)
    layer = SelfAttention(theirs)
    [expected] = layer(hidden, bias)
    [found] = layer.to("cuda")(hidden.to("cuda"), bias.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
