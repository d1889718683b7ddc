"""Training options: what is out of range or unknown is named, and the command line wins over a file."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from labeler.artifacts import read_manifest
from labeler.cli import cli
from labeler.errors import BadInputError, UsageError
from labeler.fitting.arguments import training_arguments
from labeler.training import train
from labeler.training_options import options_for, own_options, read_options, search_space


@pytest.mark.parametrize(
    ("given", "match"),
    [({"epochs": 0}, "epochs is 0, expected more than 0"), ({"learning_rate": -1.0}, "learning-rate is -1.0"),
     ({"new_learning_rate": math.nan}, "new-learning-rate is nan"), ({"n_coattn": -1}, "n-coattn must be 0 or more"),
     ({"label_smoothing": 1.0}, "label-smoothing is 1.0, expected from 0 up to 1"), ({"ema": -0.1}, "ema is -0.1"),
     ({"visual_token_dropout": 1.0}, "visual-token-dropout is 1.0, expected from 0 up to 1"),
     ({"visual_token_dropout": 0.5, "finetune_image": True}, "visual tokens, and an image tower that is fine-tuned has none"),
     ({"modality_dropout": math.nan}, "modality-dropout is nan"), ({"logit_adjustment": math.inf}, "logit-adjustment is inf"),
     ({"focal_gamma": -1.0}, "focal-gamma is -1.0, expected 0 or more"),
     ({"loss": "focl"}, "unknown --loss 'focl'; did you mean 'focal'"),
     ({"freeze": True, "pretrain": 1}, "--freeze trains the head alone: leave it out, or"),
     ({"freeze": True, "finetune_image": True}, "--freeze trains the head alone: leave it out, or"),
     ({"vocabulary": "character"}, "visualbert reads by its text tower's vocabulary; leave out --vocabulary"),
     ({"focal_gamma": 3.0}, "--focal-gamma is for --loss focal"), ({"weight_decay": -0.1}, "weight-decay is -0.1, expected 0"),
     ({"max_text_tokens": 2}, "max-text-tokens is 2, expected 3 or more"),
     ({"warmup": 1.0}, "warmup a share"), ({"batch_size": 0}, "batch-size is 0")],
)  # fmt: skip
def test_settings_out_of_range_are_named(given, match):
    with pytest.raises(UsageError, match=match):
        options_for("visualbert", given)


@pytest.mark.parametrize(
    ("model", "given", "match"),
    [("visualbert-coattn", {"coattention": "hico"}, "unknown --coattention 'hico'; did you mean 'hieco'"),
     ("visualbert-coattn", {"coattn_place": "after"}, "unknown --coattn-place 'after'; .*There are: before, between"),
     ("visualbert", {"coattention": "seed"}, "no co-attention; leave out --coattention, or train visualbert-coattn"),
     ("resnet-gru", {"n_coattn": 2}, "resnet-gru has no co-attention; leave out --n-coattn,")],
)  # fmt: skip
def test_co_attention_that_there_is_not_is_refused(model, given, match):
    with pytest.raises(UsageError, match=match):
        options_for(model, given)


@pytest.mark.parametrize(
    ("model", "given", "named"), [("resnet-gru", {}, "resnet-gru"), ("late-fusion", {"freeze": True}, "--freeze")]
)
def test_the_rate_of_pretrained_weights_is_refused_where_none_is_trained(model, given, named):
    with pytest.raises(UsageError, match=f"pretrained weights, and {named} trains none; use --new-learning-rate"):
        options_for(model, given | {"learning_rate": 1e-4})
    chosen = options_for(model, given)
    assert "learning_rate" not in own_options(model, chosen)
    assert options_for(model, own_options(model, chosen)) == chosen
    assert "learning_rate" not in search_space(model, given)
    assert "learning_rate" in search_space("late-fusion", {"freeze": False})


def test_activation_checkpointing_needs_layers_to_work_out_again(store, options, tmp_path):
    chosen = dataclasses.replace(options, activation_checkpointing=True)
    with pytest.raises(UsageError, match="resnet-gru has no transformer layers; leave out --activation-checkpointing"):
        train("resnet-gru", store, tmp_path / "run", chosen, device="cpu")


def test_a_given_setting_wins_and_none_does_not():
    own = options_for("visualbert")
    assert options_for("visualbert", {"epochs": 99, "patience": None}) == dataclasses.replace(own, epochs=99)


def test_options_are_read_from_a_file_and_the_command_line_wins(store, tmp_path):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"epochs": 1, "batch_size": 5, "ema": 0, "vocabulary": "character"}))
    arguments = ["train", "resnet-gru", str(store), "--out", str(tmp_path / "run"), "--options", str(file)]
    cli.main([*arguments, "--batch-size", "7"], standalone_mode=False)
    recorded = read_manifest(tmp_path / "run")["arguments"]
    assert [recorded[name] for name in ("epochs", "batch_size", "vocabulary", "patience")] == [1, 7, "character", 5]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [('{"learning_rat": 1}', UsageError, "unknown option in .*options.json: 'learning_rat'; did you mean 'learning_rate'"),
     ('{"epochs": 1.5}', BadInputError, "epochs is 1.5, expected a whole number"),
     ('{"epochs": true}', BadInputError, "epochs is True, expected a whole number"),
     ('{"ema": "0.9"}', BadInputError, "ema is '0.9', expected a number"),
     ('{"loss": null}', BadInputError, "loss is None, expected a word"),
     ("[1]", BadInputError, "expected training options by name"),
     ("{epochs: 1}", BadInputError, "options.json: no readable JSON")],
)  # fmt: skip
def test_a_wrong_file_of_options_is_named(tmp_path, content, error, match):
    (tmp_path / "options.json").write_text(content)
    with pytest.raises(error, match=match):
        read_options(tmp_path / "options.json")


def test_a_gpu_that_was_asked_for_is_the_only_one_that_is_used(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    options = dataclasses.replace(options_for("late-fusion"), precision="fp32", batch_size=6)
    arguments = training_arguments(tmp_path, options, 0, torch.device("cuda", 1))
    assert (arguments.device, arguments.n_gpu, arguments.train_batch_size) == (torch.device("cuda", 1), 1, 6)
    assert training_arguments(tmp_path, options, 0, torch.device("cuda")).device == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]


@pytest.mark.parametrize("typed", ["finetune_image", "freeze"])
def test_what_is_typed_wins_over_what_it_makes_idle_in_a_file(typed, tmp_path):
    best = tmp_path / "best.json"
    best.write_text(json.dumps(own_options("visualbert", options_for("visualbert", {"epochs": 5, "pretrain": 2}))))
    found = options_for("visualbert", read_options(best, {typed: True}) | {typed: True})
    assert (getattr(found, typed), found.epochs) == (True, 5)
    assert found.pretrain == (0 if typed == "freeze" else 2)
    assert options_for("visualbert", read_options(best)).visual_token_dropout == 0.5


def test_a_loss_that_is_typed_needs_no_gamma_of_a_file(tmp_path):
    best = tmp_path / "best.json"
    best.write_text(json.dumps({"loss": "focal", "focal_gamma": 1.5}))
    typed = {"loss": "cross-entropy"}
    found = options_for("late-fusion", read_options(best, typed) | typed)
    assert (found.loss, found.focal_gamma) == ("cross-entropy", 2.0)
    assert options_for("late-fusion", read_options(best)).focal_gamma == 1.5
    with pytest.raises(UsageError, match="--focal-gamma is for --loss focal"):
        options_for("late-fusion", read_options(best, typed) | typed | {"focal_gamma": 1.0})
