"""Losses for labels: cross-entropy and focal loss, with weights of classes, smoothed labels and logit adjustment.

And the loss for what teachers say of a row. Each has one form for `single` (softmax, labels [B] int64) and one for
`multi` (sigmoid, labels [B, L] float). They act in training alone: validation is always measured by the plain loss, so that
the curves of two runs can be compared. The last one needs no labels: which text belongs to which picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labeler.records import Task

if TYPE_CHECKING:
    from labeler.training_options import TrainOptions


def labelling_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of logits [B, L]: softmax for labels [B] int64, sigmoid for labels [B, L] float."""
    if labels.dim() == 1:
        return functional.cross_entropy(logits.float(), labels)
    return functional.binary_cross_entropy_with_logits(logits.float(), labels)


class TrainingLoss:
    """The loss that the options ask for, over the labels of the training rows."""

    def __init__(self, options: TrainOptions, task: Task, truth: np.ndarray):
        """Count the labels of the training rows, truth [N, L] bool."""
        self.task = task
        self.smoothing = options.label_smoothing
        self.gamma = options.focal_gamma if options.loss == "focal" else 0.0
        balanced = options.class_weights == "balanced"
        weights = balanced_weights(task, truth) if balanced else np.ones(truth.shape[1])
        self.weights = torch.from_numpy(weights).float()  # [L]; for multi, of the rows that carry the label
        self.adjustment = torch.from_numpy(options.logit_adjustment * log_prior(task, truth)).float()  # [L]
        self.teacher_weight, self.temperature = options.teacher_weight, options.teacher_temperature

    def __call__(self, logits: Tensor, labels: Tensor, soft_targets: Tensor | None = None) -> Tensor:
        """Return the mean loss of logits [B, L] for labels [B] int64 (single) or [B, L] float (multi).

        With soft_targets [B, L], what teachers say at the temperature, `teacher_weight` of it is the `distillation_loss`.
        That reads the logits as they are, without adjustment: as the teachers' are, and as they are when a label is chosen.
        A row that nobody has labelled (-1 or NaN) has that part alone, one of which the teachers say nothing (NaN) the other
        whole; the batch's loss is the mean of its rows'.
        """
        if soft_targets is None:
            return self.of_labels(logits, labels)
        known, taught = is_labelled(labels), ~soft_targets.isnan().any(dim=1)
        parts = [
            (known & ~taught, 1.0, self.of_labels, labels),
            (known & taught, 1 - self.teacher_weight, self.of_labels, labels),
            (taught, self.teacher_weight, self.of_teachers, soft_targets),
        ]
        shares = [weight * rows.sum() / len(rows) * loss(logits[rows], targets[rows])
                  for rows, weight, loss, targets in parts if rows.any()]  # fmt: skip
        return torch.stack(shares).sum() if shares else logits.sum() * 0

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits [B, L] for labels, as the options ask for it."""
        weights, adjustment = self.weights.to(logits.device), self.adjustment.to(logits.device)
        loss = softmax_loss if self.task == "single" else sigmoid_loss
        return loss(logits.float() + adjustment, labels, weights, self.smoothing, self.gamma)

    def of_teachers(self, logits: Tensor, soft_targets: Tensor) -> Tensor:
        """Return the mean `distillation_loss` of logits [B, L]."""
        return distillation_loss(self.task, logits, soft_targets, self.temperature)

    def mass(self, labels: Tensor) -> float:
        """Return what the summed losses of rows with these labels are divided by, but for a constant: their weights' sum."""
        return len(labels) if self.task == "multi" else float(self.weights[labels.cpu()].sum())

    def shift(self) -> Tensor:
        """Return what brings logits [B, L] that minimise the plain loss to the minimum of this one.

        log w - tau log(prior): with weights w the best p(y) is in proportion to w p(y), and the adjustment is taken off
        again. Focal loss and smoothing have no such constant.
        """
        return self.weights.log() - self.adjustment


def is_labelled(labels: Tensor) -> Tensor:
    """Return [B] bool: which of labels [B] int64 or [B, L] float are no stand-in for one that nobody has given."""
    return labels >= 0 if labels.dim() == 1 else ~labels.isnan().any(dim=1)


def distillation_loss(task: Task, logits: Tensor, soft_targets: Tensor, temperature: float) -> Tensor:
    """Return how far the student's probabilities are from the teachers', both at temperature T, times T^2; mean over the rows.

    logits [B, L] are divided by T here; soft_targets [B, L] are probabilities at T. Single: the Kullback-Leibler divergence
    KL(teachers || student); multi: binary cross-entropy, the mean over the labels too. T^2 keeps the gradients at the size
    that they have without it. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    softened = logits.float() / temperature
    if task == "single":
        loss = functional.kl_div(softened.log_softmax(dim=1), soft_targets, reduction="batchmean")
    else:
        loss = functional.binary_cross_entropy_with_logits(softened, soft_targets)
    return temperature**2 * loss


def balanced_weights(task: Task, truth: np.ndarray) -> np.ndarray:
    """Return a weight for each label of truth [N, L]: every label counts alike (single), or its two sides do (multi).

    Single: N / (K n) for a label with n rows, where K labels have any (scikit-learn's `balanced`); multi: rows without the
    label to rows with it, torch's `pos_weight`. A label that no row carries, or of many labels every row, has weight 1.
    """
    counts, rows = truth.sum(axis=0), len(truth)
    above = rows - counts if task == "multi" else np.full(len(counts), rows / max((counts > 0).sum(), 1))
    return np.where((counts > 0) & (above > 0), above / np.maximum(counts, 1), 1.0)


def log_prior(task: Task, truth: np.ndarray) -> np.ndarray:
    """Return for each label of truth [N, L] the log of its share (single) or of its odds (multi); 0 rows count as one."""
    counts, rows = np.maximum(truth.sum(axis=0), 1), len(truth)
    return np.log(counts / (rows if task == "single" else np.maximum(rows - counts, 1)))


def softmax_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Return -sum_y w_y q_y (1 - p_y)^gamma log p_y, summed over the rows, by the sum of the rows' own weights.

    q is 1 for the label, mixed with the uniform distribution by `smoothing`. For gamma 0 this is torch's cross_entropy
    with `weight` and `label_smoothing`; gamma as in Lin et al. 2017, "Focal Loss", equation 4.
    """
    if gamma == 0:
        return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    log_p = logits.log_softmax(dim=1)  # [B, L]
    target = functional.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    easy = (1 - log_p.exp()).clamp(min=1e-7)  # the slope of a root of 0 is infinite
    terms = weights * target * easy**gamma * -log_p
    return terms.sum() / weights[labels].sum()


def sigmoid_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Return the mean over rows and labels of -w q (1 - p)^gamma log p - (1 - q) p^gamma log(1 - p).

    q is the label, drawn toward 1/2 by `smoothing`. Lin et al. 2017, "Focal Loss", for gamma above 0.
    """
    target = labels * (1 - smoothing) + smoothing / 2
    if gamma == 0:
        return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    present, missing = functional.softplus(-logits), functional.softplus(logits)  # -log p, -log(1 - p)
    terms = weights * target * (-gamma * missing).exp() * present + (1 - target) * (-gamma * present).exp() * missing
    return terms.mean()


def contrastive_loss(
    text_to_image: Tensor,
    image_to_text: Tensor,
    text_targets: Tensor | None = None,
    image_targets: Tensor | None = None,
) -> Tensor:
    """Return how well each text finds its picture and each picture its text: the mean of both cross-entropies, in nats.

    text_to_image [B, M] are the logits of B texts for M pictures (similarity times the logit scale), image_to_text [B, M]
    those of B pictures for M texts; M is B, or more where a queue stands behind the batch. Targets [B, M] are shares, each row
    adding up to 1 (several right ones, or what a momentum model says: Li et al. 2021, "Align before Fuse", equation 6); without
    them, row b belongs to column b. Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision", figure 3.
    """
    own = torch.arange(len(text_to_image), device=text_to_image.device)
    return (
        functional.cross_entropy(text_to_image.float(), own if text_targets is None else text_targets)
        + functional.cross_entropy(image_to_text.float(), own if image_targets is None else image_targets)
    ) / 2


def shared_targets(text_keys: Tensor, image_keys: Tensor) -> Tensor:
    """Return targets [B, B] for `contrastive_loss`: each row's 1 in equal shares over all that are right.

    Pairs with the same text or the same picture (equal numbers in text_keys [B], or in image_keys [B]) are right for one another:
    as negatives they would be false ones. The targets are the same in both directions. Yang et al. 2022, "Unified Contrastive
    Learning in Image-Text-Label Space", equation 3.
    """
    same = (text_keys[:, None] == text_keys) | (image_keys[:, None] == image_keys)  # [B, B]
    return same / same.sum(dim=1, keepdim=True)
