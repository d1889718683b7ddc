"""The model of zero-shot labels: two towers and the prompts of each label; a batch in, logits out, as any other model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from labeler.batches import Pair, collate, tokenize
from labeler.layers import unit
from labeler.records import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from labeler.models.clip import TwoTowers
    from labeler.published_towers import PublishedTowers
    from labeler.zero_shot import Prompts

TOGETHER = 256  # texts embedded at once


class ZeroShot(nn.Module):
    """Two towers and the embeddings of P phrases of L labels; nothing in it is trained any more."""

    prompts: Tensor
    owners: Tensor
    counts: Tensor

    def __init__(
        self, towers: TwoTowers | PublishedTowers, tokenizer: PreTrainedTokenizerBase, max_tokens: int,
        prompts: Prompts, task: Task,
    ):  # fmt: skip
        """Embed the phrases of `prompts`, cut at `max_tokens`: each the mean over its templates, at length 1."""
        super().__init__()
        self.towers, self.task = cast(Any, towers), task
        phrases = [(label, phrase) for label, found in enumerate(prompts.phrases.values()) for phrase in found]
        texts: list[str | None] = [
            template.replace("{}", phrase) for _, phrase in phrases for template in prompts.templates
        ]
        found = self.embedded(tokenize(tokenizer, texts, max_tokens), cast(int, tokenizer.pad_token_id))
        means = found.view(len(phrases), len(prompts.templates), -1).mean(dim=1)
        self.register_buffer("prompts", unit(means))  # [P, S]
        owners = torch.tensor([label for label, _ in phrases], device=self.device)
        self.register_buffer("owners", owners)  # [P], each phrase's label
        self.register_buffer("counts", owners.bincount(minlength=len(prompts.phrases)))  # [L]

    def embedded(self, texts: Sequence[Any], pad_token_id: int) -> Tensor:
        """Return the embeddings [N, S] of N tokenized texts."""
        nothing, parts = np.zeros((1, 1), np.float16), []
        with torch.inference_mode():
            for start in range(0, len(texts), TOGETHER):
                pairs = [Pair(ids, nothing, False) for ids in texts[start : start + TOGETHER]]
                batch = collate(pairs, pad_token_id)
                read = (batch[name].to(self.device) for name in ("input_ids", "text_mask"))
                parts.append(self.towers.embed_texts(*read))
        return torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return cast(torch.device, self.towers.device)

    def forward(self, **batch: Tensor) -> SequenceClassifierOutput:
        """Return logits [B, L] of a batch (see `labeler.batches`).

        Single: log probabilities of the labels, which softmax leaves as they are; multi: the same probabilities' log odds.
        A pair with a text and a picture has the sum of both cosines; by published towers that of its picture.
        """
        text, image = self.towers(**batch)
        likeness = self.towers.logit_scale() * (text + image) @ self.prompts.T  # [B, P]
        log_p = self.mean_exp(likeness).log_softmax(dim=1)
        if self.task == "multi":
            log_p = log_p.clamp(max=-1e-6)
            return SequenceClassifierOutput(logits=cast(Any, log_p - torch.log(-torch.expm1(log_p))))
        return SequenceClassifierOutput(logits=cast(Any, log_p))

    def mean_exp(self, likeness: Tensor) -> Tensor:
        """Return [B, L]: of each label the logarithm of the mean, over its phrases, of exp(likeness [B, P])."""
        lowest = likeness.new_full((len(likeness), len(self.counts)), -torch.inf)
        highest = lowest.scatter_reduce(1, self.owners.expand_as(likeness), likeness, "amax")
        terms = (likeness - highest[:, self.owners]).exp()
        return highest + torch.zeros_like(highest).index_add(1, self.owners, terms).log() - self.counts.log()
