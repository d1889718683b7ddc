"""Layers: co-attention against torch's own, what starts at zero, what a mask hides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labeler.layers import (
    CoAttention,
    CrossAttention,
    FastDropout,
    ProbeHead,
    Streams,
    ZeroLinear,
    fused_features,
    masked_mean,
    unit,
    use_fast_dropout,
)

MASK = torch.tensor(
    [[True, True, True, True, True], [True, False, True, False, False], [False, True, True, True, False]]
)


@pytest.fixture
def attention() -> CrossAttention:
    """Return 4 heads over width 24 whose output projection has been trained."""
    torch.manual_seed(0)
    layer = CrossAttention(24, 4, dropout=0.5).eval()
    nn.init.normal_(layer.output.weight)
    nn.init.normal_(layer.output.bias)
    return layer


def torch_attention(layer: CrossAttention) -> nn.MultiheadAttention:
    """Return torch's attention with the weights of `layer`."""
    reference = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        reference.out_proj.load_state_dict(layer.output.state_dict())
    return reference


@pytest.mark.parametrize("mask", [None, MASK])
def test_cross_attention_is_torch_attention(attention, mask):
    queries, context = torch.randn(3, 7, 24), torch.randn(3, 5, 24)
    own = attention(queries, context, torch.ones(3, 5, dtype=torch.bool) if mask is None else mask)
    padding = None if mask is None else ~mask
    theirs, _ = torch_attention(attention)(queries, context, context, key_padding_mask=padding)
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)


def test_a_context_masked_out_as_a_whole_gives_zeros_and_finite_gradients(attention):
    nn.init.zeros_(attention.output.bias)
    queries, context = torch.randn(2, 3, 24, requires_grad=True), torch.randn(2, 5, 24, requires_grad=True)
    mask = torch.tensor([[False] * 5, [True] * 5])
    attended = attention(queries, context, mask)
    assert (attended[0] == 0).all()
    assert (attended[1] != 0).any()
    attended.square().sum().backward()
    assert torch.isfinite(queries.grad).all()
    assert (context.grad[0] == 0).all()


def test_what_is_masked_does_not_reach_the_output(attention):
    queries, context = torch.randn(3, 7, 24), torch.randn(3, 5, 24)
    changed = torch.where(MASK.unsqueeze(-1), context, torch.full_like(context, 1e4))
    torch.testing.assert_close(attention(queries, context, MASK), attention(queries, changed, MASK), atol=0, rtol=0)
    assert not torch.equal(attention(queries, context, MASK), attention(queries, context + 1, MASK))


def test_attention_dropout_acts_in_training_only(attention):
    queries, context = torch.randn(3, 7, 24), torch.randn(3, 5, 24)
    assert torch.equal(attention(queries, context, MASK), attention(queries, context, MASK))
    attention.train()
    assert not torch.equal(attention(queries, context, MASK), attention(queries, context, MASK))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 heads do not divide a width of 24"):
        CrossAttention(24, 5, 0.0)


def test_zero_linear_starts_at_zero():
    layer = ZeroLinear(3, 2)
    assert (layer(torch.randn(4, 3)) == 0).all()
    assert [(parameter == 0).all().item() for parameter in layer.parameters()] == [True, True]


def test_a_fresh_coattention_block_changes_nothing():
    streams = Streams(torch.randn(2, 3, 24), torch.randn(2, 5, 24))
    block = CoAttention(24, 4, 48).train()
    text, visual = block(streams, torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(text, streams.text)
    assert torch.equal(visual, streams.visual)


def test_each_stream_reads_the_other_as_it_came_in():
    torch.manual_seed(0)
    block = CoAttention(24, 4, 48).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    streams = Streams(torch.randn(2, 3, 24), torch.randn(2, 5, 24))
    text_mask, visual_mask = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    text, visual = block(streams, text_mask, visual_mask)
    other_picture = block(Streams(streams.text, torch.randn(2, 5, 24)), text_mask, visual_mask)
    assert not torch.allclose(text, other_picture.text)
    # had the visual half read the text half's output, its own weights in `text` would act on it
    nn.init.zeros_(block.text.feed_out.weight)
    torch.testing.assert_close(block(streams, text_mask, visual_mask).visual, visual, atol=0, rtol=0)


def test_a_stream_is_masked_by_the_others_mask():
    torch.manual_seed(0)
    block = CoAttention(24, 4, 48).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    text, visual = torch.randn(1, 3, 24), torch.randn(1, 5, 24)
    text_mask, visual_mask = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True, True, False]])
    before = block(Streams(text, visual), text_mask, visual_mask)
    hidden_text, hidden_visual = text.clone(), visual.clone()
    hidden_text[~text_mask], hidden_visual[~visual_mask] = 9.0, -9.0
    after = block(Streams(hidden_text, hidden_visual), text_mask, visual_mask)
    torch.testing.assert_close(after.text[text_mask], before.text[text_mask], atol=0, rtol=0)
    torch.testing.assert_close(after.visual[visual_mask], before.visual[visual_mask], atol=0, rtol=0)


def test_masked_mean():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[7.0, 7.0]] * 3])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(hidden, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


def test_unit_leaves_zeros():
    assert unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]


def test_fused_features_are_three_means_at_length_one():
    streams = Streams(torch.randn(2, 3, 8), torch.randn(2, 4, 8))
    text_mask, visual_mask = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True] * 4, [False] * 4])
    features = fused_features(streams, text_mask, visual_mask, torch.randn(2, 4, 6))
    assert features.shape == (2, 8 + 8 + 6)
    lengths = torch.stack([part.norm(dim=1) for part in features.split([8, 8, 6], dim=1)])
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))


def test_probe_head_takes_over_a_probe():
    head = ProbeHead((1, 3), 3, 0.5).eval()
    center, scale, weights, bias = torch.randn(4), torch.rand(4) + 0.5, torch.randn(4, 3), torch.randn(3)
    head.start_from(center, scale, weights, bias)
    features = torch.randn(5, 4)
    torch.testing.assert_close(head(features), (features - center) / scale @ weights + bias)
    assert {"center", "scale"} <= head.state_dict().keys()


def test_a_missing_part_counts_as_the_mean_until_it_has_learned():
    head = ProbeHead((2, 3), 4, 0.0)
    features = torch.randn(6, 5)
    features[:2, :2] = features[4, 2:] = 0
    head.start_absence(features)
    means = features[2:, :2].mean(0), features[[0, 1, 2, 3, 5], 2:].mean(0)
    torch.testing.assert_close(head.absence.data, torch.cat(means))
    filled = head.filled(features)
    torch.testing.assert_close(filled[:2, :2], means[0].expand(2, 2))
    torch.testing.assert_close(filled[4, 2:], means[1])
    assert torch.equal(filled[5], features[5])
    head.start_from(filled.mean(0).detach(), torch.ones(5), torch.randn(5, 4), torch.zeros(4))
    torch.testing.assert_close(head.standardised(features)[:2, :2], torch.zeros(2, 2))
    only_pictures = features.clone()
    only_pictures[:, :2] = 0
    head.start_absence(only_pictures)
    assert torch.isfinite(head(features)).all()


def test_fast_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1003, 331, requires_grad=True)  # a number of elements that 8 does not divide
    y = FastDropout(0.1)(x)
    kept = y != 0
    assert abs(kept.float().mean().item() - (1 - 26 / 256)) < 3e-3  # 0.1 rounded to a 256th; six standard errors
    assert torch.all(y[kept] == 256 / 230)
    y.sum().backward()
    assert torch.equal(x.grad, y)  # what was dropped has no gradient
    again = FastDropout(0.1)(x) != 0
    assert abs((again == kept).float().mean().item() - 0.818) < 5e-3  # another draw each time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_dropout_rests_outside_of_training(dtype):
    x = torch.randn(4, 7, dtype=dtype)
    assert FastDropout(0.5).eval()(x) is x
    assert FastDropout(0.0)(x) is x
    assert FastDropout(0.5)(x).dtype == dtype
    assert not FastDropout(1.0)(x).any()


def test_fast_dropout_takes_every_place():
    module = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2)))
    use_fast_dropout(module)
    assert [child.p for child in module.modules() if isinstance(child, FastDropout)] == [0.3, 0.2]
    assert not any(isinstance(child, nn.Dropout) for child in module.modules())
