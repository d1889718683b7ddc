"""Labelling from and to S3: the lines of the same files on this machine, against moto's server; what can go wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

from labeler import items
from labeler.errors import BadInputError, InterruptedRun, LabelerError, UsageError
from labeler.items import ItemReading, read_items
from labeler.labeller import Labeller
from labeler.output import cache_folder
from labeler.predicting import predict
from labeler.records import Reject, Row
from labeler.remote import fetch, in_threads
from labeler.remote_rows import read
from labeler.shards import Counts
from labeler.sources import Reading, read_source


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained("resnet-gru")


@pytest.fixture
def folder(store, tmp_path, s3) -> Path:
    """Return a folder of six pictures, one of them broken, texts and a table; `pets/folder` on S3 is the same."""
    drawn = sorted((store.parent / "source" / "pictures").glob("*.png"))
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    for picture, name in zip(drawn, ("b.png", "a b#1%20.png", "é.png", "more/c.png", "more/d.png"), strict=False):
        shutil.copy(picture, folder / name)
    (folder / "broken.png").write_bytes(drawn[0].read_bytes()[:150])
    (folder / "b.txt").write_text("one red circle", encoding="utf-8")
    (folder / "words.txt").write_text("un café", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    rows = [{"file_name": "c.png", "text": "a cross"}, {"id": "gone", "file_name": "no.png"},
            {"id": "out", "file_name": "../../x.png"}, {"text": "a text alone"}, {"id": 7}]  # fmt: skip
    (folder / "more" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    upload(s3, folder, "pets/folder")
    return folder


def upload(s3: S3FileSystem, source: Path, target: str) -> None:
    copy_files(str(source), target, source_filesystem=LocalFileSystem(), destination_filesystem=s3)


def lines_at(s3: S3FileSystem, place: str) -> list[dict]:
    with s3.open_input_file(place) as file:
        return [json.loads(line) for line in file.read().splitlines()]


def as_remote(path: Path, folder: Path, url: str) -> list[dict]:
    """Return the lines of a file, as they are when the `folder` lies at `url`: pictures have a URL, and so have errors."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["image"] = line["image"] and os.path.normpath(f"{url[5:]}/{line['image']}").join(("s3://", ""))
        line["error"] = line["error"] and line["error"].replace(str(folder), url)
    return lines


def test_a_folder_on_s3_gives_the_lines_of_the_same_folder_here(s3, folder, run, tmp_path, labeler):
    here = tmp_path / "here.jsonl"
    assert predict([folder], run, here, device="cpu") == Counts(12, 5)
    answer = labeler(
        "predict", "s3://pets/folder/", "--model", run, "--out", "s3://pets/out/labels.jsonl", "--device", "cpu"
    )
    assert answer.code == 4
    assert answer.said.endswith("s3://pets/out/labels.jsonl: 12 items, 5 with an error")
    expected = as_remote(here, folder, "s3://pets/folder")
    outside = next(line for line in expected if line["id"] == "out")
    outside["error"] = "s3://pets/x.png lies outside its input's folder; --allow-outside reads it all the same"
    assert lines_at(s3, "pets/out/labels.jsonl") == expected
    assert [line["text"] for line in expected if line["id"] in ("b.png", "words.txt")] == ["one red circle", "un café"]
    assert not list((tmp_path / "cache" / "labeler").iterdir())


def test_tables_and_pictures_from_s3_to_here_and_from_here_to_s3(s3, folder, run, tmp_path):
    rows = [{"image": "b.png", "text": "red"}, {"image": "more/d.png", "id": "d"}, {"text": "words"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "pairs.csv").write_text("uid,img\n1,more/c.png\n2,s3://pets/folder/b.png\n", encoding="utf-8")
    upload(s3, folder, "pets/folder")
    names = ["pairs.jsonl", "b.png", "more/c.png"]
    assert predict([folder / name for name in names], run, tmp_path / "here.csv", device="cpu") == Counts(5, 0)
    url = "s3://pets/folder"
    assert predict([f"{url}/{name}" for name in names], run, tmp_path / "there.csv", device="cpu") == Counts(5, 0)
    cells = [[line.split(",") for line in path.read_text().splitlines()]
             for path in (tmp_path / "here.csv", tmp_path / "there.csv")]  # fmt: skip
    here, there = ([row[:1] + row[2:6] + row[7:] for row in table] for table in cells)  # but for pictures and sources
    assert there == here
    assert [row[6] for row in cells[1]] == ["source", *[f"{url}/pairs.jsonl"] * 3, url, f"{url}/more"]
    assert [row[1] for row in cells[1][1:]] == [
        f"{url}/b.png", f"{url}/more/d.png", "", f"{url}/b.png", f"{url}/more/c.png"
    ]  # fmt: skip
    assert predict([folder / "pairs.jsonl"], run, "s3://pets/labels.csv", device="cpu") == Counts(3, 0)
    with s3.open_input_file("pets/labels.csv") as file:
        found = [line.split(",") for line in file.read().decode().splitlines()]
    assert found == [row[:6] + row[7:] for row in cells[0][:4]]
    assert predict([f"{url}/pairs.csv"], run, tmp_path / "urls.jsonl", device="cpu") == Counts(2, 0)


def test_a_table_on_s3_that_was_written_on_windows(s3, folder, tmp_path):
    (folder / "windows.csv").write_text("img\nmore\\c.png\n..\\folder\\b.png\n..\\..\\b.png\n", encoding="utf-8")
    upload(s3, folder, "pets/folder")
    found = list(read("s3://pets/folder/windows.csv", {}, False))
    assert [row.fields["img"] for row in found] == ["more\\c.png", "..\\folder\\b.png", "..\\..\\b.png"]
    places = [(row.picture.url, row.picture.outside) for row in found]
    assert places == [
        ("s3://pets/folder/more/c.png", False), ("s3://pets/folder/b.png", False), ("s3://b.png", True)
    ]  # fmt: skip


def test_keys_with_an_empty_part_are_told_once_and_cost_no_other_row(s3, server):
    import boto3

    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    keys = ["/lead.png", "d/a.txt", "d//doubled.png", "d/more//far/x.png", "top.txt"]
    for key in keys:
        client.put_object(Bucket="pets", Key=key, Body=b"a text")
    try:
        found = list(islice(read("s3://pets", {}, False), 10))
        assert [row.fields["id"] for row in found if isinstance(row, Row)] == ["top.txt", "d/a.txt"]
        said = [(row.source, row.id, row.message) for row in found if isinstance(row, Reject)]
        assert said == [
            (
                "s3://pets",
                place,
                f"{place}: keys with an empty part cannot be reached; copy what lies there to other keys",
            )
            for place in ("/", "d//", "d/more//")
        ]
        assert [row.id for row in islice(read("s3://pets/d", {}, False), 10) if isinstance(row, Reject)] == [
            "/",
            "more//",
        ]
    finally:  # Arrow, which empties the bucket, does not reach them
        client.delete_objects(Bucket="pets", Delete={"Objects": [{"Key": key} for key in keys]})


def test_texts_and_tables_on_s3_are_read_in_the_encoding_that_is_named(s3, run, tmp_path):
    (tmp_path / "a.txt").write_bytes("łąka".encode("cp1250"))
    (tmp_path / "t.csv").write_bytes("id,text\n1,łąka\n".encode("cp1250"))
    upload(s3, tmp_path / "a.txt", "pets/texts/a.txt")
    upload(s3, tmp_path / "t.csv", "pets/t.csv")
    for url in ("s3://pets/texts", "s3://pets/t.csv"):
        [row] = read(url, {}, False, "cp1250")
        assert row.fields["text"] == "łąka"
    with pytest.raises(UsageError, match="--image-folder is for tables of this machine"):
        predict(["s3://pets/t.csv"], run, tmp_path / "out.jsonl", image_folder=tmp_path, device="cpu")


def test_only_new_and_changed_objects_are_labelled_on_whichever_machine(s3, folder, run, tmp_path, monkeypatch):
    out = "s3://pets/labels.jsonl"
    assert predict(["s3://pets/folder"], run, out, device="cpu") == Counts(12, 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    shutil.copy(folder / "more" / "d.png", folder / "b.png")  # of another size
    shutil.copy(folder / "more" / "d.png", folder / "more" / "new.png")
    shutil.copy(folder / "more" / "d.png", folder / "broken.png")
    upload(s3, folder / "b.png", "pets/folder/b.png")
    upload(s3, folder / "broken.png", "pets/folder/broken.png")
    upload(s3, folder / "more" / "new.png", "pets/folder/more/new.png")
    s3.delete_file("pets/folder/more/d.png")
    fetched = []
    monkeypatch.setattr(items, "fetch", lambda picture: fetched.append(picture.url) or fetch(picture))
    done = predict(["s3://pets/folder"], run, out, device="cpu")
    assert done == Counts(12, 4, kept=5, dropped=1)
    names = ["b.png", "broken.png", "more/new.png", "more/no.png"]  # what had an error is tried again
    assert sorted(fetched) == [f"s3://pets/folder/{name}" for name in names]


def test_what_has_not_changed_is_not_uploaded(s3, folder, run, monkeypatch):
    out = "s3://pets/labels.jsonl"
    predict(["s3://pets/folder/b.png"], run, out, device="cpu")
    monkeypatch.setattr("labeler.output.upload", lambda *_: pytest.fail("uploaded"))
    assert predict(["s3://pets/folder/b.png"], run, out, device="cpu") == Counts(1, 0, kept=1)


def test_an_interrupted_run_goes_on(s3, folder, run, monkeypatch):
    def interrupted(self, window):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(window)
        return logits(self, window)

    written, logits = [], Labeller.logits
    monkeypatch.setattr("labeler.predicting.WINDOW", 2)
    predict(["s3://pets/folder"], run, "s3://pets/whole.jsonl", device="cpu")
    monkeypatch.setattr(Labeller, "logits", interrupted)
    with pytest.raises(InterruptedRun, match=r"s3://pets/out.jsonl: interrupted; the same command goes on from there"):
        predict(["s3://pets/folder"], run, "s3://pets/out.jsonl", device="cpu")
    assert not s3.get_file_info("pets/out.jsonl").is_file
    monkeypatch.setattr(Labeller, "logits", lambda self, window: written.append(window) or logits(self, window))
    assert predict(["s3://pets/folder"], run, "s3://pets/out.jsonl", device="cpu") == Counts(12, 5)
    assert sum(map(len, written)) == 7
    assert lines_at(s3, "pets/out.jsonl") == lines_at(s3, "pets/whole.jsonl")


def test_fault_18_killed_at_20_moments_the_object_is_what_an_uninterrupted_run_writes(s3, tmp_path):
    rows = [{"id": number, "text": "x" * (number % 13 + 1)} for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    script = Path(__file__).with_name("killing_labelling.py")
    done = subprocess.run([sys.executable, script, tmp_path / "rows.jsonl", "s3://pets/out.jsonl", "20"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(lines_at(s3, "pets/out.jsonl")) == 200
    assert len(set(done.stdout.split())) > 2, "kills came at different moments"
    assert not cache_folder("s3://pets/out.jsonl").exists(), "what has been uploaded is not kept"


def test_what_could_not_be_uploaded_is_uploaded_by_the_next_run(s3, folder, run, monkeypatch):
    def no_bucket(self, window):
        s3.delete_dir("gone")
        return logits(self, window)

    logits, out = Labeller.logits, "s3://gone/out.jsonl"
    s3.create_dir("gone")
    monkeypatch.setattr(Labeller, "logits", no_bucket)
    with pytest.raises(LabelerError, match=r"s3://gone/out.jsonl: cannot be written \(.*NO_SUCH_BUCKET.*; .*/out.jsonl is the "
                                           r"whole output, and the same command uploads it"):  # fmt: skip
        predict(["s3://pets/folder/b.png"], run, out, device="cpu")
    s3.create_dir("gone")
    monkeypatch.setattr(Labeller, "logits", lambda *_: pytest.fail("labelled again"))
    assert predict(["s3://pets/folder/b.png"], run, out, device="cpu") == Counts(1, 0, kept=1)
    assert len(lines_at(s3, "gone/out.jsonl")) == 1
    assert not cache_folder(out).exists()
    s3.delete_dir("gone")


def test_a_picture_that_vanishes_after_it_was_listed_costs_its_own_line(s3, folder):
    rows = list(read("s3://pets/folder", {}, False))
    s3.delete_file("pets/folder/b.png")
    with closing(read_items(rows, ItemReading({}), 32)) as found:
        errors = {item.record.id: item.error for item in found}
    assert errors["b.png"] == "s3://pets/folder/b.png: no such file"
    assert errors["é.png"] is None


def test_a_folder_s_metadata_that_was_written_on_windows_names_each_picture_once(s3, folder):
    rows = [{"file_name": "more\\d.png", "text": "one"}, {"file_name": " b.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    upload(s3, folder, "pets/windows")
    found, here = ([row.fields for row in rows if isinstance(row, Row)]
                   for rows in (read("s3://pets/windows", {}, False), read_source(folder, Reading())))  # fmt: skip
    assert [(row.get("file_name") or row.get("image"), row.get("text")) for row in found] == [
        (row.get("file_name") or row.get("image"), row.get("text")) for row in here
    ]  # fmt: skip
    assert sum("d.png" in str(row) for row in found) == 1
    s3.delete_dir("pets/windows")


@pytest.mark.parametrize(("inputs", "out", "error", "match"), [
    (["s3://no-bucket/folder"], None, BadInputError, r"s3://no-bucket/folder: there is no bucket 'no-bucket'"),
    (["s3://pets/no"], None, BadInputError, r"s3://pets/no: no such object or folder"),
    (["s3://pets//no"], None, BadInputError, r"s3://pets//no: Empty path component"),
    (["s3://pets/folder/x.bin"], None, BadInputError, r"s3://pets/folder/x.bin: unknown format '.bin'; expected .jsonl"),
    (["s3://pets/folder/x.csv"], None, BadInputError, r"^s3://pets/folder/x.csv: no header line; give every column a name"),
    (["s3://pets/folder"], "s3://no-bucket/a.jsonl", BadInputError, "s3://no-bucket/a.jsonl: there is no bucket 'no-bucket'"),
    (["s3://pets/folder"], "s3://pets/folder", BadInputError, r"s3://pets/folder: a folder; --out takes the file to write"),
    (["s3://pets/folder"], "s3://pets/new/", BadInputError, r"s3://pets/new/: a folder; --out takes the file to write"),
    (["https://pets/folder"], None, UsageError, r"https://pets/folder: expected a path of this machine, or s3://BUCKET/KEY"),
    (["s3://"], None, UsageError, r"s3://: expected a path of this machine, or s3://BUCKET/KEY"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_labelled(s3, folder, run, inputs, out, error, match):
    for name in ("x.bin", "x.csv"):
        (folder / name).write_bytes(b"")
        upload(s3, folder / name, f"pets/folder/{name}")
    with pytest.raises(error, match=match):
        predict(inputs, run, out, device="cpu")


def test_a_server_that_is_not_there(s3, folder, run, monkeypatch):
    rows = list(read("s3://pets/folder", {}, False))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        LabelerError, match=r"s3://pets/folder: no connection \(AWS Error NETWORK_CONNECTION .*goes on from there"
    ):
        predict(["s3://pets/folder"], run, device="cpu")
    with pytest.raises(
        LabelerError, match=r"no connection \(AWS Error NETWORK_CONNECTION .*the same command goes on from"
    ):
        list(read_items(rows, ItemReading({}), 32))  # no item's error: it would be that of all


def test_a_server_that_refuses_the_credentials(s3, folder, run, monkeypatch):
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(
        BadInputError, match=r"s3://pets/folder: AWS Error .*; are AWS_ACCESS_KEY_ID and .* right for it\?"
    ):
        predict(["s3://pets/folder"], run, device="cpu")


def test_a_file_url_is_a_path(folder, run, labeler, tmp_path):
    url = f"file://{folder}/a%20b%231%2520.png"
    answer = labeler("predict", url, "--model", run, "--out", f"file://{tmp_path}/out.jsonl", "--device", "cpu")
    assert answer.code == 0
    assert answer.said.endswith(f"{tmp_path}/out.jsonl: 1 items, 0 with an error")


def test_threads_keep_the_order_and_hold_little():
    drawn = []
    made = in_threads(
        lambda number: -number, (drawn.append(n) or n for n in range(10_000)), lambda number: number % 3 > 0
    )
    assert [next(made) for _ in range(5)] == [0, -1, -2, 3, -4]
    assert len(drawn) < 200
    assert list(made) == [number if number % 3 == 0 else -number for number in range(5, 10_000)]
