"""Explanations: what words and regions add to a logit, where words stand, attention maps, and the command."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labeler import predicting
from labeler.batches import Pair, collate
from labeler.coattention import recorded_maps
from labeler.encoders.image import load_image_encoder
from labeler.end_to_end import EndToEnd
from labeler.errors import BadInputError
from labeler.explaining import heat_maps
from labeler.explaining.attribution import SMALL, TOLERANCE, Sight, attribute, text_places, word_spans
from labeler.explaining.explanation import (
    decoded_subjects,
    explain_given,
    explain_item,
    explain_pairs,
    explanation,
    original_pictures,
    stored_subjects,
)
from labeler.models import model_names
from labeler.models.resnet_gru import own_tokenizer
from labeler.predicting import predict
from labeler.records import Label, LabelSet, Record
from labeler.runs import load_run
from labeler.store import Store

ITEM = "circle-red-one"
KINDS = ["vilbert", "seed", "hieco"]


class Toy(nn.Module):
    """A linear model: a weight for each place of an embedding and a visual token, the same at every token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4)
        self.word, self.cell = torch.randn(4, 2), torch.randn(3, 2)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, text_mask, visual_tokens, visual_mask):
        words = (self.table(input_ids) @ self.word * text_mask.unsqueeze(-1)).sum(1)
        return SimpleNamespace(logits=words + (visual_tokens @ self.cell * visual_mask.unsqueeze(-1)).sum(1))


def toy_batch(ids: list[int]) -> dict[str, torch.Tensor]:
    tokens = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    mask = np.array([True, True, True, False])
    return collate([Pair(ids, tokens, True, visual_mask=mask)], 0)


def test_of_a_linear_model_attributions_are_weight_times_input():
    model, batch = Toy(), toy_batch([1, 5, 6, 7, 2])
    words = torch.tensor([[False, True, True, True, False]])
    found = attribute(model, batch, words, target=1, baseline=4)
    table = model.table.weight.detach()
    steps = table[batch["input_ids"][0]] - table[4]
    np.testing.assert_allclose(found.text[1:4], (steps @ model.word[:, 1])[1:4].numpy(), atol=1e-5)
    assert found.text[[0, 4]].tolist() == [0, 0], "special tokens stay as they are"
    np.testing.assert_allclose(found.visual[:3], (batch["visual_tokens"][0] @ model.cell[:, 1])[:3].numpy(), atol=1e-5)
    assert found.visual[3] == 0
    assert found.error < 1e-4
    assert found.logit - found.baseline_logit == pytest.approx(found.text.sum() + found.visual.sum(), abs=1e-4)


def test_where_order_does_not_matter_weights_move_with_their_words():
    model, words = Toy(), torch.ones(1, 3, dtype=torch.bool)
    one, other = (attribute(model, toy_batch(ids), words, 0, 4).text for ids in ([5, 6, 7], [7, 5, 6]))
    np.testing.assert_allclose(other, one[[2, 0, 1]], atol=1e-6)
    assert len(set(one.round(4))) == 3


@pytest.mark.parametrize("name", model_names())
def test_all_weights_together_are_what_the_logit_gains(trained, store, name):
    run = load_run(trained(name))
    (subject,) = stored_subjects(run, Store(store), [ITEM])
    found = explain_pairs(run, [subject], "cross")
    assert [one.label for one in found] == ["cross"]
    (one,) = found
    gain = one.logit - one.baseline_logit
    assert gain != 0
    assert abs(gain - sum(word.weight for word in one.words) - one.grid.sum()) == pytest.approx(one.error, abs=1e-4)
    assert one.error <= max(TOLERANCE * abs(gain), SMALL)
    assert [(word.text, word.start, word.end) for word in one.words] == [
        ("one", 0, 3),
        ("red", 4, 7),
        ("circle", 8, 14),
    ]
    assert one.grid.shape == (2, 2)
    assert (np.abs(one.grid) > 0).all()
    assert any(word.weight for word in one.words)


@pytest.mark.parametrize("name", model_names())
def test_padding_and_masked_tokens_weigh_exactly_nothing(build, name):
    built = build(name)
    tokens = np.random.default_rng(1).normal(size=(4, 96)).astype(np.float16)
    mask = np.array([True, True, False, True])
    pair, long = Pair([5, 6, 7], tokens, True, visual_mask=mask), Pair([5] * 6, tokens, True)
    batch = {key: value[:1] for key, value in collate([pair, long], built.tokenizer.pad_token_id).items()}
    found = attribute(built.model, batch, torch.ones(1, 6, dtype=torch.bool), 0, baseline=3)
    assert found.text[3:].tolist() == [0, 0, 0]
    assert found.visual[2] == 0
    assert (found.text[:3] != 0).all()
    assert (found.visual[mask] != 0).all()
    alone = attribute(built.model, collate([pair], 0), torch.ones(1, 3, dtype=torch.bool), 0, baseline=3)
    np.testing.assert_allclose(alone.text, found.text[:3], atol=1e-4)


def test_label_and_score_are_those_of_predict(trained, store, tmp_path):
    folder = trained("visualbert")
    picture = store.parent / "source" / "pictures" / f"{ITEM}.png"
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": str(picture), "text": "one red circle"}))
    predict([tmp_path / "pairs.jsonl"], folder, tmp_path / "out.jsonl", allow_outside=True, device="cpu")
    line = json.loads((tmp_path / "out.jsonl").read_text())
    (given,) = explain_given(folder, picture, "one red circle", device="cpu")
    (stored,) = explain_item(folder, ITEM, device="cpu")
    for one in (given, stored):
        assert [one.label] == line["labels"]
        assert one.score == pytest.approx(line["scores"][one.label], abs=1e-4)
    np.testing.assert_allclose(given.grid, stored.grid, atol=1e-4)


@pytest.mark.parametrize("name", model_names())
def test_what_is_missing_has_no_weights(trained, store, name):
    run = load_run(trained(name))
    text, picture = explain_pairs(
        run, stored_subjects(run, Store(store), ["test-words", "circle-yellow-three"]), "circle"
    )
    assert (text.grid, text.class_tokens, text.picture) == (None, [], None)
    assert [word.text for word in text.words] == ["a", "red", "square", "on", "paper", "two"]
    assert picture.words == []
    assert picture.text is None
    for one in (text, picture):
        assert one.text_sum + one.picture_sum == pytest.approx(one.logit - one.baseline_logit, abs=one.error + 1e-4)
        assert heat_maps.panel(one).width == heat_maps.WIDTH


def test_behind_its_own_tower_a_model_is_explained_by_the_tower_s_tokens(trained, store, image_tower):
    frozen = load_run(trained("visualbert"))
    (expected,) = explain_pairs(frozen, stored_subjects(frozen, Store(store), [ITEM]), "cross")
    tuned = frozen._replace(model=EndToEnd(frozen.model, load_image_encoder(str(image_tower))).eval())
    subjects = stored_subjects(tuned, Store(store), [ITEM])
    assert subjects[0].pair.pixels is not None
    (found,) = explain_pairs(tuned, subjects, "cross")
    np.testing.assert_allclose(found.grid, expected.grid, atol=2e-3)  # stored tokens are float16
    assert found.logit == pytest.approx(expected.logit, abs=2e-3)


def test_pictures_of_a_fine_tuned_tower_must_be_there(store, tmp_path):
    moved = SimpleNamespace(folder=store, manifest={"inputs": [{"path": str(tmp_path / "gone"), "sha256": "0"}]})
    with pytest.raises(BadInputError, match="a fine-tuned image tower reads their pictures"):
        original_pictures(moved, [ITEM])


def test_regions_and_class_tokens_stand_apart_from_a_grid(trained, store):
    run = load_run(trained("visualbert"))
    (subject,) = stored_subjects(run, Store(store), [ITEM])
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.2, 0.2, 0.4, 0.4], [0, 0, 0, 0]], dtype=np.float32)
    pair = subject.pair._replace(visual_mask=boxes[:, 2] > boxes[:, 0])
    (found,) = explain_pairs(run, [subject._replace(pair=pair, boxes=boxes)], "cross")
    assert found.grid is None
    np.testing.assert_allclose([region.box for region in found.regions], boxes[:3])
    assert found.picture_sum == pytest.approx(
        found.logit - found.baseline_logit - found.text_sum, abs=found.error + 1e-4
    )
    assert heat_maps.panel(found).height > heat_maps.SIDE / 2
    wide = pair._replace(visual_tokens=np.concatenate([subject.pair.visual_tokens] * 2)[:6], visual_mask=None)
    sight = Sight(run, wide, subject.text)
    cut = explanation(run, subject._replace(pair=wide), sight, 0, 0.5)
    assert (cut.grid.shape, len(cut.class_tokens)) == ((2, 2), 2)
    np.testing.assert_allclose(np.append(cut.class_tokens, cut.grid.ravel()), sight.attribute(0).visual, atol=1e-6)


TEXTS = [
    "Two cats, don't run!",
    "我喜欢猫 and dogs",
    "so happy 😀👍🏽 family 👨‍👩‍👧",
    "naïve Café café",
    "ひらがな カタカナ",
    "  x  ",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("vocabulary", ["word", "character"])
def test_words_are_pieces_of_the_text_itself(text, vocabulary):
    tokenizer = own_tokenizer(TEXTS * 2, vocabulary)
    spans = word_spans(text, text_places(tokenizer, text, 64))
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    words = [text[start:end] for start, end in spans]
    expected = {0: ["Two", "cats", ",", "don't", "run", "!"], 1: ["我", "喜", "欢", "猫", "and", "dogs"], 5: ["x"]}
    assert words == expected.get(TEXTS.index(text), words)


def test_what_the_model_did_not_read_is_no_word(trained):
    run = load_run(trained("visualbert"))
    assert run.preprocessor["max_text_tokens"] < 60
    (found,) = explain_pairs(run, [subject_of(run, "red " * 60)], "cross")
    assert len(found.words) == run.preprocessor["max_text_tokens"] - 2


def subject_of(run, text):
    from labeler.explaining.explanation import decoded_subjects
    from labeler.records import Record

    return decoded_subjects(run, [(Record(id="x", text=text), None, None)])[0]


def test_emoji_and_chinese_keep_their_places(trained):
    text = "红 circle 😀 drawings"
    (found,) = explain_given(trained("visualbert"), None, text, label="circle", device="cpu")
    assert [word.text for word in found.words] == ["红", "circle", "😀", "drawings"]
    assert all(text[word.start : word.end] == word.text for word in found.words)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["before", "between"])
def test_rows_of_attention_sum_to_one_and_padding_gets_nothing(build, pairs, kind, place):
    built = build(f"visualbert-coattn {kind} {place}")
    batch = collate(pairs(10), built.tokenizer.pad_token_id)
    batch.pop("labels")
    batch["visual_mask"][0, 2:] = False
    with torch.no_grad(), recorded_maps(built.model.coattention) as maps:
        logits = built.model(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(built.model(**batch).logits, logits, atol=0, rtol=0)
    (found,) = maps
    text_mask, visual_mask = batch["text_mask"], batch["visual_mask"]
    both = text_mask.any(dim=1) & visual_mask.any(dim=1)
    assert not both.all()
    for weights, queried, mask in (
        (found.text_to_visual, text_mask, visual_mask),
        (found.visual_to_text, visual_mask, text_mask),
    ):
        assert weights.shape == (10, queried.shape[1], mask.shape[1])
        sums = weights.sum(dim=2)
        torch.testing.assert_close(sums[both], torch.ones_like(sums[both]))
        assert (weights.masked_select(~mask.unsqueeze(1).expand(weights.shape)) == 0).all()
        assert (weights[~mask.any(dim=1)] == 0).all()
        assert weights[both].std() > 0


def test_maps_are_the_weights_that_torch_s_attention_says(build):
    half = build("visualbert-coattn").model.coattention[0].text
    own, other = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    layer = half.attention
    reference = nn.MultiheadAttention(32, layer.heads, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        context = half.context_norm(other)
        _, expected = reference(half.query_norm(own), context, context, key_padding_mask=~mask)
        torch.testing.assert_close(half.weights(own, other, mask), expected, atol=1e-6, rtol=1e-5)


def test_an_explanation_has_the_maps_over_its_own_tokens(trained):
    (found,) = explain_item(trained("visualbert-coattn"), ITEM, device="cpu")
    assert found.tokens == ["[CLS]", "one", "red", "circle", "[SEP]"]
    (maps,) = found.maps
    assert (maps.text_to_visual.shape, maps.visual_to_text.shape) == ((5, 4), (4, 5))
    np.testing.assert_allclose(maps.text_to_visual.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(maps.visual_to_text.sum(axis=1), 1, atol=1e-5)
    assert explain_item(trained("resnet-gru"), ITEM, device="cpu")[0].maps == []


def test_of_several_labels_each_that_was_chosen_is_explained(multi_store, options, tmp_path):
    from labeler.training import train

    run = load_run(train("resnet-gru", multi_store, tmp_path / "run", options, device="cpu").out)
    subjects = stored_subjects(run, Store(multi_store), [ITEM])
    chosen = explain_pairs(run._replace(thresholds=[0.0] * 7), subjects)
    assert [one.label for one in chosen] == run.label_set.names
    (highest,) = explain_pairs(run._replace(thresholds=[1.1] * 7), subjects)
    assert highest.score == max(one.score for one in chosen)


def test_the_score_of_a_label_with_children_is_that_of_predict(trained):
    run = load_run(trained("late-fusion"))
    labels = (
        Label(name="circle", count=1),
        Label(name="cross", count=1, parent="circle"),
        Label(name="square", count=1),
    )
    run = run._replace(label_set=LabelSet(task="single", labels=labels))
    (line,) = predicting.label(run, [{"text": "one red circle"}])
    subjects = decoded_subjects(run, [(Record(id="1", text="one red circle"), None, None)])
    for name, score in line["scores"].items():
        (found,) = explain_pairs(run, subjects, name)
        assert found.score == pytest.approx(score, abs=1e-5)
    assert line["scores"]["circle"] > line["scores"]["cross"] > 0.01
