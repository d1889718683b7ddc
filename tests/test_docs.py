"""The documents say what the commands are, and link to files that exist."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from labeler.cli import COMMANDS
from labeler.model_card import USE

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/GUIDE.md",
    "docs/DESIGN.md",
    "docs/LOG.md",
    "docs/RESULTS.md",
    "docs/DEPENDENCIES.md",
    "data/clipart/README.md",
]
TARGETS = """setup demo ingest preprocess train-baseline train-late-fusion train-visualbert train-coattn evaluate report
predict test lint check bench clean"""


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_guide_lists_its_parts_and_shows_the_lines_of_the_model_card():
    guide = (ROOT / "docs/GUIDE.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", guide, flags=re.MULTILINE)
    anchors = [re.sub(r"[^a-z -]", "", part.lower()).replace(" ", "-") for part in parts]
    assert re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", guide, flags=re.MULTILINE) == list(zip(parts, anchors, strict=True))
    assert textwrap.indent(USE.format(folder="checkpoints/my/visualbert-coattn"), "    ") in guide


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command):
    assert f"`labeler {command} " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_help_lists_every_target_with_a_line():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", shown, flags=re.MULTILINE))
    assert set(TARGETS.split()) <= set(listed)


@pytest.mark.parametrize(("data", "name"), [("/tmp/my photos/v1.2 pairs.csv", "v1.2-pairs"), ("/tmp/v1.2/", "v1.2"),
                                            ("./data/clipart/pairs.jsonl", "clipart-category")])  # fmt: skip
def test_make_names_data_of_any_path(data, name):
    shown = subprocess.run(
        ["make", "-n", "ingest", f"DATA={data}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"labeler ingest '{data}' --out data/{name}/records" in shown.stdout


def test_make_clean_leaves_nothing_that_training_would_stumble_over(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ("checkpoints/README.md", "checkpoints/mine/visualbert/README.md", "checkpoints/mine/visualbert/manifest.json",
                 "data/mine/store/manifest.json", "data/mine/own.jsonl", "report/index.html"):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, check=True)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["Makefile", "checkpoints/README.md", "data/mine/own.jsonl"]
    assert not (tmp_path / "checkpoints/mine").exists()


def test_make_predict_with_data_of_ones_own_asks_what_to_label():
    shown = subprocess.run(
        ["make", "-n", "predict", "DATA=my.jsonl"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "name what is to be labelled, too: INPUT=FOLDER" in shown.stderr


def test_options_that_documents_name_exist():
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"`(--[a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
    script = (
        "from labeler.cli import cli, COMMANDS\n"
        "for name in COMMANDS:\n"
        "    print([option for parameter in cli.get_command(None, name).params for option in parameter.opts])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {name for name in named if f"'{name}'" not in shown} <= {"--help"}


def test_every_direct_dependency_has_its_reason():
    text = (ROOT / "docs/DEPENDENCIES.md").read_text(encoding="utf-8")
    section = re.search(
        r"install_requires =\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert section
    names = [re.split(r"[<>=]", line.strip())[0] for line in section[1].splitlines()]
    assert not [name for name in names if name not in text]


def test_the_lock_file_pins_every_direct_dependency_with_a_hash():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    section = re.search(
        r"install_requires =\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert section
    for line in section[1].splitlines():
        name = re.split(r"[<>=]", line.strip())[0]
        assert re.search(rf"^{name}==[^\n]+\\\n +--hash=sha256:", lock, flags=re.MULTILINE), name
