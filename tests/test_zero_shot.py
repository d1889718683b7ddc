"""Zero-shot: the label whose words lie nearest, by a plain loop; the same in predict and evaluate; what is wrong is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from labeler import zero_shot_model
from labeler.artifacts import read_manifest, verify
from labeler.batches import StorePairs
from labeler.embedding import embed_pairs, load_towers_run
from labeler.errors import BadInputError, UsageError
from labeler.evaluating import ZeroShotOptions, evaluate
from labeler.inference import logits
from labeler.layers import unit
from labeler.predicting import predict
from labeler.records import LabelSet
from labeler.report import report
from labeler.store import Store
from labeler.zero_shot import TEMPLATES, Prompts, parse_prompts, prompts_of, zero_shot_run

PROMPTS = Prompts({"square": ["square"], "round": ["circle", "a cross"]}, ("{}", "a red {}"))


@pytest.fixture
def validation(store, pretrained):
    """Return the validation rows' pairs and the pretrained run."""
    run, opened = load_towers_run(pretrained), Store(store)
    rows = opened.rows_of("validation")
    return StorePairs(opened, rows, run.tokenizer, run.preprocessor["max_text_tokens"]), run


def test_scores_by_a_loop(pretrained, validation):
    pairs, run = validation
    zero = zero_shot_run(pretrained, PROMPTS)
    got = torch.from_numpy(logits(zero.model, pairs, run.tokenizer.pad_token_id)).softmax(dim=1)
    text, image = embed_pairs(run.model, pairs, run.tokenizer.pad_token_id)

    def said(words: str) -> torch.Tensor:
        encoded = run.tokenizer(words, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(encoded, dtype=torch.bool)
        nothing = torch.zeros(1, 1, 96)
        with torch.inference_mode():
            return run.model(encoded, mask, nothing, torch.zeros(1, 1, dtype=torch.bool)).text[0]

    phrases = {phrase: unit(said(phrase) + said(f"a red {phrase}")) for phrase in ("square", "circle", "a cross")}
    scale = run.model.logit_scale().item()
    for row in range(len(pairs)):
        weight = {
            phrase: np.exp(scale * float((text[row] + image[row]) @ at.numpy())) for phrase, at in phrases.items()
        }
        square, other = weight["square"], (weight["circle"] + weight["a cross"]) / 2
        assert got[row, 0].item() == pytest.approx(square / (square + other), rel=1e-4)
    assert got[:, 0].std() > 1e-4


def test_many_labels_need_no_room_for_all_phrases_of_all_labels(pretrained, monkeypatch):
    prompts = Prompts({"square": ["square"], "round": ["circle", "a ring", "round"], "cross": ["a cross", "plus"]})
    whole = zero_shot_run(pretrained, prompts).model
    monkeypatch.setattr(zero_shot_model, "TOGETHER", 5)
    model = zero_shot_run(pretrained, prompts).model
    torch.testing.assert_close(model.prompts, whole.prompts)
    assert {name: tuple(value.shape) for name, value in model.named_buffers(recurse=False)} == {
        "prompts": (6, model.prompts.shape[1]), "owners": (6,), "counts": (3,)
    }  # fmt: skip
    likeness = 60 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) - 200
    owners = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    terms = likeness[:, :, None] + (owners / owners.sum(dim=0)).log()  # [B, P, L]
    torch.testing.assert_close(model.mean_exp(likeness), terms.logsumexp(dim=1))


def test_several_labels_have_the_same_probabilities(pretrained, validation):
    pairs, run = validation
    single = zero_shot_run(pretrained, PROMPTS)
    labels = LabelSet(task="multi", labels=single.label_set.labels)
    multi = zero_shot_run(pretrained, PROMPTS, labels)
    one, many = (torch.from_numpy(logits(found.model, pairs, run.tokenizer.pad_token_id)) for found in (single, multi))
    torch.testing.assert_close(many.sigmoid(), one.softmax(dim=1), atol=1e-5, rtol=1e-4)


def test_predict_gives_lines_as_ever(store, pretrained, tmp_path):
    source = store.parent / "source"
    prompts = parse_prompts("a circle,cross")
    done = predict([source / "pairs.jsonl"], pretrained, tmp_path / "out.jsonl", prompts=prompts, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (done.items, done.errors) == (38, 0)
    assert {name for line in lines for name in line["labels"]} <= {"a circle", "cross"}
    assert all(
        len(line["labels"]) == 1 and sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in lines
    )
    with pytest.raises(UsageError, match="zero-shot labels have none"):
        predict([source], pretrained, tmp_path / "out", prompts=PROMPTS, min_precision=0.9)
    with pytest.raises(BadInputError, match="expected the output of `labeler train`; or add --zero-shot LABELS"):
        predict([source / "pairs.jsonl"], pretrained, tmp_path / "out.jsonl", device="cpu")
    with pytest.raises(BadInputError, match=r"expected the output of `labeler train`; or add --zero-shot$"):
        evaluate(pretrained, store, device="cpu")


def test_evaluate_measures_labels_and_retrieval_and_the_report_shows_them(store, pretrained, tmp_path):
    import shutil

    run = shutil.copytree(pretrained, tmp_path / "run")
    described = {"square": ["a square on paper"]}
    result = evaluate(run, store, zero_shot=ZeroShotOptions(described), device="cpu")
    metrics = result.metrics
    assert metrics["name"] == "clip zero-shot"
    assert metrics["n"] == 7
    assert {"both", "text", "image"} == set(metrics["modalities"])
    found = metrics["retrieval"]
    assert found["n"] == 5  # of 7, one has no picture, one no text
    assert 0 <= found["text_to_image"]["recall_at_1"] <= found["text_to_image"]["recall_at_5"] == 1
    manifest = read_manifest(run, "evaluate", "manifest-test.json")
    assert manifest["arguments"]["zero_shot"] == {"described": described, "templates": list(TEMPLATES)}
    assert metrics["zero_shot"] == manifest["arguments"]["zero_shot"]
    assert evaluate(run, store, zero_shot=ZeroShotOptions(described), device="cpu").already
    assert not evaluate(run, store, zero_shot=ZeroShotOptions(), device="cpu").already
    card = ModelCard.load(run / "README.md")
    recall, (low, high) = found["text_to_image"]["recall_at_1"], found["text_to_image"]["recall_at_1_ci95"]
    assert f"| text to image | {recall:.3f} [{low:.3f}, {high:.3f}] |" in card.text
    assert f"| clip zero-shot | {metrics['accuracy']:.3f}" in card.text
    assert verify(run, "pretrain")["stage"] == "pretrain", "the card is no part of the run's hash"
    report([run], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Texts and pictures found" in page
    assert "clip zero-shot" in page
    assert "recall@10" in (tmp_path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_a_pretrained_run_says_what_it_is_for(pretrained, tmp_path):
    card = (pretrained / "README.md").read_text(encoding="utf-8")
    assert "Not measured on held-out pairs yet: `labeler evaluate RUN --data STORE --zero-shot`" in card
    manifest = read_manifest(pretrained, "pretrain")
    typed = next(line for line in card.splitlines() if line.startswith("    labeler pretrain clip"))
    assert manifest["inputs"][0]["path"] in typed
    assert typed.endswith(f"--seed {manifest['seed']}")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "'error': None" in done.stdout
    assert "'joy'" in done.stdout


def test_prompts_are_read(tmp_path, label_set):
    found = parse_prompts("joy, a_cat ,signs = flag | road sign", ["a drawing of {}"])
    assert found == Prompts({"joy": ["joy"], "a_cat": ["a cat"], "signs": ["flag", "road sign"]}, ("a drawing of {}",))
    (tmp_path / "labels.json").write_text('{"joy": "happy", "anger": ["angry", "cross"]}', encoding="utf-8")
    assert parse_prompts(str(tmp_path / "labels.json")).phrases == {"joy": ["happy"], "anger": ["angry", "cross"]}
    (tmp_path / "labels.json").write_text('{"caf\u00e9": " x ", "anger": "cafe\u0301"}', encoding="utf-8-sig")
    assert parse_prompts(str(tmp_path / "labels.json")).phrases == {"caf\u00e9": ["x"], "anger": ["caf\u00e9"]}
    given = prompts_of(label_set, {"square": ["box"]})
    assert given.phrases == {"circle": ["circle"], "cross": ["cross"], "square": ["box"]}


@pytest.mark.parametrize(
    ("text", "templates", "said"),
    [
        ("joy", (), "1 given, expected two or more"),
        ("joy,joy", (), "'joy' stands twice"),
        ("joy,,anger", (), "an empty label or phrase"),
        ("joy,anger=|", (), "an empty label or phrase .'anger'"),
        ("joy,anger", ("a drawing",), "expected one {} in it"),
        ("caf\udce9,b", (), "label holds a NUL or half a surrogate pair.*; write each once, in UTF-8"),
        ("joy=caf\udce9,b", (), "phrase holds a NUL or half a surrogate pair"),
        ("joy,anger", ("caf\udce9 {}",), "template holds a NUL or half a surrogate pair"),
        ("caf\u00e9,cafe\u0301", (), "stands twice; write each once"),
    ],
)
def test_wrong_prompts_are_said(text, templates, said):
    with pytest.raises(UsageError, match=said):
        parse_prompts(text, templates)


def test_a_wrong_description_is_said(tmp_path, label_set):
    with pytest.raises(UsageError, match="a description of 'box', which is no label here"):
        prompts_of(label_set, {"box": ["a box"]})
    with pytest.raises(BadInputError, match="expected JSON like"):
        parse_prompts(str(tmp_path / "missing.json"))
    for content in ("[1]", '{"joy": [1], "anger": "x"}', "{", '{"joy": {"glad": 1}, "anger": "x"}', '{"joy": 7}'):
        (tmp_path / "labels.json").write_text(content, encoding="utf-8")
        with pytest.raises(BadInputError, match=r"expected (JSON|each label)"):
            parse_prompts(str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").write_text('{"joy": "glad", "anger": "y", "joy": "merry"}', encoding="utf-8")
    with pytest.raises(BadInputError, match=r"the key 'joy' stands twice"):
        parse_prompts(str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").write_text(r'{"joy": "x\ud800", "anger": "y"}', encoding="utf-8")
    with pytest.raises(BadInputError, match=r"labels\.json: phrase holds a NUL or half a surrogate pair"):
        parse_prompts(str(tmp_path / "labels.json"))
