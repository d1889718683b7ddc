"""The commands that a report names: they find everything made, and make again what is not there."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import asdict
from types import SimpleNamespace

from click.testing import CliRunner

from labeler.artifacts import read_manifest
from labeler.cli import cli
from labeler.ingestion import ingest
from labeler.preprocessing import preprocess
from labeler.pretraining import pretrain_options
from labeler.report import report
from labeler.report.making import preprocess_command, train_command
from labeler.training_options import options_for
from labeler.zero_shot import TEMPLATES


def measured_on(store):
    """Return a run as far as it says on which store it was measured."""
    return SimpleNamespace(store=store, measured_on=read_manifest(store)["content_sha256"])


def test_the_command_for_a_store_names_how_many_visual_tokens_it_has(store, text_tower, image_tower, tmp_path):
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower), "visual_tokens": 1}
    preprocess(store.parent / "records", tmp_path / "store", **towers)
    [[*words]] = preprocess_command(measured_on(tmp_path / "store"))
    done = CliRunner().invoke(cli, words[1:])
    assert done.exit_code == 0, done.output
    assert "already made from the same inputs" in done.output
    assert words[-2:] == ["--visual-tokens", "1"]


def test_the_command_for_a_store_of_words_that_its_tower_does_not_know_allows_them(text_tower, image_tower, tmp_path):
    rows = [{"id": str(n), "text": "今天气真好" + "猫" * n, "label": "ab"[n % 2]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([tmp_path / "rows.jsonl"], tmp_path / "records")
    towers = {"text_encoder": str(text_tower), "image_encoder": str(image_tower), "allow_unknown_words": True}
    preprocess(tmp_path / "records", tmp_path / "store", **towers)
    [[*words]] = preprocess_command(measured_on(tmp_path / "store"))
    done = CliRunner().invoke(cli, [*words[1:], "--force"])
    assert done.exit_code == 0, done.output


def told(arguments: dict, stage: str = "train", **inputs: str) -> list[str]:
    """Return what a report says of how a run of such a manifest is made again, between its folder and its seed."""
    manifest = {"arguments": arguments, "stage": stage, "seed": 3, "inputs": [{"path": "store"}]}
    manifest["inputs"] += [{"path": path} for path in inputs.values()]
    words = train_command(SimpleNamespace(manifest=manifest, folder="run"))
    if not words:
        return words
    assert words[:4] == ["labeler", stage, arguments["model"], "store"]
    assert words[-2:] == ["--seed", "3"]
    return words[4:-2]


def test_the_command_for_a_run_names_what_is_not_the_models_own():
    def fine_tuned(**given):
        return told({"model": "visualbert", **asdict(options_for("visualbert", {"finetune_image": True} | given))})

    out = ["--out", "run"]
    assert fine_tuned() == [*out, "--finetune-image"]
    assert fine_tuned(augment="none") == [*out, "--finetune-image", "--augment", "none"]
    gru = {"model": "resnet-gru", **asdict(options_for("resnet-gru", {"epochs": 7}))}
    assert told(gru) == [*out, "--epochs", "7"]
    older = {"model": "visualbert", **asdict(options_for("visualbert"))}
    del older["visual_token_dropout"]  # as runs have it that were made before there was the option
    assert told(older) == [*out, "--visual-token-dropout", "0.0"]
    towers = {"model": "clip", **pretrain_options("clip", {"chunk_size": 64}).arguments()}
    assert told(towers, "pretrain") == [*out, "--chunk-size", "64"]
    assert told({"model": "none that there is"}) == []


def test_the_command_for_a_run_names_how_its_teacher_was_told_of_labels():
    prompts = {"described": {"circle": ["round"]}, "templates": ["a drawing of {}"]}
    taught = {"model": "visualbert", **asdict(options_for("visualbert")), "zero_shot_teachers": {"0": prompts}}
    said = ["--teacher", "zero-shot:clip", "--template", "a drawing of {}", "--describe", "DESCRIBED.json"]
    assert told(taught, teacher="clip") == [*said, "--out", "run"]
    taught["zero_shot_teachers"] = {"0": {"described": {}, "templates": list(TEMPLATES)}}
    assert told(taught, teacher="clip") == ["--teacher", "zero-shot:clip", "--out", "run"]


def test_the_commands_that_a_report_names_find_everything_made(evaluated, store, tmp_path, text_tower):
    run = evaluated("visualbert-coattn")
    report([run], tmp_path / "report", explain=0)
    lines = [shlex.split(line) for line in html.unescape(re.search(r"<pre[^>]*><code>(.*?)</code>", (
        tmp_path / "report/index.html").read_text(), re.DOTALL)[1]).splitlines()]  # fmt: skip
    assert [words[1] for words in lines] == ["preprocess", "train", "evaluate", "report"]
    assert lines[0][2:] == [
        str(store.parent / "records"),
        "--out",
        str(store),
        "--text-encoder",
        str(text_tower),
        *lines[0][7:],
    ]
    for words in lines[1:3]:
        done = CliRunner().invoke(cli, words[1:])
        assert done.exit_code == 0, done.output
        assert "already made from the same inputs" in done.output
