"""Data sets in the hub's format, from local folders through the code that reads those of a hub; no network."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from labeler.artifacts import sha256_bytes
from labeler.encoders import weights
from labeler.errors import BadInputError
from labeler.ingestion import Ingested, IngestOptions, ingest
from labeler.items import ItemReading, read_items
from labeler.pictures.images import ImageError
from labeler.records import Record, Reject, Row, read_records
from labeler.sources import Reading, find_format, read_source
from labeler.sources.hub import Source, file_bytes, parse

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: {second}
    path: data/{second}-*
---
# Pets
"""


def parquet_folder(folder: Path, picture_bytes, second: str = "test", **columns) -> Path:
    """Write a data set as the hub holds one: parquet with a picture, a class and a list of classes, and a README."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value
    from pyarrow.parquet import write_table

    features = Features({
        "id": Value("int64"), "image": Image(), "caption": Value("string"), "label": ClassLabel(names=["cat", "dog"]),
        "kinds": List(ClassLabel(names=["big", "old", "wet"])), "embedding": List(Value("float32")),
    })  # fmt: skip
    (folder / "data").mkdir(parents=True)
    for split, start in (("train", 0), (second, 10)):
        rows = [{
            "id": number, "image": {"bytes": picture_bytes(start + number), "path": f"{number}.jpg"},
            "caption": f"pet {start + number}", "label": number % 2, "kinds": list(range(number % 4)),
            "embedding": [0.5] * 4,
        } for number in range(6)]  # fmt: skip
        rows = [row | {name: values[number] for name, values in columns.items()} for number, row in enumerate(rows)]
        table = Dataset.from_list(rows, features=features).data.table  # its own writer would look for missing pictures
        write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(README.format(second=second), encoding="utf-8")
    return folder


@pytest.fixture
def pets(tmp_path, picture_bytes) -> Path:
    return parquet_folder(tmp_path / "pets", picture_bytes)


def source(folder: Path, rest: str = "") -> Path:
    return Path(f"hub:{folder}{rest}")


def rows_of(path: Path, how: Reading | None = None) -> list[Row]:
    items = list(read_source(path, how))
    assert not [item for item in items if isinstance(item, Reject)]
    return items


def kept(result: Ingested) -> list[Record]:
    return list(read_records(result.out))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hub:owner/name", Source("owner/name")),
        ("hub:name:en", Source("name", "en")),
        ("hub:owner/name::test", Source("owner/name", "", "test")),
        ("hub:./folder:en:dev", Source("./folder", "en", "dev")),
    ],
)
def test_a_name_its_configuration_and_its_split(text, found):
    assert parse(Path(text)) == found
    assert find_format(Path(text)) == "hub"


@pytest.mark.parametrize("text", ["hub:", "hub::en", "hub:a:b:c:d"])
def test_a_source_that_says_nothing_or_too_much_is_refused(text):
    with pytest.raises(BadInputError, match="expected hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT"):
        list(read_source(Path(text)))


def test_parquet_with_a_readme_gives_pictures_classes_and_splits(tmp_path, pets, picture_bytes, caplog):
    with caplog.at_level(logging.INFO, "labeler"):
        rows = rows_of(source(pets))
    assert [row.picture for row in rows] == [picture_bytes(seed) for seed in (*range(6), *range(10, 16))]
    assert rows[7].fields == {
        "id": "test/1", "image": "1.jpg", "caption": "pet 11", "label": "dog", "kinds": ["big"], "split": "test",
    }  # fmt: skip
    assert (rows[7].source, rows[7].line) == (f"hub:{pets}::test", 2)
    assert f"hub:{pets}::train: passed over: embedding" in caplog.messages
    result = ingest([source(pets)], tmp_path / "records")
    records = kept(result)
    assert [record.split for record in records] == ["train"] * 6 + ["test"] * 6
    assert result.profile["labels"]["train"] == {"cat": 3, "dog": 3}
    for record in records:
        data = (result.out / record.image).read_bytes()
        assert sha256_bytes(data) == record.meta["image_sha256"] == Path(record.image).stem
    assert ingest([source(pets)], tmp_path / "records").already


def test_a_list_of_classes_is_several_labels(tmp_path, pets):
    result = ingest([source(pets)], tmp_path / "records", IngestOptions(label="kinds"))
    assert result.profile["task"] == "multi"
    assert [record.labels for record in kept(result)[:4]] == [(), ("big",), ("big", "old"), ("big", "old", "wet")]


def test_one_split_alone_has_none_to_keep(tmp_path, pets):
    rows = rows_of(source(pets, "::test"))
    assert [row.fields["id"] for row in rows] == [f"test/{number}" for number in range(6)]
    assert "split" not in rows[0].fields
    result = ingest([source(pets, "::test")], tmp_path / "records", IngestOptions(split="0.5,0.25,0.25"))
    assert result.profile["split"] == "drawn: train 0.5, validation 0.25, test 0.25"


def test_a_folder_is_read_with_format_hub_too(tmp_path, pets):
    result = ingest([pets], tmp_path / "records", IngestOptions(format="hub"))
    assert len(kept(result)) == 12
    assert all((result.out / result.profile["root"] / record.image).is_file() for record in kept(result))


def test_a_split_that_is_none_of_ours_must_be_named(tmp_path, picture_bytes):
    folder = parquet_folder(tmp_path / "pets", picture_bytes, second="holdout")
    with pytest.raises(
        BadInputError, match=r"the split 'holdout' is none of .* name one split of train, holdout: hub:"
    ):
        list(read_source(source(folder)))
    assert len(rows_of(source(folder, "::holdout"))) == 6


@pytest.mark.parametrize(("rest", "message"), [(":en", "'en' not found"), ("::dev", "Bad split: dev")])
def test_a_configuration_or_split_that_is_not_there_is_named(pets, rest, message):
    with pytest.raises(BadInputError, match=message):
        list(read_source(source(pets, rest)))


def test_a_secret_class_is_no_label(tmp_path, picture_bytes):
    folder = parquet_folder(tmp_path / "pets", picture_bytes, label=[-1, 0, 1, 0, None, 1])
    assert [row.fields["label"] for row in rows_of(source(folder, "::train"))] == [
        None,
        "cat",
        "dog",
        "cat",
        None,
        "dog",
    ]
    assert ingest([source(folder)], tmp_path / "records").profile["rejects"] == {"label-missing": 4}


def image_folder(folder: Path, picture_bytes) -> Path:
    """Write the hub's `imagefolder`: pictures in a folder for each split, with a metadata.jsonl."""
    for split, start in (("train", 0), ("validation", 4)):
        (folder / split / "deep").mkdir(parents=True)
        names = [f"deep/{number}.png" for number in range(start, start + 4)]
        for number, name in enumerate(names, start):
            (folder / split / name).write_bytes(picture_bytes(number, "PNG"))
        lines = [
            json.dumps({"file_name": name, "text": f"no {name}", "mood": "ab"[n % 2]}) for n, name in enumerate(names)
        ]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_an_image_folder_gives_the_bytes_of_its_files(tmp_path, picture_bytes):
    folder = image_folder(tmp_path / "pictures", picture_bytes)
    rows = rows_of(source(folder))
    assert [row.picture for row in rows] == [picture_bytes(seed, "PNG") for seed in range(8)]
    assert rows[5].fields == {
        "id": "validation/2", "image": "5.png", "text": "no deep/5.png", "mood": "b", "split": "validation"
    }  # fmt: skip
    result = ingest([source(folder)], tmp_path / "records", IngestOptions(label="mood"))
    assert result.profile["splits"] == {"train": 4, "validation": 4, "test": 0}
    assert {Path(record.image).suffix for record in kept(result)} == {".png"}


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_a_table_of_texts_is_read_too(tmp_path, name):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(4)]
    text = "\n".join(map(json.dumps, rows)) if name.endswith("jsonl") else (
        "\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in rows)])
    )  # fmt: skip
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(text + "\n")
    found = rows_of(source(tmp_path / "set"))
    assert [row.fields for row in found] == [{"id": f"train/{n}"} | row for n, row in enumerate(rows, 1)]


@pytest.mark.parametrize("name", ["ID", "uid"])
def test_an_id_of_another_name_is_the_row_s_own(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({name: "a-17", "text": "one"}) + "\n")
    assert [row.fields for row in rows_of(source(tmp_path / "set"))] == [{name: "train/a-17", "text": "one"}]


def test_a_table_cannot_name_files_outside_its_folder(tmp_path, picture_bytes):
    (tmp_path / "secret.jpg").write_bytes(picture_bytes(0))
    pictures = [{"bytes": None, "path": str(tmp_path / "secret.jpg")}, {"bytes": None, "path": "../secret.jpg"}]
    pictures += [{"bytes": picture_bytes(number), "path": None} for number in range(4)]
    folder = parquet_folder(tmp_path / "pets", picture_bytes, image=pictures)
    items = list(read_source(source(folder, "::train")))
    assert [item.code for item in items[:2] if isinstance(item, Reject)] == ["image-outside"] * 2
    assert [item.picture for item in items[2:]] == [picture_bytes(number) for number in range(4)]


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "file:///etc/hostname", "hf://datasets/other/set@main/a.jpg", "a.jpg",
     "file:///etc/hostname::hf://datasets/owner/name@main/a.zip", "hf://datasets/owner/name@main/a::file:///etc/hostname"],
)  # fmt: skip
def test_a_data_set_on_a_hub_names_only_its_own_files(name):
    with pytest.raises(ImageError, match="no file of the data set owner/name"):
        file_bytes(name, Path("owner/name"))


def test_a_data_set_with_code_is_refused_and_nothing_is_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BadInputError, match="Dataset scripts are no longer supported"):
        list(read_source(source(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_table_is_an_error_that_names_it(pets, damage):
    table = next((pets / "data").glob("test-*"))
    table.write_bytes({"cut": table.read_bytes()[:-200], "garbage": b"PAR1 no table PAR1", "empty": b""}[damage])
    with pytest.raises(BadInputError, match=r"pets(::test)?: .*read"):
        list(read_source(source(pets)))


def test_a_hub_out_of_reach_is_said_in_time_with_the_local_way(tmp_path):
    start = time.monotonic()
    with pytest.raises(
        BadInputError, match="the data set 'owner/pets' is no folder here, and its hub is out of reach"
    ) as caught:
        ingest([Path("hub:owner/pets:en")], tmp_path / "records")
    assert "`hf download --repo-type dataset owner/pets --local-dir FOLDER` makes a copy" in str(caught.value)
    assert "`labeler ingest hub:FOLDER`" in str(caught.value)
    assert time.monotonic() - start < 10


def silent(url, timeout):
    """Stand for a hub that takes the connection and says nothing."""
    time.sleep(1)
    raise OSError("timed out")


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(weights, "urlopen", silent)
    with pytest.raises(BadInputError, match=r"its hub is out of reach \(no answer in time\)"):
        list(read_source(Path("hub:owner/pets")))


def test_a_folder_that_is_not_there_asks_no_hub(tmp_path):
    with pytest.raises(BadInputError, match="no such folder"):
        list(read_source(source(tmp_path / "none")))


def test_predict_reads_a_data_set_too(tmp_path, pets, trained):
    from labeler.predicting import predict

    done = predict(
        [source(pets, "::test")], trained("visualbert"), tmp_path / "out.jsonl", device="cpu", runtime="native"
    )
    assert (done.items, done.errors) == (6, 0)
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["image"], first["text"]) == ("test/0", "0.jpg", "pet 10")


def plain_table(path: Path, pictures: list, **columns) -> Path:
    """Write a parquet table that knows nothing of `datasets`: a struct of bytes and path, a caption and a label."""
    import pyarrow
    from pyarrow.parquet import write_table

    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns |= {"caption": [f"pet {n}" for n in range(len(pictures))], "label": ["cat", "dog"] * (len(pictures) // 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table({"photo": pyarrow.array(pictures, struct)} | columns), path)
    return path


def test_one_table_of_a_data_set_gives_its_pictures(tmp_path, pets, picture_bytes):
    table = next((pets / "data").glob("train-*"))
    rows = rows_of(table)
    assert [row.picture for row in rows] == [picture_bytes(seed) for seed in range(6)]
    assert rows[1].fields["image"] == "1.jpg"
    result = ingest([table], tmp_path / "records")
    assert all((result.out / result.profile["root"] / record.image).is_file() for record in kept(result))
    assert all(record.meta["image_sha256"] in record.image for record in kept(result))
    assert ingest([table], tmp_path / "records").already
    items = list(read_items(read_source(table), ItemReading({}), 32))
    assert [(item.error, item.pixels.shape) for item in items] == [(None, (32, 32, 3))] * 6


def test_one_table_of_a_data_set_gives_its_classes_by_name(tmp_path, picture_bytes):
    folder = parquet_folder(tmp_path / "pets", picture_bytes, label=[-1, 0, 1, 0, None, 1])
    streamed = rows_of(source(folder, "::train"))
    rows = rows_of(next((folder / "data").glob("train-*")))
    assert [row.fields["label"] for row in rows] == [None, "cat", "dog", "cat", None, "dog"]
    assert rows[3].fields["kinds"] == ["big", "old", "wet"]
    for name in ("label", "kinds"):
        assert [row.fields[name] for row in rows] == [row.fields[name] for row in streamed]


@pytest.mark.parametrize(
    "note",
    [
        "no JSON",
        "[]",
        '{"info": {"features": {"label": {"names": 3, "_type": "ClassLabel"}}}}',
        '{"info": {"features": {"label": [], "caption": {"names": ["x"], "_type": "ClassLabel"}}}}',
    ],
)
def test_a_note_that_says_nothing_of_classes_changes_nothing(tmp_path, note):
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table({"caption": ["a cat", "a dog"], "label": [0, 1]})
    write_table(table.replace_schema_metadata({"huggingface": note}), tmp_path / "pets.parquet")
    assert [row.fields for row in rows_of(tmp_path / "pets.parquet")] == [
        {"caption": "a cat", "label": 0}, {"caption": "a dog", "label": 1}]  # fmt: skip


def test_a_struct_of_bytes_and_path_is_a_picture_without_a_word_from_datasets(tmp_path, picture_bytes):
    pictures = [{"bytes": picture_bytes(0), "path": "x/a.jpg"}, None, {"bytes": picture_bytes(2), "path": None},
                {"bytes": None, "path": "b.jpg"}]  # fmt: skip
    table = plain_table(tmp_path / "set" / "train.parquet", pictures, thumbnail=[b"x"] * 4)
    (tmp_path / "set" / "b.jpg").write_bytes(picture_bytes(3))
    rows = rows_of(table)
    assert [(row.fields["image"], row.picture) for row in rows] == [
        ("a.jpg", picture_bytes(0)), (None, None), (None, picture_bytes(2)), ("b.jpg", None)
    ]  # fmt: skip
    assert "thumbnail" not in rows[0].fields
    result = ingest([table], tmp_path / "records")
    assert (result.profile["kept"], result.profile["without_image"]) == (4, 1)
    streamed = rows_of(source(tmp_path / "set", "::train"), Reading(mapping={"image": "photo"}))
    assert [row.picture for row in streamed] == [picture_bytes(0), None, picture_bytes(2), picture_bytes(3)]


def test_a_column_of_bytes_is_a_picture_where_it_is_named_so(tmp_path, picture_bytes):
    data = [picture_bytes(number) for number in range(4)]
    table = plain_table(tmp_path / "train.parquet", [None] * 4, jpeg=data)
    assert [row.picture for row in rows_of(table, Reading(mapping={"image": "jpeg"}))] == data
    profile = ingest([table], tmp_path / "records", IngestOptions(mapping={"image": "jpeg"})).profile
    assert (profile["kept"], profile["without_image"]) == (4, 0)


def test_tables_of_bytes_and_of_paths_share_a_root(tmp_path, picture_bytes):
    table = plain_table(tmp_path / "a" / "t.parquet", [{"bytes": picture_bytes(n), "path": None} for n in range(4)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.jpg").write_bytes(picture_bytes(5))
    (tmp_path / "b" / "rows.jsonl").write_text(json.dumps({"image": "c.jpg", "label": "cat"}) + "\n", encoding="utf-8")
    result = ingest([table, tmp_path / "b" / "rows.jsonl"], tmp_path / "out" / "records")
    assert len(kept(result)) == 5
    assert all((result.out / result.profile["root"] / record.image).is_file() for record in kept(result))
