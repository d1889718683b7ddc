"""Preprocess: the store holds what the towers say about the very pictures, and is never silently wrong."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import ingesting
import numpy as np
import pytest
import torch
from ingesting import picture, write
from PIL import Image

from labeler.artifacts import MANIFEST, read_manifest, verify, work_folder, write_json
from labeler.encoders.image import ImageEncoder, load_image_encoder
from labeler.encoders.text import load_text_encoder
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.ingestion import IngestOptions, ingest
from labeler.pictures.images import STRETCHED_BY, stretch
from labeler.preprocessing import preprocess
from labeler.records import read_records
from labeler.store import DATASET, THUMBNAIL_MIME, Store, read_examples


@pytest.fixture
def copied(store, tmp_path) -> Path:
    """Return a folder with copies of source, records and store that a test may spoil."""
    for name in ("source", "records", "store"):
        shutil.copytree(store.parent / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def towers(text_tower, image_tower) -> dict[str, str]:
    return {"text_encoder": str(text_tower), "image_encoder": str(image_tower)}


def test_tokens_are_the_towers_on_the_original_pictures(store, image_tower):
    opened, tower = Store(store), load_image_encoder(str(image_tower))
    tokens, real = opened.visual_tokens(range(len(opened.rows["id"])))
    assert tokens.shape == (38, tower.tokens, tower.width) == (38, 4, 96)
    records = list(read_records(store.parent / "records"))
    assert [record.id for record in records] == opened.rows["id"]
    assert (real.shape, real.dtype) == ((38, 4), bool)
    for record, row, mask in zip(records, tokens, real, strict=True):
        assert mask.tolist() == [record.image is not None] * 4
        if record.image is None:
            assert not row.any()
            continue
        with Image.open(store.parent / "source" / record.image) as picture:
            seen = tower.visual_tokens([stretch(np.array(picture.convert("RGB")), tower.size)])[0].numpy()
        np.testing.assert_allclose(row.astype(np.float32), seen.astype(np.float32), atol=2e-3, rtol=2e-3)
    assert len({row.tobytes() for row in tokens[real.any(axis=1)]}) == 36


def test_text_features_are_the_text_towers(store, text_tower):
    opened, tower = Store(store), load_text_encoder(str(text_tower))
    rows = np.array([0, 37, 5, 1])
    image, text = opened.features(rows)
    np.testing.assert_allclose(
        text, tower.features([opened.rows["text"][row] for row in rows]).numpy(), atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(image, opened.visual_tokens(rows)[0].astype(np.float32).mean(axis=1), atol=1e-5)
    assert text.dtype == image.dtype == np.float32
    assert not image[1].any()


def test_splits_and_labels_come_through(store):
    opened = Store(store)
    assert [len(opened.rows_of(split)) for split in ("train", "validation", "test")] == [25, 6, 7]
    truth = opened.truth(np.arange(38))
    for identity, row in zip(opened.rows["id"], truth, strict=True):
        (name,) = np.array(opened.label_set.names)[row]
        assert name == ("square" if "words" in identity else identity.split("-")[0])


def test_examples_are_small_pictures_to_look_at(store):
    found = read_examples(store, ["circle-red-one", "test-words", "no such id"])
    assert list(found) == ["circle-red-one", "test-words"]
    example = found["circle-red-one"]
    with Image.open(io.BytesIO(example.image)) as picture:
        assert (picture.format, picture.size, example.mime) == ("JPEG", (48, 40), THUMBNAIL_MIME)
    assert (found["test-words"].image, found["test-words"].mime) == (None, None)
    assert found["test-words"].text == "a red square on paper two"


def test_the_store_says_what_made_it(store, text_tower, image_tower):
    towers = Store(store).towers
    assert (towers["image"]["tokens"], towers["image"]["width"], towers["text"]["width"]) == (4, 96, 32)
    assert (towers["image"]["name"], towers["text"]["name"]) == (str(image_tower), str(text_tower))
    assert read_manifest(store)["arguments"]["weights"] == {part: towers[part]["sha256"] for part in towers}


@pytest.mark.parametrize("near", [128, 1], ids=["shared", "alone"])
def test_a_picture_that_several_rows_share_is_shown_once_and_told_the_same(tmp_path, towers, monkeypatch, near):
    rows = [ingesting.row(10 * number + part, image=f"{number}.png") for number in range(12) for part in range(5)]
    rows += [ingesting.row(1000), ingesting.row(1001, image="0.png")]
    for number in range(12):
        picture(tmp_path / f"{number}.png", number)
    ingest([write(tmp_path / "a.jsonl", rows)], tmp_path / "records")
    monkeypatch.setattr("labeler.pictures.decoding.NEAR", near)
    monkeypatch.setattr("labeler.preprocessing.NEAR", near)
    real, shown = ImageEncoder.see, []
    monkeypatch.setattr(ImageEncoder, "see", lambda tower, pixels: shown.extend(pixels) or real(tower, pixels))
    preprocess(tmp_path / "records", tmp_path / "store", **towers)
    assert len(shown) == (12 if near > 1 else 61)
    opened, tower = Store(tmp_path / "store"), load_image_encoder(str(towers["image_encoder"]))
    tokens, real_tokens = opened.visual_tokens(range(62))
    assert real_tokens.any(axis=1).tolist() == [True] * 60 + [False, True]
    for number, item in enumerate(read_records(tmp_path / "records")):
        if item.image:
            with Image.open(tmp_path / item.image) as image:
                alone = tower.visual_tokens([stretch(np.array(image.convert("RGB")), tower.size)])[0].numpy()
            np.testing.assert_allclose(
                tokens[number].astype(np.float32), alone.astype(np.float32), atol=2e-3, rtol=2e-3
            )


def test_a_second_call_makes_nothing(copied, towers):
    before = read_manifest(copied / "store")
    again = preprocess(copied / "records", copied / "store", **towers)
    assert again == (copied / "store", True, 38)
    assert read_manifest(copied / "store") == before
    assert not preprocess(copied / "records", copied / "store", **towers, force=True).already


def test_a_store_whose_pictures_were_stretched_otherwise_is_made_again(copied, towers):
    manifest = read_manifest(copied / "store")
    del manifest["arguments"]["stretched_by"]
    write_json(copied / "store" / MANIFEST, manifest)
    assert not preprocess(copied / "records", copied / "store", **towers).already
    assert read_manifest(copied / "store")["arguments"]["stretched_by"] == STRETCHED_BY


def test_the_content_hash_depends_on_records_and_towers_alone(copied, towers, tmp_path):
    preprocess(copied / "records", tmp_path / "again", **towers)
    assert Store(tmp_path / "again").sha256 == Store(copied / "store").sha256
    changed = shutil.copytree(towers["image_encoder"], tmp_path / "tower")
    config = json.loads((changed / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (changed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    other = preprocess(copied / "records", copied / "store", **towers | {"image_encoder": str(changed)})
    assert not other.already
    assert Store(copied / "store").sha256 != Store(tmp_path / "again").sha256


@pytest.fixture
def other_tower(image_tower, tmp_path) -> Path:
    """Return a tower that sees the same pictures in other colours, 96 pixels wide: 9 tokens."""
    folder = shutil.copytree(image_tower, tmp_path / "other-tower")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"] |= {"mean": [0.4, 0.4, 0.4], "input_size": [3, 96, 96]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def inodes(store: Path) -> dict[str, int]:
    """Return {name: inode} of the files that hold the store's data."""
    return {path.name: path.stat().st_ino for path in (store / DATASET / "data").iterdir()}


@pytest.mark.parametrize("what", ["image_encoder", "visual_tokens"])
def test_other_visual_tokens_are_a_column_more_and_nothing_is_written_again(
    copied, towers, other_tower, tmp_path, what
):
    first = Store(copied / "store")
    data, tokens = inodes(copied / "store"), first.visual_tokens(range(38))
    others = towers | {what: {"image_encoder": str(other_tower), "visual_tokens": 1}[what]}
    assert not preprocess(copied / "records", copied / "store", **others).already
    assert inodes(copied / "store").items() > data.items()
    preprocess(copied / "records", tmp_path / "fresh", **others)
    added, fresh = Store(copied / "store"), Store(tmp_path / "fresh")
    assert (added.sha256, added.towers, added.rows) == (fresh.sha256, fresh.towers, fresh.rows)
    for ours, theirs in zip(added.visual_tokens(range(38)), fresh.visual_tokens(range(38)), strict=True):
        assert ours.shape[:1] == (38,)
        np.testing.assert_array_equal(ours, theirs)
    assert added.visual_tokens(range(38))[0].shape[1] != tokens[0].shape[1]
    np.testing.assert_array_equal(added.features(np.arange(38))[1], first.features(np.arange(38))[1])
    assert list(added.thumbnails()) == list(fresh.thumbnails())
    assert preprocess(copied / "records", copied / "store", **others).already

    shutil.rmtree(copied / "source")  # the first tower's tokens are still there: no picture is needed
    assert not preprocess(copied / "records", copied / "store", **towers).already
    again = Store(copied / "store")
    assert again.sha256 == first.sha256
    for ours, theirs in zip(again.visual_tokens(range(38)), tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_embedded_towers_averaged_grid_has_the_mean_of_the_whole(copied, text_tower):
    preprocess(copied / "records", copied / "store", text_encoder=str(text_tower), visual_tokens=16)
    averaged = Store(copied / "store")
    assert averaged.visual_tokens([0])[0].shape == (1, 16, 1280)
    image, _ = averaged.features(np.arange(38))
    preprocess(copied / "records", copied / "store", text_encoder=str(text_tower))
    whole = Store(copied / "store")
    assert whole.visual_tokens([0])[0].shape == (1, 49, 1280)
    np.testing.assert_allclose(whole.features(np.arange(38))[0], image, atol=1e-3, rtol=1e-3)


def test_a_column_that_cannot_be_added_leaves_the_store_as_it_was(copied, towers, other_tower):
    manifest, data = read_manifest(copied / "store"), inodes(copied / "store")
    (copied / "source/pictures/cross-green-two.png").unlink()
    with pytest.raises(BadInputError, match=r"cross-green-two.png: no such file; run `labeler ingest` again"):
        preprocess(copied / "records", copied / "store", **towers | {"image_encoder": str(other_tower)})
    assert (verify(copied / "store", "preprocess"), inodes(copied / "store")) == (manifest, data)
    assert Store(copied / "store").visual_tokens([0])[0].shape == (1, 4, 96)
    with pytest.raises(UsageError, match="--visual-tokens 2: the image tower gives 4; choose from 1"):
        preprocess(copied / "records", copied / "store", **towers, visual_tokens=2)
    assert not work_folder(copied / "store").exists()


@pytest.mark.parametrize("why", ["another text tower", "damage", "force"])
def test_the_whole_store_is_made_again_where_more_than_the_image_tower_is_another(
    copied, towers, other_tower, text_tower, tmp_path, why
):
    others = towers | {"image_encoder": str(other_tower)}
    data = inodes(copied / "store")
    if why == "another text tower":
        changed = shutil.copytree(text_tower, tmp_path / "text-tower")
        config = json.loads((changed / "config.json").read_text(encoding="utf-8"))
        (changed / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}), encoding="utf-8")
        others["text_encoder"] = str(changed)
    elif why == "damage":
        path = next((copied / "store" / DATASET / "data").iterdir())
        path.write_bytes(path.read_bytes()[:-100])
    preprocess(copied / "records", copied / "store", **others, force=why == "force")
    assert not inodes(copied / "store").keys() & data.keys()
    assert Store(copied / "store").towers["image"]["name"] == str(other_tower)


@pytest.mark.parametrize("what", ["changed", "missing", "cut off"])
def test_a_picture_that_is_not_the_ingested_one_ends_the_stage(copied, towers, tmp_path, what):
    picture = copied / "source/pictures/cross-green-two.png"
    if what == "missing":
        picture.unlink()
    elif what == "changed":
        shutil.copyfile(copied / "source/pictures/circle-red-one.png", picture)
    else:
        picture.write_bytes(picture.read_bytes()[:200])
    match = "no such file" if what == "missing" else "another picture than at ingest"
    with pytest.raises(BadInputError, match=rf"cross-green-two.png: {match}; run `labeler ingest` again"):
        preprocess(copied / "records", tmp_path / "out", **towers)
    assert not (tmp_path / "out").exists()
    assert not work_folder(tmp_path / "out").exists()


def test_a_flipped_byte_is_found_and_the_store_remade(copied, towers):
    files = (path for path in (copied / "store" / DATASET).rglob("*") if path.is_file())
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BadInputError, match=r"damaged .* make it again with `labeler preprocess --force`"):
        Store(copied / "store")
    assert not preprocess(copied / "records", copied / "store", **towers).already
    verify(copied / "store", "preprocess")


def test_changed_records_are_refused(copied, towers, tmp_path):
    path = copied / "records" / "records.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("circle", "square"), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"records.jsonl: damaged"):
        preprocess(copied / "records", tmp_path / "out", **towers)


def test_another_stages_folder_is_refused(store, towers, tmp_path):
    with pytest.raises(BadInputError, match="made by `labeler preprocess`, expected the output of `labeler ingest`"):
        preprocess(store, tmp_path / "out", **towers)


def test_an_unknown_tower_is_refused_before_anything_is_written(store, tmp_path):
    with pytest.raises(LabelerError, match="image encoder 'resnet17': no folder"):
        preprocess(store.parent / "records", tmp_path / "out", image_encoder="resnet17")
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_rows_is_named(towers, store, tmp_path):
    rows = [json.loads(line) for line in (store.parent / "source/pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"image": None, "text": row["id"]}) for row in rows if row["split"] != "validation"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ingest([tmp_path / "pairs.jsonl"], tmp_path / "records", IngestOptions(split="keep"))
    preprocess(tmp_path / "records", tmp_path / "store", **towers)
    with pytest.raises(BadInputError, match="no row in the validation split"):
        Store(tmp_path / "store").rows_of("validation")
    tokens, real = Store(tmp_path / "store").visual_tokens([0, 1])
    assert not real.any()
    assert tokens.shape == (2, 4, 96)


@pytest.mark.parametrize("most", [3, 0])
def test_fault_26_where_memory_does_not_suffice_pictures_are_seen_in_parts(
    store, text_tower, image_tower, tmp_path, monkeypatch, most
):
    whole = ImageEncoder.see

    def see(self, pictures):
        if len(pictures) > most:
            torch.empty(1 << 50)
        return whole(self, pictures)

    monkeypatch.setattr(ImageEncoder, "see", see)

    def made():
        records = store.parent / "records"
        return preprocess(records, tmp_path / "store", image_encoder=str(image_tower), text_encoder=str(text_tower)).out

    if not most:
        with pytest.raises(LabelerError, match=r"memory does not suffice for a single item .* take a smaller"):
            made()
        return
    rows = np.arange(38)
    tokens, real = Store(made()).visual_tokens(rows)
    expected = Store(store).visual_tokens(rows)
    np.testing.assert_array_equal(real, expected[1])
    np.testing.assert_allclose(tokens.astype(np.float32), expected[0].astype(np.float32), atol=2e-3, rtol=2e-3)
