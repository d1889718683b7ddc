"""The model of zero-shot labels: two towers and the prompts of each label; a batch in, logits out, as any other model."""

from __future__ import annotations

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


class ZeroShot(nn.Module):
    """Two towers and the embeddings of P phrases of L labels; nothing in it is trained any more."""

    prompts: Tensor
    owners: Tensor

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
        nothing = np.zeros((1, 1), np.float16)
        pairs = [Pair(ids, nothing, False) for ids in tokenize(tokenizer, texts, max_tokens)]
        batch = collate(pairs, cast(int, tokenizer.pad_token_id))
        with torch.inference_mode():
            found = self.towers.embed_texts(*(batch[name].to(self.device) for name in ("input_ids", "text_mask")))
        self.register_buffer(
            "prompts", unit(found.view(len(phrases), len(prompts.templates), -1).mean(dim=1))
        )  # [P, S]
        owners = torch.tensor([label for label, _ in phrases], device=self.device)
        self.register_buffer("owners", nn.functional.one_hot(owners, len(prompts.phrases)).float())  # [P, L]

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
        # the mean, over a label's phrases, of exp(likeness)
        terms = (
            likeness[:, :, None] + (self.owners / self.owners.sum(dim=0)).log()
        )  # [B, P, L], -inf for others' phrases
        log_p = terms.logsumexp(dim=1).log_softmax(dim=1)
        if self.task == "multi":
            log_p = log_p.clamp(max=-1e-6)
            return SequenceClassifierOutput(logits=cast(Any, log_p - torch.log(-torch.expm1(log_p))))
        return SequenceClassifierOutput(logits=cast(Any, log_p))
