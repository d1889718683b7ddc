"""Sources: jsonl, Python literals, csv, tsv, folders; what cannot be read is a reject with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.records import Reject, Row
from labeler.sources import FORMATS, find_format, image_root, read_source
from labeler.sources.jsonl import LITERAL, MAX_LINE_BYTES, LineError, parse_line

ROWS = [
    {"id": str(number), "text": text, "label": "joy"} for number, text in enumerate(["a", "é 🎉", "表情", 'q"uote'])
]
CLEAN = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path) -> tuple[list[dict], list[Reject]]:
    """Return the fields of the rows and the rejects."""
    items = list(read_source(path))
    return [item.fields for item in items if isinstance(item, Row)], [
        item for item in items if isinstance(item, Reject)
    ]


def read_line(line: bytes | str) -> str:
    """Return the code with which one line is refused."""
    with pytest.raises(LineError, match=r"\w") as caught:
        parse_line(line.encode() if isinstance(line, str) else line)
    return caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        CLEAN,
        b"\xef\xbb\xbf" + CLEAN,
        CLEAN.replace(b"\n", b"\r\n"),
        CLEAN.replace(b"\n", b"\n\n  \n"),
        b"\xef\xbb\xbf\r\n" + CLEAN.replace(b"\n", b"\r\n\t\r\n"),
        CLEAN.rstrip(b"\n"),
    ],
    ids=["clean", "BOM", "CRLF", "blank lines", "all", "no last newline"],
)
def test_marks_and_blank_lines_change_nothing(tmp_path, data):
    assert read(write(tmp_path, "a.jsonl", data)) == (ROWS, [])


def test_lines_count_from_one_blank_ones_too(tmp_path):
    items = list(read_source(write(tmp_path, "a.jsonl", b"\n" + CLEAN.replace(b"\n", b"\n\n"))))
    assert [item.line for item in items] == [2, 4, 6, 8]
    assert {item.source for item in items} == {str(tmp_path / "a.jsonl")}


def test_a_last_line_cut_off_is_rejected_and_the_rest_kept(tmp_path):
    for length in range(1, len(CLEAN.splitlines()[-1])):
        head = CLEAN[: CLEAN[:-1].rindex(b"\n") + 1]
        rows, rejects = read(write(tmp_path, "a.jsonl", CLEAN[: len(head) + length]))
        assert rows == ROWS[:3]
        assert [(reject.line, reject.code) for reject in rejects] == [(4, "not-json")]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"a": NaN}', "not-json"),
        ('{"a": [-Infinity]}', "not-json"),
        ('{"a": 1, "a": 1}', "duplicate-key"),
        ('{"b": {"a": 1, "a": 2}}', "duplicate-key"),
        ("{'a': 1, 'a': 2}", "duplicate-key"),
        ("{'b': {'a': 1, 'a': 2}}", "duplicate-key"),
        ("[1, 2]", "not-an-object"),
        ("['a']", "not-an-object"),
        ('"text"', "not-an-object"),
        ("3", "not-an-object"),
        ("null", "not-an-object"),
        ("{} {}", "not-json"),
        ('{"a": ' + "1" * 5000 + "}", "not-json"),
        ("[" * 100_000, "not-json"),
        ('{"a":' * 100_000, "not-json"),
        ("{'a': " + "-" * 100_000 + "1}", "not-json"),
        ("{'a': nan}", "not-json"),
        ("{0x" + "f" * 4000 + ": 1}", "not-json"),
        ("{1: 'a', '1': 'b'}", "duplicate-key"),
        ('{"a": "\0"}', "not-json"),
        (b'{"a": "\xff"}', "not-utf8"),
        ('{"a": "é"}'.encode("utf-16"), "not-utf8"),
        ('{"a": "é"}'.encode("latin-1"), "not-utf8"),
        (b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}', "line-too-long"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_row_is_rejected_with_a_code(line, code):
    assert read_line(line) == code


def test_an_escape_that_python_does_not_know_is_no_warning(recwarn):
    assert parse_line(rb"{'text': '\d \#'}") == ({"text": r"\d \#"}, True)
    assert not recwarn.list


def test_one_bad_line_costs_one_line(tmp_path):
    lines = CLEAN.splitlines()
    rows, rejects = read(
        write(tmp_path, "a.jsonl", b"\n".join([lines[0], b"[]", lines[1], b"\xff", b"{", lines[2], lines[3]]))
    )
    assert rows == ROWS
    assert [(reject.line, reject.code) for reject in rejects] == [
        (2, "not-an-object"),
        (4, "not-utf8"),
        (5, "not-json"),
    ]


def test_a_python_literal_is_read_and_marked(tmp_path):
    rows, rejects = read(write(tmp_path, "a.jsonl", "".join(f"{row}\n" for row in ROWS).encode() + CLEAN))
    assert rows == ROWS + ROWS
    assert rejects == []
    assert [row.notes for row in read_source(tmp_path / "a.jsonl")] == [(LITERAL,)] * len(ROWS) + [()] * len(ROWS)
    assert parse_line(b"{'a': None, 'b': True, 'c': (1, 2), 3: 'x'}") == (
        {"a": None, "b": True, "c": (1, 2), "3": "x"}, True
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "__import__('os').system('touch RAN')",
        "{'a': __import__('os').system('touch RAN')}",
        "{'a': open('RAN', 'w')}",
        "{open('RAN', 'w'): 1}",
        "{**dict(a=open('RAN', 'w'))}",
        "{'a': [open('RAN', 'w') for _ in (1,)]}",
        "{'a': (lambda: open('RAN', 'w'))()}",
        "{'a': f\"{open('RAN', 'w')}\"}",
        "{'a': 1 if open('RAN', 'w') else 2}",
    ],
)
def test_code_in_a_line_is_rejected_and_never_run(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    rows, rejects = read(write(tmp_path, "a.jsonl", line + "\n"))
    assert rows == []
    assert [(reject.line, reject.code) for reject in rejects] == [(1, "not-json")]
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.TSV", "\t")])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_tables_are_read_as_strings(tmp_path, name, separator, mark, end):
    lines = ["id;text;label", "007;NA;joy", '2;"a; ""b""";1.0', "", "3;;nan", "4;null;=cmd"]
    data = mark + end.join(line.replace(";", separator).encode() for line in lines)
    rows, rejects = read(write(tmp_path, name, data))
    assert [list(row.values()) for row in rows] == [
        ["007", "NA", "joy"], ["2", f'a{separator} "b"', "1.0"], ["3", "", "nan"], ["4", "null", "=cmd"],
    ]  # fmt: skip
    assert set(map(tuple, rows)) == {("id", "text", "label")}
    assert rejects == []


def test_a_cell_may_hold_line_breaks(tmp_path):
    rows, _ = read(write(tmp_path, "a.csv", 'id,text\n1,"two\nlines"\n2,b\n'))
    assert rows == [{"id": "1", "text": "two\nlines"}, {"id": "2", "text": "b"}]


def test_a_row_with_other_cells_than_the_header_is_rejected(tmp_path):
    rows, rejects = read(write(tmp_path, "a.csv", 'id,text,label\n1,a,b,c\n2,b,c\n3,"a"b,c\n4,b,c\n5,cut o'))
    assert [row["id"] for row in rows] == ["2", "4"]
    assert [(reject.line, reject.code) for reject in rejects] == [(2, "cell-count"), (4, "not-csv"), (6, "cell-count")]
    assert rejects[0].message.startswith("4 cells, the header has 3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header line; give every column a name"),
        (b"id,text,text\n1,a,b\n", "the column 'text' stands twice in the header"),
        (b'id,text\n1,a\n2,"b\n3,c\n', "after row 2: a quote is opened and never closed"),
        (b'id,"text\n1,a\n', "no header that can be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_whole(tmp_path, data, message):
    with pytest.raises(BadInputError, match=message):
        read(write(tmp_path, "a.csv", data))


def test_a_table_of_a_header_alone_has_no_rows(tmp_path):
    assert read(write(tmp_path, "a.csv", "id,text\n")) == ([], [])


def test_an_unknown_format_or_missing_file_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"unknown format '\.xlsx'; expected \.jsonl, "):
        read_source(write(tmp_path, "a.xlsx", b"PK"))
    with pytest.raises(BadInputError, match="no such file or folder"):
        read_source(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(BadInputError, match="neither a file nor a folder"):
        read_source(tmp_path / "pipe.jsonl")


def test_a_folder_gives_pictures_with_their_sidecars(tmp_path):
    for name in ("b.jpg", "a.png", "sub/deep/c.gif", ".hidden.png", ".git/d.png"):
        write(tmp_path, name, b"x")
    write(tmp_path, "a.txt", "\ufeff a text \r\n")
    write(tmp_path, "sub/deep/c.txt", "nested")
    write(tmp_path, "sub/alone.txt", "no picture")
    rows, rejects = read(tmp_path)
    assert rows == [
        {"id": "a.png", "image": "a.png", "text": "a text"},
        {"id": "b.jpg", "image": "b.jpg", "text": None},
        {"id": "sub/alone.txt", "image": None, "text": "no picture"},
        {"id": "sub/deep/c.gif", "image": "sub/deep/c.gif", "text": "nested"},
    ]
    assert rejects == []


def test_files_that_lie_about_in_a_folder_are_passed_over_and_said(tmp_path, caplog):
    strays = ["Thumbs.db", "a.docx", "desktop.ini", "sub/README.md", "sub/a.AAE", "sub/b.xmp", "sub/c.zip"]
    kept = ["b.heic", "holiday.2024", "plain", "sub/d.JPG"]
    for name in (*strays, *kept, "sub/e.csv", ".DS_Store", "sub/._d.JPG"):
        write(tmp_path, name, b"x")
    write(tmp_path, "sub/README.txt", "of no picture")
    with caplog.at_level("INFO", "labeler"):
        rows, rejects = read(tmp_path)
    assert sorted(row["id"] for row in rows) == sorted([*kept, "sub/README.txt"])
    assert [(reject.id, reject.code) for reject in rejects] == [("sub/e.csv", "image-unreadable")]
    said = "7 files that are no pictures or texts passed over: Thumbs.db, a.docx, desktop.ini, sub/README.md, sub/a.AAE, ..."
    assert caplog.messages == [f"{tmp_path}: {said}"]


def test_a_sidecar_is_found_in_capitals_and_behind_the_whole_name(tmp_path):
    names = ("1.jpg", "2.JPG", "3.jpg", "4.PNG", "5.jpg", "5.png", "a.jpg", "A.jpg")
    for name in names:
        write(tmp_path, name, b"x")
    texts = ["1.TXT", "2.JPG.txt", "3.JPG.TXT", "4.txt", "4.TXT", "5.jpg.txt", "5.txt", "A.Txt", "alone.TXT"]
    for name in texts:
        write(tmp_path, name, name)
    rows, rejects = read(tmp_path)
    assert {row["id"]: row["text"] for row in rows} == {
        "1.jpg": "1.TXT", "2.JPG": "2.JPG.txt", "3.jpg": "3.JPG.TXT", "4.PNG": "4.txt", "4.TXT": "4.TXT", "5.jpg": "5.txt",
        "5.png": "5.txt", "5.jpg.txt": "5.jpg.txt", "a.jpg": None, "A.jpg": "A.Txt", "alone.TXT": "alone.TXT",
    }  # fmt: skip
    assert rejects == []
    assert read(tmp_path / "2.JPG")[0][0]["text"] == "2.JPG.txt"
    write(tmp_path, "metadata.jsonl", '{"file_name": "1.jpg"}\n{"file_name": "2.JPG"}\n')
    assert [row["text"] for row in read(tmp_path)[0][:2]] == ["1.TXT", "2.JPG.txt"]


def test_a_sidecar_that_is_no_text_rejects_its_pair_alone(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path, name, b"x")
    write(tmp_path, "a.txt", bytes(range(256)))
    rows, rejects = read(tmp_path)
    assert [row["id"] for row in rows] == ["b.png"]
    assert [(reject.id, reject.code) for reject in rejects] == [("a.png", "text-unreadable")]


def test_metadata_names_pictures_and_they_come_once(tmp_path):
    for name in ("a.png", "b.png", "metadata.txt", "notes.txt"):
        write(tmp_path, name, b"x")
    write(tmp_path, "metadata.jsonl", '{"file_name": "b.png", "label": "joy", "likes": 3}\n{"oops\n')
    rows, rejects = read(tmp_path)
    assert rows[0] == {"file_name": "b.png", "label": "joy", "likes": 3}
    assert [row["id"] for row in rows[1:]] == ["a.png", "metadata.txt", "notes.txt"], "nothing is passed over"
    assert [(Path(reject.source).name, reject.line) for reject in rejects] == [("metadata.jsonl", 2)]


@pytest.mark.parametrize("key", ["file_name", "image", "img", "path", "image_path"])
def test_nested_metadata_names_files_beside_it(tmp_path, key):
    for folder in ("x", "x/y"):
        write(tmp_path, f"{folder}/a.png", b"x")
        write(tmp_path, f"{folder}/metadata.jsonl", json.dumps({key: "a.png", "label": "joy"}) + "\n")
    items = list(read_source(tmp_path))
    assert [item.fields[key] for item in items] == ["x/a.png", "x/y/a.png"]
    for item in items:
        assert (image_root(Path(item.source)) / item.fields[key]).is_file()


def test_one_picture_is_a_source(tmp_path):
    picture = write(tmp_path, "a.JPG", b"x")
    write(tmp_path, "a.txt", "its text")
    assert read(picture) == ([{"id": "a.JPG", "image": "a.JPG", "text": "its text"}], [])
    assert image_root(picture) == tmp_path


def test_parquet_gives_lists_numbers_and_missing_values_as_python_has_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "pairs.parquet"
    table = {"id": [1, 2], "text": ["a bird", None], "score": [0.5, float("nan")], "labels": [["x", "y"], []]}
    pandas.DataFrame(table).to_parquet(path)
    rows = list(read_source(path))
    assert [row.line for row in rows] == [1, 2]
    assert rows[0].fields == {"id": 1, "text": "a bird", "score": 0.5, "labels": ["x", "y"]}
    assert rows[1].fields == {"id": 2, "text": None, "score": None, "labels": []}


def test_a_parquet_column_is_of_one_kind_in_all_of_a_long_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "pairs.parquet"
    ids = pandas.array([None if number == 9000 else number for number in range(10_000)], dtype="Int64")
    pandas.DataFrame({"id": ids, "text": ["x"] * 10_000}).to_parquet(path)
    found = list(read_source(path))
    assert [item.line for item in found] == list(range(1, 10_001))
    assert [item.fields["id"] for item in found] == [None if number == 9000 else number for number in range(10_000)]
    assert all(type(item.fields["id"]) is int for item in found[:9000])


def test_a_file_that_is_no_parquet_table_is_refused(tmp_path):
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"id,text\n1,a\n")
    with pytest.raises(BadInputError, match="not a parquet table"):
        list(read_source(path))


def test_metadata_names_files_of_sub_folders_and_they_come_once(tmp_path):
    for name in ("sub/a.png", "sub/b.png"):
        write(tmp_path, name, b"x")
    write(tmp_path, "metadata.jsonl", '{"file_name": "sub/a.png", "label": "joy"}\n')
    rows, rejects = read(tmp_path)
    assert [row.get("image", row.get("file_name")) for row in rows] == ["sub/a.png", "sub/b.png"]
    assert rejects == []


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.json", '[{"id": 1, "data": {"text": "x"}, "annotations": [{"result": []}]}]', "label-studio"),
        ("a.json", '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}', "coco"),
        ("a.json", '{"id": 1, "text": "x", "label": "joy"}\n', "jsonl"),
        ("a.jsonl", '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}', "jsonl"),
        ("a.JSON", "", "jsonl"),
        ("a.json", '\ufeff [\n {"id": 1}]', "json"),
        ("a.json", '[{"id": 1, "data": "image"}]', "json"),
        ("a.json", '{\n "id": 1\n}', "json"),
        ("a.json", '{"id": 1, "te\n{"id": 2}\n', "jsonl"),
        ("a.json", '["id"]\n', "jsonl"),
        ("a.tsv", "id\n", "csv"),
        ("a.jpeg", "x", "picture"),
        ("dev_sent_emo.csv", "x", "meld"),
    ],
)
def test_the_format_is_told_by_name_and_content(tmp_path, name, data, found):
    path = write(tmp_path, name, data)
    assert find_format(path) == found
    assert find_format(tmp_path) == ("meld" if found == "meld" else "folder")
    assert find_format(path, "csv") == "csv"
    for wanted, place in (("coco", tmp_path), ("class-folders", path)):
        with pytest.raises(BadInputError, match=f"--format {wanted} takes a (file|folder)"):
            find_format(place, wanted)


def test_every_format_can_be_asked_for():
    from labeler.cli.ingest import FORMATS as OFFERED

    assert set(OFFERED) == {"auto", *FORMATS} - {"picture"}


def test_each_format_goes_through_ingest(tmp_path):
    for name in ("joy/a.png", "joy/b.png", "anger/c.png", "anger/d.png"):
        path = tmp_path / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 50 + len(name)).save(path)
    tasks = [{"id": number, "data": {"image": f"/data/local-files/?d={name}", "text": f"t {number}"},
              "annotations": [{"result": [{"from_name": "mood", "to_name": "image", "type": "choices",
                                           "value": {"choices": [name.split("/")[0]]}}]}]}
             for number, name in enumerate(("joy/a.png", "joy/b.png", "anger/c.png", "anger/d.png"))]  # fmt: skip
    write(tmp_path / "classes", "export.json", json.dumps(tasks))
    studio = ingest([tmp_path / "classes" / "export.json"], tmp_path / "studio")
    assert (studio.profile["kept"], studio.profile["task"], studio.profile["without_image"]) == (4, "single", 0)
    (tmp_path / "classes" / "export.json").unlink()
    classes = ingest([tmp_path / "classes"], tmp_path / "out", IngestOptions(format="class-folders"))
    assert classes.profile["kept"] == 4
    labels = [sum(part.get(name, 0) for part in classes.profile["labels"].values()) for name in ("joy", "anger")]
    assert labels == [2, 2]
