"""ALBEF's objectives: each loss is that of a plain loop, negatives are another pair's, the momentum model is an average."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional

from labeler.batches import collate
from labeler.fitting.objectives import DISTILLED, IGNORED, MOMENTUM, AlignedObjectives, hard_negatives, right_for


@pytest.fixture
def aligned(build):
    """Return ALBEF's objectives around a small model, with a momentum model that differs from it."""
    built = build("albef")
    objectives = AlignedObjectives(built.model, built.tokenizer)
    with torch.no_grad():
        torch.nn.init.normal_(objectives.matching.weight, std=0.3)
        for parameter in objectives.momentum.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return objectives


def unlabelled(pairs, count: int) -> dict[str, torch.Tensor]:
    """Return a batch without labels."""
    return collate([pair._replace(label=None) for pair in pairs(count)], 0)


def test_a_hard_negative_is_another_column_drawn_by_likeness():
    torch.manual_seed(0)
    alike = torch.tensor([[9.0, 1.0, 0.0], [0.0, 9.0, 0.0], [-1.0, 2.0, 9.0]])
    drawn = torch.stack([hard_negatives(alike, torch.eye(3, dtype=torch.bool)) for _ in range(4000)])
    assert not (drawn == torch.arange(3)).any()
    for row, (near, far) in enumerate([(1, 2), (0, 2), (1, 0)]):
        expected = 1 / (1 + math.exp(alike[row, far] - alike[row, near]))
        assert (drawn[:, row] == near).float().mean() == pytest.approx(expected, abs=0.03)


def test_contrast_is_that_of_a_plain_loop(aligned):
    torch.manual_seed(1)
    sides = [functional.normalize(torch.randn(5, 7), dim=1) for _ in range(4)]
    (text, image), (their_text, their_image) = sides[:2], sides[2:]
    aligned.momentum.n_averaged.fill_(50)
    share, scale, terms = DISTILLED * 50 * (1 - MOMENTUM), aligned.scale().item(), []
    for own, keys, theirs in ((text, their_image, their_text), (image, their_text, their_image)):
        for row in range(5):
            log_p = (scale * keys @ own[row]).log_softmax(0)
            soft = (scale * keys @ theirs[row]).softmax(0)
            terms.append(-(1 - share) * log_p[row] - share * (soft * log_p).sum())
    found = aligned.contrast([text, image], [their_text, their_image], torch.eye(5))
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_frames_of_a_clip_are_no_negatives_of_one_another(pairs):
    batch = unlabelled(pairs, 6)
    batch["input_ids"][1], batch["text_mask"][1] = batch["input_ids"][0], batch["text_mask"][0]
    batch["visual_tokens"][2], batch["visual_mask"][2] = batch["visual_tokens"][0], batch["visual_mask"][0]
    right = right_for(batch["input_ids"], batch["visual_tokens"])
    expected = torch.eye(6)
    expected[0, :3] = expected[:3, 0] = 1
    torch.testing.assert_close(right, expected / expected.sum(1, keepdim=True))
    drawn = torch.stack([hard_negatives(torch.zeros(6, 6), right > 0) for _ in range(200)])
    assert not (drawn[:, 0] < 3).any()
    assert set(drawn[:, 1].tolist()) == {2, 3, 4, 5}


def test_weights_that_ran_away_give_a_loss_that_is_no_number(aligned, pairs):
    with torch.no_grad():
        aligned.parts.text_projection.weight.fill_(torch.nan)
    assert torch.isnan(aligned(**unlabelled(pairs, 6))["loss"])


def test_a_batch_of_one_text_has_no_negatives(aligned, pairs):
    batch = unlabelled(pairs, 4)
    batch = {name: value[:1].repeat(4, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    found = aligned(**batch)
    assert found["matching"].item() == 0
    assert torch.isfinite(found["loss"])


def test_matching_is_that_of_a_plain_loop(aligned, pairs, monkeypatch):
    batch = unlabelled(pairs, 9)
    aligned.eval()
    monkeypatch.setattr(
        "labeler.fitting.objectives.hard_negatives", lambda alike, same: (torch.arange(len(alike)) + 1) % len(alike)
    )
    model, both = aligned.parts.model, batch["text_mask"].any(1) & batch["visual_mask"].any(1)
    rows = both.nonzero().flatten().tolist()
    terms = []
    for place, row in enumerate(rows):
        other = rows[(place + 1) % len(rows)]
        for text, image, sign in ((row, row, 1), (row, other, -1), (other, row, -1)):
            one = [batch["input_ids"][[text]], batch["text_mask"][[text]], batch["visual_tokens"][[image]],
                   batch["visual_mask"][[image]]]  # fmt: skip
            mean = model.streams(*one).text[0][one[1][0]].mean(0)
            terms.append(-functional.logsigmoid(sign * aligned.matching(mean)).item())
    assert aligned(**batch)["matching"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_hidden_words_are_learned_from_the_words_and_from_the_momentum_model(aligned, pairs):
    batch = unlabelled(pairs, 30)
    aligned.eval()
    aligned.momentum.n_averaged.fill_(10_000)
    torch.manual_seed(3)
    found = aligned(**batch)["words"].item()
    torch.manual_seed(3)
    masked = aligned.parts.words.hide(batch["input_ids"], batch["text_mask"])
    hidden = masked.targets != IGNORED
    rest = batch["text_mask"], batch["visual_tokens"], batch["visual_mask"]
    logits, theirs = (part.guess(masked, *rest) for part in (aligned.parts, aligned.momentum.module))
    log_p, soft = logits.log_softmax(1), theirs.softmax(1)
    own = -log_p[torch.arange(len(logits)), masked.targets[hidden]]
    apart = (soft * (soft.log() - log_p)).sum(1)
    assert found == pytest.approx(((1 - DISTILLED) * own + DISTILLED * apart).mean().item(), rel=1e-4)


def test_the_momentum_model_is_a_moving_average_that_no_gradient_reaches(build, pairs):
    built = build("albef")
    objectives = AlignedObjectives(built.model, built.tokenizer).train()
    batch = unlabelled(pairs, 8)
    assert objectives.distilled == 0
    objectives.begin_step()
    expected = copy.deepcopy(objectives.momentum.module).state_dict()
    with torch.no_grad():
        for parameter in objectives.parts.parameters():
            parameter.add_(1.0)
    objectives.begin_step()
    objectives(**batch)["loss"].backward()
    for name, value in objectives.momentum.module.named_parameters():
        torch.testing.assert_close(value, expected[name] + (1 - MOMENTUM), atol=1e-5, rtol=0)
        assert value.grad is None
    assert not any(module.training for module in objectives.momentum.modules())
    assert objectives.distilled == pytest.approx(2 * DISTILLED * (1 - MOMENTUM))
    assert all(p.grad is not None for name, p in objectives.parts.named_parameters() if "head." not in name), (
        "all learn"
    )


def test_a_batch_with_one_pair_or_none_has_a_loss_and_a_slope(build, pairs):
    built = build("albef")
    objectives = AlignedObjectives(built.model, built.tokenizer)
    pictures = [pair._replace(input_ids=[], label=None) for pair in pairs(3)]
    for batch in (unlabelled(pairs, 1), collate(pictures, 0)):
        losses = objectives(**batch)
        assert losses["matching"].item() == 0
        losses["loss"].backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objectives.parameters())
