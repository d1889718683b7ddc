"""Training speed from stored visual tokens, against padding every text to 512 in float32 without length buckets.

    python -m benchmarks.training_speed STORE [STEPS]

Each way runs in a process of its own, one after the other; prints pairs/s and peak resident memory as JSON, and beside them what
the machine's matrix products reached just before: on a shared machine that differs from hour to hour by half. The second way is
what the tutorials do, except that it too reads the visual tokens from the store.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
WAYS = {"bf16, length buckets": (True, None), "fp32, padded to 512": (False, 512)}


def main(store: Path, steps: int) -> None:
    """Time both ways and print the figures with their ratio."""
    results = {}
    for way, (_, padded) in WAYS.items():
        count = steps if padded is None else max(2, steps // 20)
        command = [sys.executable, "-m", "benchmarks.training_speed", str(store), str(count), way]
        results[way] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    fast, slow = (results[way]["pairs_per_second"] for way in WAYS)
    print(json.dumps({"ways": results, "ratio": round(fast / slow, 1)}, indent=2))


def measure(store: Path, steps: int, way: str) -> dict[str, Any]:
    """Return pairs/s over `steps` steps after one warm-up step, and the peak resident memory in MB."""
    import torch
    from torch.nn import functional
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from labeler.batches import collate
    from labeler.fitting import Fit
    from labeler.trainer import keep_freed_memory, parameter_groups
    from labeler.training_options import options_for

    bf16, padded = WAYS[way]
    keep_freed_memory()
    fit = Fit("visualbert", store, options_for("visualbert"), 0, "cpu")
    model = fit.model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, fit.options, set()), lr=5e-5, fused=bf16)
    order = list(LengthGroupedSampler(BATCH_SIZE, lengths=fit.train_pairs.lengths))
    if padded:
        order = torch.randperm(len(fit.train_pairs)).tolist()
    peak = matrix_speed(torch.bfloat16 if bf16 else torch.float32)
    started, pairs = 0.0, 0
    for step in range(-1, min(steps, len(order) // BATCH_SIZE - 1)):
        if step == 0:
            started = time.perf_counter()
        chosen = order[(step + 1) * BATCH_SIZE : (step + 2) * BATCH_SIZE]
        batch = collate(fit.train_pairs.__getitems__(chosen), fit.tokenizer.pad_token_id)
        if padded:
            extra = padded - batch["input_ids"].shape[1]
            batch["input_ids"] = functional.pad(batch["input_ids"], (0, extra))
            batch["text_mask"] = functional.pad(batch["text_mask"], (0, extra))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pairs += len(chosen) if step >= 0 else 0
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "pairs_per_second": round(pairs / seconds, 2), "pairs": pairs, "peak_memory_mb": memory, "matrix_gflop_per_second": peak,
    }  # fmt: skip


def matrix_speed(dtype: Any, side: int = 2048, times: int = 15) -> int:
    """Return the GFLOP/s of a product of two matrices of `side` x `side`, the median of several."""
    import torch

    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return round(2 * side**3 / statistics.median(seconds) / 1e9)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
    else:
        default = Path("checkpoints/bench/clipart-category/store")
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else default, int(sys.argv[2]) if len(sys.argv) > 2 else 40)
