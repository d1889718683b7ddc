"""Batches: what a model gets. Every tensor's shape and every mask is defined here.

input_ids      [B, T]      int64    token ids, padded at the end
text_mask      [B, T]      bool     True = a real token; all False where there is no text
visual_tokens  [B, V, D]   float32  what the frozen image tower gives; zeros where there is no picture
visual_mask    [B, V]      bool     True = a real visual token; all False where there is no picture, and where a detector
                                    found fewer than V regions the last ones
labels         [B] int64 (single: the label's number) or [B, L] float32 (multi: 1.0 = carries it); -1 or NaN: nobody has said
soft_targets   [B, L]      float32  the teachers' probabilities; NaN: they say nothing of it; in training with teachers alone,
                                    and no input of a model

Where the image tower is fine-tuned (`labeler.end_to_end`), pictures come in place of their visual tokens:

pixels         [B, 3, H, W] uint8   RGB, as `preprocess` shows them to the tower; zeros where there is no picture
visual_mask    [B, 1]      bool     True = there is a picture
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from labeler.records import Task
from labeler.store import Store

if TYPE_CHECKING:
    from labeler.pixels import Pixels

TOKENIZED = 1000  # texts at a time: what a tokenizer gives takes 4 KB a text, of which the ids alone are kept
UNLABELLED: dict[Task, float] = {"single": -1, "multi": np.nan}  # in the place of a label that nobody has given


class Pair(NamedTuple):
    """One pair before batching: token ids (none without a text), visual tokens [V, D] float16, has it a picture, the label.

    visual_mask: [V] bool, which visual tokens of a picture are real; None: all. pixels: [3, H, W] uint8, the picture itself; then
    there are no visual tokens yet. soft_target: [L] float32, what teachers say of it.
    """

    input_ids: list[int]
    visual_tokens: np.ndarray | None
    has_image: bool
    label: np.ndarray | None = None
    visual_mask: np.ndarray | None = None
    pixels: np.ndarray | None = None
    soft_target: np.ndarray | None = None


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str | None], max_tokens: int) -> list[list[int]]:
    """Return each text's token ids, special tokens included, at most `max_tokens`; none for a text that is missing or empty."""
    found: list[list[int]] = []
    for start in range(0, len(texts), TOKENIZED):
        some = texts[start : start + TOKENIZED]
        encoded = tokenizer([text or "" for text in some], truncation=True, max_length=max_tokens)["input_ids"]
        # a text in which a vocabulary finds no word is still a text
        found += [(ids or [tokenizer.unk_token_id]) if text else [] for text, ids in zip(some, encoded, strict=True)]
    return found


def collate(pairs: list[Pair], pad_token_id: int, least: int = 1) -> dict[str, Tensor]:
    """Return the batch of `pairs` (this module's docstring), padded to its longest text, or to `least` tokens."""
    longest = max(least, *(len(pair.input_ids) for pair in pairs))
    input_ids = torch.full((len(pairs), longest), pad_token_id, dtype=torch.long)
    text_mask = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        input_ids[row, : len(pair.input_ids)] = torch.tensor(pair.input_ids, dtype=torch.long)
        text_mask[row, : len(pair.input_ids)] = True
    batch = {"input_ids": input_ids, "text_mask": text_mask, **visual_part(pairs)}
    for name, field in (("labels", "label"), ("soft_targets", "soft_target")):
        values = [getattr(pair, field) for pair in pairs if getattr(pair, field) is not None]
        if values:
            batch[name] = torch.from_numpy(np.stack(values))
    return batch


def visual_part(pairs: list[Pair]) -> dict[str, Tensor]:
    """Return what a batch holds of the pictures: visual_tokens, or pixels, and visual_mask."""
    visual_mask = torch.tensor([pair.has_image for pair in pairs]).unsqueeze(1)  # [B, 1]
    pixels = [pair.pixels for pair in pairs if pair.pixels is not None]
    if pixels:
        return {"pixels": torch.from_numpy(np.stack(pixels)), "visual_mask": visual_mask}
    kept = None if any(pair.has_image for pair in pairs) else 1  # where nobody has a picture, one token keeps the shape
    visual_tokens = torch.from_numpy(np.stack([cast(np.ndarray, pair.visual_tokens)[:kept] for pair in pairs])).float()
    visual_mask = visual_mask.repeat(1, visual_tokens.shape[1])
    for row, pair in enumerate(pairs):
        if pair.visual_mask is not None:
            visual_mask[row] &= torch.from_numpy(pair.visual_mask[:kept])
    return {"visual_tokens": visual_tokens, "visual_mask": visual_mask}


def without(batch: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Return the batch with every pair's `text` or `image` missing; one masked token is left to keep the shapes."""
    prefixes = ("input_ids", "text_") if modality == "text" else ("visual_", "pixels")
    hidden = {name: value[:, :1] for name, value in batch.items() if name.startswith(prefixes)}
    return batch | {
        name: torch.zeros_like(value) if name.endswith("_mask") else value for name, value in hidden.items()
    }


class StorePairs(Dataset[Pair]):
    """Rows of a store as pairs; visual tokens are read a batch at a time, so memory does not grow with the data."""

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        pixels: Pixels | None = None,
    ):
        """Tokenize the texts of `rows` (row numbers in the store) and keep them with the labels.

        With `pixels`, the pairs have their pictures in place of the store's visual tokens.
        """
        self.store, self.rows, self.pixels = store, rows, pixels
        self.input_ids = tokenize(tokenizer, [store.rows["text"][row] for row in rows], max_tokens)
        self.labels = label_targets(store.truth(rows), store.label_set.task)
        self.labels[~store.labelled[rows]] = UNLABELLED[store.label_set.task]
        self.soft_targets: np.ndarray | None = None  # [N, L] float32 where there are teachers

    @property
    def lengths(self) -> list[int]:
        """Return each pair's number of text tokens."""
        return [len(ids) for ids in self.input_ids]

    def drawn(self, count: int, seed: int) -> StorePairs:
        """Return `count` of the pairs that carry labels, drawn by `seed`, or all of those, in their order."""
        known = np.flatnonzero(self.store.labelled[self.rows])
        if len(known) > count:
            known = np.sort(np.random.default_rng(seed).choice(known, count, replace=False))
        found = copy.copy(self)
        found.rows, found.labels = self.rows[known], self.labels[known]
        found.input_ids = [self.input_ids[index] for index in known]
        found.soft_targets = None
        return found

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        """Return one pair."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Pair]:
        """Return many pairs with one read of the store, or none where their pixels are at hand."""
        if self.pixels is not None:
            return [self.with_pixels(self.pixels, index) for index in indices]
        tokens, mask = self.store.visual_tokens(self.rows[np.asarray(indices)])
        return [
            Pair(self.input_ids[index], tokens[row], bool(mask[row].any()), self.labels[index], mask[row],
                 soft_target=self.soft_target(index))
            for row, index in enumerate(indices)
        ]  # fmt: skip

    def soft_target(self, index: int) -> np.ndarray | None:
        """Return what teachers say of one pair [L], None where there are none."""
        return None if self.soft_targets is None else cast(np.ndarray, self.soft_targets[index])

    def with_pixels(self, pixels: Pixels, index: int) -> Pair:
        """Return one pair with its picture."""
        row = self.rows[index]
        has_image = bool(pixels.numbers[row] >= 0)
        return Pair(self.input_ids[index], None, has_image, self.labels[index], pixels=pixels.of(row),
                    soft_target=self.soft_target(index))  # fmt: skip


class DrawnPairs(Dataset[Pair], ABC):
    """Pairs of which something is otherwise each epoch. The seed, the epoch and the pair decide what, and nothing that is counted
    on the way, so that a resumed epoch goes on as it began.
    """

    def __init__(self, pairs: Any, seed: int):
        """Draw for `pairs`, a data set of them that reads many at a time."""
        self.pairs, self.seed = pairs, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw as in `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """Return one pair."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Pair]:
        """Return many pairs with one read of the store."""
        return [self.drawn(pair, index) for pair, index in zip(self.pairs.__getitems__(indices), indices, strict=True)]

    @abstractmethod
    def drawn(self, pair: Pair, index: int) -> Pair:
        """Return the pair, which stands at `index`, as it is in this epoch."""


class DroppedModalities(DrawnPairs):
    """Pairs of which some go without their picture or their text, never without both.

    With `probability` / 2 each, a pair that has both loses the one or the other. Neverova et al. 2016, "ModDrop".
    """

    def __init__(self, pairs: Any, probability: float, seed: int):
        """Drop from `pairs`."""
        self.probability = probability
        super().__init__(pairs, seed)

    def set_epoch(self, epoch: int) -> None:
        """Draw a number from 0 to 1 for each pair."""
        self.draws = np.random.default_rng([self.seed, epoch]).random(len(self.pairs))

    def drawn(self, pair: Pair, index: int) -> Pair:
        """Return the pair as its number decides."""
        draw = self.draws[index]
        if draw >= self.probability or not (pair.input_ids and pair.has_image):
            return pair
        if draw < self.probability / 2:
            return pair._replace(input_ids=[])
        nothing = None if pair.visual_tokens is None else np.zeros_like(pair.visual_tokens)
        return pair._replace(visual_tokens=nothing, has_image=False)


class DroppedTokens(DrawnPairs):
    """Pairs whose pictures go without some of their visual tokens, so that a step has less to work out.

    Liu et al. 2023, "PatchDropout: Economizing Vision Transformers Using Patch Dropout". As many stay for each picture, real ones
    before those that stand for nothing. What the picture shows decides which: with several texts it is the same to all of them.
    """

    def __init__(self, pairs: Any, probability: float, seed: int):
        """Leave out the share `probability` of the visual tokens of `pairs`."""
        self.probability = probability
        super().__init__(pairs, seed)

    def drawn(self, pair: Pair, index: int) -> Pair:
        """Return the pair with the visual tokens that stay, in their order."""
        if pair.visual_tokens is None:  # its picture is still to be seen
            return pair
        count = len(pair.visual_tokens)
        picture = crc32(pair.visual_tokens.tobytes())  # all of it: single numbers of ReLU6's are zero nearly everywhere
        order = np.random.default_rng([self.seed, self.epoch, picture]).random(count)
        real = np.ones(count, dtype=bool) if pair.visual_mask is None else pair.visual_mask
        kept = np.sort(np.lexsort((order, ~real))[: max(1, round(count * (1 - self.probability)))])
        mask = None if pair.visual_mask is None else pair.visual_mask[kept]
        return pair._replace(visual_tokens=pair.visual_tokens[kept], visual_mask=mask)


def label_targets(truth: np.ndarray, task: Task) -> Any:
    """Return a loss's targets for [N, L] bool: [N] int64 for `single`, [N, L] float32 for `multi`."""
    if task == "single" and truth.shape[1]:
        return truth.argmax(axis=1).astype(np.int64)
    return truth.astype(np.float32) if task == "multi" else np.zeros(len(truth), np.int64)
