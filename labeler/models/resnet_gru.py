"""`resnet-gru`: the baseline. A pooled CNN and a bidirectional GRU, added, and one linear layer.

    input_ids      [B, T]          -> embedding -> 2-layer GRU, both ways -> state of the last real token [B, 2H] --+
                                                                                                                    (+) -> logits
    visual_tokens  [B, V, D_image] -> mean -------------------> linear -------------------------------> [B, 2H] ----+

With the `embedded` towers the CNN is EfficientNet-Lite0, whose grid the store holds; any torchvision ResNet, such as the usual
ResNet-18, by `--image-encoder`. The vocabulary is made from the training texts
alone, most frequent first: words as BERT splits them, or every character (`--vocabulary character`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from labeler.classifier import Classifier
from labeler.layers import masked_mean
from labeler.models import Building, Built

TRAINING = {"epochs": 30, "new_learning_rate": 1e-3, "patience": 5}  # nothing in it is pretrained
TUNING = {"learning_rate": None, "vocabulary": ["word", "character"]}
PAD, UNKNOWN = "<pad>", "<unk>"
MIN_COUNT = 2
MAX_WORDS = 30_000
WITHOUT_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


class Config(PreTrainedConfig):
    """Sizes of the baseline."""

    model_type = "labeler-resnet-gru"

    vocab_size: int = 2
    visual_width: int = 1280
    embedding_size: int = 64
    hidden_size: int = 128
    gru_layers: int = 2
    dropout: float = 0.1


class Model(Classifier):
    """The baseline: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    new_weights = ("",)  # all of them

    def __init__(self, config: Config):
        """Make the layers; nothing in them is pretrained (the CNN's output is in the store)."""
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, num_layers=config.gru_layers, batch_first=True,
                          bidirectional=True, dropout=config.dropout)  # fmt: skip
        self.image_projection = nn.Linear(config.visual_width, 2 * config.hidden_size)
        # what stands for a text or a picture that is missing
        self.absent_text, self.absent_image = (nn.Parameter(torch.zeros(2 * config.hidden_size)) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings, which `labeler.explaining.attribution` integrates over."""
        return self.embedding

    def logits(self, input_ids: Tensor, text_mask: Tensor, visual_tokens: Tensor, visual_mask: Tensor) -> Tensor:
        """Return logits [B, L]."""
        has_text, has_image = (mask.any(dim=1, keepdim=True) for mask in (text_mask, visual_mask))  # [B, 1] each
        image = self.image_projection(masked_mean(visual_tokens, visual_mask))  # [B, 2H]
        image = torch.where(has_image, image, self.absent_image.to(image.dtype))
        text = self.read(input_ids, text_mask)  # [B, 2H]
        text = torch.where(has_text, text, self.absent_text.to(text.dtype))
        return cast(Tensor, self.classifier(self.dropout(image + text)))

    def read(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return [B, 2H]: the forward state after the last real token beside the backward state after the first.

        Of a row without a text, padding is read in its place.
        """
        lengths = text_mask.sum(dim=1).clamp(min=1).cpu()
        # packed, so that neither direction ever reads a padded position
        packed = pack_padded_sequence(self.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
        _, states = self.gru(packed)  # [layers * 2, B, H]; the last two are the top layer's two directions
        return states[-2:].transpose(0, 1).flatten(1)


def build(building: Building) -> Built:
    """Return the untrained baseline and a tokenizer over the words or characters of the training texts."""
    tokenizer = own_tokenizer(building.texts, building.vocabulary)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "visual_width": building.visual_width,
        "num_labels": len(building.label_set.labels),
    }
    config = Config(**sizes)
    return Built(Model(config), tokenizer)


def own_tokenizer(texts: list[str], vocabulary: str = "word") -> PreTrainedTokenizerFast:
    """Return a tokenizer with what occurs twice or more in `texts`: by frequency, ties by the word itself.

    A `word` stands between blanks or punctuation, without its accents. Scripts that write none between words give a token
    a character there too, since a sentence as one token would be unknown. A `character` is what a reader takes for one
    (Unicode's grapheme clusters), punctuation and accents included, blanks not.
    """
    normalizer, splitter = splitting(vocabulary)
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    frequent = sorted(
        (word for word, count in counts.items() if count >= MIN_COUNT), key=lambda word: (-counts[word], word)
    )
    words = [PAD, UNKNOWN, *frequent[:MAX_WORDS]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)


def splitting(vocabulary: str) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """Return how texts are normalised and split into the tokens of a `word` or `character` vocabulary."""
    if vocabulary == "character":
        each = pre_tokenizers.Split(Regex(r"\X"), "isolated")
        blanks = pre_tokenizers.WhitespaceSplit()
        return (
            normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
            pre_tokenizers.Sequence([blanks, each]),
        )
    each = pre_tokenizers.Split(Regex(WITHOUT_BLANKS), "isolated")
    splitter = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), each])
    return normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True), splitter
