"""The engine of a run as it was trained: PyTorch, through the one inference path."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from labeler.batches import Pair, tokenize
from labeler.decisions import Rule, rule_of
from labeler.encoders.image import ImageEncoder, recorded_image_encoder
from labeler.end_to_end import EndToEnd
from labeler.engines import Reader
from labeler.inference import PairList, logits
from labeler.items import Item
from labeler.runs import Run
from labeler.store import region_mask

# of models that are still in use: `labeler.label` is called for a pair at a time, and loading a tower takes a second
_towers: WeakKeyDictionary[nn.Module, ImageEncoder] = WeakKeyDictionary()


class Native(Reader):
    """A run and its image tower. See `labeler.engines.Engine`."""

    def __init__(self, run: Run):
        """Load the image tower of `run`; raises what `image_tower` raises."""
        self.run, self.tower = run, image_tower(run)

    @property
    def rule(self) -> Rule:
        """Return what makes labels of the run's logits."""
        return rule_of(self.run)

    @property
    def size(self) -> int:
        """Return what the image tower takes."""
        return self.tower.size

    def logits(self, items: Sequence[Item], batch_size: int) -> np.ndarray:
        """Return logits [N, L] float32 of `items`."""
        pairs = make_pairs(items, self.run, self.tower, batch_size)
        self.note_unknown([pair.input_ids for pair in pairs], self.run.tokenizer.unk_token_id)
        return logits(self.run.model, PairList(pairs), self.run.tokenizer.pad_token_id, batch_size=batch_size)


def image_tower(run: Run) -> ImageEncoder:
    """Return the image tower that the run was trained with, on the run's device; its own where that was fine-tuned.

    It is loaded once for an opened run.

    Raises LabelerError when its weights have changed since training, or what is read of them has.
    """
    if isinstance(run.model, EndToEnd):
        return run.model.encoder
    tower = _towers.get(run.model)
    if tower is None:
        tower = _towers[run.model] = recorded_image_encoder(run.preprocessor["image"], run.folder)
    tower.module.to(run.model.device)
    return tower


def make_pairs(items: Sequence[Item], run: Run, tower: ImageEncoder, batch_size: int) -> list[Pair]:
    """Return items as pairs: texts tokenized, pictures shown to the image tower unless that is part of the run's model."""
    ids = tokenize(run.tokenizer, [item.record.text for item in items], run.preprocessor["max_text_tokens"])
    if isinstance(run.model, EndToEnd):
        blank = np.zeros((tower.size, tower.size, 3), dtype=np.uint8)
        shown = [blank if item.pixels is None else item.pixels for item in items]
        return [
            Pair(ids[row], None, item.pixels is not None, pixels=shown[row].transpose(2, 0, 1))
            for row, item in enumerate(items)
        ]
    nothing = np.zeros((tower.tokens, tower.width), dtype=np.float16)
    tokens, masks = [nothing] * len(items), [np.ones(tower.tokens, dtype=bool)] * len(items)
    pictures = [row for row, item in enumerate(items) if item.pixels is not None]
    for start in range(0, len(pictures), batch_size):
        rows = pictures[start : start + batch_size]
        seen = tower.see([pixels for row in rows if (pixels := items[row].pixels) is not None])
        for number, row in enumerate(rows):
            tokens[row] = seen.tokens[number].numpy()
            if seen.boxes is not None:
                masks[row] = region_mask(seen.boxes[number].numpy())
    return [
        Pair(ids[row], tokens[row], items[row].pixels is not None, visual_mask=masks[row]) for row in range(len(items))
    ]
