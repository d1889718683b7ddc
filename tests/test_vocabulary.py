"""Texts that a text tower cannot read, and towers that read other scripts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_towers import WORDS, save_text
from transformers import (
    BertConfig,
    BertModel,
)

from labeler.encoders.text import check_vocabulary, load_text_encoder
from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.shards import Counts
from labeler.store import Store
from labeler.training import train

CHINESE = ["今天天气真好", "猫在沙发上睡觉", "我们去公园散步", "这部电影很无聊", "晚饭吃了火锅", "他非常生气"]


@pytest.fixture
def chinese_records(tmp_path) -> Path:
    rows = [
        {"id": str(number), "text": text, "label": "good" if number % 2 else "bad"}
        for number, text in enumerate(CHINESE)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([tmp_path / "pairs.jsonl"], tmp_path / "records", IngestOptions())
    return tmp_path / "records"


def test_texts_in_a_script_that_the_tower_cannot_read_are_an_error(chinese_records, image_tower, tmp_path):
    with pytest.raises(BadInputError, match=r"text encoder 'embedded' turns \d\d% of the texts' tokens into \[UNK\], as in "
                                            r"'(今天|猫在|我们|这部|晚饭|他非).*--text-encoder, .*bert-base-multilingual-cased .*"
                                            "bert-base-chinese"):  # fmt: skip
        preprocess(chinese_records, tmp_path / "store", image_encoder=str(image_tower))
    assert not (tmp_path / "store").exists()


def test_a_model_with_a_vocabulary_of_its_own_learns_from_them_all_the_same(
    chinese_records, text_tower, image_tower, tmp_path, options, labeler
):
    towers = ("--text-encoder", text_tower, "--image-encoder", image_tower)
    done = labeler("preprocess", chinese_records, "--out", tmp_path / "store", "--allow-unknown-words", *towers)
    assert done.code == 0, done.said
    assert "only resnet-gru, which has a vocabulary of its own, can learn from them" in done.said
    with pytest.raises(
        BadInputError, match=r"cannot read \d+% of the texts' tokens, and late-fusion reads by it; train resnet-gru"
    ):
        train("late-fusion", tmp_path / "store", tmp_path / "run", options, device="cpu")
    own = replace(options, vocabulary="character")
    run = train("resnet-gru", tmp_path / "store", tmp_path / "run", own, device="cpu").out
    assert predict([tmp_path / "pairs.jsonl"], run, tmp_path / "own.jsonl", device="cpu") == Counts(len(CHINESE), 0)


@pytest.mark.parametrize("exported", [False, True])
def test_texts_that_a_model_cannot_read_are_labelled_with_a_warning(
    chinese_records, trained, tmp_path, caplog, exported
):
    run = Path(shutil.copytree(trained("late-fusion"), tmp_path / "run"))
    chosen = {"runtime": "onnx", "precision": "fp32"} if exported else {"runtime": "native"}
    english = tmp_path / "english.jsonl"
    english.write_text('{"text": "a red circle"}\n', encoding="utf-8")
    predict([english], run, tmp_path / "english-labels.jsonl", device="cpu", **chosen)
    assert "their labels are guesses" not in caplog.text
    predict([chinese_records.parent / "pairs.jsonl"], run, tmp_path / "out.jsonl", device="cpu", **chosen)
    assert caplog.text.count("their labels are guesses") == 1


def test_a_tower_with_chinese_characters_reads_them(chinese_records, text_tower, image_tower, tmp_path):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *sorted(set("".join(CHINESE)))])}
    save_text(BertModel(BertConfig(**WORDS | {"vocab_size": len(vocabulary)})), text_tower, tmp_path / "tower")
    file = tmp_path / "tower/tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] = vocabulary
    file.write_text(json.dumps(content), encoding="utf-8")
    preprocess(
        chinese_records, tmp_path / "store", text_encoder=str(tmp_path / "tower"), image_encoder=str(image_tower)
    )
    _, features = Store(tmp_path / "store").features(np.arange(6))
    assert len({row.tobytes() for row in features.round(4)}) == 6


def test_unknown_tokens_are_counted_over_all_texts(text_tower):
    tower = load_text_encoder(str(text_tower))
    check_vocabulary(tower, [*["a red circle"] * 3, None, "", "今天天气"])  # 4 of 13
    check_vocabulary(tower, [])
    with pytest.raises(BadInputError, match=r"turns 40% of the texts' tokens into \[UNK\], as in '今天天气真好'"):
        check_vocabulary(tower, [*["a red circle"] * 3, "今天天气真好"])
