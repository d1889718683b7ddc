"""The settings of transformers' Trainer, and the precision that a device computes in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from labeler.fitting import workers
from labeler.training_options import TrainOptions


def training_arguments(
    folder: Path, options: TrainOptions, seed: int, device: torch.device, **others: Any
) -> TrainingArguments:
    """Return the Trainer's settings, with `others` in the place of ours."""
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": -(-options.batch_size // workers.count()),
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "warmup_steps": options.warmup,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "bf16": use_bf16(options.precision, device),
        "use_cpu": device.type == "cpu",
        "ddp_backend": torch.distributed.get_backend() if workers.count() > 1 else None,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": None,  # `checkpoints.prune` removes the old ones, once the new one is whole
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_metric",
        "greater_is_better": True,
        "logging_steps": 5,
        "logging_nan_inf_filter": False,  # on by default, and then a NaN loss is logged as 0
        "report_to": ["tensorboard"],
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type != "cpu",
        "disable_tqdm": True,
        "seed": seed,
    }
    arguments = TrainingArguments(**(ours | others))
    if device.type == "cuda" and workers.count() == 1:
        # the Trainer would take the first one, and as many more as there are
        arguments.__dict__["_setup_devices"] = one = torch.device("cuda", device.index or 0)
        arguments._n_gpu = 1
        torch.cuda.set_device(one)
    return arguments


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bf16: as asked, or with `auto` where the processor has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks: list[Callable[[], bool]] = [
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return sys.platform == "linux" and any(check() for check in checks)
