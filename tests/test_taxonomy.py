"""Taxonomies: a child brings its parent, no score says otherwise, and what is no tree of two levels is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import labeler

from labeler.artifacts import read_manifest
from labeler.errors import BadInputError, UsageError
from labeler.evaluation import (
    Predictions,
    of_parents,
    read_predictions,
    round_scores,
    settle,
    with_parents,
    without_parents,
    write_predictions,
)
from labeler.ingestion import IngestOptions, ingest
from labeler.records import Label, LabelSet, label_set, read_label_set, read_records
from labeler.taxonomy import read_taxonomy, taxonomy_of

MOODS = {"joy": "positive", "surprise": "positive", "anger": "negative"}


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def moods(tmp_path):
    """Return a function that ingests texts with the given labels, three of each, with a taxonomy."""

    def run(carried: list, taxonomy, **options):
        rows = [{"id": str(n), "text": f"text number {n}", "labels": carried[n % len(carried)]}
                for n in range(3 * len(carried))]  # fmt: skip
        write(tmp_path / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        path = write(tmp_path / "taxonomy.json", taxonomy)
        return ingest([tmp_path / "pairs.jsonl"], tmp_path / "records", IngestOptions(taxonomy=path, **options))

    return run


@st.composite
def said_by_a_model(draw):
    """Return a taxonomy of any two-level tree, a model's scores for its labels, and thresholds."""
    task = draw(st.sampled_from(["single", "multi"]))
    count = draw(st.integers(2, 8))
    names = [f"label {number}" for number in range(count)]
    tops = draw(st.integers(0, count - 1))  # labels that may be parents; for single others may be too
    above = [*names[:tops], *(["apart", "also apart"] if task == "single" else [])]
    parents = [draw(st.sampled_from([None, *above])) for _ in names[tops:]]
    labels = [Label(name=name, count=1, parent=parent) for name, parent in
              zip(names, [None] * tops + parents, strict=True)]  # fmt: skip
    order = draw(st.permutations(labels))
    taxonomy = taxonomy_of(
        LabelSet(task=task, labels=order, parents=[p for p in ("apart", "also apart") if p in parents])
    )
    logits = np.array(
        draw(st.lists(st.lists(st.floats(-20, 20), min_size=count, max_size=count), min_size=1, max_size=4))
    )
    odds = np.exp(logits)
    scores = odds / odds.sum(axis=1, keepdims=True) if task == "single" else odds / (1 + odds)
    thresholds = draw(st.none() | st.lists(st.floats(0, 1), min_size=count, max_size=count))
    return taxonomy, scores, thresholds


@settings(deadline=None, max_examples=300)
@given(said_by_a_model())
def test_no_label_is_without_its_parent_and_no_score_above_its_parent_s(said):
    taxonomy, scores, thresholds = said
    own, chosen = settle(taxonomy, scores, thresholds if taxonomy.task == "multi" else None)
    shown, flags = taxonomy.scores(own), taxonomy.flags(chosen)
    assert shown.shape == flags.shape == (len(scores), len(taxonomy.names))
    assert ((shown >= 0) & (shown <= 1)).all()
    for child, parent in taxonomy.pairs:
        assert (shown[:, parent] >= shown[:, child]).all()
        assert (flags[:, parent] >= flags[:, child]).all()
    if taxonomy.task == "single":
        assert (chosen.sum(axis=1) == 1).all()
        assert (own[chosen] == own.max(axis=1)).all()
        assert flags.sum() == len(flags) + sum(flags[:, child].sum() for child, _ in taxonomy.pairs)
        assert np.allclose(shown[:, taxonomy.tops].sum(axis=1), 1, atol=1e-5)
    else:
        assert (shown >= round_scores(scores)).all()
        reached = own >= (0.5 if thresholds is None else np.array(thresholds))
        brought = np.zeros_like(reached)
        for child, parent in taxonomy.pairs:
            brought[:, parent] |= reached[:, child]
        assert (chosen == (reached | brought)).all()
    ids = [str(row) for row in range(len(scores))]
    whole = with_parents(taxonomy, Predictions(ids, ids, chosen, own, chosen))
    back = without_parents(taxonomy, whole)
    assert (back.predicted == chosen).all()
    assert np.abs(back.scores - own).max() <= 2e-6 * len(taxonomy.names), "what rounding loses where a sum is above 1"
    tops, of_tops = of_parents(taxonomy, back)
    assert len(tops) == of_tops.scores.shape[1]
    assert taxonomy.task == "multi" or (of_tops.predicted.sum(axis=1) == 1).all()


def test_a_parent_that_pairs_carry_themselves_is_told_from_its_children(tmp_path):
    labels = label_set({"bad": 5, "sad": 3, "good": 2}, "single", {"sad": "bad"})
    taxonomy = taxonomy_of(labels)
    scores, chosen = settle(taxonomy, np.array([[0.3, 0.4, 0.3], [0.5, 0.2, 0.3]]))
    assert taxonomy.scores(scores).tolist() == [[0.7, 0.4, 0.3], [0.7, 0.2, 0.3]]
    assert taxonomy.flags(chosen).tolist() == [[True, True, False], [True, False, False]]
    given = Predictions(["a", "b"], ["a", "b"], chosen[::-1], scores, chosen)
    write_predictions(tmp_path / "p.jsonl", taxonomy.names, with_parents(taxonomy, given))
    back = without_parents(taxonomy, read_predictions(tmp_path / "p.jsonl", taxonomy.names))
    for one, other in zip(back, given, strict=True):
        assert np.array_equal(one, other)
    names, tops = of_parents(taxonomy, given)
    assert names == ["bad", "good"]
    assert (tops.truth == tops.predicted).all(), "right at the level of parents, wrong below"


def test_a_threshold_of_the_parent_keeps_no_child_away_from_it():
    taxonomy = taxonomy_of(label_set({"animal": 5, "cat": 3}, "multi", {"cat": "animal"}))
    scores, chosen = settle(taxonomy, np.array([[0.1, 0.4], [0.6, 0.1]]), [0.9, 0.3])
    assert scores.tolist() == [[0.4, 0.4], [0.6, 0.1]]
    assert chosen.tolist() == [[True, True], [False, False]]


def test_without_a_taxonomy_nothing_changes():
    for task in ("single", "multi"):
        labels = label_set({"a": 1, "b": 1}, task)
        taxonomy, scores = taxonomy_of(labels), np.array([[0.25, 0.75]])
        own, chosen = settle(taxonomy, scores)
        assert (taxonomy.scores(own) == scores).all()
        assert (taxonomy.flags(chosen) == chosen).all()
        assert json.loads(labels.model_dump_json()) == labels.model_dump(mode="json") == {
            "schema_version": 1, "task": task, "labels": [{"name": name, "count": 1, "parent": None} for name in "ab"],
        }  # fmt: skip


def test_a_file_may_name_parents_or_children_first(tmp_path):
    by_child = read_taxonomy(
        write(tmp_path / "a.json", {" joy": "positive", "surprise": "positive", "anger": "negative"})
    )
    by_parent = {"positive": ["joy", "surprise"], "negative": ["anger"]}
    assert by_child == read_taxonomy(write(tmp_path / "b.json", by_parent)) == MOODS
    assert read_taxonomy(write(tmp_path / "c.json", by_parent | {"anger": "negative"})) == MOODS
    assert read_taxonomy(None) == {}


@pytest.mark.parametrize(("content", "match"), [
    ({"a": "b", "b": "a"}, r"a cycle, each the parent of the one before: a, b, a; leave one of them out"),
    ({"x": "a", "a": "b", "b": "c", "c": "a"}, r"a cycle, .*: a, b, c, a; leave one"),
    ({"a": "a"}, r"'a' is its own parent; leave it out"),
    ({"a": ["a", "b"]}, r"'a' is its own parent"),
    ({"a": "b", "b": "c"}, r"more than two levels, .*: a, b, c; .* put 'a' right under 'c', or leave it out"),
    ({"c": ["b"], "b": ["a"]}, r"more than two levels"),
    ({str(n): str(n + 1) for n in range(3000)}, r"more than two levels, each .*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11;"),
    ({"b": ["a"], "c": ["a"]}, r"'a' has two parents, 'b' and 'c'; keep one"),
    ('{"a": "b", "a": "c"}', r"'a' has two parents, 'b' and 'c'"),
    (["a", "b"], r'expected a JSON object, \{"child": "parent"\}'),
    ("{}", r"no label in it; expected a JSON object"),
    ({"a": []}, r"no label in it; expected a JSON object"),
    ({"a": 5}, r"'5' is no label; expected"),
    ({"a": ""}, r"'' is no label; expected"),
    ({"a": {"b": "c"}}, r".* is no label; expected"),
    ({"a": "b\0"}, r"label holds a NUL"),
    ('{"a": "b"', r"not readable as JSON"),
    ("[" * 100_000, r"not readable as JSON"),
])  # fmt: skip
def test_what_is_no_tree_of_two_levels_is_refused(tmp_path, content, match):
    with pytest.raises(BadInputError, match=rf"taxonomy\.json: {match}"):
        read_taxonomy(write(tmp_path / "taxonomy.json", content))


def test_a_missing_file_is_refused_before_any_work(moods, tmp_path):
    with pytest.raises(BadInputError, match=r"none\.json: not readable as JSON .*; expected a JSON object"):
        ingest([tmp_path / "no-such.jsonl"], tmp_path / "out", IngestOptions(taxonomy=tmp_path / "none.json"))
    with pytest.raises(UsageError, match="--taxonomy and --top-answers: expected one of them"):
        moods(["joy", "anger"], MOODS, top_answers=3)


@pytest.mark.parametrize(("labels", "parents", "match"), [
    ([("a", "b"), ("b", "a")], [], r"a cycle, each the parent of the one before: a, b, a"),
    ([("a", "c"), ("b", None)], [], r"the parent 'c' of 'a' is no label; add it, or correct its name"),
    ([("a", "b"), ("b", "c"), ("c", None)], [], r"more than two levels"),
    ([("a", "c"), ("b", None)], ["c"], r"for task multi a parent is a label too; move 'c' to the labels"),
])  # fmt: skip
def test_a_label_set_that_is_no_such_tree_is_refused(tmp_path, labels, parents, match):
    found = [{"name": name, "count": 1, "parent": parent} for name, parent in labels]
    write(tmp_path / "labels.json", {"task": "multi", "labels": found, "parents": parents})
    with pytest.raises(BadInputError, match=rf"labels\.json: not a label set \(.*{match}"):
        read_label_set(tmp_path)


def test_a_row_with_a_child_gets_its_parent(moods):
    result = moods([["cat"], ["animal", "cat"], ["red", "dog"], ["red"], ["animal"]], {"animal": ["cat", "dog"]})
    records = list(read_records(result.out))
    assert Counter(record.labels for record in records) == {
        ("cat", "animal"): 3, ("animal", "cat"): 3, ("red", "dog", "animal"): 3, ("red",): 3, ("animal",): 3,
    }  # fmt: skip
    labels = read_label_set(result.out)
    assert [(label.name, label.count, label.parent) for label in labels.labels] == [
        ("animal", 12, None), ("red", 6, None), ("cat", 6, "animal"), ("dog", 3, "animal"),
    ]  # fmt: skip
    assert (result.profile["taxonomy"], result.profile["taxonomy_rows"]) == ({"animal": ["cat", "dog"]}, 6)
    assert sum(result.profile["labels"][split].get("animal", 0) for split in ("train", "validation", "test")) == 12
    manifest = read_manifest(result.out)
    assert manifest["arguments"]["taxonomy"].endswith("taxonomy.json")
    assert any(item["path"].endswith("taxonomy.json") for item in manifest["inputs"])


def test_a_changed_taxonomy_makes_the_records_again(moods):
    rows = [["cat", "animal"], ["dog"], ["animal"]]
    assert not moods(rows, {"cat": "animal"}).already
    assert moods(rows, {"cat": "animal"}).already
    again = moods(rows, {"cat": "animal", "dog": "animal"})
    assert not again.already
    assert again.profile["taxonomy_rows"] == 3


def test_of_a_child_and_its_parent_on_one_row_the_child_is_the_label(moods):
    carried = [["joy", "positive"], ["positive"], ["anger"], ["anger", "positive"]]
    result = moods(carried, {"joy": "positive", "anger": "negative"}, task="single")
    assert Counter(record.labels for record in read_records(result.out)) == {
        ("joy",): 3,
        ("positive",): 3,
        ("anger",): 3,
    }
    assert result.profile["rejects"] == {"label-count": 3}
    labels = read_label_set(result.out)
    assert (labels.names, labels.parents) == (["positive", "anger", "joy"], ("negative",))
    assert {label.name: label.parent for label in labels.labels} == {
        "positive": None,
        "anger": "negative",
        "joy": "positive",
    }
    assert result.profile["taxonomy_rows"] == 3


def test_names_that_are_no_labels(moods, tmp_path):
    rows = ["joy", "anger", "surprise"]
    vocabulary = write(tmp_path / "labels.txt", "joy\nanger\nsurprise\npositive\n")
    several = [[name] for name in rows]
    with pytest.raises(
        BadInputError, match="'joi' is not a label of the data; the closest is 'joy'; correct it, or leave"
    ):
        moods(rows, {"joi": "positive"})
    with pytest.raises(
        BadInputError,
        match=r"'jo', the parent of 'anger', is not a label .* the closest is 'joy'; .* allow it by --labels FILE with",
    ):
        moods(several, {"anger": "jo"})
    # what is most like a parent may be its own child, which it cannot be meant to be
    with pytest.raises(
        BadInputError, match=r"'joyful', the parent of 'joy', is not a label of the data; correct it, or"
    ):
        moods(several, {"joy": "joyful", "anger": "joyful"})
    with pytest.raises(
        BadInputError, match=r"'all', the parent of 'joy', is not a label of the data; correct it, or allow"
    ):
        moods(several, {"all": rows})
    for carried in (rows, several):
        with pytest.raises(
            BadInputError, match=r"'positiv', .* is not in .*labels\.txt; the closest is 'positive'; .* add it"
        ):
            moods(carried, {"joy": "positiv"}, labels=vocabulary)
    assert read_label_set(moods(rows, MOODS).out).parents == ("negative", "positive")
    declared = read_label_set(moods(several, {"joy": "positive", "surprise": "positive"}, labels=vocabulary).out)
    assert (declared.names, declared.parents) == (["positive", "anger", "joy", "surprise"], ())
    unused = moods(several[:2], {"surprise": "positive"}, labels=vocabulary)
    assert unused.profile["taxonomy"] == {}


def test_the_command_says_what_it_did_and_exits_3_for_a_cycle(tmp_path):
    write(tmp_path / "pairs.jsonl", '{"text": "one", "labels": ["cat"]}\n{"text": "two", "labels": ["animal"]}\n')
    write(tmp_path / "tree.json", {"cat": "animal"})
    write(tmp_path / "cycle.json", {"cat": "animal", "animal": "cat"})
    done, refused = (
        labeler("ingest", "pairs.jsonl", "--out", "out", "--taxonomy", f"{name}.json", cwd=tmp_path)
        for name in ("tree", "cycle")
    )
    assert done.code == 0
    assert "taxonomy: 1 labels under animal; 1 rows were given a parent" in done.err
    assert (
        "taxonomy    1 labels under animal; 1 rows were given a parent" in labeler("inspect", "out", cwd=tmp_path).out
    )
    assert (refused.code, refused.out) == (3, "")
    assert (
        "cycle.json: a cycle, each the parent of the one before: cat, animal, cat; leave one of them out" in refused.err
    )
    assert "Traceback" not in refused.err
