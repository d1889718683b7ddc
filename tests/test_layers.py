"""Layers: the fused encoder, pooling, the head, the loss, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import VisualBertConfig, VisualBertModel

from labeler.batches import collate
from labeler.layers import (
    FastDropout,
    FusedEncoder,
    LogitScale,
    ProbeHead,
    Projection,
    Streams,
    ZeroLinear,
    attention_bias,
    checkpoint_activations,
    fused_features,
    masked_mean,
    unit,
    use_fast_dropout,
)


def test_zero_linear_starts_at_zero():
    for layer in (ZeroLinear(3, 2), ZeroLinear(3, 2, bias=False)):
        assert (layer(torch.randn(4, 3)) == 0).all()
        assert not any(parameter.any() for parameter in layer.parameters())


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


@pytest.fixture
def fused() -> FusedEncoder:
    """Return a fused encoder of 3 layers, 24 wide, for visual tokens of width 6."""
    torch.manual_seed(0)
    config = VisualBertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
                              intermediate_size=48, visual_embedding_dim=6)  # fmt: skip
    encoder = FusedEncoder(VisualBertModel(config, add_pooling_layer=False)).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


TEXT_MASK = torch.tensor([[True, True, True], [True, False, False]])
VISUAL_MASK = torch.tensor([[True, False, True, True], [False] * 4])


def test_without_blocks_the_fused_encoder_is_transformers(fused):
    streams = fused.embed(torch.randint(9, (2, 3)), torch.randn(2, 4, 6))
    bias = attention_bias(TEXT_MASK, VISUAL_MASK)
    theirs = fused.encoder(torch.cat(streams, dim=1), attention_mask=bias).last_hidden_state
    for blocks in (None, {0: [Unchanged()], 2: [Unchanged(), Unchanged()]}):
        text, visual = fused(streams, TEXT_MASK, VISUAL_MASK, blocks)
        torch.testing.assert_close(torch.cat([text, visual], dim=1), theirs, atol=1e-6, rtol=0)


class Unchanged(nn.Module):
    """A block that gives back the streams it takes."""

    def forward(self, streams: Streams, text_mask: torch.Tensor, visual_mask: torch.Tensor) -> Streams:
        """Return the streams."""
        assert (text_mask is TEXT_MASK, visual_mask is VISUAL_MASK) == (True, True)
        assert (streams.text.shape, streams.visual.shape) == ((2, 3, 24), (2, 4, 24))
        return streams


def test_the_pictures_tokens_weigh_as_much_as_one_word():
    weights = attention_bias(TEXT_MASK, VISUAL_MASK)[:, 0, 0].exp()
    torch.testing.assert_close(weights[0], torch.tensor([1, 1, 1, 1 / 3, 0, 1 / 3, 1 / 3]))
    assert weights[1].tolist() == [1, 0, 0, 0, 0, 0, 0]


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


def test_projection_gives_unit_length_and_leaves_zeros():
    features = torch.randn(3, 5)
    features[1] = 0
    embeddings = Projection(5, 4)(features)
    assert embeddings.shape == (3, 4)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))


def test_logit_scale_starts_at_clips_and_stops_at_100():
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    torch.nn.init.constant_(scale.log, 9.0)
    assert scale().item() == pytest.approx(100)
    scale().backward()
    assert scale.log.grad.item() == pytest.approx(100)  # and so it can come down again
    torch.nn.init.constant_(scale.log, float("nan"))
    assert scale().isnan()


@pytest.mark.parametrize("name", ["visualbert", "late-fusion", "flava", "albef"])
def test_checkpointed_activations_change_no_gradient_and_keep_less(name, build, pairs):
    model = (built := build(name)).model.train()
    batch = collate(pairs(8), built.tokenizer.pad_token_id)
    gradients, kept = [], []
    for checkpointed in (False, True):
        if checkpointed:
            assert checkpoint_activations(model) >= 2
        kept.append(0)

        def count(tensor):
            kept[-1] += tensor.numel()
            return tensor

        torch.manual_seed(1)  # dropout is drawn anew in the backward pass, and has to be the same
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(**batch).loss
        loss.backward()
        gradients.append({key: weight.grad.clone() for key, weight in model.named_parameters()})
        model.zero_grad()
    assert kept[1] < kept[0] / 2
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-4, msg=key)
