"""`resnet-gru`: the baseline. A pooled CNN and a bidirectional GRU, added, and one linear layer.

    input_ids      [B, T]          -> embedding -> 2-layer GRU, both ways -> state of the last real token [B, 2H] --+
                                                                                                                    (+) -> logits
    visual_tokens  [B, V, D_image] -> mean -------------------> linear -------------------------------> [B, 2H] ----+

The course's baseline has a ResNet-18 here; with the `embedded` towers the CNN is EfficientNet-Lite0, whose grid
the store holds, and any torchvision ResNet by `--image-encoder`. The vocabulary is made from the training texts
alone: words as BERT splits them, Chinese by characters, most frequent first.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from labeler.layers import labelling_loss, masked_mean
from labeler.models import Building, Built

TRAINING = {"epochs": 30, "new_learning_rate": 1e-3, "patience": 5}  # nothing in it is pretrained
PAD, UNKNOWN = "<pad>", "<unk>"
MIN_COUNT = 2
MAX_WORDS = 30_000


class Config(PreTrainedConfig):
    """Sizes of the baseline; embedding, hidden size and layers are the course's."""

    model_type = "labeler-resnet-gru"

    vocab_size: int = 2
    visual_width: int = 1280
    embedding_size: int = 64
    hidden_size: int = 128
    gru_layers: int = 2
    dropout: float = 0.1


class Model(PreTrainedModel):
    """The baseline: a batch (see `labeler.batches`) in, logits [B, L] out."""

    config_class = Config
    main_input_name = "input_ids"
    new_weights = ("",)  # all of them

    def __init__(self, config: Config):
        """Make the layers; nothing in them is pretrained (the CNN's output is in the store)."""
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, num_layers=config.gru_layers, batch_first=True,
                          bidirectional=True, dropout=config.dropout)  # fmt: skip
        self.image_projection = nn.Linear(config.visual_width, 2 * config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        visual_tokens: Tensor,
        visual_mask: Tensor,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits [B, L], and the loss where labels are given."""
        has_image = visual_mask.any(dim=1, keepdim=True)  # [B, 1]
        image = self.image_projection(masked_mean(visual_tokens, visual_mask)) * has_image  # [B, 2H]
        logits = self.classifier(self.dropout(image + self.read(input_ids, text_mask)))
        return SequenceClassifierOutput(loss=None if labels is None else labelling_loss(logits, labels), logits=logits)

    def read(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return [B, 2H]: the forward state after the last real token beside the backward state after the first."""
        lengths = text_mask.sum(dim=1).cpu()
        # packed, so that neither direction ever reads a padded position
        packed = pack_padded_sequence(self.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
        _, states = self.gru(packed)  # [layers * 2, B, H]; the last two are the top layer's two directions
        return states[-2:].transpose(0, 1).flatten(1)


def build(task: Building) -> Built:
    """Return the untrained baseline and a tokenizer over the words of the training texts."""
    tokenizer = word_tokenizer(task.texts)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "visual_width": task.visual_width,
        "num_labels": len(task.label_set.labels),
    }
    config = Config(**sizes)
    return Built(Model(config), tokenizer)


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the words that occur twice or more in `texts`: by frequency, ties by the word itself."""
    normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    frequent = sorted(
        (word for word, count in counts.items() if count >= MIN_COUNT), key=lambda word: (-counts[word], word)
    )
    words = [PAD, UNKNOWN, *frequent[:MAX_WORDS]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)
