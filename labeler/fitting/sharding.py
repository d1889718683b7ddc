"""Training a model that is divided among workers: each keeps a part of the weights, of their gradients and of AdamW's state.

A layer's weights are gathered from all workers when it is worked out, and let go after it; what a worker holds at once is its
part, a layer, what is in no layer (embeddings, head) and the activations. Checkpoints are whole and plain, those that one
worker would write: a training can go on with another number of workers, divided or not.

FSDP: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"; here its second version, in which
every parameter is divided along its first dimension. The idea: Rajbhandari et al. 2020, "ZeRO", stage 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from labeler.encoders.pretrained import load_model
from labeler.fitting import workers
from labeler.fitting.trainer import LabelTrainer
from labeler.layers import transformer_layers
from labeler.models import model_module


class ShardedTrainer(LabelTrainer):
    """Trains a model that is divided among workers; what it writes is whole."""

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> Any:
        shard(self.fit.model, self.fit.device)
        self.is_distributed_loading_by_transformers = True  # accelerate leaves it as it is; it would want DDP
        return super()._prepare_for_training(*arguments, **options)

    def validate(self) -> tuple[float, float]:
        """Return the validation loss and metric, worked out by all workers: each layer takes all of them."""
        result: tuple[float, float] = workers.from_first(self.fit.validate())
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Let the first worker write the whole weights."""
        state = whole(self.fit.model.state_dict())
        if workers.is_first():
            self._save(output_dir, state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = cast(Any, self.optimizer).state_dict()
        state["state"] = {number: whole(values) for number, values in state["state"].items()}
        if workers.is_first():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint:
            how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
            optimizer = cast(torch.optim.Optimizer, self.optimizer)
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, mmap=True, **how)
            optimizer.load_state_dict(divided(state, optimizer))
            cast(Any, self.lr_scheduler).load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, **how))

    def _load_best_model(self) -> None:
        best = self.best_checkpoint()
        cast(Any, self.optimizer).state.clear()  # room for the whole model
        if workers.is_first():
            model = load_model(model_module(self.fit.name).Model, best, self.fit.name, "train")
            self.fit.model = model.to(self.fit.device)


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide the first worker's `model` among all: a transformer layer is gathered at a time, and what is in none at once."""
    for tensor in model.state_dict().values():
        torch.distributed.broadcast(tensor, src=0)
    mesh = init_device_mesh(device.type, (workers.count(),))
    for layer in transformer_layers(model):
        fully_shard(layer, mesh=mesh)
    numbers = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # cannot be divided
    fully_shard(model, mesh=mesh, ignored_params=numbers)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors put together from all workers' parts, in the first one's memory; all must call it, the others get none."""
    result = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if workers.is_first():
            result[name] = full.cpu()
    return result


def divided(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict with this worker's part of each tensor that is as large as its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(value: Tensor, parameter: Any) -> Tensor:
        if value.shape != parameter.shape or not isinstance(parameter, DTensor):
            return value
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    moments = {
        number: {name: part(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": moments}
