"""Tables with stray bytes and quotes: what is damaged is a reject for each line, what lies around it stays as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from labeler.errors import BadInputError
from labeler.ingestion import ingest
from labeler.records import Reject, Row
from labeler.sources.csv import read

ROWS = [(1, "müde", "so müde"), (2, "fröhlich", "hurra"), (3, "müde", "spät")]


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def told(path: Path) -> tuple[list[dict[str, str]], list[tuple[int, str]]]:
    """Return the rows' fields, and line and code of the rejects."""
    items = list(read(path))
    rejects = [(item.line, item.code) for item in items if isinstance(item, Reject)]
    return [item.fields for item in items if isinstance(item, Row)], rejects


@pytest.mark.parametrize("stray", [b"don\x92t", "😀".encode()[:2], "图".encode()[:1]])
def test_a_stray_byte_costs_its_own_row_and_no_others_letters(tmp_path, stray):
    good = [",".join(map(str, row)).encode() for row in ROWS]
    rows, rejects = told(write(tmp_path / "a.csv", b"id,label,text", *good, b"4,froh," + stray, b"5,froh,plain"))
    assert [(int(row["id"]), row["label"], row["text"]) for row in rows] == [*ROWS, (5, "froh", "plain")]
    assert rejects == [(5, "not-utf8")]


def test_a_file_that_ends_inside_a_character_loses_its_last_row_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,text\n1,spät\n2,früh\n3,öd".encode() + "ö".encode()[:1])
    assert told(path) == ([{"id": "1", "text": "spät"}, {"id": "2", "text": "früh"}], [(4, "not-utf8")])


def test_a_cell_of_any_length_is_one_cell(tmp_path):
    mail = "a line of a long mail, to someone\n" * 6000
    path = tmp_path / "a.csv"
    path.write_text(f'id,text\n1,"{mail}"\n2,short\n', encoding="utf-8")
    assert told(path) == ([{"id": "1", "text": mail}, {"id": "2", "text": "short"}], [])


def test_what_lies_behind_a_quote_that_is_never_closed_is_not_held_without_end(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2,"' + "and so on\n" * 100, encoding="utf-8")
    with pytest.raises(BadInputError, match="after row 2: a quote is opened and never closed"):
        told(path)
    limit = csv.field_size_limit(500)
    monkeypatch.setattr("labeler.sources.csv.MAX_CELL", 500)
    try:
        with pytest.raises(
            BadInputError, match=r"after row 2: a cell of over 500 characters; is a quote never closed\?"
        ):
            told(path)
    finally:
        csv.field_size_limit(limit)


def test_lines_that_a_stray_quote_makes_one_row_of_are_rejects_each(tmp_path):
    lines = [b'1\t"To be or not to be\tpos', b"2\tplain\tneg", b"3\tplain\tneg", b'4\ta TV of 55"\tneg', b"5\tb\tpos"]
    rows, rejects = told(write(tmp_path / "a.tsv", b"id\ttext\tlabel", *lines))
    assert rows == [{"id": "5", "text": "b", "label": "pos"}]
    assert rejects == [(line, "not-csv") for line in (2, 3, 4, 5)]


def test_lines_before_a_quote_that_ends_amid_a_cell_are_rejects_each(tmp_path):
    lines = [b"1,a", b'2,"b', b"3,c", b'4,ok "quoted" d', b"5,e"]
    rows, rejects = told(write(tmp_path / "a.csv", b"id,text", *lines))
    assert [row["id"] for row in rows] == ["1", "5"]
    assert rejects == [(3, "not-csv"), (4, "not-csv"), (5, "not-csv")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_text_of_several_lines_in_quotes_is_one_row(tmp_path, name):
    sign = "\t" if name.endswith("tsv") else ","
    path = tmp_path / name
    path.write_text(f'id{sign}text\n1{sign}"Dear Ann,\nhow are you, dear?"\n2{sign}b\n', encoding="utf-8")
    assert told(path) == ([{"id": "1", "text": "Dear Ann,\nhow are you, dear?"}, {"id": "2", "text": "b"}], [])


@pytest.mark.parametrize("quoted", ['"hello, world"', ' "hello, world"', '   "hello, world"'])
def test_blanks_around_names_and_before_quotes_are_no_part_of_them(tmp_path, quoted):
    path = tmp_path / "a.csv"
    path.write_text(f'id, text , My Label \n1,{quoted}, x\n2, "two\nlines", y\n')
    rows, rejects = told(path)
    assert [{key: value.strip() for key, value in row.items()} for row in rows] == [
        {"id": "1", "text": "hello, world", "My Label": "x"}, {"id": "2", "text": "two\nlines", "My Label": "y"},
    ]  # fmt: skip
    assert rejects == []


def test_a_text_that_begins_with_a_blank_and_a_quote_is_read_as_it_stands(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1, "Well" she said\n2, "never closed\n3,plain\n')
    assert [row["text"] for row in told(path)[0]] == [' "Well" she said', ' "never closed', "plain"]


@pytest.mark.parametrize("first", ["sep=|", '"sep=|"', "\nSEP=|"])
def test_the_separator_may_be_said_in_a_line_of_its_own(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\r\nid|text; and, more\r\n1|a,b;c\r\n2\r\n", newline="")
    assert told(path) == ([{"id": "1", "text; and, more": "a,b;c"}], [(3, "cell-count")])


@pytest.mark.parametrize("sign", [";", "|", "\t", ","])
def test_of_several_signs_in_the_header_the_one_that_fits_the_rows_stands_between_cells(tmp_path, sign):
    names = [name for name in ("text, as written", "mood; the first", "joy|anger") if sign not in name]
    lines = [sign.join(["id", *names]), *(sign.join([str(row), *(["no sign"] * len(names))]) for row in range(3))]
    (tmp_path / "a.csv").write_text("\n".join([*lines, f"7{sign}alone"]) + "\n")
    rows, rejects = told(tmp_path / "a.csv")
    assert rows[0] == {"id": "0", **dict.fromkeys(names, "no sign")}
    assert len(rows) == 3
    assert [code for _, code in rejects] == ["cell-count"]


def test_a_header_alone_is_read_as_usual(tmp_path):
    (tmp_path / "a.csv").write_text("id,text;label\n")
    assert told(tmp_path / "a.csv") == ([], [])


def test_names_with_blanks_are_shown_so_that_these_can_be_seen(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"words": "a", " Mood ": "b"}\n')
    with pytest.raises(BadInputError, match=r"Fields: words, ' Mood '; --label FIELD"):
        ingest([path], tmp_path / "out")
