"""The engine of an exported model: two ONNX graphs and a tokenizer, run by numpy and a runtime, without torch.

    pixels         [B, S, S, 3]  uint8    -> tower.onnx -> visual_tokens [B, V, D] float32

    input_ids      [B, T]        int64    -+
    text_mask      [B, T]        bool      +-> fusion.onnx -> logits [B, L] float32
    visual_tokens  [B, V, D]     float32   |
    visual_mask    [B, V]        bool     -+

Masks are as in `labeler.batches`. A batch holds items of one length, rounded up, that all have a picture or all have none: so
the shape that an item is computed in is its own, and does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import read_json
from labeler.decisions import Rule, read_rule
from labeler.engines import Reader
from labeler.items import Item

TOWER, FUSION, TOKENIZER, PREPROCESSOR = "tower.onnx", "fusion.onnx", "tokenizer.json", "preprocessor.json"
INPUTS = ("input_ids", "text_mask", "visual_tokens", "visual_mask")
BATCH = 8  # more at a time leave the processor's caches and are slower (docs/LOG.md)
STEP = 8  # lengths are rounded up to multiples of it

Graph = Callable[[dict[str, np.ndarray]], np.ndarray]


class Shape(NamedTuple):
    """What an item is computed in: its text's length, rounded up, and whether it has a picture."""

    length: int
    has_image: bool


class Exported(Reader):
    """An exported model in a runtime. See `labeler.engines.Engine`."""

    def __init__(self, folder: Path, open_graph: Callable[[Path], Graph]):
        """Open the export in `folder`, whose files have been checked."""
        self.folder = folder
        self.preprocessor: dict[str, Any] = read_json(folder / PREPROCESSOR)
        self.tower, self.fusion = open_graph(folder / TOWER), open_graph(folder / FUSION)

    @cached_property
    def rule(self) -> Rule:
        """Return what makes labels of its logits."""
        return read_rule(self.folder)

    @property
    def size(self) -> int:
        """Return what the image tower takes."""
        size: int = self.preprocessor["image"]["size"]
        return size

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer, which cuts texts where the run's did."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.preprocessor["max_text_tokens"])
        return tokenizer

    def logits(self, items: Sequence[Item], batch_size: int) -> np.ndarray:
        """Return logits [N, L] float32 of `items`; at most BATCH of them are worked at a time."""
        ids, most = self.tokenize([item.record.text for item in items]), self.preprocessor["max_text_tokens"]
        self.note_unknown(ids, self.preprocessor["unk_token_id"])
        shapes = [
            Shape(min(most, -(-max(1, len(row)) // STEP) * STEP), item.pixels is not None)
            for row, item in zip(ids, items, strict=True)
        ]
        found = np.zeros((len(items), len(self.rule.label_set.names)), dtype=np.float32)
        for shape, group in groupby(sorted(range(len(items)), key=lambda row: (shapes[row], row)), shapes.__getitem__):
            rows, size = list(group), min(BATCH, batch_size)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                found[batch] = self.score([ids[row] for row in batch], [items[row].pixels for row in batch], shape)
        return found

    def tokenize(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Return each text's token ids, as `labeler.batches.tokenize` does."""
        encoded = self.tokenizer.encode_batch([text or "" for text in texts])
        unknown = self.preprocessor["unk_token_id"]
        return [(found.ids or [unknown]) if text else [] for text, found in zip(texts, encoded, strict=True)]

    def score(self, ids: list[list[int]], pixels: list[np.ndarray | None], shape: Shape) -> np.ndarray:
        """Return logits [B, L] for one batch of the same shape."""
        input_ids = np.full((len(ids), shape.length), self.preprocessor["pad_token_id"], dtype=np.int64)
        text_mask = np.zeros(input_ids.shape, dtype=bool)
        for row, found in enumerate(ids):
            input_ids[row, : len(found)], text_mask[row, : len(found)] = found, True
        if shape.has_image:
            visual_tokens = self.tower({"pixels": np.stack([picture for picture in pixels if picture is not None])})
        else:  # one token keeps the shape
            visual_tokens = np.zeros((len(ids), 1, self.preprocessor["image"]["width"]), dtype=np.float32)
        visual_mask = np.full(visual_tokens.shape[:2], shape.has_image)
        return self.fusion(dict(zip(INPUTS, (input_ids, text_mask, visual_tokens, visual_mask), strict=True)))
