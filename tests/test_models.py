"""What holds for every model: padding, batches and masks change nothing they should not, and everything is trained."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labeler.batches import Pair, collate, without
from labeler.encoders.text import load_text_encoder
from labeler.errors import UsageError
from labeler.inference import PairList, logits
from labeler.layers import ZeroLinear, unit
from labeler.models import COATTENTIONS, COATTN_PLACES, Building, check_choice, model_module, model_names
from labeler.runs import load_run

VISUALBERTS = ("visualbert", "visualbert-coattn")
# A bias of the keys moves all logits of a query alike, which a softmax does not see.
UNSEEN = re.compile(r"\bkey\.bias$")

COATTENTION = [f"visualbert-coattn {kind} {place}" for kind in COATTENTIONS for place in COATTN_PLACES]

every_model = pytest.mark.parametrize("name", model_names())
# the model's own kind and place are among the models
every_variant = pytest.mark.parametrize("name", [*model_names(), *COATTENTION[1:]])


def forward(built, pairs: list[Pair]) -> torch.Tensor:
    """Return logits [N, L] of the pairs as one batch."""
    batch = collate(pairs, built.tokenizer.pad_token_id)
    batch.pop("labels")
    with torch.inference_mode():
        return built.model(**batch).logits


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Assert that logits are equal but for rounding."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_there_are_the_models_that_the_documentation_names():
    assert {"resnet-gru", "late-fusion", *VISUALBERTS} <= set(model_names())


def test_what_is_nowhere_near_is_not_suggested():
    with pytest.raises(UsageError, match=r"unknown label 'nolabel'; There are: anger, mild, joy$"):
        check_choice("label", "nolabel", ["anger, mild", "joy"])


@pytest.mark.parametrize(("typed", "closest"), [("visual-bert", "visualbert"), ("resnetgru", "resnet-gru"),
                                                ("visualbert-coatn", "visualbert-coattn")])  # fmt: skip
def test_an_unknown_model_names_the_closest(typed, closest):
    with pytest.raises(UsageError, match=f"unknown model '{typed}'; did you mean '{closest}'"):
        model_module(typed)


def test_an_unknown_model_like_none_names_all():
    with pytest.raises(UsageError, match=r"unknown model '9'; There are: .*visualbert-coattn"):
        model_module("9")


@every_variant
def test_logits_have_a_column_for_each_label(name, build, pairs):
    built = build(name)
    batch = collate(pairs(5), built.tokenizer.pad_token_id)
    with torch.inference_mode():
        output = built.model(**batch)
    assert output.logits.shape == (5, 3)
    assert output.logits.std(dim=0).min() > 1e-4, "the same for every pair: nothing below would be shown"
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, batch["labels"]))


@every_variant
def test_padding_changes_no_logit(name, build, pairs):
    built, (short, *others) = build(name), pairs(6)
    long = Pair(list(range(2, 11)) * 4, others[0].visual_tokens, True, np.int64(0))
    alone, padded = forward(built, [short]), forward(built, [short, long])
    assert len(short.input_ids) < len(long.input_ids)
    close(padded[:1], alone)


@every_variant
def test_batch_size_and_order_change_no_score(name, build, pairs):
    built, made = build(name), pairs(11)
    pad = built.tokenizer.pad_token_id
    one = logits(built.model, PairList(made), pad, batch_size=1)
    order = np.random.default_rng(0).permutation(len(made))
    for batch_size in (3, 4, 32):
        shuffled = logits(built.model, PairList([made[i] for i in order]), pad, batch_size=batch_size)
        np.testing.assert_allclose(shuffled, one[order], atol=1e-5, rtol=0)
    assert one.std(axis=0).min() > 1e-3


@every_variant
def test_a_masked_token_changes_no_logit(name, build, pairs):
    built = build(name)
    batch = collate(pairs(7), built.tokenizer.pad_token_id)
    batch["visual_mask"][:, 1] = batch["visual_mask"][:3, 3] = False
    batch.pop("labels")
    with torch.inference_mode():
        before = built.model(**batch).logits
        changed = dict(batch, input_ids=batch["input_ids"].clone(), visual_tokens=batch["visual_tokens"].clone())
        changed["input_ids"][~batch["text_mask"]] = 7
        changed["visual_tokens"][~batch["visual_mask"]] = 1000.0
        assert (changed["input_ids"] != batch["input_ids"]).any()
        close(built.model(**changed).logits, before)
        seen = dict(batch, visual_tokens=batch["visual_tokens"] + 1)
        assert (built.model(**seen).logits - before)[:3].abs().min() > 1e-5
        read = dict(batch, input_ids=torch.where(batch["text_mask"], batch["input_ids"] + 1, batch["input_ids"]))
        assert (built.model(**read).logits - before).abs().amax(dim=1).min() > 1e-5


@every_variant
def test_a_missing_image_is_finite_and_leaves_visual_tokens_unread(name, build, pairs):
    built = build(name)
    batch = collate(pairs(5), built.tokenizer.pad_token_id)
    batch["visual_mask"][:] = False
    with torch.inference_mode():
        before = built.model(**batch).logits
        after = built.model(**dict(batch, visual_tokens=torch.randn(5, 4, 96) * 100)).logits
    assert torch.isfinite(before).all()
    close(after, before)


@every_variant
def test_a_missing_text_is_finite_and_leaves_words_unread(name, build, pairs):
    built = build(name)
    batch = collate(pairs(3), built.tokenizer.pad_token_id)
    batch["text_mask"][:] = False
    with torch.inference_mode():
        before = built.model(**batch).logits
        after = built.model(**dict(batch, input_ids=(batch["input_ids"] + 3) % 11)).logits
        alone = built.model(**without(batch, "text")).logits
    assert torch.isfinite(before).all()
    assert before.std(dim=0).min() > 1e-4, "the pictures are read"
    close(after, before)
    close(alone, before)


@every_variant
def test_what_is_missing_is_learned(name, build, pairs):
    built = build(name, stir=False)
    made = [pair._replace(label=np.int64(2)) for pair in pairs(10) if not (pair.input_ids and pair.has_image)]
    batch = collate([*made, *pairs(3)], built.tokenizer.pad_token_id)
    before = {key: value.clone() for key, value in built.model.named_parameters() if "absen" in key}
    fit(built.model, batch, steps=2)
    after = dict(built.model.named_parameters())
    assert before
    for key, value in before.items():
        parts = value.split(built.model.head.widths) if hasattr(built.model, "head") else [value]
        moved = after[key].split(built.model.head.widths) if hasattr(built.model, "head") else [after[key]]
        assert all(not torch.equal(one, other) for one, other in zip(parts, moved, strict=True))


@every_variant
def test_saving_and_loading_is_exact(name, build, pairs, tmp_path):
    built, made = build(name), pairs(6)
    built.model.save_pretrained(tmp_path)
    loaded = type(built.model).from_pretrained(tmp_path).eval()
    before, after = built.model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # equal weights elsewhere in memory: the order in which a matrix product sums may differ in the last digit
    torch.testing.assert_close(forward(built, made), forward(built._replace(model=loaded), made), atol=1e-6, rtol=1e-6)


@every_model
def test_a_run_opens_with_the_weights_it_was_saved_with(name, trained):
    run = load_run(trained(name))
    saved = load_file(trained(name) / "model.safetensors")
    state = run.model.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], state[key]) for key in saved)
    assert not run.model.training
    assert list(run.model.config.id2label.values()) == run.label_set.names


def fit(model: torch.nn.Module, batch: dict, steps: int, rate: float = 0.01) -> None:
    """Train on one batch for some steps, and leave the last step's gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


@every_variant
def test_gradients_reach_every_weight(name, build, pairs):
    built = build(name, 1 if name.endswith("between") else 2, stir=False)  # there is one place between two layers
    fit(built.model, collate(pairs(12), built.tokenizer.pad_token_id), steps=4, rate=0.003)
    idle = [key for key, weight in built.model.named_parameters()
            if weight.requires_grad and not UNSEEN.search(key) and (weight.grad is None or not weight.grad.any())]  # fmt: skip
    assert idle == []


@pytest.mark.parametrize("name", ["visualbert-coattn", *(name for name in COATTENTION[1:] if "seed" not in name)])
def test_gradients_reach_coattention_once_its_zero_projections_have_moved(name, build, pairs):
    model = (built := build(name, stir=False)).model
    batch = collate(pairs(12), built.tokenizer.pad_token_id)
    weights = dict(model.coattention.named_parameters())
    zeros = {key for key, weight in weights.items() if not weight.any() and re.search("output|feed_out|to_", key)}
    fit(model, batch, steps=1)
    assert {key for key, weight in weights.items() if weight.grad.any()} == zeros
    before = {key: weight.clone() for key, weight in weights.items()}
    fit(model, batch, steps=2)
    assert all(weight.grad.any() for key, weight in weights.items() if not UNSEEN.search(key))
    assert all(not torch.equal(weight, before[key]) for key, weight in weights.items())


@every_variant
def test_sixteen_pairs_can_be_learned_by_heart(name, build, pairs):
    built = build(name, stir=False)
    batch = collate(pairs(16, seed=3), built.tokenizer.pad_token_id)
    fit(built.model, batch, steps=60)
    right = (built.model(**batch).logits.argmax(dim=1) == batch["labels"]).sum().item()
    assert right >= 15


@pytest.mark.parametrize(
    ("name", "n_coattn"),
    [("visualbert-coattn", 1), ("visualbert-coattn", 3), ("visualbert-coattn vilbert between", 1),
     ("visualbert-coattn hieco before", 3), ("visualbert-coattn hieco between", 1)],
)  # fmt: skip
def test_coattention_starts_as_visualbert(build, pairs, name, n_coattn):
    plain = build("visualbert")
    built = build(name, n_coattn, stir=False)
    load_plain(built.model, plain.model, n_coattn)
    close(forward(built, pairs(9)), forward(plain, pairs(9)))
    for layer in built.model.coattention.modules():
        if isinstance(layer, ZeroLinear):
            torch.nn.init.normal_(layer.weight, std=0.3)
    assert (forward(built, pairs(9)) - forward(plain, pairs(9))).abs().max() > 1e-3


@pytest.mark.parametrize(("place", "n_coattn"), [("before", 2), ("between", 1)])
def test_bare_attention_starts_elsewhere_but_for_text_alone(build, pairs, place, n_coattn):
    plain = build("visualbert")
    built = build(f"visualbert-coattn seed {place}", n_coattn, stir=False)
    load_plain(built.model, plain.model, n_coattn)
    moved = (forward(built, pairs(9)) - forward(plain, pairs(9))).abs().amax(dim=1)
    has_image = torch.tensor([pair.has_image for pair in pairs(9)])
    assert moved[has_image].min() > 1e-3
    assert moved[~has_image].max() < 1e-5


def load_plain(model: torch.nn.Module, plain: torch.nn.Module, n_coattn: int) -> None:
    """Give `model` all weights of VisualBERT; assert that only those of its blocks are its own."""
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {key.split(".")[0] for key in missing} == {"coattention"}
    assert {key.split(".")[1] for key in missing} == {str(block) for block in range(n_coattn)}


@pytest.mark.parametrize(("kind", "count"), [("vilbert", 4), ("hieco", 2)])
def test_zero_layers_are_zero_in_the_built_model(build, kind, count):
    model = build(f"visualbert-coattn {kind}", 3, stir=False).model
    zeros = [layer for layer in model.modules() if isinstance(layer, ZeroLinear)]
    assert len(zeros) == 3 * count
    assert not any(parameter.any() for layer in zeros for parameter in layer.parameters())


@pytest.mark.parametrize("kind", COATTENTIONS)
@pytest.mark.parametrize(
    ("place", "n_coattn", "order"),
    [("before", 2, "**012345"), ("between", 1, "012*345"), ("between", 2, "01*23*45"), ("between", 4, "0*1*23*4*5"),
     ("between", 5, "0*1*2*3*4*5")],
)  # fmt: skip
def test_blocks_stand_where_the_documentation_says(kind, place, n_coattn, order):
    module = model_module("visualbert-coattn")
    model = module.Model(module.Config(vocab_size=9, hidden_size=8, num_hidden_layers=6, num_attention_heads=2,
                                       intermediate_size=8, visual_embedding_dim=4, coattention=kind,
                                       n_coattn=n_coattn, coattn_place=place))  # fmt: skip
    seen = []
    for number, layer in enumerate(model.fused.encoder.layer):
        layer.register_forward_hook(lambda *_, number=number: seen.append(str(number)))
    for block in model.coattention:
        block.register_forward_hook(lambda block, *_: seen.append(block))
    mask = torch.ones(2, 3, dtype=torch.bool)
    model(torch.zeros(2, 3, dtype=torch.long), mask, torch.randn(2, 3, 4), mask)
    assert [item for item in seen if not isinstance(item, str)] == list(model.coattention)
    assert "".join(item if isinstance(item, str) else "*" for item in seen) == order


def test_more_blocks_than_places_between_the_layers_are_refused(build):
    message = "--n-coattn is 2, but between the text tower's 2 layers is room for 1; give at most that, or"
    with pytest.raises(UsageError, match=message):
        build("visualbert-coattn hieco between", 2)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("vilbret", "unknown co-attention 'vilbret'; did you mean 'vilbert'"),
        ("seed betwen", "unknown place of co-attention 'betwen'; did you mean 'between'"),
    ],
)
def test_an_unknown_kind_or_place_names_the_closest(build, choice, match):
    with pytest.raises(UsageError, match=match):
        build(f"visualbert-coattn {choice}")


def test_a_run_from_before_there_was_a_choice_is_vilbert_before_the_encoder(build, tmp_path):
    build("visualbert-coattn", 2).model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    assert (config.pop("coattention"), config.pop("coattn_place")) == ("vilbert", "before")
    file.write_text(json.dumps(config), encoding="utf-8")
    loaded = model_module("visualbert-coattn").Model.from_pretrained(tmp_path)
    assert (loaded.config.coattention, loaded.config.coattn_place, loaded.config.n_coattn) == ("vilbert", "before", 2)


def test_without_coattention_blocks_it_is_visualbert(build):
    assert build("visualbert-coattn", 0).model.state_dict().keys() == build("visualbert").model.state_dict().keys()


@pytest.mark.parametrize("tower", ["text_tower", "roberta_tower"])
@pytest.mark.parametrize("name", VISUALBERTS)
def test_text_alone_is_read_as_the_text_tower_reads_it(name, tower, label_set, request):
    folder = str(request.getfixturevalue(tower))
    assert_text_only(name, folder, label_set, ["a red circle", "two very green squares on paper by hand", "blue"])


def test_text_alone_is_read_as_minilm_reads_it(label_set):
    assert_text_only("visualbert", "embedded", label_set, ["A dog on the beach.", "Two people playing chess, 下棋", ""])


def assert_text_only(name: str, tower_name: str, label_set, texts: list[str]) -> None:
    """Assert that the fused encoder under an empty visual mask gives the tower's last hidden state."""
    tower = load_text_encoder(tower_name)
    built = model_module(name).build(Building(label_set, tower_name, 96, texts))
    encoded = tower.tokenizer(texts, padding=True, return_tensors="pt")
    mask, visual_mask = encoded["attention_mask"].bool(), torch.zeros(len(texts), 4, dtype=torch.bool)
    with torch.inference_mode():
        fused = built.model.eval().fused
        streams = fused.embed(encoded["input_ids"], torch.randn(len(texts), 4, 96))
        own = fused(streams, mask, visual_mask).text
        theirs = tower.model(**encoded).last_hidden_state
    assert not mask.all()
    torch.testing.assert_close(own[mask], theirs[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower_name", ["text_tower", "roberta_tower", "embedded"])
def test_late_fusion_reads_the_text_as_its_tower_and_nothing_else(tower_name, label_set, request):
    folder = tower_name if tower_name == "embedded" else str(request.getfixturevalue(tower_name))
    tower, texts = load_text_encoder(folder), ["a red circle", "two very green squares on paper by hand", "blue"]
    built = model_module("late-fusion").build(Building(label_set, folder, 96, texts))
    pictures = torch.randn(3, 4, 96)
    encoded = tower.tokenizer(texts, padding=True, return_tensors="pt")
    batch = {"input_ids": encoded["input_ids"], "text_mask": encoded["attention_mask"].bool(),
             "visual_tokens": pictures, "visual_mask": torch.ones(3, 4, dtype=torch.bool)}  # fmt: skip
    with torch.inference_mode():
        features = built.model.eval().features(**batch)
    expected = torch.cat([unit(tower.features(texts)), unit(pictures.mean(1))], dim=1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_late_fusion_starts_as_its_probe(build, pairs):
    built = build("late-fusion", stir=False)
    batch = collate(pairs(6), built.tokenizer.pad_token_id)
    batch.pop("labels")
    with torch.inference_mode():
        assert torch.equal(built.model(**batch).logits, built.model.head(built.model.features(**batch)))


@pytest.mark.parametrize("name", [*VISUALBERTS, "late-fusion"])
@pytest.mark.parametrize(("tower", "reach"), [("text_tower", 40), ("roberta_tower", 40)])
def test_a_model_knows_how_many_tokens_it_can_read(name, tower, reach, label_set, request):
    folder = str(request.getfixturevalue(tower))
    built = model_module(name).build(Building(label_set, folder, 96, []))
    assert built.model.max_text_tokens == reach == load_text_encoder(folder).max_tokens
    pair = Pair([5] * reach, np.zeros((4, 96), np.float16), False, np.int64(0))
    assert torch.isfinite(forward(built, [pair])).all()
