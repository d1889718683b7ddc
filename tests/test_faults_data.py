"""Faults 15, 16, 24 and 27: labels and splits that teach or measure nothing, leaks, artifacts of other schemas, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeler.artifacts import SCHEMA_VERSION
from labeler.store import DATASET, Store


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int, **fields) -> list[dict]:
    return [{"id": str(n), "text": f"text number {n}", "label": "ab"[n % 2]} | fields for n in range(count)]


@pytest.fixture
def made(tmp_path, store) -> Path:
    """Return a copy of the folder with records and store, which a test may damage."""
    return Path(shutil.copytree(store.parent, tmp_path / "made"))


@pytest.fixture
def towers(text_tower, image_tower) -> list[object]:
    """Return the options that name small towers."""
    return ["--text-encoder", text_tower, "--image-encoder", image_tower]


def edit_manifest(folder: Path, **fields) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_fault_15_one_class_only_is_refused(labeler, tmp_path):
    result = labeler("ingest", write(tmp_path / "a.jsonl", rows(9, label="a")), "--out", tmp_path / "out")
    assert result.code == 3
    assert "only the label 'a' occurs in the data; a labeler needs at least two to tell apart" in result.said
    assert not (tmp_path / "out").exists()


def test_fault_15_an_empty_split_is_refused_by_training_and_by_evaluation(labeler, tmp_path, made, towers, trained):
    source = made / "source" / "pairs.jsonl"
    for name, shares in (("no-validation", "0.8,0,0.2"), ("no-test", "0.8,0.2,0")):
        out = made / name
        assert labeler("ingest", source, "--out", out / "records", "--split", shares).code == 0
        assert labeler("preprocess", out / "records", "--out", out / "store", *towers).code == 0
    result = labeler("train", "resnet-gru", made / "no-validation" / "store", "--out", tmp_path / "run")
    assert result.code == 3
    assert "no row in the validation split" in result.said
    run = shutil.copytree(trained("resnet-gru"), tmp_path / "trained")
    result = labeler("evaluate", run, "--data", made / "no-test" / "store")
    assert result.code == 3
    assert "no row in the test split" in result.said


def test_fault_15_a_class_absent_from_test_has_no_figure_but_a_reason(tmp_path, trained, store):
    from labeler.evaluating import evaluate
    from labeler.evaluation import measure, read_predictions

    run = Path(shutil.copytree(trained("resnet-gru"), tmp_path / "run"))
    evaluate(run, store)
    names = Store(store).label_set.names
    whole = read_predictions(run / "predictions-test.jsonl", names)
    some = ~whole.truth[:, 0]
    part = whole._replace(**{
        name: [item for item, keep in zip(value, some, strict=True) if keep] if isinstance(value, list) else value[some]
        for name, value in whole._asdict().items() if hasattr(value, "__len__") and len(value) == len(some)
    })  # fmt: skip
    found = measure("single", names, part)
    row = next(row for row in found["per_class"] if row["label"] == names[0])
    assert (row["recall"], row["f1"]) == (None, None)
    assert any("no row carries these labels" in note and names[0] in note for note in found["notes"])
    assert 0 <= found["macro_f1"] <= 1


def test_fault_16_the_same_picture_or_text_ends_in_one_split_and_is_counted(labeler, tmp_path):
    pairs = rows(40)
    for number in range(0, 8, 2):
        pairs[number + 1]["text"] = pairs[number]["text"].upper() + "!"
    coarse = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC)
    for number, (name, options) in enumerate({"a.png": {}, "b.jpg": {"quality": 80}, "c.bmp": {}}.items(), 20):
        picture.save(tmp_path / name, **options)
        pairs[number]["image"] = name
    result = labeler("ingest", write(tmp_path / "a.jsonl", pairs), "--out", tmp_path / "out", "--json")
    profile = json.loads(result.out)
    assert (profile["joined_rows"], profile["leaked_rows"]) == (11, 0)
    assert profile["duplicates"]["text"] == {"values": 4, "rows": 8}
    assert profile["duplicates"]["look"] == {"values": 1, "rows": 3}
    splits = [json.loads(line)["split"] for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert all(splits[number] == splits[number + 1] for number in range(0, 8, 2))
    assert len(set(splits[20:23])) == 1
    for number, row in enumerate(pairs):
        row["split"] = "test" if number in (1, 20) else "train"
    given = json.loads(labeler("ingest", write(tmp_path / "b.jsonl", pairs), "--out", tmp_path / "given", "--json").out)
    assert given["leaked_rows"] == 2
    assert given["leaks"]["test"] == {"look": 1, "text": 1}


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION - 1, "an older"), (SCHEMA_VERSION + 1, "a newer")])
def test_fault_24_an_artifact_of_another_schema_is_refused_with_what_to_do(labeler, tmp_path, made, version, age):
    for folder, command in (
        ("records", ["preprocess", made / "records", "--out", tmp_path / "store"]),
        ("store", ["train", "resnet-gru", made / "store", "--out", tmp_path / "run"]),
        ("store", ["inspect", made / "store"]),
    ):
        edit_manifest(made / folder, schema_version=version)
        result = labeler(*command)
        assert result.code == 3, result.said
        assert f"written by {age} labeler (schema {version}" in result.said
        assert "make it again with `labeler" in result.said


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_fault_27_a_damaged_store_is_found_and_remade_never_read(labeler, tmp_path, made, towers, damage):
    before = Store(made / "store").dataset.to_table().drop(["image"]).to_pylist()
    files = (path for path in (made / "store" / DATASET).rglob("*") if path.is_file())
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    result = labeler("train", "resnet-gru", made / "store", "--out", tmp_path / "run")
    assert result.code == 3
    assert "make it again with `labeler preprocess --force`" in result.said
    result = labeler("preprocess", made / "records", "--out", made / "store", *towers)
    assert result.code == 0
    assert Store(made / "store").dataset.to_table().drop(["image"]).to_pylist() == before


def test_fault_27_damaged_records_are_found_and_remade(labeler, tmp_path, made, towers):
    path = made / "records" / "records.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"circle", b"square"))
    result = labeler("preprocess", made / "records", "--out", tmp_path / "store", *towers)
    assert result.code == 3
    assert "records.jsonl: damaged" in result.said
    assert labeler("ingest", made / "source" / "pairs.jsonl", "--out", made / "records").code in (0, 4)
    assert path.read_bytes() == before
