"""Explanations in the report: which pairs, what the page shows of them, and that none is made twice."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from report_runs import page, simulate, write_run

from labeler.artifacts import read_manifest, verify
from labeler.cli import cli
from labeler.evaluation import read_predictions, right_rows
from labeler.explaining.explanation import explain_item, explanation_of
from labeler.report import explanations, report
from labeler.report.explanations import asked_rows, attention, explained_cards
from labeler.report.pictures import confidence

NAMES = ["a", "b", "c"]
COATTN = "visualbert-coattn"


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_third_each_of_confident_mistakes_other_mistakes_and_rights_is_asked_for(task):
    predictions = simulate(task, NAMES, 60, 1.5, 3)
    asked = asked_rows(task, predictions, 9)
    assert [one.why.split()[0] for one in asked] == ["one"] * 3 + ["a"] * 3 + ["right,"] * 3
    rows = [one.row for one in asked]
    assert len(set(rows)) == 9
    right, sure = right_rows(predictions), confidence(task, predictions)
    assert right[rows].tolist() == [False] * 6 + [True] * 3
    assert sure[rows[:3]].tolist() == sorted(sure[~right], reverse=True)[:3]
    assert asked_rows(task, predictions, 9) == asked
    for one in asked:
        about = predictions.predicted[one.row] | predictions.truth[one.row]
        assert about[one.label] or not about.any()


def test_rights_and_mistakes_fill_each_others_places():
    some = simulate("single", NAMES, 12, 1.5, 1)
    assert 0 < (~right_rows(some)).sum() < 6
    all_right, all_wrong = (some._replace(predicted=np.roll(some.truth, by, axis=1)) for by in (0, 1))
    for predictions in (some, all_right, all_wrong):
        for count in (0, 1, 2, 6, 50):
            asked = asked_rows("single", predictions, count)
            assert len({one.row for one in asked}) == len(asked) == min(count, 12)


def test_the_page_shows_words_and_regions_of_the_best_run_and_co_attention_both_ways(evaluated, store, tmp_path):
    coattn, out = evaluated(COATTN), tmp_path / "report"
    done = CliRunner().invoke(cli, ["report", str(coattn), "--out", str(out), "--explain", "5"])
    assert done.exit_code == 0, done.output
    verify(out, "report", "manifest-explanations.json")
    found = [explanation_of(one, None) for one in json.loads((out / "explanations.json").read_text())]
    assert len(found) == 5
    shown = page(out)
    assert sum(tag == "article" for tag, _ in shown.tags) == 5
    for one in found:
        if one.words:
            assert " ".join(word.text for word in one.words) in " ".join(shown.text.split())
    with_picture = [one for one in found if one.grid is not None]
    assert sum(tag == "use" for tag, _ in shown.tags) >= 3 * len(with_picture) > 0, "attributions, and both ways"
    assert shown.text.count("Co-attention, both ways") == len([one for one in with_picture if one.maps])
    predictions = read_predictions(coattn / "predictions-test.jsonl", ["circle", "cross", "square"])
    one = found[0]
    again = explain_item(coattn, one.id, data=store, label=one.label, device="cpu")[0]
    assert again.score == pytest.approx(one.score, abs=1e-5)
    assert predictions.scores[predictions.ids.index(one.id)].max() == pytest.approx(one.score, abs=1e-4)
    np.testing.assert_allclose([word.weight for word in again.words], [word.weight for word in one.words], atol=1e-4)


def test_an_explanation_is_the_same_after_json(evaluated, store):
    one = explain_item(evaluated(COATTN), "circle-red-one", data=store, device="cpu")[0]
    again = explanation_of(json.loads(json.dumps(one.as_json())), one.picture)
    assert again.as_json() == one.as_json()
    seen = attention(one)
    assert [token for token, *_ in seen["tokens"]] == one.tokens
    assert sum(value for _, value, _ in seen["tokens"]) == pytest.approx(1, abs=1e-4)


def test_nothing_is_explained_twice(evaluated, tmp_path, monkeypatch):
    out = tmp_path / "report"
    first = report([evaluated(COATTN)], out, explain=3)
    stamp = (out / "explanations.json").stat().st_mtime_ns
    opened = explanations.open_run

    def forbidden(*_):
        raise AssertionError("the run was opened again")

    monkeypatch.setattr(explanations, "open_run", forbidden)
    both = report([evaluated(COATTN), shutil.copytree(evaluated(COATTN), tmp_path / "worse")], out, explain=3)
    assert len(both["models"]) == len(first["models"]) + 1
    assert (out / "explanations.json").stat().st_mtime_ns == stamp
    monkeypatch.setattr(explanations, "open_run", opened)
    (out / "explanations.json").write_text("[]")
    report([evaluated(COATTN)], out, explain=3)
    assert len(json.loads((out / "explanations.json").read_text())) == 3
    assert read_manifest(out)["arguments"]["explain"] == 3


def test_without_explanations_none_is_made_and_the_page_has_no_place_for_them(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(explanations, "open_run", None)
    report([evaluated(COATTN)], tmp_path / "report", explain=0)
    assert not (tmp_path / "report/explanations.json").exists()
    assert "why" not in [attributes.get("id") for tag, attributes in page(tmp_path / "report").tags if tag == "section"]


def test_a_run_that_cannot_be_opened_any_more_is_reported_on_all_the_same(evaluated, tmp_path):
    run = shutil.copytree(evaluated(COATTN), tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"damaged")
    report([run], tmp_path / "report")
    assert "Explanations are left out: " in page(tmp_path / "report").text
    assert "model.safetensors: damaged" in page(tmp_path / "report").text
    report([write_run(tmp_path / "other", store=str(tmp_path / "gone"))], tmp_path / "second")
    assert f"Explanations are left out: {tmp_path}/gone: no such artifact folder" in page(tmp_path / "second").text


def test_a_store_that_was_made_again_explains_nothing(evaluated, store, tmp_path):
    run = shutil.copytree(evaluated(COATTN), tmp_path / "run")
    other = shutil.copytree(store, tmp_path / "store")
    metrics = json.loads((run / "metrics-test.json").read_text())
    metrics["data"]["store"] = str(other)
    (run / "metrics-test.json").write_text(json.dumps(metrics))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"content_sha256": "0" * 64}))
    report([run], tmp_path / "report")
    assert "not the store any more that" in page(tmp_path / "report").text


def test_cards_without_picture_or_text_have_neither_heat_map_nor_marks(evaluated, tmp_path):
    report([evaluated(COATTN)], tmp_path / "report", explain=7)
    found = [explanation_of(one, None) for one in json.loads((tmp_path / "report/explanations.json").read_text())]
    bare = {one.id: (bool(one.text), one.grid is not None) for one in found}
    assert (False, True) in bare.values()
    assert (True, False) in bare.values(), "the test split has a pair of words alone"
    text = page(tmp_path / "report").text
    assert "no picture" in text
    assert "no text" in text
    assert explained_cards(None, explanations.Explained([], [])) == []
