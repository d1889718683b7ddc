"""The report: what it says, what it refuses, and that nothing from the data can act on the page."""

from __future__ import annotations

import csv
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from report_runs import NAMES, page, simulate, two_runs, write_run

from labeler import artifacts, errors
from labeler.artifacts import read_manifest, verify
from labeler.errors import BadInputError
from labeler.evaluation import write_predictions
from labeler.report import report
from labeler.report.charts import ticks
from labeler.report.runs import read_runs

EVIL = "<script>alert(1)</script>\"'\n{{ 7*7 }} & |"
PIXEL = b"\x89PNG\r\n\x1a\n not decoded by the report"
BOTH = ["majority", "logistic-regression"]


@pytest.fixture
def examples(monkeypatch, tmp_path):
    """A store beside the runs: change the dict to change what the rows show."""
    (tmp_path / "store").mkdir()
    found = {f"row-{i}": SimpleNamespace(text=f"text of row {i}", image=PIXEL, mime="image/png") for i in range(80)}
    reader = SimpleNamespace(read_examples=lambda folder, ids: {i: found[i] for i in ids if i in found})
    monkeypatch.setitem(sys.modules, "labeler.store", reader)
    return found


def test_the_comparison_names_the_best_model_and_tests_it_against_the_baseline(tmp_path):
    comparison = report(two_runs(tmp_path), tmp_path / "report")
    assert [model["name"] for model in comparison["models"]] == [*BOTH, "visualbert", "resnet-gru"]
    assert len(comparison["comparisons"]) == 6
    assert comparison["data"] == {"name": "clipart-category", "sha256": "ab" * 32, "split": "test", "n": 80}
    assert comparison["answer"].startswith("visualbert is the best of 4 models on 80 test rows: accuracy ")
    assert "more than luck explains" in comparison["answer"]
    good, poor = comparison["against_baseline"]
    assert good["text"].startswith("visualbert beats logistic-regression: +")
    assert not poor["beats"]
    model = comparison["models"][2]
    stored = json.loads((tmp_path / "checkpoints/visualbert/metrics-test.json").read_text())
    for key in ("n", "accuracy", "accuracy_ci95", "weighted_f1", "train_seconds", "pairs_per_second", "parameters"):
        assert model[key] == stored[key]
    assert json.loads((tmp_path / "report/comparison.json").read_text()) == comparison


def test_text_alone_and_picture_alone_stand_in_a_table_of_their_own(tmp_path):
    runs = [write_run(tmp_path / "new"), write_run(tmp_path / "old", "flava", modalities=False)]
    comparison = report(runs, tmp_path / "report")
    new, old = (model["modalities"] for model in comparison["models"][2:])
    assert new == json.loads((tmp_path / "new/metrics-test.json").read_text())["modalities"]
    assert old is None
    text = page(tmp_path / "report").text.split("Text or picture alone")[2].split("Learning curves")[0]
    for modality in ("text", "image", "both"):
        assert f"{100 * new[modality]['accuracy']:.1f}\u00a0%" in text
    assert "visualbert" in text
    assert "flava" not in text
    assert "| visualbert | 80 |" in (tmp_path / "report/comparison.md").read_text(encoding="utf-8")
    report(runs[1:], tmp_path / "report")
    assert "Text or picture alone" not in page(tmp_path / "report").text


def test_a_model_that_is_level_with_the_baseline_is_not_called_better(tmp_path):
    comparison = report([write_run(tmp_path / "run", skill=2.5)], tmp_path / "report")
    assert comparison["against_baseline"][0]["verdict"] == "cannot tell"
    assert "is not shown to beat logistic-regression" in comparison["against_baseline"][0]["text"]


def test_one_run_without_baselines_and_history_has_nothing_to_be_compared_with(tmp_path):
    run = write_run(tmp_path / "run", baselines=False)
    (run / "history.json").unlink()
    comparison = report([run], tmp_path / "report")
    assert comparison["comparisons"] == []
    assert "nothing to compare" in comparison["answer"]
    text = page(tmp_path / "report").text
    assert "No logistic regression was measured" in text
    assert "Learning curves" not in text


def test_the_page_is_one_file_with_every_section(tmp_path, examples):
    report(two_runs(tmp_path, store=str(tmp_path / "store")), tmp_path / "report")
    found = page(tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "comparison.json", "comparison.md", "comparison.csv", "index.html", "data.html", "manifest.json"}  # fmt: skip
    ids = {attributes["id"] for tag, attributes in found.tags if tag == "section"}
    assert ids == {"table", "pairs", "modalities", "curves", "confusion", "labels", "sure", "pictures", "why", "how"}
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len([picture["alt"] for picture in pictures]) > 10
    assert "text of row" in found.text
    svgs = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert all("aria-label" in svg or "aria-labelledby" in svg for svg in svgs)
    assert sum(tag == "h1" for tag, _ in found.tags) == 1


def test_the_table_can_be_read_by_a_spreadsheet(tmp_path):
    comparison = report(two_runs(tmp_path), tmp_path / "report")
    with (tmp_path / "report/comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [model["name"] for model in comparison["models"]]
    for row, model in zip(rows, comparison["models"], strict=True):
        assert float(row["accuracy"]) == model["accuracy"]
        assert [float(row["accuracy_low"]), float(row["accuracy_high"])] == model["accuracy_ci95"]
    last = comparison["comparisons"][-1]
    assert (float(rows[-1]["difference"]), rows[-1]["verdict"]) == (last["delta_accuracy"], last["verdict"])
    assert rows[0]["difference"] == ""


def test_labels_texts_ids_and_names_are_inert(tmp_path, examples):
    for row in range(80):
        examples[f"row-{row}"] = SimpleNamespace(text=EVIL + "\ud800\x00", image=PIXEL, mime="image/png")
    names = [EVIL, "=cmd|' /C calc'!A0", "<img src=x onerror=alert(1)>", "]]>", "a\u202eb", "\u732b"]
    run = write_run(tmp_path / "<b onclick=x>", EVIL, names=names, store=str(tmp_path / "store"))
    report([run], tmp_path / "report")
    found = page(tmp_path / "report")
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7*7 }}" in found.text
    markdown = (tmp_path / "report/comparison.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    widths = {line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert widths == {14, 9, 6}


def test_a_picture_of_another_type_or_over_the_budget_is_left_out(tmp_path, examples, monkeypatch):
    for row in range(80):
        mime = "image/svg+xml" if row % 2 else "image/png"
        examples[f"row-{row}"] = SimpleNamespace(text="text", image=PIXEL, mime=mime)
    monkeypatch.setattr("labeler.report.pictures.BUDGET", 200)
    report([write_run(tmp_path / "run", store=str(tmp_path / "store"))], tmp_path / "report")
    found = page(tmp_path / "report")
    pictures = [attributes["src"] or "" for tag, attributes in found.tags if tag == "img"]
    assert pictures
    assert sum(len(picture.split(",")[1]) for picture in pictures) <= 200
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert "no picture" in found.text


def test_without_the_store_the_report_says_that_pictures_are_missing(tmp_path):
    report(two_runs(tmp_path, store="gone/store"), tmp_path / "report")
    found = page(tmp_path / "report")
    assert "Pictures and texts are left out: the store gone/store is not there" in found.text
    assert not [tag for tag, _ in found.tags if tag == "img"]


def test_several_labels_a_row(tmp_path):
    comparison = report(two_runs(tmp_path, task="multi"), tmp_path / "report")
    assert "mean average precision" in comparison["answer"]
    assert "accuracy" not in comparison["models"][0]
    assert comparison["comparisons"][0]["mcnemar_p"] is None
    for key in ("micro_f1", "macro_f1", "sample_f1", "mean_average_precision", "subset_accuracy"):
        assert f"{key}_ci95" in comparison["models"][2]
    found = page(tmp_path / "report")
    assert "Average precision" in found.text
    assert "McNemar" not in found.text
    assert not [1 for tag, attributes in found.tags if attributes.get("id") == "confusion"]


def test_a_class_absent_from_the_split_is_a_dash_with_its_reason(tmp_path):
    run = write_run(tmp_path / "run", names=[*NAMES, "never"], rows=12)
    per_class = json.loads((run / "metrics-test.json").read_text())["per_class"]
    absent = [row["label"] for row in per_class if not row["support"]]
    report([run], tmp_path / "report")
    assert re.search(r"no row carries these labels.*" + absent[-1], page(tmp_path / "report").text)


def test_runs_of_one_name_get_their_folders_names_and_seeds_are_summed_up(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1, 2)]
    comparison = report([*runs, write_run(tmp_path / "other", "flava")], tmp_path / "report")
    names = [model["name"] for model in comparison["models"]]
    assert names == [*BOTH, "visualbert (s0)", "visualbert (s1)", "visualbert (s2)", "flava"]
    (seeds,) = comparison["seeds"]
    values = [model["accuracy"] for model in comparison["models"][2:5]]
    assert seeds["seeds"] == [0, 1, 2]
    assert seeds["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert seeds["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "Several seeds" in page(tmp_path / "report").text
    twins = [write_run(tmp_path / "a/run"), write_run(tmp_path / "b/run", skill=2.0)]
    assert report(twins, tmp_path / "report")["models"][-1]["name"] == f"visualbert ({tmp_path / 'b/run'})"


def test_what_learned_from_others_is_no_seed_of_the_same_model(tmp_path):
    alone = [write_run(tmp_path / f"alone{seed}", seed=seed) for seed in (0, 1)]
    taught = [write_run(tmp_path / f"taught{seed}", seed=seed, skill=4.0) for seed in (0, 1)]
    for run in taught:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        manifest["inputs"].append({"path": "checkpoints/teacher", "sha256": "cd" * 32})
        manifest["arguments"]["zero_shot_teachers"] = {"0": {}}
        (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    comparison = report([*alone, *taught], tmp_path / "report")
    assert [row["seeds"] for row in comparison["seeds"]] == [[0, 1], [0, 1]]
    names = [f"visualbert ({name}0) and others" for name in ("alone", "taught")]
    assert [row["name"] for row in comparison["seeds"]] == names
    means = [f"{name} (mean of 2 seeds)" for name in names]
    assert [one["name"] for one in comparison["contenders"]] == [*BOTH, *means]
    assert "--teacher zero-shot:checkpoints/teacher" in page(tmp_path / "report").text


def test_curves_of_other_metrics_have_charts_of_their_own(tmp_path):
    runs = [write_run(tmp_path / "visualbert"), write_run(tmp_path / "clip", "clip")]
    history = json.loads((runs[1] / "history.json").read_text(encoding="utf-8")) | {"metric": "recall_at_10"}
    (runs[1] / "history.json").write_text(json.dumps(history), encoding="utf-8")
    report(runs, tmp_path / "report")
    text = page(tmp_path / "report").text
    for title in (
        "Training loss (macro F1)",
        "Validation macro F1",
        "Training loss (recall@10)",
        "Validation recall@10",
    ):
        assert title in text


def test_baselines_that_differ_between_runs_are_both_shown(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", "flava", preset="hub")
    other = simulate("single", NAMES, 80, 2.0, 99)
    write_predictions(second / "baseline-logistic-regression-test.jsonl", NAMES, other)
    names = [model["name"] for model in report([first, second], tmp_path / "report")["models"]]
    assert names[:3] == ["majority", "logistic-regression (a)", "logistic-regression (b)"]


def test_a_run_given_twice_or_by_a_link_counts_once(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "best").symlink_to(run)
    comparison = report([tmp_path / "best", run, run], tmp_path / "report")
    assert [model["run"] for model in comparison["models"] if not model["baseline"]] == [str(run)]


def test_two_reports_are_the_same_bytes_and_the_second_says_already_made(tmp_path, caplog):
    runs, out = two_runs(tmp_path), tmp_path / "report"
    first = report(runs, out)
    before = {
        name: (out / name).read_bytes()
        for name in ("comparison.json", "comparison.md", "comparison.csv", "index.html", "data.html")
    }
    stamp = (out / "index.html").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="labeler"):
        assert report(runs, out) == first
    assert "already made from the same inputs" in caplog.text
    assert (out / "index.html").stat().st_mtime_ns == stamp
    report(runs, out, force=True)
    report(runs, tmp_path / "second")
    for name, content in before.items():
        assert (out / name).read_bytes() == content
        assert (tmp_path / "second" / name).read_bytes() == content
    assert (out / "index.html").stat().st_mtime_ns != stamp


def test_changed_inputs_or_a_damaged_page_make_it_again(tmp_path):
    runs, out = two_runs(tmp_path), tmp_path / "report"
    report(runs, out)
    assert len(report(runs[:1], out)["models"]) == 3
    (out / "index.html").write_text("damaged")
    report(runs[:1], out)
    assert verify(out, "report")["stage"] == "report"


def test_files_of_others_in_the_folder_survive_and_do_not_count(tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "unseen-labels.jsonl").write_text("before\n")
    runs = two_runs(tmp_path)
    report(runs, out)
    (out / "unseen-labels.jsonl").write_text("changed\n")
    verify(out, "report")
    report(runs, out, force=True)
    assert (out / "unseen-labels.jsonl").read_text() == "changed\n"
    assert set(read_manifest(out)["files"]) == {
        "comparison.json",
        "comparison.md",
        "comparison.csv",
        "index.html",
        "data.html",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_error_while_writing_leaves_the_old_report_whole(tmp_path, monkeypatch):
    runs, out = two_runs(tmp_path), tmp_path / "report"
    report(runs, out)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("labeler.report.render_page", full)
    with pytest.raises(OSError, match="no space left"):
        report(runs[:1], out)
    assert len(json.loads((out / "comparison.json").read_text())["models"]) == 4
    verify(out, "report")


def test_what_is_refused(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "report"
    with pytest.raises(errors.UsageError, match=r"no runs given.*labeler report checkpoints"):
        report([], out)
    with pytest.raises(
        BadInputError, match=r"type `labeler evaluate .*run --data data/clipart/store --split validation`"
    ):
        report([run], out, split="validation")
    other = write_run(tmp_path / "other", sha256="cd" * 32)
    with pytest.raises(BadInputError, match=r"other: its data sha256 is cdcd.*that of .*run is abab"):
        report([run, other], out)
    alike = "only runs of the same labels can be compared: report on each by itself"
    with pytest.raises(BadInputError, match=rf"its task is multi, that of .*run is single; {alike}"):
        report([run, write_run(tmp_path / "multi", task="multi")], out)
    with pytest.raises(BadInputError, match="its labels is"):
        report([run, write_run(tmp_path / "names", names=[*NAMES[:-1], "sport"])], out)
    assert not out.exists()


def test_a_run_is_reported_on_from_another_directory(tmp_path, monkeypatch):
    """Run and store were named by relative paths where they were made."""
    store = tmp_path / "project" / "data" / "clipart" / "store"
    recipe = artifacts.Recipe("preprocess", (), {})
    with artifacts.making(store, recipe) as work:
        (work / "profile.json").write_text("{}")
    content = read_manifest(store)["content_sha256"]
    run = write_run(tmp_path / "project" / "checkpoints" / "run", sha256=content)
    monkeypatch.chdir(tmp_path)
    assert read_runs([run], "test")[0].store == store
    assert read_runs([run.relative_to(tmp_path)], "test")[0].store.resolve() == store


def test_what_a_run_may_have_seen_stands_beside_the_answer(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "report"
    metrics = json.loads((run / "metrics-test.json").read_text())
    metrics["data"]["caution"] = "it was trained on another store, <old>"
    (run / "metrics-test.json").write_text(json.dumps(metrics))
    said = "visualbert: it was trained on another store, <old>."
    assert report([run], out)["cautions"] == [said]
    assert "<old>" in (out / "comparison.md").read_text() or "&lt;old&gt;" in (out / "comparison.md").read_text()
    assert f"<strong>{said.replace('<old>', '&lt;old&gt;')}</strong>" in (out / "index.html").read_text()


def test_damaged_run_files_are_refused_with_the_command(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "report"
    predictions = (run / "predictions-test.jsonl").read_text()
    (run / "predictions-test.jsonl").write_text("".join(predictions.splitlines(keepends=True)[:-1]))
    with pytest.raises(BadInputError, match=r"79 rows, the metrics beside it say 80; type `labeler evaluate"):
        report([run], out)
    (run / "predictions-test.jsonl").write_text(predictions[:-30])
    with pytest.raises(BadInputError, match=r"predictions-test.jsonl:80: not a row"):
        report([run], out)
    (run / "baseline-majority-test.jsonl").unlink()
    with pytest.raises(BadInputError, match=r"baseline-majority-test.jsonl: missing; type `labeler evaluate"):
        report([run], out)
    (run / "metrics-test.json").write_text("{}")
    with pytest.raises(BadInputError, match="no usable 'data' in it"):
        report([run], out)
    (run / "metrics-test.json").write_text("{")
    with pytest.raises(BadInputError, match="not readable as JSON"):
        report([run], out)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    run, site = write_run(tmp_path / "run"), tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    with pytest.raises(BadInputError, match=r"site/index.html: exists and was not made by `labeler report`"):
        report([run], site, force=True)
    with pytest.raises(BadInputError, match="made by `labeler train`, expected the output of `labeler report`"):
        report([run], run)
    with artifacts.locked(tmp_path / "report"), pytest.raises(errors.LockedError, match="another labeler process"):
        report([run], tmp_path / "report")
    assert (site / "index.html").read_text() == "mine"


def test_ticks_enclose_the_values_in_equal_round_steps():
    for low, high in [(0, 1), (0.412, 0.7391), (3, 3), (0, 0), (-2, 5000), (1, 6)]:
        found = ticks(low, high)
        assert found[0] - 1e-9 <= low <= high <= found[-1] + 1e-9
        assert 2 <= len(found) <= 7
        assert np.allclose(np.diff(found), found[1] - found[0])
