"""The page about the data: what it shows with and without `labeler inspect`, and that nothing from the data can act on it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from report_runs import Page, page, write_run
from test_report import EVIL

from labeler.artifacts import read_manifest
from labeler.ingestion import ingest
from labeler.inspection import inspect, quality_folder
from labeler.preprocessing import preprocess
from labeler.report import data_page, report
from labeler.report.charts import histogram_chart


@pytest.fixture(scope="module")
def stored(tmp_path_factory, text_tower, image_tower) -> Path:
    """Return an inspected store of 60 pairs with labels, texts and ids that could act on a page; one picture is black."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        pixels = rng.integers(0, 256, (60, 80 + number, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 4  # so that labels can be told
        image = Image.fromarray(pixels)
        (Image.new("RGB", (80, 60)) if number == 7 else image).save(folder / f"{number}.png")
        labels = [["<b>cat</b>", EVIL], ["<b>cat</b>"], ["dog"]][number % 3]
        rows.append({"id": f"{number}<i>", "image": f"{number}.png", "text": f"{EVIL} {number}", "labels": labels})
    rows += [{"id": "broken", "image": "none.png", "labels": ["dog"]}, {"id": "words", "text": "x", "labels": ["dog"]}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([folder / "pairs.jsonl"], folder / "records")
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    inspect(folder / "store")
    return folder / "store"


def reported(folder: Path, store: Path, sha256: str | None = None) -> Page:
    """Return the data page of a report on a run that was measured on the store."""
    sha256 = sha256 or read_manifest(store)["content_sha256"]
    report([write_run(folder / "run", store=str(store), sha256=sha256)], folder / "report")
    return page(folder / "report", "data.html")


def sections(found: Page) -> set[str]:
    return {attributes["id"] for tag, attributes in found.tags if tag == "section"}


def test_everything_known_of_the_data_is_shown(tmp_path, stored):
    found = reported(tmp_path, stored)
    profile = inspect(stored).profile
    assert sections(found) == {"rows", "labels", "sizes", "twice", "errors", "pictures"}
    text = " ".join(found.text.split())
    assert "61 pairs with 3 labels. 1 picture looks suspicious." in text
    assert "rejected: image-missing1" in text
    assert "without a picture1" in text
    assert f"{profile['label_errors']['count']} of 61 rows have a label that" in text
    assert "Dark: 1" in text
    charts = [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"]
    assert [chart.split(":")[0] for chart in charts] == [
        "Characters a text",
        "Words a text",
        "Width of a picture, pixels",
    ]
    errors = [row["id"] for row in profile["label_errors"]["first"][: data_page.ERRORS_SHOWN] if row["id"] != "words"]
    shown = len(errors) + 2  # the black one is dark and of low information
    assert sum(tag == "img" for tag, _ in found.tags) == shown
    assert len((tmp_path / "report" / "data.html").read_bytes()) < 3_000_000


def test_texts_labels_and_ids_are_inert(tmp_path, stored):
    found = reported(tmp_path, stored)
    assert "<script>alert(1)</script>" in found.text
    assert "<b>cat</b>" in found.text
    assert not [tag for tag, _ in found.tags if tag in ("b", "i")]


def test_labels_that_stand_together_are_counted_in_both_directions(tmp_path, stored):
    reported(tmp_path, stored)
    html = (tmp_path / "report" / "data.html").read_text(encoding="utf-8")
    table = re.search(r'aria-label="Labels that stand together".*?</table>', html, flags=re.DOTALL)
    assert table
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table[0].split("<tr>")[2:]]
    assert rows == [["40", "·", "20"], ["·", "21", "·"], ["20", "·", "20"]]


def test_without_inspect_the_page_shows_the_store_s_profile_and_says_what_to_type(tmp_path, stored):
    shutil.copytree(stored, tmp_path / "store")
    found = reported(tmp_path, tmp_path / "store")
    assert sections(found) == {"rows", "labels", "sizes", "twice"}
    assert f"labeler inspect {tmp_path / 'store'}" in found.text
    assert not [tag for tag, _ in found.tags if tag == "img"]
    inspect(tmp_path / "store")
    report([tmp_path / "run"], tmp_path / "report")
    assert "errors" in sections(page(tmp_path / "report", "data.html")), "the report is made again"


def test_an_id_that_some_take_for_a_line_break_hides_no_label_error(tmp_path, stored):
    folder = shutil.copytree(quality_folder(stored), tmp_path / "quality")
    rows = [{"id": "a\u2028b", "split": "train"}, {"id": "c", "split": "test"}]
    (folder / data_page.ERRORS).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert data_page.found_errors(folder, "test") == rows[1:]
    assert data_page.found_errors(folder, "train") == rows[:1]


def test_what_was_found_in_another_store_is_not_shown(tmp_path, stored, caplog):
    found = reported(tmp_path, stored, sha256="cd" * 32)
    assert sections(found) == set()
    assert "Nothing is known of it" in found.text
    assert f"{stored}: not the store any more that" in caplog.text


def test_what_was_found_in_another_state_of_the_store_is_not_shown(tmp_path, stored, caplog):
    shutil.copytree(stored, tmp_path / "store")
    quality = shutil.copytree(quality_folder(stored), tmp_path / "store-quality")
    manifest = json.loads((quality / "manifest.json").read_text())
    manifest["inputs"][0]["sha256"] = "cd" * 32
    (quality / "manifest.json").write_text(json.dumps(manifest))
    assert sections(reported(tmp_path, tmp_path / "store")) == {"rows", "labels", "sizes", "twice"}
    assert "made for another state of the store" in caplog.text


def test_without_the_store_texts_and_pictures_are_missing(tmp_path, stored):
    shutil.copytree(quality_folder(stored), tmp_path / "store-quality")
    found = reported(tmp_path, tmp_path / "store", sha256=read_manifest(stored)["content_sha256"])
    assert "errors" in sections(found)
    assert f"the store {tmp_path / 'store'} is not there any more" in found.text
    assert not [tag for tag, _ in found.tags if tag == "img"]


def test_with_nothing_left_the_page_says_so(tmp_path):
    found = reported(tmp_path, tmp_path / "gone", sha256="ab" * 32)
    assert sections(found) == set()
    assert "Nothing is known of it" in found.text


def test_a_profile_of_an_older_labeler_is_shown_without_charts(tmp_path, stored):
    profile = json.loads((stored / "profile.json").read_text())
    for key in ("histograms", "label_matrix"):
        del profile[key]
    run = SimpleNamespace(store=stored, metrics={"data": {"name": "old"}})
    source = data_page.Input("old", "old")
    found = Page(data_page.render_data(data_page.DataSet(profile, None, source), run))
    assert not [tag for tag, _ in found.tags if tag == "svg"]
    assert "Labels that stand together" not in found.text


def test_pictures_over_the_budget_are_left_out(tmp_path, stored, monkeypatch):
    monkeypatch.setattr("labeler.report.data_page.BUDGET", 5000)
    found = reported(tmp_path, stored)
    pictures = [attributes["src"] or "" for tag, attributes in found.tags if tag == "img"]
    assert 0 < sum(map(len, pictures)) < 6000


def test_a_histogram_s_bars_are_as_high_as_their_counts():
    chart = histogram_chart("Words", {"start": 10, "width": 5, "counts": [4, 0, 8, 2]})
    heights = [bar["height"] for bar in chart["bars"]]
    assert heights[0] * 2 == pytest.approx(heights[2], abs=0.2)
    assert heights[1] == 0
    assert [bar["name"] for bar in chart["bars"]] == ["10–14: 4", "15–19: 0", "20–24: 8", "25 and more: 2"]
    assert all(bar["y"] + bar["height"] == pytest.approx(chart["box"]["bottom"], abs=0.2) for bar in chart["bars"])
    assert [text for _, text in chart["x_ticks"]] == ["10", "15", "20", "25"]
