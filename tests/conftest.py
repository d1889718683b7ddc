"""Shared fixtures: towers of two layers, a data set of drawn shapes, models and runs made from them; no network."""

# ruff: noqa: E402 (the variables are read when the libraries are imported)
from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import string
import tempfile

# Shells start what runs in the background with Ctrl-C ignored, and so would be the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread, empty caches, and a hub that cannot be reached: nothing listens on port 1.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:1"
_caches = tempfile.TemporaryDirectory(prefix="labeler-tests-")
for _variable in ("HF_HOME", "TORCH_HOME"):
    os.environ[_variable] = os.path.join(_caches.name, _variable)
for _variable in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_variable, None)

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from ingesting import kept, rejects, write
from PIL import Image
from shapes import COLOURS, NUMBERS, SHAPES, draw_source

from labeler.artifacts import verify
from labeler.cli import main
from labeler.ingestion import Ingested, IngestOptions, ingest
from labeler.preprocessing import preprocess
from labeler.records import Label, LabelSet

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SHAPES, *COLOURS, *NUMBERS, "a", "on", "paper", "drawn", "by", "hand", "with", "very", "much", "care", "##s"]
# so that other words are spelt, and no text in this script is unknown
WORDS += [sign + mark for sign in ("", "##") for mark in string.printable[:94] if sign + mark not in WORDS]


class Answer(NamedTuple):
    """What a command answered; `said` is both streams, as one line."""

    code: int
    out: str
    said: str


@pytest.fixture
def labeler(monkeypatch, capsys) -> Callable[..., Answer]:
    """Return a function that runs a command as a terminal would."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["labeler", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d+$") as ended:
            main()
        out, err = capsys.readouterr()
        return Answer(int(ended.value.code or 0), out, " ".join((out + err).split()))

    return run


@pytest.fixture(scope="session")
def text_tower(tmp_path_factory) -> Path:
    """Return a folder with a BERT of 2 layers, 32 wide, and a WordPiece tokenizer over WORDS."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("towers") / "text"
    config = BertConfig(vocab_size=len(SPECIALS + WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=40, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=True).save_pretrained(folder)
    save_tokenizer(folder, SPECIALS)
    return folder


def save_tokenizer(folder: Path, specials: list[str]) -> None:
    """Write a fast WordPiece tokenizer; specials are padding, unknown, first, last and mask."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, first, last, mask = specials
    numbers = {word: number for number, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, numbers[first]), (last, numbers[last])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=first, sep_token=last, mask_token=mask
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def roberta_tower(tmp_path_factory) -> Path:
    """Return a folder with a RoBERTa: one token type, padding 1, and so positions that start at 2."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("towers") / "roberta"
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    config = RobertaConfig(vocab_size=len(specials + WORDS), hidden_size=32, num_hidden_layers=2, type_vocab_size=1,
                           num_attention_heads=4, intermediate_size=64, max_position_embeddings=42,
                           pad_token_id=1, bos_token_id=0, eos_token_id=2)  # fmt: skip
    torch.manual_seed(1)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder, ["<pad>", "<unk>", "<s>", "</s>", "<mask>"])
    # the tokenizer numbers its specials as BERT's does; RoBERTa's padding is number 1
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    numbers = {word: number for number, word in enumerate(specials + WORDS)}
    content["model"]["vocab"] = numbers
    for token in content["added_tokens"]:
        token["id"] = numbers[token["content"]]
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [numbers[token["id"]]]
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def image_tower(tmp_path_factory) -> Path:
    """Return a timm folder, as `save_for_hf` writes it, with a tiny ResNet: 64 pixels in, 4 tokens of width 96 out."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("towers") / "image"
    folder.mkdir()
    torch.manual_seed(2)
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    config = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_store(folder: Path, task: str, text_tower: Path, image_tower: Path) -> Path:
    """Draw, ingest and preprocess; return the store's folder, with `source` and `records` beside it."""
    source = draw_source(folder / "source", task)
    ingested = ingest([source], folder / "records", IngestOptions(task=task))
    assert not ingested.profile["rejected"], ingested.profile
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    return folder / "store"


@pytest.fixture(scope="session")
def server():
    """Return the address of an S3 server on this machine."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch) -> S3FileSystem:
    """Return the file system of the server, with an empty bucket `pets`; the variables name it to the labeler."""
    from pyarrow.fs import S3FileSystem

    settings = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_EC2_METADATA_DISABLED": "true", "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    filesystem = S3FileSystem(endpoint_override=server, allow_bucket_creation=True, allow_bucket_deletion=True)
    filesystem.create_dir("pets")
    filesystem.delete_dir_contents("pets")
    return filesystem


@pytest.fixture(scope="session")
def picture_bytes() -> Callable[..., bytes]:
    """Return a function that makes the file of a picture like no other seed's: 40 x 30 pixels."""

    def make(seed: int, form: str = "JPEG") -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(buffer, form)
        return buffer.getvalue()

    return make


@pytest.fixture
def ingested(tmp_path):
    """Return a function that ingests rows, or sources, into `tmp_path`/out and checks that every row is counted."""

    def run(rows=None, *, sources=None, out="out", seed=0, force=False, **options) -> Ingested:
        paths = sources or [write(tmp_path / "data" / "pairs.jsonl", rows)]
        result = ingest(paths, tmp_path / out, IngestOptions(**options), seed=seed, force=force)
        verify(result.out, "ingest")
        profile, records = result.profile, kept(result)
        assert profile["rows"] == profile["kept"] + profile["rejected"]
        assert profile["kept"] == len(records) == sum(profile["splits"].values())
        assert profile["rejected"] == len(rejects(result)) == sum(profile["rejects"].values())
        assert Counter(item["code"] for item in rejects(result)) == profile["rejects"]
        assert len({record.id for record in records}) == len(records)
        assert all(record.split for record in records)
        assert json.loads((result.out / "profile.json").read_text()) == profile
        return result

    return run


_shared: dict[Path, dict[Path, tuple[int, int]]] = {}


def shared(folder: Path) -> Path:
    """Return `folder`, an artifact of several tests; the one that leaves it changed fails."""
    _shared[folder] = contents(folder)
    return folder


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the size and the time of change of every file below `folder`."""
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (state.st_size, state.st_mtime_ns) for path, state in found}


@pytest.fixture(autouse=True)
def shared_artifacts_stay_as_they_were():
    """Fail the test that changes what others read: which of them would fail for it hangs on the order that they run in."""
    yield
    for folder, before in _shared.items():
        if (now := contents(folder)) != before:
            _shared[folder] = now  # told of once
            changed = sorted(str(path) for path, _ in set(before.items()) ^ set(now.items()))
            pytest.fail(f"changed in {folder}, which other tests read: {changed}")


@pytest.fixture(scope="session")
def store(tmp_path_factory, text_tower, image_tower) -> Path:
    """Return the store of the shapes, task single; `source` and `records` lie beside it."""
    return shared(make_store(tmp_path_factory.mktemp("single"), "single", text_tower, image_tower))


@pytest.fixture
def pictures(store) -> Path:
    """Return the folder of the shapes' pictures."""
    return store.parent / "source" / "pictures"


@pytest.fixture(scope="session")
def multi_store(tmp_path_factory, text_tower, image_tower) -> Path:
    """Return the store of the shapes and their colours, task multi."""
    return shared(make_store(tmp_path_factory.mktemp("multi"), "multi", text_tower, image_tower))


@pytest.fixture(scope="session")
def options():
    """Return settings that train a tiny model in a second or two."""
    from labeler.training_options import TrainOptions

    return TrainOptions(epochs=2, batch_size=8, learning_rate=1e-3, new_learning_rate=5e-3, precision="fp32")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, store, options) -> Callable[[str], Path]:
    """Return a function from a model's name to its run on the shapes, trained once; not to be changed by a test."""
    from labeler.training import train

    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(model: str) -> Path:
        return shared(train(model, store, folder / model, options, device="cpu").out)

    return run


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained, store) -> Callable[[str], Path]:
    """Return a function from a model's name to its export, made once; not to be changed by a test."""
    from labeler.exporting import export

    folder = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda model: shared(export(trained(model), folder / model, data=store).out))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, store) -> Path:
    """Return a run of `labeler pretrain clip` on the shapes; not to be changed by a test."""
    from labeler.pretraining import pretrain, pretrain_options

    given = {"epochs": 4, "learning_rate": 1e-3, "new_learning_rate": 5e-3, "precision": "fp32"}
    out = tmp_path_factory.mktemp("pretrained") / "clip"
    return shared(pretrain("clip", store, out, pretrain_options("clip", given), device="cpu").out)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, trained, store) -> Callable[[str], Path]:
    """Return a function from a model's name to a copy of its run, evaluated; not to be changed by a test."""
    from labeler.evaluating import evaluate

    folder = tmp_path_factory.mktemp("evaluated")

    @functools.cache
    def run(model: str) -> Path:
        shutil.copytree(trained(model), folder / model)
        return shared(evaluate(folder / model, store, device="cpu").out)

    return run


@pytest.fixture(scope="session")
def label_set() -> LabelSet:
    """Return the three shapes, task single."""
    return LabelSet(task="single", labels=tuple(Label(name=name, count=1) for name in SHAPES))


@pytest.fixture
def build(text_tower, label_set) -> Callable:
    """Return a function that builds a tiny model with new weights in place of all that start at zero.

    Kind and place of co-attention may follow the name: `visualbert-coattn seed between`.
    """
    import torch

    from labeler.models import Building, model_module

    texts = [f"a {colour} {shape} on paper" for colour in COLOURS for shape in SHAPES] * 2

    def make(name: str, n_coattn: int = 1, *, stir: bool = True, seed: int = 0):
        torch.manual_seed(seed)
        name, *choice = name.split()
        chosen = {"n_coattn": n_coattn} | dict(zip(("coattention", "coattn_place"), choice, strict=False))
        built = model_module(name).build(Building(label_set, str(text_tower), 96, texts, **chosen))
        if stir:
            with torch.no_grad():
                for parameter in built.model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        built.model.eval()
        return built

    return make


@pytest.fixture
def pairs() -> Callable:
    """Return a function that makes pairs of 1 to 12 words and 4 visual tokens of width 96, every fourth without a picture.

    The tenth has no text.
    """
    from labeler.batches import Pair

    def make(count: int, *, seed: int = 0, words: int = 12):
        rng = np.random.default_rng(seed)
        made = []
        for number in range(count):
            ids = rng.integers(2, 11, 1 + number * 5 % words).tolist() if number % 10 != 9 else []
            tokens = rng.normal(size=(4, 96)).astype(np.float16) * (number % 4 != 3)
            made.append(Pair(ids, tokens, number % 4 != 3, np.int64(number % 3)))
        return made

    return make


modules_at_rest = 0


def pytest_runtest_setup() -> None:
    """Keep what has been imported out of the search for garbage: PyTorch alone is half a million objects.

    A training starts with such a search (see `Fit`), which took longer than a model of the tests takes to train.
    """
    global modules_at_rest
    if len(sys.modules) > modules_at_rest + 200:
        gc.collect()
        gc.freeze()
        modules_at_rest = len(sys.modules)


def pytest_sessionfinish() -> None:
    """Let the interpreter end as ever."""
    gc.unfreeze()
