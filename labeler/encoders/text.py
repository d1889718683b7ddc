"""Text towers: any BERT-like transformers model, with its tokenizer, from the embedded package, a folder or a hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, FlavaModel, PreTrainedModel, PreTrainedTokenizerBase

from labeler.encoders.flava import FLAVA, load_flava
from labeler.encoders.pretrained import load_transformers
from labeler.encoders.weights import EMBEDDED, MINILM, MINILM_TOKENIZER, embedded_path, from_folder_or_hub
from labeler.errors import BadInputError, LabelerError
from labeler.values import UNKNOWN_SHARE

log = logging.getLogger("labeler")

# Architectures that are BERT's but for names, so that VisualBERT has a place for every weight. Others have what it has
# not: MPNet and DeBERTa attend by distance, ALBERT's layers share their weights.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "visual_bert")
BERT_WORDS = 30522  # of bert-base-uncased, whose vocabulary MiniLM and VisualBERT have too
# What DistilBERT's config calls otherwise than BERT's; it names no epsilon.
DISTILBERT_CONFIG = {"intermediate_size": "hidden_dim", "hidden_act": "activation", "hidden_dropout_prob": "dropout"}
DISTILBERT_EPS = 1e-12
TOGETHER = 8  # texts a pass: tweets go through 1.6 times as fast as 32 at a time
ATTENTION_DROPOUT = {"attention_probs_dropout_prob", "attention_dropout"}  # BERT's name for it, and DistilBERT's
LEFT_OUT = ("architectures", "transformers_version", "_name_or_path")


class TextEncoder(NamedTuple):
    """A text tower: its name, tokenizer, and model ([B, T] token ids -> [B, T, D]); flava: FLAVA, where it is a part of that."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    flava: FlavaModel | None = None

    @property
    def max_tokens(self) -> int:
        """Return how many tokens the tower's position embeddings reach."""
        config = self.model.config
        return config.max_position_embeddings - position_offset(config)

    @torch.inference_mode()
    def features(self, texts: list[str | None], max_tokens: int = 128) -> Tensor:
        """Return the mean of the last hidden states over real tokens, [B, D] float32; a missing text counts as empty.

        Texts of like length are shown to the tower together, so that one long text does not pad all others.
        """
        limit = min(max_tokens, self.max_tokens)
        ids = self.tokenizer([text or "" for text in texts], truncation=True, max_length=limit)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        result = torch.empty(len(ids), self.model.config.hidden_size)
        for start in range(0, len(order), TOGETHER):
            rows = order[start : start + TOGETHER]
            encoded = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            hidden = self.model(**encoded).last_hidden_state  # [b, T, D]
            mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [b, T, 1]
            result[rows] = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return result


def position_offset(config: Any) -> int:
    """Return the first text position's row in the position table: RoBERTa keeps the rows up to the padding's for itself."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def config_values(tower: TextEncoder) -> dict[str, Any]:
    """Return a text tower's config, to be part of a model's own; without dropout in its attention, as in `visualbert`."""
    values = {key: value for key, value in tower.model.config.to_dict().items() if key not in LEFT_OUT}
    return values | dict.fromkeys(values.keys() & ATTENTION_DROPOUT, 0.0)


def untrained_tower(values: dict[str, Any]) -> PreTrainedModel:
    """Return a text tower in the size that `config_values` gave, to be part of a model; nothing in it is trained."""
    # eager attention: the faster one in training on a CPU, and VisualBERT's
    model: Any = AutoModel.from_config(AutoConfig.for_model(**values), attn_implementation="eager")
    if hasattr(model, "pooler"):
        model.pooler = None  # its output is not read
    return cast(PreTrainedModel, model)


def pretrained_tower(tower: TextEncoder) -> PreTrainedModel:
    """Return a text tower to be part of a model and trained with it, with the weights of `tower`."""
    model = untrained_tower(config_values(tower))
    weights = {name: value for name, value in tower.model.state_dict().items() if not name.startswith("pooler.")}
    model.load_state_dict(weights)
    return model


def read_words(tower: PreTrainedModel, input_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Return a text tower's last hidden states [B, T, D] for input_ids [B, T]; text_mask [B, T] hides padding from the words."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    positions = places.unsqueeze(0) + position_offset(tower.config)  # [1, T]
    # softmax over no token at all would be NaN; a row without a text sees its padding here, which its mean leaves out
    mask = text_mask | ~text_mask.any(dim=1, keepdim=True)
    hidden: Tensor = tower(input_ids, attention_mask=mask.long(), position_ids=positions).last_hidden_state
    return hidden


def config_value(config: Any, name: str) -> Any:
    """Return what BERT's config calls `name` from the config of a BERT-like tower."""
    if config.model_type != "distilbert":
        return getattr(config, name)
    return DISTILBERT_EPS if name == "layer_norm_eps" else getattr(config, DISTILBERT_CONFIG.get(name, name))


def load_text_encoder(name: str = EMBEDDED) -> TextEncoder:
    """Return the text tower `name`: `embedded`, a transformers folder, or a name on a hub, with `hf:` before it or not.

    Raises LabelerError: weights damaged, left over or missing, neither of BERT_LIKE nor FLAVA, no tokenizer, or not here and the
    hub out of reach (within 10 s).
    """
    if name == EMBEDDED:
        folder = embedded_path(MINILM).parent
        embedded_path(MINILM_TOKENIZER)
        return _load(name, str(folder), True)
    load = partial(_load, name)
    return from_folder_or_hub(name, "text", load, "a transformers folder with model and tokenizer")


def _load(name: str, source: str, local: bool) -> TextEncoder:
    whole = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if whole.model_type not in (*BERT_LIKE, FLAVA):
        raise LabelerError(f"{name}: a {whole.model_type!r} model; expected one of {', '.join((*BERT_LIKE, FLAVA))}")
    config = whole.text_config if whole.model_type == FLAVA else whole
    if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:  # a small ELECTRA
        raise LabelerError(
            f"{name}: its words are {config.embedding_size} wide and its layers {config.hidden_size}, and VisualBERT has no "
            "place for the weights between them; choose one with a single width"
        )
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if no_words(tokenizer) and config.model_type == "visual_bert" and config.vocab_size == BERT_WORDS:
        # VisualBERT's authors publish no tokenizer of their own
        tokenizer = AutoTokenizer.from_pretrained(embedded_path(MINILM_TOKENIZER).parent, local_files_only=True)
    if no_words(tokenizer):
        raise LabelerError(
            f"{name}: no tokenizer beside the model; copy tokenizer.json and tokenizer_config.json there"
        )
    if tokenizer.pad_token_id is None or len(tokenizer) > config.vocab_size:
        raise LabelerError(
            f"{name}: the tokenizer does not belong to the model ({len(tokenizer)} tokens, {config.vocab_size} embeddings, "
            f"padding {tokenizer.pad_token!r})"
        )
    if whole.model_type == FLAVA:
        flava = load_flava(name, source, whole, local=local)
        return TextEncoder(name, tokenizer, flava.text_model, flava)
    return TextEncoder(name, tokenizer, load_transformers(name, source, config, local=local))


def no_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer knows special tokens alone, as transformers makes one where no file of it is found."""
    return len(tokenizer) <= len(tokenizer.all_special_ids)


def check_vocabulary(tower: TextEncoder, texts: Iterable[str | None], *, allow: bool = False) -> float:
    """Read all `texts`, a thousand in memory at a time, as far as the tower reads each; return the share of unknown tokens.

    Raises BadInputError when over a third of their tokens are unknown to the tower's vocabulary: all of them would look
    alike to it, whatever they say. With `allow` that is a warning.
    """
    tokenizer, remaining = tower.tokenizer, iter(texts)
    unknown, total, example = 0, 0, None
    while batch := [text or "" for text in islice(remaining, 1000)]:
        encoded = tokenizer(batch, add_special_tokens=False, truncation=True, max_length=tower.max_tokens)
        for text, ids in zip(batch, encoded["input_ids"], strict=True):
            count = ids.count(tokenizer.unk_token_id)
            unknown, total = unknown + count, total + len(ids)
            if example is None and count > UNKNOWN_SHARE * len(ids):
                example = text
    share = unknown / max(total, 1)
    if share > UNKNOWN_SHARE:
        found = (
            f"the tokenizer of the text encoder {tower.name!r} turns {share:.0%} of the texts' tokens into "
            f"{tokenizer.unk_token}, as in {str(example)[:60]!r}"
        )
        if not allow:
            raise BadInputError(
                f"{found}; choose one that knows their script by --text-encoder, such as bert-base-multilingual-cased or, for "
                "Chinese, bert-base-chinese (a hub's name, or a folder with a copy); or add --allow-unknown-words for `labeler "
                "train resnet-gru --vocabulary character`, which needs none"
            )
        log.warning("%s: only resnet-gru, which has a vocabulary of its own, can learn from them", found)
    return share
