"""Exports: the same answers without PyTorch, and nothing published that gives others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labeler import exporting
from labeler.artifacts import read_manifest
from labeler.engines import WAYS, Choice, Way, choose_way, open_engine, usable_ways
from labeler.engines.exported import FUSION, INPUTS, TOKENIZER, TOWER
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.exporting import EXACT, export, made_pairs, parts, validation_pairs
from labeler.graphs import write_fusion
from labeler.items import Item
from labeler.models import model_names
from labeler.own_export import choose_engine
from labeler.predicting import predict
from labeler.records import Record

ONNX = Way("onnx", "fp32")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("model", model_names())
def test_an_export_gives_the_scores_of_its_run(model, exported, trained, store, tmp_path):
    folder = exported(model)
    checks = json.loads((folder / "export.json").read_text())
    assert checks["validation"]
    assert checks["ways"]["onnx fp32"]["largest_difference"] <= 1e-3
    assert checks["ways"]["onnx fp32"]["accuracy"] == checks["native"]["accuracy"]
    # OpenVINO computes another GRU
    assert set(checks["ways"]) == {str(way) for way in usable_ways() if model != "resnet-gru" or way == ONNX}
    source = store.parent / "source" / "pairs.jsonl"  # one has no picture, two have no text
    for name, place, how in (("run", trained(model), {"runtime": "native"}), ("export", folder, {"precision": "fp32"})):
        assert predict([source], place, tmp_path / f"{name}.jsonl", **how).errors == 0
    for ours, theirs in zip(lines(tmp_path / "run.jsonl"), lines(tmp_path / "export.jsonl"), strict=True):
        assert (ours["id"], ours["labels"]) == (theirs["id"], theirs["labels"])
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_of_an_item_does_not_hang_on_its_company(way, exported, trained):
    if way not in usable_ways():
        pytest.skip(f"no {way} on this machine")
    engine = open_engine(Choice(exported("visualbert"), way))
    pairs = made_pairs(open_engine(Choice(trained("visualbert")))).items[:20]
    items = [*pairs, *parts(pairs)]
    whole = engine.logits(items, 32)
    alone = np.concatenate([engine.logits([item], 1) for item in items])
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = engine.logits([items[row] for row in order], 5)
    if way.runtime == "openvino":  # to the last bit, in bf16 too
        assert np.array_equal(whole, alone)
        assert np.array_equal(whole[order], shuffled)
    assert np.abs(whole - alone).max() < 1e-5
    assert np.abs(whole[order] - shuffled).max() < 1e-5


@pytest.mark.parametrize("turned", [False, True])
def test_weights_of_matrix_products_are_rounded_to_8_bits_and_small_ones_left(turned, tmp_path):
    pytest.importorskip("openvino")
    from labeler.engines.openvino import load, open_graph, round_weights, weights_of

    rng = np.random.default_rng(0)
    wide, narrow = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((128, 96), (96, 3)))
    wide[:, 5] = 0  # its scale is not to be zero
    opset, openvino = load().opset13, load()
    x = opset.parameter([-1, 128], np.float32)
    hidden = opset.matmul(x, opset.constant(wide.T.copy() if turned else wide), False, turned)
    model = openvino.Model([opset.matmul(hidden, opset.constant(narrow), False, False)], [x], "model")
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    given = rng.normal(0, 1, (7, 128)).astype(np.float32)
    found = open_graph(tmp_path / "model.xml", "int8")({0: given})
    expected = given @ wide @ narrow
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    round_weights(model)
    first, second = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert weights_of(first) is None, "they are int8 times a scale now"
    np.testing.assert_array_equal(weights_of(second), narrow)


def test_the_int8_tower_gives_what_the_tower_does(tmp_path):
    from labeler.encoders.image import load_image_encoder
    from labeler.engines.onnx import open_graph
    from labeler.graphs import write_tower
    from labeler.quantizing import quantize_tower

    tower = load_image_encoder("embedded")
    coarse = np.random.default_rng(0).integers(0, 256, (40, 7, 7, 3), dtype=np.uint8)
    pictures = coarse.repeat(32, axis=1).repeat(32, axis=2)
    write_tower(tower, tmp_path / TOWER)
    whole = open_graph(tmp_path / TOWER)({"pixels": pictures[32:]})
    quantize_tower(tmp_path / TOWER, list(pictures[:32]))
    found = open_graph(tmp_path / TOWER)({"pixels": pictures[32:]})
    cosine = (whole * found).sum(-1) / np.linalg.norm(whole, axis=-1) / np.linalg.norm(found, axis=-1)
    assert cosine.mean() > 0.95


@pytest.mark.parametrize(
    "choice", [f"{kind} {place}" for kind in ("vilbert", "seed", "hieco") for place in ("before", "between")]
)
def test_every_kind_of_co_attention_is_written(choice, build, pairs, tmp_path):
    from labeler.batches import collate
    from labeler.engines.onnx import open_graph

    model = build(f"visualbert-coattn {choice}").model
    write_fusion(model, 96, 4, tmp_path / FUSION)
    graph = open_graph(tmp_path / FUSION)
    for count in (1, 10):  # other sizes than it was traced with; rows without a picture, and one without a text
        batch = collate(pairs(count), 0)
        batch.pop("labels")
        found = graph({name: batch[name].numpy() for name in INPUTS})
        assert np.allclose(found, model(**batch).logits.detach().numpy(), atol=1e-5)


def test_several_labels_keep_their_thresholds_and_promises(multi_store, options, tmp_path):
    from labeler.training import train

    run = train("late-fusion", multi_store, tmp_path / "run", options, device="cpu").out
    folder = export(run, tmp_path / "export").out
    assert not json.loads((folder / "export.json").read_text())["validation"]  # checked on made pairs
    source, rule = multi_store.parent / "source" / "pairs.jsonl", open_engine(choose_way(folder)).rule
    assert rule[1:] == open_engine(Choice(run)).rule[1:]
    assert len(rule.thresholds) == len(rule.label_set.names)
    from labeler.evaluation import aim_of

    for how in ({}, {"aim": aim_of("recall=0.9")}, {"min_precision": 0.2}):
        predict([source], run, tmp_path / "a.jsonl", runtime="native", **how)
        predict([source], folder, tmp_path / "b.jsonl", precision="fp32", **how)
        different = 0
        for ours, theirs in zip(lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl"), strict=True):
            assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)
            assert ours.keys() == theirs.keys()
            different += (ours["labels"], ours.get("review")) != (theirs["labels"], theirs.get("review"))
        # what is promised, and some thresholds, are a validation row's own score: its last digit decides of that row
        assert different <= (2 if how else 0)


def test_int8_and_fewer_tokens_say_what_they_cost(exported, trained, store, tmp_path):
    result = export(trained("visualbert"), tmp_path / "fast", int8=True, visual_tokens=1, data=store)
    found = result.checks["ways"]["onnx fp32"]
    assert found["largest_difference"] > 1e-5
    assert "int8, 1 visual tokens" in (result.out / "README.md").read_text()
    assert (result.out / TOWER).stat().st_size < (exported("visualbert") / TOWER).stat().st_size
    pixels = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    assert open_engine(Choice(result.out, ONNX)).tower({"pixels": pixels}).shape == (2, 1, 96)
    assert export(trained("visualbert"), tmp_path / "fast", int8=True, visual_tokens=1, data=store).already
    with pytest.raises(UsageError, match="where `labeler predict` keeps an exact export of the run"):
        export(trained("visualbert"), trained("visualbert") / "export", int8=True, data=store)
    run = shutil.copytree(trained("visualbert"), tmp_path / "run")
    shutil.copytree(result.out, run / "export")  # as an older labeler let it be
    made = choose_engine(run, precision="fp32").folder
    assert read_manifest(made, "export")["arguments"] == EXACT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"int8": True}, "name the run's store with --data"),
        ({"visual_tokens": 1}, "name the run's store with --data"),
        ({"visual_tokens": 3, "data": True}, "gives 4; choose from 1"),
    ],
)
def test_what_cannot_be_exported_is_said(given, message, trained, store, tmp_path):
    given = {name: store if name == "data" else value for name, value in given.items()}
    with pytest.raises(UsageError, match=message):
        export(trained("visualbert"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_export_that_cannot_be_written_is_refused_before_the_run_is_opened(trained, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(exporting, "open_engine", lambda *_: pytest.fail("opened"))
    with pytest.raises(BadInputError, match=r"out: exists and was not made by labeler, so it is left alone"):
        export(trained("resnet-gru"), tmp_path / "out")


def test_an_export_whose_scores_differ_is_not_published(trained, tmp_path, monkeypatch):
    import torch

    write = exporting.write_files

    def spoilt(native, folder, tokens):
        with torch.no_grad():
            native.run.model.classifier.bias += torch.tensor([0.1, 0.0, 0.0])
            write(native, folder, tokens)
            native.run.model.classifier.bias -= torch.tensor([0.1, 0.0, 0.0])

    monkeypatch.setattr(exporting, "write_files", spoilt)
    with pytest.raises(LabelerError, match=r"onnx fp32: a score differs from PyTorch's by 0\.0"):
        export(trained("resnet-gru"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_worse_is_not_published():
    native = {"accuracy": 0.8, "accuracy_ci95": [0.75, 0.85]}
    exporting.refuse_worse(ONNX, {"accuracy": 0.76}, native)
    with pytest.raises(LabelerError, match=r"falls from 0.800 \[0.750, 0.850\] to 0.740; export without"):
        exporting.refuse_worse(ONNX, {"accuracy": 0.74}, native)


def test_a_way_that_is_worse_is_left_out_alone(exported, trained, store, monkeypatch):
    def worse(way, found, native):
        if way == WAYS[-1]:
            raise LabelerError("worse")

    native = open_engine(Choice(trained("visualbert")), "cpu")
    checked = validation_pairs(native, store, read_manifest(store), 6)
    monkeypatch.setattr(exporting, "refuse_worse", worse)
    folder = shutil.copytree(exported("visualbert"), exported("visualbert").with_name("worse"))
    found = exporting.check(native, folder, checked, exact=False)
    assert list(found["ways"]) == [str(way) for way in usable_ways() if way != WAYS[-1]]


def test_a_damaged_export_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported("resnet-gru"), tmp_path / "copy")
    with open(folder / FUSION, "r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0spoilt")
    with pytest.raises(BadInputError, match=r"fusion\.onnx: damaged .* `labeler export --force`"):
        choose_way(folder)
    shutil.copyfile(exported("resnet-gru") / FUSION, folder / FUSION)
    (folder / TOKENIZER).unlink()
    with pytest.raises(BadInputError, match=r"tokenizer\.json: missing"):
        choose_way(folder)


def test_an_export_is_no_run(exported, store, tmp_path):
    from labeler.evaluating import evaluate

    with pytest.raises(BadInputError, match="made by `labeler export`, expected the output of `labeler train`"):
        evaluate(exported("resnet-gru"), store)
    with pytest.raises(UsageError, match="is an export; name the run itself"):
        choose_engine(exported("resnet-gru"), runtime="native")
    with pytest.raises(UsageError, match="not possible here; there are --runtime onnx --precision fp32"):
        choose_way(exported("resnet-gru"), "onnx", "bf16")


def test_a_run_is_checked_on_the_store_that_it_was_trained_on(trained, multi_store, tmp_path):
    with pytest.raises(BadInputError, match=r"not the store that .* was trained on"):
        export(trained("resnet-gru"), tmp_path / "out", data=multi_store)


def test_validation_pairs_are_found_from_another_directory(trained, store, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(store.parent, tmp_path / "project", symlinks=True))
    manifest = json.loads((folder / store.name / "manifest.json").read_text())
    manifest["inputs"][0]["path"] = "project/records"
    (folder / store.name / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir("/")
    moved, native = folder / store.name, open_engine(Choice(trained("resnet-gru")), "cpu")
    found = validation_pairs(native, moved, read_manifest(moved), 3)
    assert len(found.items) == 3


def test_a_detector_is_not_exported(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained("resnet-gru"), tmp_path / "run")
    engine = open_engine(Choice(run))
    engine.tower = engine.tower._replace(regions=lambda pixels: None)
    monkeypatch.setattr(exporting, "open_engine", lambda *_: engine)
    with pytest.raises(LabelerError, match="a detector, which cannot be exported"):
        export(run, tmp_path / "out")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_an_export_labels_without_torch(runtime, exported, tmp_path):
    from PIL import Image

    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    code = (
        "import sys; from pathlib import Path; from labeler.predicting import predict\n"
        f"predict([Path({str(tmp_path / 'red.png')!r})], Path({str(exported('visualbert'))!r}), Path({str(tmp_path / 'o')!r}),"
        f" runtime={runtime!r})\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'timm', 'lance', 'sklearn', 'scipy.stats', 'scipy.special', 'pandas'}\n"
        "print(heavy & set(sys.modules), [name for name in sys.modules if 'telemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "set() []\n", done.stderr
    assert lines(tmp_path / "o")[0]["labels"]


def test_items_are_read_as_by_the_run(exported, trained):
    from labeler.batches import tokenize

    run, engine = open_engine(Choice(trained("visualbert"))).run, open_engine(Choice(exported("visualbert"), ONNX))
    texts = ["a red square", "", None, "🙂 " * 100, "one two three " * 50, "  "]
    assert engine.tokenize(texts) == tokenize(run.tokenizer, texts, run.preprocessor["max_text_tokens"])
    assert engine.logits([], 32).shape == (0, 3)
    assert engine.logits([Item(Record(id="1", text="a"))], 32).shape == (1, 3)
