"""Training speed from stored visual tokens, against the tutorials' way and against the floor, all in one run.

    python -m benchmarks.training_speed STORE [STEPS] [ROUNDS]

The tutorials' way is the same model in float32 with every text padded to 512, all visual tokens in every step, and the image
tower run in it. Its pictures are noise, since what is in them takes no time, and its batches have 4 pairs, since 32 take 19
GB. The floor is the time of a step's matrix products at the speed that large ones reach here. Each way runs in a process of
its own, in turn, for some rounds; prints JSON: pairs/s and peak resident memory of each round, and ratios, the medians over
the rounds.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Way(NamedTuple):
    """A way to train: in bf16 or float32, to what length texts are padded (None: the batch's longest), pairs a batch."""

    bf16: bool
    padded: int | None
    batch_size: int


WAYS = {"ours": Way(True, None, 32), "tutorials": Way(False, 512, 4)}


def main(store: Path, steps: int, rounds: int) -> None:
    """Time both ways and print the figures with their ratios."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            count = steps if way.padded is None else max(2, steps // 20)
            command = [sys.executable, "-m", "benchmarks.training_speed", str(store), str(count), name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    pairs = zip(measured["ours"], measured["tutorials"], strict=True)
    print(json.dumps({
        "ways": measured,
        "times_the_tutorials": round(statistics.median(a["pairs_per_second"] / b["pairs_per_second"] for a, b in pairs), 1),
        "share_of_floor": round(statistics.median(a["share_of_floor"] for a in measured["ours"]), 3),
        "peak_memory_mb": max(a["peak_memory_mb"] for a in measured["ours"]),
    }, indent=2))  # fmt: skip


def measure(store: Path, steps: int, name: str) -> dict[str, Any]:
    """Return pairs/s over `steps` steps after one warm-up step, what share of the floor's that is, and the peak memory in MB."""
    import torch
    from torch.nn import functional
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from labeler.batches import collate
    from labeler.encoders.image import load_image_encoder
    from labeler.fitting.fit import Fit
    from labeler.fitting.trainer import collated, drawn_from, parameter_groups
    from labeler.memory import keep_freed_memory
    from labeler.training_options import options_for

    way = WAYS[name]
    keep_freed_memory()
    fit = Fit("visualbert", store, options_for("visualbert"), 0, "cpu")
    model = fit.model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, fit.options, set()), lr=5e-5, fused=way.bf16)
    generator = torch.Generator().manual_seed(0)
    order = list(LengthGroupedSampler(way.batch_size, lengths=fit.train_pairs.lengths, generator=generator))
    tower = None if way.padded is None else load_image_encoder("embedded")
    pairs: Any = fit.train_pairs if way.padded else [fit.train_pairs, *drawn_from(fit)][-1]

    def step(number: int) -> dict[str, Any]:
        chosen = order[number * way.batch_size : (number + 1) * way.batch_size]
        given = pairs.__getitems__(chosen)
        batch = collate(given, fit.tokenizer.pad_token_id) if way.padded else collated(fit, given)
        if tower is not None and way.padded:
            extra = way.padded - batch["input_ids"].shape[1]
            batch["input_ids"] = functional.pad(batch["input_ids"], (0, extra))
            batch["text_mask"] = functional.pad(batch["text_mask"], (0, extra))
            with torch.no_grad():
                pixels = torch.randint(256, (len(chosen), 3, tower.size, tower.size), dtype=torch.uint8)
                batch["visual_tokens"] = tower.backbone(tower.normalised(pixels)).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=way.bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return batch

    def tokens(batch: dict[str, Any]) -> int:
        return batch["text_mask"].numel() + batch["visual_mask"].numel()

    with FlopCounterMode(display=False) as counter:
        per_token = 1 / tokens(step(0))
    per_token *= counter.get_total_flops()
    peaks, worked, started = [matrix_speed(torch.bfloat16 if way.bf16 else torch.float32)], 0, time.perf_counter()
    steps = min(steps, len(order) // way.batch_size - 1)
    for number in range(1, steps + 1):
        worked += tokens(step(number))
    seconds = time.perf_counter() - started
    peaks.append(matrix_speed(torch.bfloat16 if way.bf16 else torch.float32))
    return {
        "pairs_per_second": round(steps * way.batch_size / seconds, 2),
        "share_of_floor": round(worked * per_token / 1e9 / statistics.mean(peaks) / seconds, 3),
        "pairs": steps * way.batch_size,
        "gflop_per_pair": round(worked * per_token / 1e9 / (steps * way.batch_size), 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "matrix_gflop_per_second": peaks,
    }


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
    if len(sys.argv) > 3 and sys.argv[3] in WAYS:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
    else:
        default = Path("checkpoints/bench/clipart-category/store")
        numbers = [int(word) for word in sys.argv[2:]]
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else default, *(numbers + [40, 3][len(numbers) :]))
