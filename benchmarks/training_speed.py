"""Training speed from stored visual tokens, against the tutorials' way and against the floor, all in one run.

    python -m benchmarks.training_speed STORE [STEPS] [ROUNDS]

The tutorials' way is the same model with the same weights as transformers computes it (its attention, its dropout, memory as
the C library handles it by itself), in float32 with every text padded to 512, all visual tokens in every step, and the image
tower run in it. `padded` is that with the model and the memory as `labeler train` has them. Their pictures are noise, since
what is in them takes no time, and their batches have 4 pairs, since 32 take up to 19 GB and are no faster. The floor is the
time of a step's matrix products at the speed that large ones reach here: of the products that there are, and of those that
there would be with all visual tokens. Each way runs in a process of its own, in turn, for some rounds; prints JSON: pairs/s
and peak resident memory of each round, and ratios, the medians over the rounds.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple


class Way(NamedTuple):
    """A way to train: in bf16 or float32, to what length texts are padded (None: the batch's longest), pairs a batch.

    transformers: whether its own VisualBERT computes.
    """

    bf16: bool
    padded: int | None
    batch_size: int
    transformers: bool = False


WAYS = {"ours": Way(True, None, 32), "padded": Way(False, 512, 4), "tutorials": Way(False, 512, 4, transformers=True)}


def main(store: Path, steps: int, rounds: int) -> None:
    """Time all ways and print the figures with their ratios."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            count = steps if way.padded is None else max(2, steps // 20)
            command = [sys.executable, "-m", "benchmarks.training_speed", str(store), str(count), name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    speeds = {name: [found["pairs_per_second"] for found in rounds] for name, rounds in measured.items()}
    print(json.dumps({
        "ways": measured,
        **{f"times_{name}": round(statistics.median(map(truediv, speeds["ours"], speeds[name])), 1) for name in list(WAYS)[1:]},
        "share_of_floor": round(statistics.median(a["share_of_floor"] for a in measured["ours"]), 3),
        "share_of_all_tokens_floor": round(statistics.median(a["share_of_all_tokens_floor"] for a in measured["ours"]), 3),
        "peak_memory_mb": max(a["peak_memory_mb"] for a in measured["ours"]),
    }, indent=2))  # fmt: skip


def measure(store: Path, steps: int, name: str) -> dict[str, Any]:
    """Return pairs/s over `steps` steps after one warm-up step, what shares of the floors' that is, and the peak memory in MB."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from labeler.fitting.fit import Fit
    from labeler.memory import keep_freed_memory
    from labeler.training_options import options_for

    way = WAYS[name]
    if not way.transformers:
        keep_freed_memory()
    fit = Fit("visualbert", store, options_for("visualbert"), 0, "cpu")
    step, count = stepping(fit, way)
    whole = fit.store.towers["image"]["tokens"]

    def tokens(batch: dict[str, Any]) -> Any:
        read = batch["visual_mask"].numel()
        return batch["text_mask"].numel() + np.array([read, len(batch["visual_mask"]) * whole])

    with FlopCounterMode(display=False) as counter:
        per_token = 1 / tokens(step(0))[0]
    per_token *= counter.get_total_flops() / 1e9
    dtype = torch.bfloat16 if way.bf16 else torch.float32
    peaks, worked, started = [matrix_speed(dtype)], np.zeros(2), time.perf_counter()
    steps = min(steps, count - 1)
    for number in range(1, steps + 1):
        worked += tokens(step(number))
    seconds, pairs = time.perf_counter() - started, steps * way.batch_size
    peaks.append(matrix_speed(dtype))
    shares = worked * per_token / statistics.mean(peaks) / seconds
    return {
        "pairs_per_second": round(pairs / seconds, 2),
        "share_of_floor": round(shares[0], 3),
        "share_of_all_tokens_floor": round(shares[1], 3),
        "pairs": pairs,
        "gflop_per_pair": round(worked[0] * per_token / pairs, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "matrix_gflop_per_second": peaks,
    }


def stepping(fit: Any, way: Way) -> tuple[Callable[[int], dict[str, Any]], int]:
    """Return a function that takes the step of a number and returns its batch, and how many whole batches there are."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from labeler.batches import collate
    from labeler.encoders.image import load_image_encoder
    from labeler.fitting.trainer import collated, drawn_from, parameter_groups

    model = fit.model.train()
    if way.transformers:
        compute_as_transformers(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, fit.options, set()), lr=5e-5, fused=way.bf16)
    generator = torch.Generator().manual_seed(0)
    order = list(LengthGroupedSampler(way.batch_size, lengths=fit.train_pairs.lengths, generator=generator))
    tower = None if way.padded is None else load_image_encoder("embedded")
    pairs: Any = fit.train_pairs if way.padded else [fit.train_pairs, *drawn_from(fit)][-1]

    def step(number: int) -> dict[str, Any]:
        chosen = order[number * way.batch_size : (number + 1) * way.batch_size]
        given = pairs.__getitems__(chosen)
        batch = collate(given, fit.tokenizer.pad_token_id, way.padded) if way.padded else collated(fit, given)
        if tower is not None:
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

    return step, len(order) // way.batch_size


def compute_as_transformers(model: Any) -> None:
    """Let transformers' own modules, with the same weights and masks, encode what `model` is given: its logits stay the same."""
    from transformers import VisualBertConfig, VisualBertModel

    from labeler.layers import Streams, attention_bias

    dropout = {"attention_probs_dropout_prob": model.config.hidden_dropout_prob}  # as BERT has it, and we do not
    plain = VisualBertModel(VisualBertConfig(**model.config.to_dict() | dropout), add_pooling_layer=False)
    plain.load_state_dict(model.fused.state_dict())

    def streams(input_ids: Any, text_mask: Any, visual_tokens: Any, visual_mask: Any) -> Streams:
        embedded = plain.embeddings(input_ids, visual_embeds=visual_tokens, visual_token_type_ids=visual_mask.long())
        hidden = plain.encoder(embedded, attention_bias(text_mask, visual_mask)).last_hidden_state
        return Streams(*hidden.split([input_ids.shape[1], visual_tokens.shape[1]], dim=1))

    model.fused, model.streams = plain, streams


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
