"""Losses for labels: cross-entropy and focal loss, with weights of classes, smoothed labels and logit adjustment.

And the loss for what teachers say of a row. Each has one form for `single` (softmax, labels [B] int64) and one for
`multi` (sigmoid, labels [B, L] float). They act in training alone: validation is always measured by the plain loss, so that
the curves of two runs can be compared.
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
        """
        weights, adjustment = self.weights.to(logits.device), self.adjustment.to(logits.device)
        loss = softmax_loss if self.task == "single" else sigmoid_loss
        of_labels = loss(logits.float() + adjustment, labels, weights, self.smoothing, self.gamma)
        if soft_targets is None:
            return of_labels
        of_teachers = distillation_loss(self.task, logits, soft_targets, self.temperature)
        return (1 - self.teacher_weight) * of_labels + self.teacher_weight * of_teachers

    def mass(self, labels: Tensor) -> float:
        """Return what the summed losses of rows with these labels are divided by, but for a constant: their weights' sum."""
        return float(self.weights[labels.cpu()].sum()) if self.task == "single" else len(labels)

    def shift(self) -> Tensor:
        """Return what brings logits [B, L] that minimise the plain loss to the minimum of this one.

        log w - tau log(prior): with weights w the best p(y) is in proportion to w p(y), and the adjustment is taken off
        again. Focal loss and smoothing have no such constant.
        """
        return self.weights.log() - self.adjustment


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
