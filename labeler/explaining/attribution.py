"""Attribution: what each word and each visual token adds to a logit, by integrated gradients.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks". One path leads from a baseline, which says nothing, to the
pair; text and picture go it together, so that what all tokens add is what the logit gains on the way (completeness).

The baseline holds another word embedding at every place of a word, that of [MASK], or of the unknown word where a vocabulary
has no mask: any word could stand there, and the model has read both in training, which is not true of zeros. Special tokens stay.
In the picture's place stands the average picture of the training pairs, as long as this one, at every visual token. Zeros would
not do: heads read the mean visual token at length 1, so that on a path from zeros its direction never changes, and the picture
would do all it does in one jump at the start, which no number of steps sees. `resnet-gru` reads it as it is, and there zeros do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients
from tokenizers import Regex, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labeler.batches import Pair, collate
from labeler.coattention import recorded_maps
from labeler.end_to_end import EndToEnd, reader
from labeler.layers import ProbeHead, masked_mean, unit

if TYPE_CHECKING:
    from labeler.runs import Run

FIRST_STEPS, MOST_STEPS = 16, 256
STEPS_AT_A_TIME = 16
TOLERANCE = 0.05  # of what the logit gains
SMALL = 0.01  # a logit, below which an error does not matter
BLANKLESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
SIGN = rf"[\p{{L}}\p{{M}}\p{{N}}_&&[^{BLANKLESS}]]"
WORD = rf"[{BLANKLESS}]|{SIGN}+(?:['’-]{SIGN}+)*|\X"


class Attribution(NamedTuple):
    """What each token adds to a logit: text [T] and visual [V], float64, 0 at what is masked or stays as it is.

    Their sum is logit - baseline_logit but for `error`, which falls with the number of steps.
    """

    text: np.ndarray
    visual: np.ndarray
    logit: float
    baseline_logit: float
    error: float
    steps: int


def baseline_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that stands for each word in the baseline."""
    found: int = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    return found


def average_picture(model: PreTrainedModel, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
    """Return the baseline's visual tokens for those of a pair, [B, V, D_image]: the mean at which the model's head starts."""
    head = getattr(model, "head", None)
    if not isinstance(head, ProbeHead):
        return torch.zeros_like(visual_tokens)
    length = masked_mean(visual_tokens, visual_mask).norm(dim=-1)[:, None, None]  # [B, 1, 1]
    return (unit(head.center[-visual_tokens.shape[-1] :]) * length).expand(visual_tokens.shape)


def attribute(
    model: PreTrainedModel, batch: dict[str, Tensor], words: Tensor, target: int, baseline: int
) -> Attribution:
    """Return what the tokens of one pair add to the logit of label number `target`.

    batch: input_ids, text_mask, visual_tokens and visual_mask of one pair on the model's device (`labeler.batches`); words [1, T]
    bool: which text tokens are of words; baseline: the id of the token in their place. What is masked or of no word
    is in the baseline as it is. The steps are doubled until the error is within 5 % of what the logit gains, or 0.01, at most
    256; 16 at a time are in memory.
    """
    input_ids, text_mask = batch["input_ids"], batch["text_mask"]
    visual_tokens, visual_mask = batch["visual_tokens"], batch["visual_mask"]
    table = model.get_input_embeddings()

    def logits(embedded: Tensor, visual: Tensor, *others: Tensor) -> Tensor:
        ids, text, mask = others
        with output_of(table, embedded):
            found: Tensor = model(ids, text, visual, mask).logits
        return found

    with torch.no_grad():
        inputs = table(input_ids), visual_tokens
        starts = (
            torch.where((words & text_mask).unsqueeze(-1), table(torch.full_like(input_ids, baseline)), inputs[0]),
            torch.where(visual_mask.unsqueeze(-1), average_picture(model, visual_tokens, visual_mask), visual_tokens),
        )
        others = input_ids, text_mask, visual_mask
        end, start = (logits(*embedded, *others)[0, target].item() for embedded in (inputs, starts))
    steps = FIRST_STEPS
    while True:
        with torch.backends.cudnn.flags(enabled=False):  # its GRU has no gradients outside of training
            parts = IntegratedGradients(logits).attribute(
                inputs, starts, target, others, n_steps=steps, internal_batch_size=STEPS_AT_A_TIME
            )
        text, visual = (part.detach()[0].double().sum(dim=-1).cpu().numpy() for part in parts)
        error = abs(float(text.sum() + visual.sum()) - (end - start))
        if error <= max(TOLERANCE * abs(end - start), SMALL) or steps >= MOST_STEPS:
            return Attribution(text, visual, end, start, error, steps)
        steps *= 2


@contextmanager
def output_of(layer: nn.Module, value: Tensor) -> Iterator[None]:
    """Let `layer` give `value` whatever it is called with."""
    handle = layer.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        handle.remove()


def word_spans(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where words begin and end in `text`, in their order, those that tokens at `offsets` are part of.

    A word is a run of letters and digits, in scripts that write no blanks between words one character; any other sign is a word
    of its own. Where one token reaches over several of them, as an unknown one may, they are one.
    """
    pieces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD), "isolated")])
    tokens = {trimmed(text, *offset) for offset in offsets if offset[0] < offset[1]}
    merged: list[list[int]] = []
    for start, end in sorted([*tokens, *(place for _, place in pieces.pre_tokenize_str(text))]):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [(start, end) for start, end in merged if any(start <= place < end for place, _ in tokens)]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the token's place without the blanks around it, which some tokenizers count in; a blank stays one."""
    inner = text[start:end].strip()
    if not inner:
        return start, end
    start += text[start:end].index(inner)
    return start, start + len(inner)


def text_places(tokenizer: Any, text: str, max_tokens: int) -> list[tuple[int, int]]:
    """Return where in `text` each token of `labeler.batches.tokenize` stands; (0, 0) for a special one."""
    encoded = tokenizer(text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    # a text in which a vocabulary finds no word is one unknown token
    return [tuple(place) for place in encoded["offset_mapping"]] or [(0, len(text))]


class Sight:
    """What a run's model sees of one pair, to be attributed to its tokens.

    logits: [L] float32; tokens: the text's, as the tokenizer writes them; visual_mask: [V] bool; maps: of each co-attention block
    what the text's T tokens attend to in the V' real visual tokens, [T, V'], and these in those, [V', T].
    """

    def __init__(self, run: Run, pair: Pair, text: str | None):
        """Show the pair to the run's model; a fine-tuned tower to its picture first."""
        self.text, self.baseline = text, baseline_token(run.tokenizer)
        self.model: PreTrainedModel = reader(run.model)
        batch = {
            name: value.to(self.model.device) for name, value in collate([pair], run.tokenizer.pad_token_id).items()
        }
        with torch.no_grad():
            if isinstance(run.model, EndToEnd):
                batch["visual_tokens"], batch["visual_mask"] = run.model.see(batch.pop("pixels"), batch["visual_mask"])
            with recorded_maps(getattr(self.model, "coattention", ())) as maps:
                self.logits = self.model(**batch).logits[0].float().cpu().numpy()
        self.batch, self.visual_mask = batch, batch["visual_mask"][0].cpu().numpy()
        real = np.ix_(batch["text_mask"][0].cpu().numpy(), self.visual_mask)
        self.maps = [(found.text_to_visual[0].cpu().numpy()[real], found.visual_to_text[0].cpu().numpy().T[real].T)
                     for found in maps]  # fmt: skip
        self.tokens = [str(token) for token in run.tokenizer.convert_ids_to_tokens(pair.input_ids)]
        self.places = text_places(run.tokenizer, text, run.preprocessor["max_text_tokens"]) if text else [(0, 0)]

    def attribute(self, target: int) -> Attribution:
        """Return what the tokens add to the logit of label number `target`."""
        words = torch.tensor([[start < end for start, end in self.places]], device=self.model.device)
        return attribute(self.model, self.batch, words, target, self.baseline)

    def merged(self, weights: np.ndarray) -> list[tuple[tuple[int, int], float]]:
        """Return each word's place in the text and the sum of what its tokens weigh, for weights [T]."""
        starts = [trimmed(self.text or "", *place)[0] if place[0] < place[1] else -1 for place in self.places]
        return [
            (
                (start, end),
                float(sum(weight for place, weight in zip(starts, weights, strict=True) if start <= place < end)),
            )
            for start, end in word_spans(self.text or "", self.places)
        ]
