"""`train --pretrain`: words are hidden and pictures swapped as said, no label is read, and it can be stopped anywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import set_seed

from labeler.artifacts import work_folder
from labeler.batches import collate
from labeler.encoders.weights import TOWER
from labeler.errors import BadInputError, InterruptedRun, UsageError
from labeler.fitting.arguments import training_arguments
from labeler.fitting.fit import Fit
from labeler.fitting.objectives import IGNORED, AlignedObjectives, Objectives, mask_words, right_for, swap_pictures
from labeler.fitting.pretext import PretextTrainer, check_pretext, learn_pretext, read_pretraining
from labeler.fitting.watching import Watch
from labeler.training import train

FUSED = ["visualbert", "visualbert-coattn", "flava"]


@pytest.fixture(scope="module")
def pretraining(options):
    """Return settings with two epochs of pretraining before one epoch with labels."""
    return dataclasses.replace(options, epochs=1, pretrain=2)


def test_words_are_hidden_as_in_bert():
    torch.manual_seed(0)
    ids = torch.randint(5, 1000, (400, 100))
    hideable = torch.rand(ids.shape) < 0.7
    masked = mask_words(ids, hideable, 4, 1000)
    guessed = masked.targets != IGNORED
    assert not (guessed & ~hideable).any()
    assert torch.equal(masked.targets[guessed], ids[guessed])
    assert torch.equal(masked.input_ids[~guessed], ids[~guessed])
    assert guessed.sum() / hideable.sum() == pytest.approx(0.15, abs=0.01)
    hidden, before = masked.input_ids[guessed], ids[guessed]
    assert (hidden == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (hidden == before).float().mean() == pytest.approx(0.1, abs=0.02)


def test_half_of_the_pairs_get_another_pairs_picture():
    torch.manual_seed(0)
    has_both = torch.arange(40) % 5 > 0
    source, own = swap_pictures(has_both, torch.eye(40, dtype=torch.bool))
    assert torch.equal(own, (source == torch.arange(40)).float())
    assert (own == 0).sum() == 16
    assert not (own[~has_both] == 0).any()
    assert has_both[source[own == 0]].all()
    assert source[own == 0].unique().numel() == 16
    for lonely in (torch.tensor([True, False]), torch.tensor([True, True, True])):
        assert swap_pictures(lonely, torch.eye(len(lonely), dtype=torch.bool))[1].all()


@pytest.mark.parametrize("name", FUSED)
def test_the_losses_are_those_of_a_plain_loop(build, pairs, monkeypatch, name):
    built = build(name)
    objectives = Objectives(built.model, built.tokenizer).eval()
    torch.nn.init.normal_(objectives.matching.weight, std=0.3)
    batch = collate(pairs(36), built.tokenizer.pad_token_id)
    del batch["labels"]
    torch.manual_seed(3)
    losses = objectives(**batch)

    torch.manual_seed(3)
    both = batch["text_mask"].any(1) & batch["visual_mask"].any(1)
    source, own = swap_pictures(both, right_for(batch["input_ids"], batch["visual_tokens"]) > 0)
    special = torch.isin(batch["input_ids"], torch.tensor(built.tokenizer.all_special_ids))
    masked = mask_words(
        batch["input_ids"], batch["text_mask"] & ~special, built.tokenizer.mask_token_id, len(objectives.words.special)
    )
    words, matching = [], []
    for row in range(36):
        visual = batch["visual_tokens"][source[row]], batch["visual_mask"][source[row]]
        one = (masked.input_ids[[row]], batch["text_mask"][[row]], visual[0][None], visual[1][None])
        text = built.model.streams(*one).text[0]
        for place in (masked.targets[row] != IGNORED).nonzero().flatten().tolist() if own[row] else []:
            scores = (
                built.model.get_input_embeddings().weight @ objectives.words.transform(text[place])
                + objectives.words.bias
            )
            words.append(-scores.log_softmax(0)[masked.targets[row, place]].item())
        if both[row]:
            means = text[one[1][0]].mean(0), built.model.streams(*one).visual[0][one[3][0]].mean(0)
            alike = torch.stack([(mean - mean.mean()) / mean.std(correction=0) for mean in means]).prod(0)
            score = objectives.matching(alike)[0]
            matching.append(-functional.logsigmoid(score if own[row] else -score).item())
    assert len(words) > 3
    assert 0 < own.sum() < 36
    assert losses["words"].item() == pytest.approx(np.mean(words), rel=1e-4)
    assert losses["matching"].item() == pytest.approx(np.mean(matching), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(np.mean(words) + np.mean(matching), rel=1e-4)


def test_a_batch_without_pictures_or_words_has_a_loss_and_a_slope(build, pairs):
    built = build("visualbert")
    objectives = Objectives(built.model, built.tokenizer)
    words = [pair._replace(has_image=False, visual_tokens=pair.visual_tokens * 0) for pair in pairs(3)]
    pictures = [pair._replace(input_ids=[]) for pair in pairs(3)]
    for batch in (words, pictures):
        losses = objectives(**collate([pair._replace(label=None) for pair in batch], built.tokenizer.pad_token_id))
        assert losses["matching"].item() == 0
        assert math.isfinite(losses["loss"].item())
        losses["loss"].backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objectives.parameters())


@pytest.mark.parametrize("name", [*FUSED, "albef"])
def test_words_and_pictures_are_learned_without_labels(store, options, tmp_path, name):
    fits = []
    for folder in ("one", "other"):
        fit = Fit(name, store, dataclasses.replace(options, pretrain=12), 0, "cpu")
        if folder == "other":
            fit.train_pairs.labels[:] = 0
        before = {key: value.clone() for key, value in fit.model.state_dict().items()}
        learn_pretext(fit, tmp_path / folder / "pretraining", resume=False)
        fits.append(fit)
    after, unlabelled = (fit.model.state_dict() for fit in fits)
    assert all(torch.equal(after[key], unlabelled[key]) for key in after)
    for key in after:
        assert torch.equal(after[key], before[key]) == key.startswith("head."), key
    curve = read_pretraining(tmp_path / "one" / "pretraining")["epochs"]
    assert [entry["epoch"] for entry in curve] == list(range(1, 13))
    falls = "contrast_loss" if name == "albef" else "words_loss"
    assert curve[-1][falls] < curve[0][falls] - 0.3


def test_a_batch_that_memory_does_not_hold_is_one_step_and_is_said_to_have_another_loss(
    store, options, tmp_path, caplog
):
    fit = Fit("albef", store, dataclasses.replace(options, pretrain=1), 0, "cpu")
    objectives, tries = AlignedObjectives(fit.model, fit.tokenizer), []

    def fail(module, inputs, named):
        tries.append(len(named["input_ids"]))
        if len(tries) in (1, 3):  # the whole batch, and the second of its halves
            torch.empty(1 << 50)

    objectives.register_forward_pre_hook(fail, with_kwargs=True)
    trainer = PretextTrainer(
        fit, objectives, args=training_arguments(tmp_path, fit.options, 0, torch.device("cpu"), eval_strategy="no",
                                                 load_best_model_at_end=False)
    )  # fmt: skip
    batch = collate(fit.train_pairs.__getitems__(range(8)), fit.tokenizer.pad_token_id)
    loss = trainer.training_step(objectives, batch).item()
    assert tries == [8, 4, 4, 2, 2, 2, 2]
    assert sum(fit.progress.losses[-1].values()) == pytest.approx(loss, rel=1e-5)
    assert objectives.momentum.n_averaged == 1
    assert "in 4 parts from here on, where each pair has fewer others to be told from" in caplog.text
    assert "changes no gradient" not in caplog.text


@pytest.mark.parametrize(("name", "tuned"), [("visualbert", False), ("visualbert-coattn", True), ("albef", True)])
def test_a_run_with_pretraining_says_so(store, pretraining, tmp_path, name, tuned):
    chosen = dataclasses.replace(pretraining, finetune_image=tuned)
    run = train(name, store, tmp_path / "run", chosen, device="cpu").out
    assert (run / TOWER).is_dir() == tuned
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert [entry["epoch"] for entry in history["pretraining"]["epochs"]] == [1, 2]
    assert len(history["epochs"]) == 1
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["arguments"]["pretrain"] == 2
    assert not (run / "trainer").exists()


@pytest.mark.parametrize(
    ("name", "step"), [("visualbert", 2), ("visualbert", 4), ("visualbert", 8), ("visualbert", 10), ("albef", 6)]
)
def test_an_interrupt_changes_no_weight(store, pretraining, tmp_path, monkeypatch, name, step):
    """Of 8 steps of pretraining and 4 with labels; press Ctrl-C in that step of all of them."""
    whole = train(name, store, tmp_path / "whole", pretraining, device="cpu").out
    before, taken = Watch.on_step_end, []

    def press(self, *arguments, **options):
        taken.append(0)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)
        before(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", press)
        with pytest.raises(InterruptedRun, match="--resume goes on"):
            train(name, store, tmp_path / "run", pretraining, device="cpu")
    assert work_folder(tmp_path / "run").exists()
    run = train(name, store, tmp_path / "run", pretraining, device="cpu", resume=True)
    ours, theirs = load_file(run.out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [entry["epoch"] for entry in run.history["pretraining"]["epochs"]] == [1, 2]


def test_what_cannot_be_pretrained_is_said_before_anything_is_done(store, pretraining, tmp_path):
    for name in ("late-fusion", "resnet-gru"):
        with pytest.raises(UsageError, match=f"{name} has no fused streams .* train visualbert"):
            train(name, store, tmp_path / "run", pretraining, device="cpu")
    assert not work_folder(tmp_path / "run").exists()
    fit = Fit("visualbert", store, pretraining, 0, "cpu")
    rows = fit.store.rows
    labels = [None if row % 2 else own for row, own in enumerate(rows["labels"])]
    texts = [text if row % 2 else None for row, text in enumerate(rows["text"])]
    fit.store.rows = rows | {"labels": labels, "text": texts}
    check_pretext(fit)  # those without a label have texts
    fit.store.rows = rows | {"text": [None] * len(texts)}
    with pytest.raises(BadInputError, match="no train row has a text"):
        check_pretext(fit)


def test_the_random_state_afterwards_is_the_seeds(store, options, tmp_path):
    fit = Fit("visualbert", store, dataclasses.replace(options, pretrain=1), 5, "cpu")
    learn_pretext(fit, tmp_path / "pretraining", resume=False)
    drawn = torch.rand(3)
    set_seed(5)
    assert torch.equal(drawn, torch.rand(3))
