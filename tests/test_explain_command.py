"""The command `labeler explain`: what it prints and draws, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_explanation import ITEM

from labeler.cli import cli
from labeler.errors import BadInputError, LabelerError, UsageError
from labeler.explaining import heat_maps
from labeler.explaining.explanation import explain_given, explain_item


def call(capsys, *arguments: object) -> str:
    """Return what `labeler explain` writes to standard output."""
    cli.main(["explain", *map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command_marks_words_with_signs_where_there_is_no_terminal(trained, capsys, monkeypatch):
    out = call(capsys, trained("visualbert"), ITEM, "--label", "circle")
    assert out.startswith(f"{ITEM}: circle 0.")
    assert "\x1b" not in out
    assert "++" in out or "--" in out
    assert "from a pair that says nothing" in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[" in call(capsys, trained("visualbert"), ITEM)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call(capsys, trained("visualbert"), ITEM)


def test_a_text_cannot_steer_the_terminal(trained, capsys):
    out = call(capsys, trained("visualbert"), "--text", "red \x1b[2J circle \u202e one \x07")
    assert not {"\x1b", "\u202e", "\x07"} & set(out)
    assert "red" in out
    assert "\ufffd[2J" in out.replace("+", "").replace("-", "")


def test_the_command_prints_json_and_draws(trained, store, capsys, tmp_path):
    picture = store.parent / "source" / "pictures" / f"{ITEM}.png"
    target = tmp_path / "duck.png"
    found = json.loads(
        call(capsys, trained("visualbert"), "--image", picture, "--text", "a 猫", "--json", "--out", target)
    )
    assert [word["text"] for word in found[0]["words"]] == ["a", "猫"]
    assert np.shape(found[0]["grid"]) == (2, 2)
    with Image.open(target) as drawn:
        drawn.load()
        assert (drawn.format, drawn.width) == ("PNG", heat_maps.WIDTH)
        assert drawn.height > heat_maps.SIDE * 40 / 48
        assert len(drawn.getcolors(1 << 24)) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["duck.png"]


@pytest.mark.parametrize(("text", "lost"), [("a circle", ""), ("a 猫 on 猫 纸", "no font on this system has 猫 纸;")])
def test_signs_that_no_font_has_are_said_once(trained, monkeypatch, caplog, tmp_path, text, lost):
    monkeypatch.setattr(heat_maps, "system_fonts", list)
    heat_maps.font_for.cache_clear()
    found = explain_given(trained("resnet-gru"), None, text, label="circle", device="cpu")
    heat_maps.write_heat_maps(found, tmp_path / "x.png")
    said = [record.getMessage() for record in caplog.records if "font" in record.getMessage()]
    assert len(said) == bool(lost)
    assert all(lost in message for message in said)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], UsageError, "give a pair's id as ITEM"),
        ([ITEM, "--text", "both"], UsageError, "give a pair's id as ITEM"),
        (["circle-red-on"], BadInputError, "no pair with the id 'circle-red-on'; the closest are 'circle-red-one'"),
        (["broken.png"], BadInputError, "no pair with the id 'broken.png'; of a file: --image FILE"),
        ([ITEM, "--label", "crcle"], UsageError, "unknown label 'crcle'; did you mean 'circle'"),
        ([ITEM, "--data", "none"], BadInputError, "none"),
        ([ITEM, "--out", "none/x.png"], BadInputError, "none/x.png: cannot be written"),
        (["--image", "broken.png", "--out", "./broken.png"], UsageError, "the picture itself, which the heat map"),
        (["--image", "a.mp4#frame=1of2", "--out", "a.mp4"], UsageError, "the picture itself, which the heat map would"),
        ([ITEM, "--out", "x.jpg"], UsageError, "--out x.jpg: what is drawn is a PNG; name it x.png"),
        (["--image", "none.png"], BadInputError, "none.png: no such file"),
        (["--image", "broken.png"], BadInputError, "broken.png"),
        (["--text", " "], BadInputError, "--text: empty"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(trained, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(LabelerError, match=message) as caught:
        cli.main(["explain", str(trained("visualbert")), *arguments], standalone_mode=False)
    assert type(caught.value) is error


def test_a_damaged_run_and_a_store_that_is_gone_are_refused(trained, store, tmp_path):
    run = shutil.copytree(trained("visualbert"), tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["inputs"][0]["path"] = "gone"
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BadInputError, match=r"gone: the store that .* was trained on is not there; name it with --data"
    ):
        explain_item(run, ITEM)
    assert explain_item(run, ITEM, data=store, label="cross")[0].label == "cross"
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        explain_item(run, ITEM, data=store)
