"""Batches: shapes, types and masks of what a model gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from labeler.batches import (
    DroppedModalities,
    DroppedTokens,
    Pair,
    StorePairs,
    collate,
    label_targets,
    tokenize,
    without,
)
from labeler.inference import PairList
from labeler.models.resnet_gru import PAD, UNKNOWN, own_tokenizer
from labeler.store import Store

PICTURE = np.arange(8, dtype=np.float16).reshape(4, 2)


@pytest.fixture(scope="module")
def tokenizer(text_tower):
    return AutoTokenizer.from_pretrained(text_tower)


def test_collate_shapes_types_and_masks():
    pairs = [Pair([2, 5, 3], PICTURE, True, np.int64(1)), Pair([2, 3], PICTURE * 0, False, np.int64(0))]
    batch = collate(pairs, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 3, 9]]
    assert batch["text_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["visual_tokens"].tolist() == [PICTURE.tolist(), [[0.0, 0.0]] * 4]
    assert batch["visual_mask"].tolist() == [[True] * 4, [False] * 4]
    assert batch["labels"].tolist() == [1, 0]
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64, "text_mask": torch.bool, "visual_tokens": torch.float32,
        "visual_mask": torch.bool, "labels": torch.int64,
    }  # fmt: skip
    assert all(value.is_contiguous() for value in batch.values())


def test_collate_masks_visual_tokens_one_by_one():
    found = np.array([True, True, False, False])
    pairs = [
        Pair([5], PICTURE, True, visual_mask=found),
        Pair([5], PICTURE, False, visual_mask=found),
        Pair([5], PICTURE, True),
    ]
    batch = collate(pairs, 0)
    assert batch["visual_mask"].tolist() == [found.tolist(), [False] * 4, [True] * 4]
    batch["visual_mask"].zero_()
    assert found.any()


def test_collate_pads_to_the_longest_and_no_further():
    assert collate([Pair([5], PICTURE, True)], 0)["input_ids"].shape == (1, 1)
    assert collate([Pair([5], PICTURE, True), Pair([5] * 7, PICTURE, True)], 0)["input_ids"].shape == (2, 7)


def test_collate_of_pairs_without_labels_has_none():
    assert "labels" not in collate([Pair([5], PICTURE, True)], 0)


def test_collate_of_many_labels():
    marks = np.array([1, 0, 1], dtype=np.float32)
    labels = collate([Pair([5], PICTURE, True, marks)], 0)["labels"]
    assert labels.tolist() == [[1.0, 0.0, 1.0]]
    assert labels.dtype == torch.float32


def test_collate_changes_no_pair():
    pair = Pair([5, 6], PICTURE.copy(), True)
    batch = collate([pair, Pair([5] * 4, PICTURE, True)], 0)
    batch["visual_tokens"].zero_()
    assert pair.input_ids == [5, 6]
    assert np.array_equal(pair.visual_tokens, PICTURE)


def test_tokenize_cuts_and_gives_nothing_for_a_missing_text(tokenizer):
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    whole, cut, missing, empty = tokenize(tokenizer, ["a red circle", "a red circle " * 20, None, ""], 6)
    assert tokenizer.decode(whole) == "[CLS] a red circle [SEP]"
    assert (len(cut), cut[0], cut[-1]) == (6, first, last)
    assert missing == empty == []
    assert tokenize(tokenizer, [], 6) == []


def test_a_text_without_a_known_word_is_still_a_text():
    words = own_tokenizer(["a red circle", "a red square"])
    assert tokenize(words, ["\u0301", None, "red blue"], 8) == [[1], [], [words.convert_tokens_to_ids("red"), 1]]
    assert (words.pad_token, words.unk_token, words.pad_token_id) == (PAD, UNKNOWN, 0)


def test_the_vocabulary_holds_what_occurs_twice_most_frequent_first():
    words = own_tokenizer(["Red red RED café", "blue, blue 红 红", "once"])
    assert words.convert_ids_to_tokens(range(len(words))) == [PAD, UNKNOWN, "red", "blue", "红"]


def test_label_targets():
    truth = np.array([[False, True], [True, False]])
    single, multi = label_targets(truth, "single"), label_targets(truth, "multi")
    assert (single.tolist(), single.dtype) == ([1, 0], np.int64)
    assert (multi.tolist(), multi.dtype) == ([[0.0, 1.0], [1.0, 0.0]], np.float32)


@pytest.mark.parametrize("split", ["train", "test"])
def test_store_pairs_are_the_rows_of_the_store(store, tokenizer, split):
    opened = Store(store)
    rows = opened.rows_of(split)
    pairs = StorePairs(opened, rows, tokenizer, 8)
    assert len(pairs) == len(rows) == len(pairs.lengths)
    tokens, real = opened.visual_tokens(rows)
    assert real.tolist() == [["words" not in opened.rows["id"][row]] * 4 for row in rows]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    for index, pair in zip(order, pairs.__getitems__(order), strict=True):
        row = rows[index]
        assert pair.input_ids == tokenize(tokenizer, [opened.rows["text"][row]], 8)[0]
        assert len(pair.input_ids) == pairs.lengths[index] <= 8
        assert np.array_equal(pair.visual_tokens, tokens[index])
        assert pair.visual_tokens.dtype == np.float16
        assert pair.has_image == real[index].all() == pair.visual_mask.all()
        assert opened.label_set.names[pair.label] in opened.rows["id"][row] + " square"
    assert np.array_equal(pairs[3].visual_tokens, tokens[3])


def test_store_pairs_of_many_labels(multi_store, tokenizer):
    opened = Store(multi_store)
    pairs = StorePairs(opened, opened.rows_of("validation"), tokenizer, 16)
    for index, row in enumerate(pairs.rows):
        names = [name for name, mark in zip(opened.label_set.names, pairs[index].label, strict=True) if mark]
        assert sorted(names) == sorted(opened.rows["id"][row].split("-")[:2])


def test_a_batch_of_the_store_is_what_a_model_takes(store, tokenizer, build):
    opened = Store(store)
    batch = collate(StorePairs(opened, opened.rows_of("test"), tokenizer, 16).__getitems__([0, 3, 6]), 0)
    assert batch["visual_tokens"].shape == (3, 4, 96)
    assert batch["visual_mask"].any(dim=1).tolist() == [True, True, False]
    assert build("visualbert").model(**batch).logits.shape == (3, 3)


CHINESE = ["今天天气很好", "今天下棋，天气好"]


def test_chinese_in_a_vocabulary_of_words_is_read_by_characters():
    words = own_tokenizer([*CHINESE, "ประเทศไทย", "きょうはいいひ", "good chess good Chess"])
    assert {"今", "天", "气", "好", "ท", "い", "good", "chess"} <= set(words.get_vocab())
    assert words.tokenize("今天很GOOD") == ["今", "天", "<unk>", "good"]
    assert words.convert_tokens_to_ids(words.tokenize("今天下棋"))[:2] == words.convert_tokens_to_ids(["今", "天"])


def test_a_vocabulary_of_characters_has_every_character_and_no_blank():
    characters = own_tokenizer([*CHINESE, "Good, goód!  de\u0301ja\u0300 vu, déjà"], "character")
    assert set(characters.get_vocab()) == {PAD, UNKNOWN, *"今天气好god,éjàd"}
    assert characters.tokenize("今天 dog") == ["今", "天", "d", "o", "g"]
    assert tokenize(characters, ["今天天气很好"], 4) == [characters.convert_tokens_to_ids(list("今天天气"))]


def test_collate_of_no_text_at_all_keeps_a_masked_token():
    batch = collate([Pair([], PICTURE, True), Pair([], PICTURE, True)], 9)
    assert batch["input_ids"].tolist() == [[9], [9]]
    assert not batch["text_mask"].any()


def test_without_hides_one_modality_and_leaves_the_other():
    batch = collate([Pair([2, 5, 3], PICTURE, True, np.int64(1)), Pair([2], PICTURE * 0, False, np.int64(0))], 0)
    for modality, masks, kept in (("text", ("text_mask", "visual_mask"), "visual_tokens"),
                                  ("image", ("visual_mask", "text_mask"), "input_ids")):  # fmt: skip
        hidden = without(batch, modality)
        assert not hidden[masks[0]].any()
        assert hidden[masks[0]].shape == (2, 1)
        assert torch.equal(hidden[masks[1]], batch[masks[1]])
        assert torch.equal(hidden[kept], batch[kept])
        assert torch.equal(hidden["labels"], batch["labels"])
    assert batch["text_mask"].any()
    assert batch["visual_mask"].any()


def test_modalities_are_dropped_in_their_share_never_both_and_others_each_epoch():
    pairs = [Pair([2, 5], PICTURE, True), Pair([], PICTURE, True), Pair([2], PICTURE * 0, False)]

    class Many:
        def __len__(self):
            return 3000

        def __getitems__(self, indices):
            return [pairs[index % 3] for index in indices]

    dropped, again = DroppedModalities(Many(), 0.4, seed=3), DroppedModalities(Many(), 0.4, seed=3)
    seen = dropped.__getitems__(list(range(3000)))
    assert all(pair.input_ids or pair.has_image for pair in seen)
    whole = seen[::3]
    for share in (np.mean([not pair.has_image for pair in whole]), np.mean([not pair.input_ids for pair in whole])):
        assert share == pytest.approx(0.2, abs=0.05)
    assert not any(pair.visual_tokens.any() for pair in seen if not pair.has_image)

    def kept(data: DroppedModalities, order: list[int]) -> list[tuple[bool, bool]]:
        return [(bool(data[index].input_ids), data[index].has_image) for index in order]

    order = list(range(0, 300, 3))
    first = kept(dropped, order)
    dropped.set_epoch(1)
    assert kept(dropped, order) != first
    again.set_epoch(1)
    assert kept(again, order[::-1])[::-1] == kept(dropped, order)


def test_visual_tokens_are_left_out_in_their_share_in_order_and_others_each_epoch():
    rng = np.random.default_rng(0)
    # as what a ReLU6 gives, which is zero for most tokens, and in some channels for all
    pictures = [np.maximum(rng.normal(size=(49, 4)) * [0, 0, 1, 1], 0).astype(np.float16) for _ in range(40)]
    for picture in pictures:
        picture[:, 3] += np.arange(49) + 1
    pairs = [Pair([2, number], picture, True, visual_mask=np.ones(49, bool)) for number, picture in enumerate(pictures)]
    data = PairList([*pairs, pairs[7]._replace(input_ids=[5]), pairs[8]._replace(visual_mask=None)])
    dropped, again = DroppedTokens(data, 0.5, seed=3), DroppedTokens(data, 0.5, seed=3)

    def kept(data: DroppedTokens, order: list[int]) -> list[list[int]]:
        places = [
            {row.tobytes(): place for place, row in enumerate(picture)} for picture in (*pictures, *pictures[7:9])
        ]
        return [[places[index][row.tobytes()] for row in data[index].visual_tokens] for index in order]

    order = list(range(len(data)))
    first = kept(dropped, order)
    assert all(len(places) == 24 and places == sorted(places) for places in first)
    assert all(data.visual_mask.shape == (24,) for data in dropped.__getitems__(order[:-1]))
    assert first[7] == first[40]  # one picture with two texts
    assert first[8] == first[41]
    assert dropped[41].visual_mask is None
    counts = np.bincount(np.concatenate(first), minlength=49)
    assert counts.min() > 0  # each token stays somewhere
    dropped.set_epoch(1)
    assert all(ours != theirs for ours, theirs in zip(kept(dropped, order), first, strict=True))
    again.set_epoch(1)
    assert kept(again, order[::-1])[::-1] == kept(dropped, order)


def test_of_a_detectors_tokens_the_real_ones_stay_first():
    tokens = np.arange(36, dtype=np.float16).reshape(12, 3)
    few = Pair([2], tokens, True, visual_mask=np.arange(12) < 4)
    many = Pair([2], tokens, True, visual_mask=np.arange(12) < 10)
    none = Pair([2], tokens * 0, False, visual_mask=np.zeros(12, bool))
    data = DroppedTokens(PairList([few, many, none]), 0.5, seed=0)
    assert np.array_equal(data[0].visual_tokens[:4], tokens[:4])
    assert data[0].visual_mask.tolist() == [True] * 4 + [False] * 2
    assert data[1].visual_mask.all()
    assert not data[2].visual_mask.any()
    alone = DroppedTokens(PairList([Pair([2], tokens[:1], True)]), 0.9, seed=0)
    assert np.array_equal(alone[0].visual_tokens, tokens[:1])
