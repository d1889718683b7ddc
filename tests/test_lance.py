"""Lance datasets: captions and pictures as bytes become pairs with files of their own; nothing is read that is damaged."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from labeler.artifacts import locked, sha256_bytes, verify
from labeler.errors import BadInputError, LockedError
from labeler.ingestion import Ingested, IngestOptions, ingest
from labeler.pictures.images import MAX_FILE_BYTES, load_image, suffix_of
from labeler.predicting import predict
from labeler.preprocessing import preprocess
from labeler.records import Record, Row, read_records
from labeler.sources import find_format, read_source

COUNT = 12


def flickr(pictures: list[bytes | None], **columns) -> dict[str, list]:
    """Return the columns of a dataset like flickr8k's: two captions a picture, the second the longer, and a label."""
    numbers = range(len(pictures))
    captions = [[f"dog {n}", f"a brown dog number {n} in the snow"] for n in numbers]
    made = {"image": pictures, "image_id": [f"{n}.jpg" for n in numbers], "captions": captions}
    return made | {"label": ["dog" if n % 2 else "cat" for n in numbers]} | columns


def write(path: Path, columns: dict[str, list], **options) -> Path:
    """Write a Lance dataset."""
    import lance
    import pyarrow

    lance.write_dataset(pyarrow.table(columns), str(path), **options)
    return path


@pytest.fixture
def pictures(picture_bytes) -> list[bytes]:
    return [picture_bytes(seed) for seed in range(COUNT)]


@pytest.fixture
def dataset(tmp_path, pictures) -> Path:
    return write(tmp_path / "data" / "flickr8k.lance", flickr(pictures))


def kept(result: Ingested) -> list[Record]:
    verify(result.out, "ingest")
    return list(read_records(result.out))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rejects(result: Ingested) -> list[tuple]:
    lines = (result.out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(item["line"], item["code"]) for item in map(json.loads, lines)]


def test_rows_bring_their_pictures_and_the_longest_caption(dataset, pictures):
    assert find_format(dataset) == "lance"
    rows = list(read_source(dataset))
    assert [row.picture for row in rows] == pictures
    assert [row.line for row in rows] == list(range(1, COUNT + 1))
    assert rows[3].fields == {
        "image_id": "3.jpg", "captions": "a brown dog number 3 in the snow", "label": "dog"
    }  # fmt: skip


def test_pictures_are_written_once_under_their_sha256(tmp_path, dataset, pictures):
    write(dataset, flickr([pictures[0], pictures[0]], image_id=["a", "b"], captions=[["x"], ["y"]]), mode="append")
    result = ingest([dataset], tmp_path / "records")
    records = kept(result)
    assert len(records) == COUNT + 2
    names = {f"pictures/{(digest := sha256_bytes(data))[:2]}/{digest}.jpg" for data in pictures}
    assert {record.image for record in records} == names <= files(result.out)
    assert {name for name in files(result.out) if name.startswith("pictures/")} == names
    assert result.profile["root"] == "."
    for record in records:
        assert sha256_bytes((result.out / record.image).read_bytes()) == record.meta["image_sha256"]
    assert records[0].id == "flickr8k.lance:1"
    assert records[0].text == "a brown dog number 0 in the snow"
    assert result.profile["captions_left_out"] == COUNT
    assert result.profile["leaked_rows"] == 0
    assert sorted(os.listdir(tmp_path)) == ["data", "records"]


def test_a_second_call_finds_it_made_and_a_damaged_picture_is_made_again(tmp_path, dataset):
    first = ingest([dataset], tmp_path / "records")
    before = (tmp_path / "records" / "manifest.json").read_bytes()
    assert ingest([dataset], tmp_path / "records").already
    assert (tmp_path / "records" / "manifest.json").read_bytes() == before
    path = first.out / kept(first)[0].image
    path.write_bytes(path.read_bytes()[:-1])
    again = ingest([dataset], tmp_path / "records")
    assert not again.already
    assert kept(again) == kept(first)
    path.unlink()
    assert not ingest([dataset], tmp_path / "records").already
    assert path.is_file()


def test_a_changed_picture_makes_it_again_and_the_old_one_goes(tmp_path, dataset, pictures, picture_bytes):
    first = ingest([dataset], tmp_path / "records")
    old = files(first.out)
    write(dataset, flickr([picture_bytes(99), *pictures[1:]]), mode="overwrite")
    second = ingest([dataset], tmp_path / "records")
    assert not second.already
    assert len(files(second.out)) == len(old)
    assert files(second.out) != old


def test_the_same_pictures_are_the_same_content_wherever_they_lie(tmp_path, dataset, pictures):
    moved = tmp_path / "elsewhere" / "deep" / "flickr8k.lance"
    shutil.copytree(dataset, moved)
    outs = [ingest([path], out).out for path, out in ((dataset, tmp_path / "a"), (moved, tmp_path / "b" / "c" / "d"))]
    first, second = (json.loads((out / "manifest.json").read_text()) for out in outs)
    assert first["content_sha256"] == second["content_sha256"]
    assert first["files"] == second["files"]


def test_a_mixture_of_files_and_bytes_has_one_root(tmp_path, dataset, picture_bytes):
    (tmp_path / "data" / "own.png").write_bytes(picture_bytes(50, "PNG"))
    own = tmp_path / "data" / "own.jsonl"
    own.write_text(json.dumps({"id": "own", "image": "own.png", "text": "mine", "label": "cat"}) + "\n")
    for name in ("a", "b/c"):
        result = ingest([own, dataset], tmp_path / name)
        records = kept(result)
        assert [load_image(result.out / result.profile["root"] / record.image).size for record in records] == (
            [(40, 30)] * (COUNT + 1)
        )


def test_each_caption_makes_a_pair_and_none_of_a_picture_lies_in_two_splits(tmp_path, dataset):
    result = ingest([dataset], tmp_path / "records", IngestOptions(caption="each"))
    records = kept(result)
    assert len(records) == 2 * COUNT
    assert [record.id for record in records[:3]] == ["flickr8k.lance:1-1", "flickr8k.lance:1-2", "flickr8k.lance:2-1"]
    assert [record.text for record in records[:2]] == ["dog 0", "a brown dog number 0 in the snow"]
    by_picture: dict[str, set] = {}
    for record in records:
        by_picture.setdefault(record.image, set()).add((record.split, record.group, record.meta["group"]))
    assert [len(found) for found in by_picture.values()] == [1] * COUNT
    assert result.profile["captions_left_out"] == 0


def test_each_caption_has_its_pictures_id_where_there_is_one(tmp_path, dataset):
    result = ingest([dataset], tmp_path / "records", IngestOptions(caption="each", mapping={"id": "image_id"}))
    assert [record.id for record in kept(result)[:2]] == ["0.jpg-1", "0.jpg-2"]
    given = [record.meta["group"] for record in kept(result)[:2]]
    assert given == ["0.jpg", "0.jpg"]


def test_bytes_that_are_no_picture_are_rejects(tmp_path, pictures):
    bad = [b"", b"<html>404</html>", pictures[0][:200], None]
    columns = flickr([*bad, *pictures[4:]])
    columns["captions"][3] = []
    result = ingest([write(tmp_path / "d.lance", columns)], tmp_path / "records")
    assert sorted(rejects(result)) == [
        (1, "image-unreadable"), (2, "image-unreadable"), (3, "image-unreadable"), (4, "empty")
    ]  # fmt: skip
    assert len(kept(result)) == COUNT - 4
    assert len([name for name in files(result.out) if name.startswith("pictures/")]) == COUNT - 4


def test_pictures_of_rows_that_were_rejected_are_not_kept(tmp_path, pictures):
    columns = flickr(pictures)
    columns["label"][0] = None
    result = ingest([write(tmp_path / "d.lance", columns)], tmp_path / "records")
    assert rejects(result) == [(1, "label-missing")]
    assert len([name for name in files(result.out) if name.startswith("pictures/")]) == COUNT - 1


def test_too_many_bytes_are_refused_and_nothing_is_written(tmp_path):
    from labeler.pictures.images import ImageError
    from labeler.pictures.kept import Pictures

    place = Pictures(tmp_path / "records", tmp_path / "records", tmp_path / "work")
    with pytest.raises(ImageError, match=r"67,108,865 bytes, at most 67,108,864 are read"):
        place.keep(Row("s", 1, {}, picture=bytes(MAX_FILE_BYTES + 1)))
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_nothing_and_another_process_is_not_disturbed(tmp_path, dataset):
    write(dataset, flickr([b"bad"]), mode="append")
    with pytest.raises(BadInputError, match=r"not a picture of a known format .*\(--strict stops here\)"):
        ingest([dataset], tmp_path / "records", IngestOptions(strict=True))
    assert os.listdir(tmp_path) == ["data"]
    left = tmp_path / ".records.making" / "pictures"
    (left / "ab").mkdir(parents=True)
    (left / "ab" / "left by a killed process.jpg").write_bytes(b"x")
    with locked(tmp_path / "records"), pytest.raises(LockedError, match="another labeler process is making it"):
        ingest([dataset], tmp_path / "records")
    assert (left / "ab" / "left by a killed process.jpg").is_file()
    result = ingest([dataset], tmp_path / "records")
    assert not left.exists()
    assert not [name for name in files(result.out) if "killed" in name]


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("JPEG", ".jpg"),
        ("PNG", ".png"),
        ("WEBP", ".webp"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
        ("TIFF", ".tif"),
        ("AVIF", ".avif"),
    ],
)
def test_the_suffix_is_told_by_the_content(picture_bytes, form, suffix):
    assert suffix_of(picture_bytes(0, form)) == suffix
    assert suffix_of(b"\0\0\0\x18ftypmp42") == ".mp4"
    assert suffix_of(b"<html>") == ".bin"


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_blobs_are_read(tmp_path, pictures, version):
    import lance
    import pyarrow

    blob = pyarrow.field("image", pyarrow.large_binary(), metadata={"lance-encoding:blob": "true"})
    table = pyarrow.table({"image": pictures}, schema=pyarrow.schema([blob]))
    lance.write_dataset(table, str(tmp_path / "d.lance"), data_storage_version=version)
    assert [row.picture for row in read_source(tmp_path / "d.lance")] == pictures


def test_the_picture_is_the_column_that_is_named(tmp_path, pictures):
    columns = {"front": pictures, "back": pictures[::-1], "text": ["x"] * COUNT, "embedding": [[0.5, 0.5]] * COUNT}
    path = write(tmp_path / "d.lance", columns)
    from labeler.sources import Reading

    rows = list(read_source(path, Reading(mapping={"image": "back"})))
    assert [row.picture for row in rows] == pictures[::-1]
    assert rows[0].fields == {"text": "x"}
    with pytest.raises(BadInputError, match=r"pictures or bytes in front, back; choose one with --map image=COLUMN"):
        list(read_source(path))


def test_paths_in_a_dataset_are_relative_to_its_parent(tmp_path, picture_bytes):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture_bytes(number, "PNG"))
    columns = {"image": [f"{n}.png" for n in range(4)] + ["../outside.png"], "label": list("ababa")}
    result = ingest([write(tmp_path / "d.lance", columns)], tmp_path / "records")
    assert rejects(result) == [(5, "image-outside")]
    assert all((result.out / result.profile["root"] / record.image).is_file() for record in kept(result))


def damaged(path: Path, how: str) -> None:
    data = next((path / "data").iterdir())
    if how == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    elif how == "gone":
        data.unlink()
    elif how == "empty manifest":
        for manifest in (path / "_versions").iterdir():
            manifest.write_bytes(b"")
    else:
        shutil.rmtree(path / "_versions")
        (path / "_versions").mkdir()


@pytest.mark.parametrize("how", ["cut", "gone", "empty manifest", "no manifest"])
def test_a_damaged_dataset_is_an_error_that_names_it(tmp_path, pictures, how):
    path = write(tmp_path / f"{how}.lance", flickr(pictures))
    damaged(path, how)
    with pytest.raises(BadInputError, match=rf"{how}\.lance: after row 0: not a whole Lance dataset \("):
        ingest([path], tmp_path / "records")
    assert sorted(os.listdir(tmp_path)) == [f"{how}.lance"]


@pytest.mark.parametrize(("fixture", "task"), [("store", "single"), ("multi_store", "multi")])
def test_our_own_store_gives_the_pairs_that_went_in(tmp_path, request, fixture, task):
    folder = request.getfixturevalue(fixture)
    before = {record.id: record for record in read_records(folder.parent / "records")}
    result = ingest([folder / "pairs.lance"], tmp_path / "records")
    records = kept(result)
    assert result.profile["task"] == task
    assert {record.id for record in records} == set(before)
    for record in records:
        theirs = before[record.id]
        assert (record.text, record.labels, record.split) == (theirs.text, theirs.labels, theirs.split)
        assert (record.image is None) == (theirs.image is None)


def test_the_next_stages_read_them_as_files(tmp_path, dataset, pictures, trained, text_tower, image_tower):
    result = ingest([dataset], tmp_path / "records")
    made = preprocess(
        tmp_path / "records", tmp_path / "store", text_encoder=str(text_tower), image_encoder=str(image_tower)
    )
    assert made.rows == COUNT
    from labeler.store import read_examples

    example = read_examples(tmp_path / "store", [kept(result)[0].id])
    assert Image.open(io.BytesIO(next(iter(example.values())).image)).size == (40, 30)


def test_predict_labels_a_dataset_without_labels(tmp_path, pictures, trained):
    columns = {name: values for name, values in flickr([*pictures, b"bad"]).items() if name != "label"}
    path = write(tmp_path / "d.lance", columns)
    done = predict([path], trained("visualbert"), tmp_path / "out.jsonl", device="cpu", runtime="native")
    assert (done.items, done.errors) == (COUNT + 1, 1)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"d.lance:{number}" for number in range(1, COUNT + 2)]
    assert lines[0]["text"] == "a brown dog number 0 in the snow"
    assert lines[0]["labels"]
    assert "not a picture of a known format" in lines[-1]["error"]
