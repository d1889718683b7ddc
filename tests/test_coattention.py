"""Co-attention: each kind against a reference, what starts at zero, what a mask hides, where the blocks stand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labeler.coattention import AffinityAttention, CoAttention, CrossAttention, SwappedAttention
from labeler.layers import Streams

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
        nn.init.eye_(reference.out_proj.weight)
        reference.out_proj.load_state_dict(layer.output.state_dict(), strict=False)  # an identity has none
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


KINDS = {
    "vilbert": lambda: CoAttention(24, 4, 48),
    "seed": lambda: SwappedAttention(24, 4),
    "hieco": lambda: AffinityAttention(24),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def trained_block(kind: str) -> nn.Module:
    """Return a block of width 24 with weights in place of its zeros."""
    torch.manual_seed(0)
    block = KINDS[kind]().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def real(rows: int, length: int) -> torch.Tensor:
    """Return a mask under which all is real."""
    return torch.ones(rows, length, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["vilbert", "hieco"])
def test_a_fresh_block_changes_nothing(kind):
    streams = Streams(torch.randn(2, 3, 24), torch.randn(2, 5, 24))
    text, visual = KINDS[kind]().train()(streams, real(2, 3), real(2, 5))
    assert torch.equal(text, streams.text)
    assert torch.equal(visual, streams.visual)


@pytest.mark.parametrize(
    ("kind", "own"), [("vilbert", "text.feed_out"), ("seed", "text.attention.value"), ("hieco", "to_text")]
)
def test_each_stream_reads_the_other_as_it_came_in(kind, own):
    block, streams = trained_block(kind), Streams(torch.randn(2, 3, 24), torch.randn(2, 5, 24))
    text, visual = block(streams, real(2, 3), real(2, 5))
    other_picture = block(Streams(streams.text, torch.randn(2, 5, 24)), real(2, 3), real(2, 5))
    assert not torch.allclose(text, other_picture.text)
    other_words = block(Streams(torch.randn(2, 3, 24), streams.visual), real(2, 3), real(2, 5))
    assert not torch.allclose(visual, other_words.visual)
    # had the visual half read the text half's output, the text half's weights would act on it
    nn.init.zeros_(block.get_submodule(own).weight)
    after = block(streams, real(2, 3), real(2, 5))
    assert not torch.allclose(after.text, text)
    torch.testing.assert_close(after.visual, visual, atol=0, rtol=0)


@every_kind
def test_a_stream_is_masked_by_the_others_mask(kind):
    block, text, visual = trained_block(kind), torch.randn(1, 3, 24), torch.randn(1, 5, 24)
    text_mask, visual_mask = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True, True, False]])
    before = block(Streams(text, visual), text_mask, visual_mask)
    hidden_text, hidden_visual = text.clone(), visual.clone()
    hidden_text[~text_mask], hidden_visual[~visual_mask] = 9.0, -9.0
    after = block(Streams(hidden_text, hidden_visual), text_mask, visual_mask)
    torch.testing.assert_close(after.text[text_mask], before.text[text_mask], atol=0, rtol=0)
    torch.testing.assert_close(after.visual[visual_mask], before.visual[visual_mask], atol=0, rtol=0)
    alone = block(Streams(text[:, :2], visual[:, [0, 2, 3]]), real(1, 2), real(1, 3))
    torch.testing.assert_close(alone.text[0], before.text[text_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.visual[0], before.visual[visual_mask], atol=1e-5, rtol=0)


@every_kind
def test_a_row_without_the_other_stream_reads_nothing_of_it_and_has_finite_gradients(kind):
    block = trained_block(kind)
    text, visual = torch.randn(3, 4, 24, requires_grad=True), torch.randn(3, 5, 24, requires_grad=True)
    text_mask, visual_mask = real(3, 4), real(3, 5)
    text_mask[1], visual_mask[0] = False, False
    done = block(Streams(text, visual), text_mask, visual_mask)
    if kind != "vilbert":  # which has a feed-forward layer of its own
        assert torch.equal(done.text[0], text[0])
        assert torch.equal(done.visual[1], visual[1])
    assert not torch.allclose(done.text[2], text[2])
    (done.text[text_mask].square().sum() + done.visual[visual_mask].square().sum()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in [text, visual, *block.parameters()])
    assert not visual.grad[0].any()
    assert not text.grad[1].any()


@pytest.mark.parametrize("half", ["text", "visual"])
def test_swapped_attention_is_torch_attention_and_a_norm(half):
    block, streams = trained_block("seed"), Streams(torch.randn(3, 6, 24), torch.randn(3, 5, 24))
    masks = Streams(torch.arange(6) < torch.tensor([[6], [2], [4]]), MASK)
    layer, own = getattr(block, half), getattr(streams, half)
    other, other_mask = (streams.visual, masks.visual) if half == "text" else (streams.text, masks.text)
    reference = torch_attention(layer.attention)
    attended, _ = reference(own, other, other, key_padding_mask=~other_mask)
    expected = nn.functional.layer_norm(attended, (24,), layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(getattr(block(streams, *masks), half), expected, atol=1e-5, rtol=0)


def test_affinity_attention_is_the_papers():
    block = trained_block("hieco")
    streams, text_mask = Streams(torch.randn(4, 6, 24), torch.randn(4, 5, 24)), real(4, 6)
    text_mask[1, 2:], visual_mask = False, torch.cat([MASK, torch.zeros(1, 5, dtype=torch.bool)])
    done = block(streams, text_mask, visual_mask)
    for row in range(4):
        words, places = streams.text[row][text_mask[row]], streams.visual[row][visual_mask[row]]
        q, v = paper_attention(block, list(words), list(places))
        expected_text = streams.text[row] + block.to_text.weight @ v
        expected_visual = streams.visual[row] + block.to_visual.weight @ q
        torch.testing.assert_close(done.text[row], expected_text, atol=1e-4, rtol=0)
        torch.testing.assert_close(done.visual[row], expected_visual, atol=1e-4, rtol=0)


def paper_attention(block: AffinityAttention, words: list, places: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and v of Lu et al. 2016, equations 3 to 5, token by token; a sum over nothing is zero."""
    affinity = [[torch.tanh(word @ block.affinity.weight @ place) for place in places] for word in words]  # 3
    mapped_words = [block.text_map.weight @ word for word in words]
    mapped_places = [block.visual_map.weight @ place for place in places]
    word_scores = []  # 4
    for t, word in enumerate(mapped_words):
        seen = sum((mapped_places[n] * affinity[t][n] for n in range(len(places))), torch.zeros(24))
        word_scores.append(block.text_score.weight[0] @ torch.tanh(word + seen))
    place_scores = []
    for n, place in enumerate(mapped_places):
        seen = sum((mapped_words[t] * affinity[t][n] for t in range(len(words))), torch.zeros(24))
        place_scores.append(block.visual_score.weight[0] @ torch.tanh(place + seen))
    return attended(word_scores, words), attended(place_scores, places)


def attended(scores: list[torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
    """Return equation 5: the sum of the tokens, weighted by the softmax of their scores."""
    total = sum(score.exp() for score in scores)
    return sum((score.exp() / total * token for score, token in zip(scores, tokens, strict=True)), torch.zeros(24))
