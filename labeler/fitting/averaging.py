"""Averaged weights: an exponential moving average of a model's weights, beside the model that is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

FILE = "averaged.safetensors"


class AveragedWeights:
    """The average of the weights after each step, later ones counting more: decay * average + (1 - decay) * weights.

    It begins as the weights after the first step. About 1 / (1 - decay) steps are in it. Polyak and Juditsky 1992;
    Tarvainen and Valpola 2017, "Mean teachers are better role models", equation 1.
    """

    def __init__(self, model: PreTrainedModel, decay: float, checkpoint: Path | None = None):
        """Begin with a copy of `model`, or go on from the `checkpoint` folder's."""
        self.module = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        if checkpoint:
            self.load(checkpoint)

    @property
    def model(self) -> PreTrainedModel:
        """Return the model with the averaged weights."""
        return cast(PreTrainedModel, self.module.module)

    @torch.no_grad()
    def update(self, model: PreTrainedModel) -> None:
        """Take in the weights of `model` after a step."""
        self.module.update_parameters(model)

    def save(self, folder: Path) -> None:
        """Write the average and its number of steps into the checkpoint `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.module.state_dict().items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote into `folder`."""
        self.module.load_state_dict(load_file(folder / FILE))
