"""Stage `inspect`: what it finds in a store, what it writes, and that planted label errors in real pairs are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from labeler.artifacts import verify
from labeler.cli import cli
from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.inspection import ERRORS, PICTURES, inspect, quality_folder
from labeler.preprocessing import preprocess

CLIPART = Path(__file__).parent.parent / "data" / "clipart"


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory, text_tower, image_tower) -> Path:
    """Return a store of 40 pairs, five of them with pictures that are not as the others; the last has no picture."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image = Image.fromarray(pixels // (1 + number % 2))  # so that labels can be told
        if number < 2:
            image = Image.new("RGB", (80, 60), ("black", "white")[number])
        elif number == 2:
            image = Image.fromarray(rng.integers(0, 256, (400, 20, 3), dtype=np.uint8))
        image.save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"p{number}",
                "image": f"{number}.png",
                "text": f"{('one', 'two')[number % 2]} {number}",
                "label": "ab"[number % 2],
            }
        )
    rows[-1]["image"] = None
    return made(folder, rows, text_tower, image_tower)


def made(folder: Path, rows: list[dict], text_tower: Path, image_tower: Path) -> Path:
    """Ingest and preprocess the rows; return the store."""
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([source], folder / "records")
    preprocess(folder / "records", folder / "store", text_encoder=str(text_tower), image_encoder=str(image_tower))
    return folder / "store"


def lines(path: Path) -> list[dict]:
    """Return the rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_suspicious_pictures_are_named_with_their_kinds(odd_store):
    result = inspect(odd_store)
    pictures = result.profile["suspicious_pictures"]
    assert (pictures["checked"], pictures["count"]) == (39, 3)
    assert pictures["kinds"] == {"dark": 1, "light": 1, "blurred": 0, "odd shape": 1, "low information": 2}
    assert [row["id"] for row in pictures["first"]["dark"]] == ["p0"]
    rows = lines(result.out / PICTURES)
    kinds = {"p0": {"dark", "low information"}, "p1": {"light", "low information"}, "p2": {"odd shape"}}
    assert {row["id"]: set(row["kinds"]) for row in rows} == kinds
    assert all(row["scores"].keys() == kinds[row["id"]] for row in rows)


def test_the_profile_is_the_store_s_with_what_was_found(odd_store):
    result = inspect(odd_store)
    stored = json.loads((odd_store / "profile.json").read_text())
    assert result.out == quality_folder(odd_store) == odd_store.parent / "store-quality"
    assert result.profile == stored | {key: result.profile[key] for key in ("suspicious_pictures", "label_errors")}
    assert json.loads((result.out / "profile.json").read_text()) == result.profile
    errors = result.profile["label_errors"]
    assert errors["checked"] == 40
    assert errors["count"] == len(lines(result.out / ERRORS))
    assert sum(count for *_, count in errors["changes"]) == errors["count"]
    assert errors["first"] == lines(result.out / ERRORS)[:50]
    verify(odd_store, "preprocess")


def test_a_second_call_finds_it_made_and_damage_is_mended(odd_store):
    first = inspect(odd_store)
    made = (first.out / "manifest.json").stat().st_mtime_ns
    again = inspect(odd_store)
    assert again.already
    assert again.profile == first.profile
    assert (first.out / "manifest.json").stat().st_mtime_ns == made
    (first.out / PICTURES).write_text("{}")
    mended = inspect(odd_store)
    assert not mended.already
    assert mended.profile == first.profile
    assert not inspect(odd_store, force=True).already


def test_several_labels_a_row_are_judged(multi_store):
    errors = inspect(multi_store).profile["label_errors"]
    assert errors["checked"] == 38
    for row in errors["first"]:
        assert row["given"] != row["suggested"]


def test_a_small_set_is_told_so_and_a_set_of_texts_has_no_pictures(tmp_path, text_tower, image_tower):
    rows = [{"id": str(n), "text": ["one", "two", "three", "four"][n], "label": "ab"[n % 2]} for n in range(4)]
    profile = inspect(made(tmp_path, rows, text_tower, image_tower)).profile
    assert profile["suspicious_pictures"]["checked"] == 0
    assert profile["label_errors"]["not_checked"] == "4 groups of labelled rows, at least 5 are needed"


def test_the_command_shows_both_and_json_is_the_profile(odd_store):
    shown = CliRunner().invoke(cli, ["inspect", str(odd_store)])
    assert shown.exit_code == 0
    assert "pictures    3 of 39 suspicious" in shown.stdout
    assert "  dark                   1  p0\n" in shown.stdout
    assert "of 40 rows likely labelled wrong" in shown.stdout
    profile = json.loads(CliRunner().invoke(cli, ["inspect", str(odd_store), "--json"]).stdout)
    assert profile == inspect(odd_store).profile
    cached = CliRunner().invoke(cli, ["inspect", str(quality_folder(odd_store)), "--json"])
    assert json.loads(cached.stdout) == profile


def test_force_is_refused_where_nothing_is_kept_that_it_would_make_again(store, labeler):
    assert labeler("inspect", store.parent / "records").code == 0
    done = labeler("inspect", store.parent / "records", "--force")
    assert done.code == 2
    assert "--force is for a store" in done.said


def test_a_label_cannot_steer_the_terminal(tmp_path, text_tower, image_tower):
    rows = [{"id": str(n), "text": f"text {n}", "label": ["joy\x1b[2J", "anger"][n % 2]} for n in range(12)]
    shown = CliRunner().invoke(cli, ["inspect", str(made(tmp_path, rows, text_tower, image_tower))])
    assert "joy\ufffd[2J" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_a_store_that_is_damaged_or_has_no_profile_is_refused(tmp_path, odd_store):
    copy = tmp_path / "store"
    shutil.copytree(odd_store, copy)
    (copy / "labels.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"labels\.json: damaged"):
        inspect(copy)
    manifest = json.loads((odd_store / "manifest.json").read_text())
    del manifest["files"]["profile.json"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    shutil.copyfile(odd_store / "labels.json", copy / "labels.json")
    (copy / "profile.json").unlink()
    with pytest.raises(BadInputError, match=r"profile\.json: missing; make it again with `labeler preprocess --force`"):
        inspect(copy)
    assert not quality_folder(copy).exists()


def test_what_cannot_be_kept_is_said_before_the_work(tmp_path, odd_store, monkeypatch):
    copy = tmp_path / "store"
    shutil.copytree(odd_store, copy)
    (tmp_path / "store-quality").mkdir()
    (tmp_path / "store-quality" / "mine.txt").touch()
    monkeypatch.setattr("labeler.inspection.picture_rows", lambda _: pytest.fail("looked at pictures"))
    with pytest.raises(BadInputError, match=r"store-quality: exists and was not made by labeler.*move what is there"):
        inspect(copy)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute, but for machines that do much else
def test_label_errors_planted_in_real_pairs_are_found_far_above_chance(tmp_path):
    """5 % of 320 clip-art pairs get another label; the towers are those that come with the installation."""
    rng = np.random.default_rng(0)
    names = ["animals", "food", "people", "computer"]
    rows = [json.loads(line) for line in (CLIPART / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for name in names for row in [row for row in rows if row["category"] == name][:80]]
    planted = {int(number) for number in rng.permutation(len(rows))[:16]}
    for number, row in enumerate(rows):
        row["image"] = str(CLIPART / row["image"])
        if number in planted:
            row["category"] = names[(names.index(row["category"]) + int(rng.integers(1, 4))) % 4]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest([tmp_path / "pairs.jsonl"], tmp_path / "records", IngestOptions(label="category", allow_outside=True))
    preprocess(tmp_path / "records", tmp_path / "store")
    found = [row["id"] for row in lines(inspect(tmp_path / "store").out / ERRORS)]
    wrong = {rows[number]["id"] for number in planted}
    hits = len(wrong & set(found))
    assert hits >= 0.7 * len(wrong)
    assert hits / len(found) > 6 * len(wrong) / len(rows)
    assert len(wrong & set(found[:10])) >= 6
