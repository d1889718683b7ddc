"""The report's section on how sure the runs are: charts, calibration, promised precision."""

from __future__ import annotations

import json

import pytest
from report_runs import page, two_runs, write_run

from labeler.report import report


@pytest.mark.parametrize("task", ["single", "multi"])
def test_how_sure_the_runs_are_stands_in_charts_and_tables(tmp_path, task):
    runs = two_runs(tmp_path, task=task)
    report(runs, tmp_path / "report")
    text = page(tmp_path / "report").text.split("Calibration and coverage")[1].split("Pairs labelled right")[0]
    metrics = json.loads((runs[0] / "metrics-test.json").read_text())
    sure, unsure = metrics["abstention"]["promises"]
    assert f"{sure['validation']['right']} of {sure['validation']['n']}" in text
    assert f"{sure['n']} of {sure['total']} ({100 * sure['coverage']:.1f}\u00a0%)" in text
    assert "holds" in text
    assert ("none can be made from 400 labels" in text) == (unsure["threshold"] is None and task == "single")
    assert f"{100 * metrics['calibration']['after']['ece']:.1f}\u00a0%" in text
    assert "1.50" in text


def test_runs_of_before_have_no_such_section(tmp_path):
    report([write_run(tmp_path / "old", sure=False)], tmp_path / "report")
    assert "How sure" not in page(tmp_path / "report").text
