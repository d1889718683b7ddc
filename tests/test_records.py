"""Records: what a row may look like on the way in, and what is refused."""

from __future__ import annotations

import json
import warnings

import pytest
from recording import record_from, write_records

from labeler.errors import BadInputError
from labeler.records import ALIASES, Record, Row, label_set, read_label_set, read_records
from labeler.rows.chunks import RowReading, chunk_of
from labeler.rows.lines import in_splits
from labeler.values import MAX_DEPTH, MAX_TEXT_CHARACTERS, SPLIT_ALIASES, RowError, parse_labels


def record(mapping=None, *, labelled=True, separator="|", **fields) -> Record:
    """Return the record of a row with a text, a label and `fields`."""
    row = Row("pairs.jsonl", 7, {"text": "a text", "label": "joy"} | fields)
    return record_from(row, mapping or {}, labelled=labelled, separator=separator)


def code_of(**fields) -> str:
    """Return the code with which the row is refused."""
    with pytest.raises(RowError, match=r"\w") as caught:
        record(**fields)
    return caught.value.code


@pytest.mark.parametrize(("ours", "theirs"), [(ours, name) for ours, names in ALIASES.items() for name in names])
def test_every_alias_is_found(ours, theirs):
    value = "test" if ours == "split" else "value"
    others = {"id": "1", "text": "a text", "label": "joy"}
    others = {key: item for key, item in others.items() if key not in ALIASES[ours]}
    found = record_from(Row("s", 1, others | {theirs: value}), {})
    assert getattr(found, ours) == (("value",) if ours == "labels" else value)
    assert found.meta == {}


def test_the_first_alias_wins_and_the_others_are_kept_as_meta():
    found = record(caption="second", title="third")
    assert found.text == "a text"
    assert found.meta == {"caption": "second", "title": "third"}


def test_a_mapping_goes_before_the_aliases():
    found = record({"text": "Utterance text", "labels": "mood"}, **{"Utterance text": "mine", "mood": "calm"})
    assert (found.text, found.labels) == ("mine", ("calm",))
    assert found.meta == {"text": "a text", "label": "joy"}


def test_a_mapped_label_that_is_missing_is_named():
    with pytest.raises(RowError, match="no label: expected in the field mood"):
        record({"labels": "mood"})
    with pytest.raises(RowError, match="no label: expected in the field label"):
        record(label="")
    with pytest.raises(RowError, match="no label: expected in one of the fields label, labels, tags"):
        record_from(Row("a", 1, {"text": "x"}), {})
    assert record(labelled=False, label=None).labels is None


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("joy", ("joy",)),
        (["joy", "anger"], ("joy", "anger")),
        ("joy|anger", ("joy", "anger")),
        (" joy | | anger ", ("joy", "anger")),
        ('["joy", "anger"]', ("joy", "anger")),
        (["joy", "joy", " joy "], ("joy",)),
        ([], ()),
        ("[]", ()),
        (3, ("3",)),
        (0, ("0",)),
        (True, ("true",)),
        ([False, 1, 0], ("false", "1", "0")),
        ([1, None, "x"], ("1", "x")),
        ("joy,anger", ("joy,anger",)),
        ("=cmd|calc", ("=cmd", "calc")),
    ],
)
def test_labels_come_as_a_string_a_list_or_a_json_list(value, labels):
    assert record(label=value).labels == labels


def test_the_separator_can_be_chosen():
    assert record(separator=";", label="joy;ang|er").labels == ("joy", "ang|er")


@pytest.mark.parametrize(
    "value", ["[joy", "[" * 100_000, {"joy": 1}, {"joy"}, b"joy", [["joy"]], [{"a": 1}], ["\ud800"]]
)
def test_labels_that_are_none_are_refused(value):
    assert code_of(label=value) == "label-invalid"


def test_text_is_nfc_without_outer_blanks():
    assert record(text="  Cafe\u0301 \n").text == "Caf\u00e9"
    assert record(label="e\u0301").labels == ("\u00e9",)
    assert record(id=" e\u0301 ").id == "\u00e9"


@pytest.mark.parametrize(
    "text", ["🎉", "表情 识别", "<script>alert(1)</script>", "a\nb\t\"c'", "\u202eabc", "=cmd()", "👨‍👩‍👧"]
)
def test_any_other_text_stays_as_it_is(text, tmp_path):
    found = record(text=text, id=text)
    assert found.text == found.id == text
    write_records(tmp_path / "records.jsonl", [found])
    assert list(read_records(tmp_path)) == [found]


@pytest.mark.parametrize("field", ["id", "image", "text", "group"])
@pytest.mark.parametrize("value", ["a\0b", "half \ud83d", "\udcff", {"a": 1}, ["a"], True, b"a"])
def test_what_no_file_can_carry_is_refused(field, value):
    assert code_of(**{field: value}) == f"{field}-invalid"


def test_a_text_can_be_long_but_not_endless():
    assert len(record(text="x" * MAX_TEXT_CHARACTERS).text) == MAX_TEXT_CHARACTERS
    with pytest.raises(RowError, match="text has 20,001 characters, at most 20,000 are read"):
        record(text="x" * (MAX_TEXT_CHARACTERS + 1))


@pytest.mark.parametrize("blank", [None, "", "  \n"])
def test_a_row_needs_an_image_or_a_text(blank):
    assert code_of(text=blank) == "empty"
    assert record(text=blank, image="a.png").text is None


def test_an_id_is_given_or_the_image_or_the_place():
    assert record(id=12, image="a.png").id == "12"
    assert record(id=0, image="a.png").id == "0"
    assert record(image="a.png").id == "a.png"
    assert record().id == "pairs.jsonl:7"


@pytest.mark.parametrize(("name", "split"), SPLIT_ALIASES.items())
def test_split_names_are_understood(name, split):
    assert record(split=name).split == split
    assert record(split=f" {name.upper()} ").split == split


def test_an_unknown_split_is_refused():
    assert record(split="").split is None
    with pytest.raises(RowError, match="split 'holdout' is none of train, training, val"):
        record(split="holdout")


def test_unknown_fields_are_kept():
    found = record(likes=3, tags_by={"who": ["me"]}, when=b"x", none=None)
    assert found.meta == {"likes": 3, "tags_by": {"who": ["me"]}, "when": "b'x'", "none": None}


def test_half_a_surrogate_pair_in_an_unknown_field_breaks_no_export(tmp_path):
    found = record(comment="half \ud83d", **{"\udcff": 1})
    assert found.meta == {"comment": "half ?", "?": 1}
    write_records(tmp_path / "records.jsonl", [found])
    assert list(read_records(tmp_path)) == [found]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {(1, 2): 3}])
def test_an_unknown_field_that_json_cannot_carry_is_refused(value):
    assert code_of(comment=value) == "field-invalid"


def nested(depth: int, *, key: str | None = None) -> dict:
    """Return a value with `depth` containers in each other."""
    value: object = 1
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return {"note": value}


@pytest.mark.parametrize("key", [None, "a"])
def test_a_field_nested_too_deeply_to_be_read_again_is_refused(tmp_path, key):
    found = record(**nested(MAX_DEPTH, key=key))
    write_records(tmp_path / "records.jsonl", [found])
    assert list(read_records(tmp_path)) == [found]
    for depth in (MAX_DEPTH + 1, 199, 900):
        with pytest.raises(RowError, match=r"containers in more than 64 others|cannot carry") as caught:
            record(**nested(depth, key=key))
        assert caught.value.code == "field-invalid"


@pytest.mark.parametrize("field", ["id", "image", "text", "label", "split", "group"])
@pytest.mark.parametrize("number", [16**4000, float("inf"), float("nan")], ids=["4,800 digits", "inf", "nan"])
def test_a_number_that_no_file_can_carry_is_refused(field, number):
    assert code_of(**{field: number}) == f"{field}-invalid"
    assert Row("s", 1, {"id": number}).shown_id() in (None, "inf", "nan")


def test_a_split_that_is_no_string_is_refused():
    assert code_of(split=[["train"]]) == "split-invalid"
    assert code_of(split={"train": 1}) == "split-invalid"


def test_a_set_is_carried_in_one_order():
    assert record(note={"c", "a", "b"}).meta == {"note": ["a", "b", "c"]}


def test_a_long_run_of_marks_is_refused_before_it_is_composed():
    assert code_of(text="a" + "\u0315\u0300" * 200_000) == "text-too-long"  # composing it would take an hour


def test_a_record_takes_no_other_fields_and_cannot_be_changed():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Record(id="1", texts="typo")
    with pytest.raises(ValueError, match="Instance is frozen"):
        record().id = "2"


def test_records_are_written_in_one_way(tmp_path):
    row = Row("pairs.jsonl", 7, {"id": 1, "text": "é\u2028x", "labels": ["b", "a"], "z": 1})
    written = in_splits(chunk_of([row], RowReading(tmp_path)).lines, [b'"test"'])
    expected = (
        '{"id":"1","image":null,"text":"é\u2028x","labels":["b","a"],"split":"test","group":"1","meta":{"z":1}}\n'
    )
    assert written == expected.encode()
    (tmp_path / "records.jsonl").write_bytes(written)
    assert next(read_records(tmp_path)).text == "é\u2028x"


def test_a_broken_records_file_names_the_line(tmp_path):
    write_records(tmp_path / "records.jsonl", [record()])
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": 3}\n')
    with pytest.raises(BadInputError, match=r"records\.jsonl:2: not a record"):
        list(read_records(tmp_path))


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['joy', 'fear']", ("joy", "fear")),
        ("""["it's", 'fear']""", ("it's", "fear")),
        (" ['joy']", ("joy",)),
        ("[1, 2]", ("1", "2")),
        ("[True, None]", ("true",)),
        ("[]", ()),
        (r"['a\d']", (r"a\d",)),
    ],
)
def test_a_list_is_read_as_pandas_writes_it_into_a_cell(cell, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_labels(cell, "|") == labels


@pytest.mark.parametrize("cell", ["['joy' 'fear']", "[joy]", "['joy'", "[print('x')]", "[" * 5000, "[array(['joy'])]"])
def test_what_looks_like_a_list_and_is_none_is_no_label(cell):
    with pytest.raises(RowError, match="look like a JSON list and are none"):
        parse_labels(cell, "|")


def test_labels_are_counted_most_frequent_first():
    found = label_set({"c": 2, "b": 3, "d": 1, "a": 1}, "multi")
    assert [(label.name, label.count) for label in found.labels] == [("b", 3), ("c", 2), ("a", 1), ("d", 1)]
    assert found.names == ["b", "c", "a", "d"]


def test_one_label_is_nothing_to_tell_apart():
    with pytest.raises(BadInputError, match="only the label 'joy' occurs in the data; a labeler needs at least two"):
        label_set({"joy": 2}, "single")
    with pytest.raises(BadInputError, match="no label occurs"):
        label_set({}, "single")


def test_a_label_set_is_read_back_and_a_broken_one_refused(tmp_path):
    written = label_set({"joy": 1, "anger": 1}, "single")
    (tmp_path / "labels.json").write_text(written.model_dump_json())
    assert read_label_set(tmp_path) == written
    (tmp_path / "labels.json").write_text(json.dumps({"task": "single", "labels": [], "schema_version": 2}))
    with pytest.raises(BadInputError, match=r"labels\.json: not a label set"):
        read_label_set(tmp_path)
    with pytest.raises(BadInputError, match=r"labels\.json: not a label set"):
        read_label_set(tmp_path / "none")
