"""Text towers: any BERT-like transformers model, with its tokenizer, from the embedded package, a folder or a hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from labeler.artifacts import LabelerError
from labeler.encoders.weights import EMBEDDED, MINILM, MINILM_TOKENIZER, embedded_path, from_hub

# Architectures whose weights carry BERT's names, so that VisualBERT can take them over one by one.
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "visual_bert")
TOGETHER = 8  # texts a pass: tweets go through 1.6 times as fast as 32 at a time


class TextEncoder(NamedTuple):
    """A text tower: its name, tokenizer, and model ([B, T] token ids -> [B, T, D])."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel

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


def load_text_encoder(name: str = EMBEDDED) -> TextEncoder:
    """Return the text tower `name`: `embedded`, a transformers folder, or a name on a hub.

    Raises LabelerError: weights damaged, not BERT-like, or not here and the hub out of reach (within 10 s).
    """
    if name == EMBEDDED:
        folder = embedded_path(MINILM).parent
        embedded_path(MINILM_TOKENIZER)
        return _load(name, str(folder), local=True)
    if Path(name).is_dir():
        try:
            return _load(name, name, local=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise LabelerError(f"{name}: not a transformers folder with model and tokenizer ({error})") from error
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    loaded = from_hub(
        name, "text", lambda: _load(name, name, local=True), lambda: _load(name, name, local=False), endpoint
    )
    return cast(TextEncoder, loaded)


def _load(name: str, source: str, *, local: bool) -> TextEncoder:
    # eager attention: VisualBERT's, so that equal weights give equal numbers
    options = {"local_files_only": local}
    config = AutoConfig.from_pretrained(source, **options)
    if config.model_type not in BERT_LIKE:
        raise LabelerError(f"{name}: a {config.model_type!r} model; expected one of {', '.join(BERT_LIKE)}")
    tokenizer_source = source
    if config.model_type == "visual_bert" and not Path(source, "tokenizer_config.json").is_file():
        tokenizer_source = "bert-base-uncased"  # VisualBERT's authors publish no tokenizer of their own
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, **options)
    model = AutoModel.from_pretrained(source, use_safetensors=None, dtype=torch.float32, **options)
    return TextEncoder(name, tokenizer, model.eval())
