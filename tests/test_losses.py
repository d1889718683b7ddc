"""Losses: torch's own, loops and the papers' formulas as references; the defaults are the plain loss, bit for bit."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from labeler.fitting.trainer import LabelTrainer
from labeler.losses import (
    TrainingLoss,
    balanced_weights,
    contrastive_loss,
    distillation_loss,
    labelling_loss,
    log_prior,
    shared_targets,
)
from labeler.training_options import TrainOptions

NUMBERS = torch.tensor([0, 2, 1, 1, 0, 0, 0])
MARKS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
TRUTH = {"single": np.eye(3, dtype=bool)[NUMBERS.numpy()], "multi": MARKS.numpy().astype(bool)}


@pytest.fixture
def single() -> torch.Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def multi() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 3


def make(task: str, **given) -> TrainingLoss:
    return TrainingLoss(TrainOptions(**given), task, TRUTH[task])


def test_labelling_loss(single, multi):
    by_hand = -single.log_softmax(1)[range(7), NUMBERS].mean()
    torch.testing.assert_close(labelling_loss(single, NUMBERS), by_hand)
    by_hand = -(MARKS * multi.sigmoid().log() + (1 - MARKS) * (-multi).sigmoid().log()).mean()
    torch.testing.assert_close(labelling_loss(multi, MARKS), by_hand)


def test_the_defaults_are_the_plain_loss(single, multi):
    assert TrainOptions().plain_loss
    assert torch.equal(make("single")(single, NUMBERS), labelling_loss(single, NUMBERS))
    assert torch.equal(make("multi")(multi, MARKS), labelling_loss(multi, MARKS))


def test_class_weights_and_smoothing_are_torchs(single, multi):
    options = {"class_weights": "balanced", "label_smoothing": 0.1}
    weights = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=NUMBERS.numpy())).float()
    expected = functional.cross_entropy(single, NUMBERS, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(make("single", **options)(single, NUMBERS), expected)
    pos_weight = torch.tensor([2 / 3, 3 / 2, 3 / 2])
    expected = functional.binary_cross_entropy_with_logits(multi, MARKS * 0.9 + 0.05, pos_weight=pos_weight)
    torch.testing.assert_close(make("multi", **options)(multi, MARKS), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_by_a_loop(single, multi, smoothing):
    options = {"loss": "focal", "focal_gamma": 1.5, "class_weights": "balanced", "label_smoothing": smoothing}
    loss = make("single", **options)
    total = 0.0
    for row, label in zip(single.softmax(1).tolist(), NUMBERS.tolist(), strict=True):
        for number, p in enumerate(row):
            share = (number == label) * (1 - smoothing) + smoothing / 3
            total -= loss.weights[number].item() * share * (1 - p) ** 1.5 * np.log(p)
    assert loss(single, NUMBERS).item() == pytest.approx(total / loss.weights[NUMBERS].sum().item(), rel=1e-5)
    loss, total = make("multi", **options), 0.0
    for row, marks in zip(multi.sigmoid().tolist(), MARKS.tolist(), strict=True):
        for number, (p, mark) in enumerate(zip(row, marks, strict=True)):
            share = mark * (1 - smoothing) + smoothing / 2
            total -= loss.weights[number].item() * share * (1 - p) ** 1.5 * np.log(p)
            total -= (1 - share) * p**1.5 * np.log(1 - p)
    assert loss(multi, MARKS).item() == pytest.approx(total / MARKS.numel(), rel=1e-5)


def test_focal_loss_without_gamma_is_cross_entropy(single, multi):
    torch.testing.assert_close(
        make("single", loss="focal", focal_gamma=1e-9)(single, NUMBERS), labelling_loss(single, NUMBERS)
    )
    torch.testing.assert_close(
        make("multi", loss="focal", focal_gamma=1e-9)(multi, MARKS), labelling_loss(multi, MARKS)
    )


def test_logit_adjustment_is_the_papers(single, multi):
    priors = torch.tensor([4, 2, 1]) / 7
    # Menon et al. 2021, equation 10: log(1 + sum over the others of (pi_other / pi_y)^tau exp(f_other - f_y))
    rows = [
        torch.log(sum((priors[other] / priors[y]) ** 0.8 * (f[other] - f[y]).exp() for other in range(3)))
        for f, y in zip(single, NUMBERS.tolist(), strict=True)
    ]
    torch.testing.assert_close(make("single", logit_adjustment=0.8)(single, NUMBERS), torch.stack(rows).mean())
    # a label of many is a problem of two classes, with logits f and 0
    share = MARKS.mean(0)
    two = torch.stack([0.8 * (1 - share).log().expand(5, 3), multi + 0.8 * share.log()], dim=1)  # [B, 2, L]
    expected = functional.cross_entropy(two, MARKS.long())
    torch.testing.assert_close(make("multi", logit_adjustment=0.8)(multi, MARKS), expected)


@pytest.mark.parametrize("options", [{"class_weights": "balanced"}, {"logit_adjustment": 1.0},
                                     {"class_weights": "balanced", "logit_adjustment": 0.5}])  # fmt: skip
@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_shift_leads_from_the_plain_minimum_to_the_losss_own(task, options):
    loss, labels = make(task, **options), NUMBERS if task == "single" else MARKS
    plain = torch.from_numpy(log_prior(task, TRUTH[task])).float()  # what says nothing but the shares
    logits = (plain + loss.shift()).requires_grad_()
    loss(logits.expand(len(labels), 3), labels).backward()
    assert logits.grad.abs().max() < 1e-6
    assert loss.shift().abs().max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_by_a_loop(single, multi, temperature):
    teachers = {
        task: torch.randn(rows, 3, generator=torch.Generator().manual_seed(2))
        for task, rows in (("single", 7), ("multi", 5))
    }
    soft, total = (teachers["single"] / temperature).softmax(1), 0.0
    soft[0] = torch.tensor([0.0, 1, 0])  # 0 log 0 is 0
    for row, targets in zip(single.tolist(), soft.tolist(), strict=True):
        share = sum(np.exp(logit / temperature) for logit in row)
        for logit, target in zip(row, targets, strict=True):
            total += target * (np.log(target) - np.log(np.exp(logit / temperature) / share)) if target else 0.0
    expected = temperature**2 * total / 7
    assert distillation_loss("single", single, soft, temperature).item() == pytest.approx(expected, rel=1e-5)
    soft, total = (teachers["multi"] / temperature).sigmoid(), 0.0
    for row, targets in zip(multi.tolist(), soft.tolist(), strict=True):
        for logit, target in zip(row, targets, strict=True):
            p = 1 / (1 + np.exp(-logit / temperature))
            total -= target * np.log(p) + (1 - target) * np.log(1 - p)
    expected = temperature**2 * total / 15
    assert distillation_loss("multi", multi, soft, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_teachers_have_their_share_beside_any_loss_of_labels(single, multi, task):
    logits, labels = (single, NUMBERS) if task == "single" else (multi, MARKS)
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3))
    soft = soft / soft.sum(1, keepdim=True)
    chosen = {"loss": "focal", "class_weights": "balanced", "logit_adjustment": 1.0}
    loss = make(task, teacher_weight=0.3, teacher_temperature=4.0, **chosen)
    expected = 0.7 * make(task, **chosen)(logits, labels) + 0.3 * distillation_loss(task, logits, soft, 4.0)
    torch.testing.assert_close(loss(logits, labels, soft), expected)
    assert torch.equal(loss(logits, labels), make(task, **chosen)(logits, labels))


@pytest.mark.parametrize("task", ["single", "multi"])
def test_labels_that_no_row_or_every_row_carries_stay_finite(task):
    truth = np.zeros((4, 3), dtype=bool)
    truth[:, 0] = True
    assert balanced_weights(task, truth).tolist() == [1, 1, 1]
    labels = torch.zeros(4, dtype=torch.long) if task == "single" else torch.from_numpy(truth).float()
    options = TrainOptions(
        loss="focal", focal_gamma=0.5, class_weights="balanced", logit_adjustment=1.0, label_smoothing=0.1
    )
    loss = TrainingLoss(options, task, truth)
    logits = torch.tensor([[200.0, -200.0, 0.0]] * 4).requires_grad_()
    loss(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(loss.shift()).all()


def test_contrastive_loss_is_transformers_and_a_plain_loops():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(4)) * 3
    loss = contrastive_loss(logits, logits.T)
    torch.testing.assert_close(loss, image_text_contrastive_loss(logits))
    total = 0.0
    for row in range(6):
        total -= logits[row, row] - logits[row].exp().sum().log()  # the text among the pictures
        total -= logits[row, row] - logits[:, row].exp().sum().log()  # the picture among the texts
    torch.testing.assert_close(loss, total / 12)


def test_contrastive_loss_with_soft_targets_and_a_queue_by_a_loop():
    draw = torch.Generator().manual_seed(5)
    logits = [torch.randn(4, 7, generator=draw) for _ in range(2)]
    targets = [torch.randn(4, 7, generator=draw).softmax(1) for _ in range(2)]
    total = 0.0
    for values, shares in zip(logits, targets, strict=True):
        for row in range(4):
            for column in range(7):
                total -= shares[row, column] * (values[row, column] - values[row].exp().sum().log()) / 4
    torch.testing.assert_close(contrastive_loss(*logits, *targets), total / 2)
    own = torch.eye(4, 7)
    torch.testing.assert_close(contrastive_loss(*logits, own, own), contrastive_loss(*logits))


def test_the_same_text_and_the_same_picture_share_the_target():
    targets = shared_targets(torch.tensor([1, 2, 1, 3]), torch.tensor([7, 8, 9, 8]))
    expected = [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    assert targets.tolist() == expected
    assert torch.equal(shared_targets(torch.arange(3), torch.arange(3)), torch.eye(3))


@pytest.mark.parametrize("taught", [False, True])
def test_the_parts_of_a_batch_count_for_it_all(taught):
    """With teachers some rows have no label, and class weights would count these and the others by two measures."""
    truth = np.zeros((12, 3), bool)
    truth[np.arange(12), [0] * 8 + [1] * 3 + [2]] = True
    loss = TrainingLoss(TrainOptions(class_weights="balanced"), "single", truth)
    labels = torch.tensor([0, 0, 1, 2, 0, -1, 1, -1] if taught else [0, 0, 1, 2, 0, 0, 1, 0])
    trainer = SimpleNamespace(fit=SimpleNamespace(loss=loss, teachers=("run",) * taught))
    trainer.mass = partial(LabelTrainer.mass, trainer)
    shares = [LabelTrainer.share_of(trainer, {"labels": part}, {"labels": labels}) for part in labels.split(3)]
    assert sum(shares) == pytest.approx(1)
    assert len(set(shares[:2])) == 2 - taught
