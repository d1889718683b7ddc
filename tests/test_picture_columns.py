"""Columns of parquet and Lance with pictures in them: one a row is read, lists are passed over, and names can be moved."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from ingesting import kept
from pyarrow.parquet import write_table

from labeler.artifacts import read_manifest
from labeler.ingestion import IngestOptions, ingest
from labeler.sources import Reading, read_source

STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
NESTED = {
    "list of structs": (pyarrow.list_(STRUCT), lambda data: [{"bytes": data, "path": "a.png"}]),
    "list of bytes": (pyarrow.list_(pyarrow.binary()), lambda data: [data]),
    "struct": (pyarrow.struct([("page", pyarrow.large_binary())]), lambda data: {"page": data}),
}
COUNT = 6


def write(path: Path, **columns: Any) -> Path:
    """Write a parquet table or a Lance dataset of COUNT rows with captions and labels."""
    import lance

    given = {"caption": [f"pet {n}" for n in range(COUNT)], "label": ["cat", "dog"] * (COUNT // 2)}
    table = pyarrow.table(given | columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        write_table(table, path)
    else:
        lance.write_dataset(table, str(path))
    return path


@pytest.fixture
def pictures(picture_bytes) -> list[bytes]:
    return [picture_bytes(number) for number in range(COUNT)]


@pytest.mark.parametrize("name", ["a.parquet", "a.lance"])
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("column", ["pages", "image"])
def test_a_column_with_bytes_deeper_in_it_is_passed_over_and_said(tmp_path, pictures, caplog, name, nested, column):
    kind, deeper = NESTED[nested]
    path = write(tmp_path / name, **{column: pyarrow.array([*map(deeper, pictures)], kind)})
    with caplog.at_level(logging.INFO, "labeler"):
        assert [row.fields for row in read_source(path)][1] == {"caption": "pet 1", "label": "dog"}
    assert f"{path}: passed over: {column}" in caplog.messages
    assert ingest([path], tmp_path / "records").profile["kept"] == COUNT


@pytest.mark.parametrize("name", ["a.parquet", "a.lance"])
@pytest.mark.parametrize("column", ["photo", "image"])
def test_a_struct_of_bytes_and_path_is_a_picture(tmp_path, pictures, name, column):
    (tmp_path / "5.png").write_bytes(pictures[5])
    structs = [
        {"bytes": None if number == 5 else data, "path": f"{number}.png"} for number, data in enumerate(pictures)
    ]
    path = write(tmp_path / name, **{column: pyarrow.array(structs, STRUCT)})
    for how in (Reading(), Reading(mapping={"image": column})):
        rows = list(read_source(path, how))
        assert [row.picture for row in rows] == [*pictures[:5], None]
        assert [next(iter(set(row.fields.values()) & {f"{number}.png"})) for number, row in enumerate(rows)]
    result = ingest([path], tmp_path / "records", IngestOptions(mapping={"image": column}))
    assert result.profile["without_image"] == 0
    assert len({item.meta["image_sha256"] for item in kept(result)}) == COUNT


@pytest.mark.parametrize("column", ["image", "photo"])
def test_records_whose_pictures_all_came_as_bytes_are_the_same_anywhere_and_can_be_moved(tmp_path, pictures, column):
    structs = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(pictures)]
    values = pictures if column == "image" else pyarrow.array(structs, STRUCT)
    table = write(tmp_path / "in" / "a.parquet", **{column: values})
    outs = [tmp_path / "records", tmp_path / "in" / "records", tmp_path / "far" / "away" / "records"]
    assert len({read_manifest(ingest([table], out).out)["content_sha256"] for out in outs}) == 1
    shutil.move(outs[0], tmp_path / "far" / "moved")
    result = ingest([table], outs[1])
    for folder in (tmp_path / "far" / "moved", outs[1]):
        assert all((folder / result.profile["root"] / item.image).is_file() for item in kept(result))
