"""The clip art below data/clipart is what its README says, and its script reads SVGs right."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "data"
CLIPART = DATA / "clipart"
KEYS = ["id", "image", "text", "category", "tags", "author", "license"]
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:cc="http://web.resource.org/cc/"
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" width="40mm" height="20mm">
  <metadata><rdf:RDF><cc:Work rdf:about="">
    <dc:title> Caf\u00e9_au
      lait </dc:title>
    <dc:subject><rdf:Bag>
      <rdf:li>beverage</rdf:li><rdf:li></rdf:li><rdf:li>cup</rdf:li><rdf:li>cup</rdf:li>
    </rdf:Bag></dc:subject>
    <dc:publisher><cc:Agent><dc:title>The publisher</dc:title></cc:Agent></dc:publisher>
    <dc:creator><cc:Agent><dc:title>Ada &lt;L&gt;</dc:title></cc:Agent></dc:creator>
    <cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>
  </cc:Work></rdf:RDF></metadata>
  <rect width="100%" height="100%" fill="#ff0000"/>
</svg>"""


def load_script() -> ModuleType:
    """The module data/make_clipart.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("make_clipart", DATA / "make_clipart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks the module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_clipart = load_script()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The lines of pairs.jsonl."""
    text = (CLIPART / "pairs.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def hashes(rows: list[dict]) -> list[str]:
    """The picture hash of each row."""
    return [make_clipart.picture_hash((CLIPART / row["image"]).read_bytes()) for row in rows]


@pytest.fixture(scope="module")
def unseen() -> list[Path]:
    """The pictures below unseen/."""
    return sorted((CLIPART / "unseen").glob("*.png"))


def readme_table(head: str) -> dict[str, list[int]]:
    """The numbers of the README's table whose head line starts so, by first column."""
    lines = (CLIPART / "README.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    numbers = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *counts = (cell.strip() for cell in line.strip("|").split("|"))
        numbers[name] = [int(count) for count in counts]
    return numbers


def clip(name: str, category: str, tags: list[str], text: str = "") -> object:
    """A clip without a picture."""
    return make_clipart.Clip(name, Path(name), text or name, category, tags, "", PUBLIC_DOMAIN)


def write_svg(root: Path, name: str, text: str = SVG) -> Path:
    """The path of an SVG written below root."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def test_every_row_has_the_fields_of_the_readme_and_no_other(rows: list[dict]) -> None:
    """No row carries the keywords or the description, which give the labels away."""
    assert {tuple(row) for row in rows} == {tuple(KEYS)}
    assert all(row["text"] == " ".join(row["text"].split()) != "" for row in rows)
    assert all(row["tags"] and len(set(row["tags"])) == len(row["tags"]) for row in rows)
    assert {row["license"] for row in rows} == {PUBLIC_DOMAIN}


def test_ids_are_unique_and_sorted_and_name_the_pictures(rows: list[dict]) -> None:
    """No two ids differ by case alone: they are file names."""
    ids = [row["id"] for row in rows]
    assert ids == sorted(ids)
    assert len({name.lower() for name in ids}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in ids)
    assert [row["image"] for row in rows] == [f"images/{name}.png" for name in ids]


def test_every_picture_opens_and_none_is_left_over(rows: list[dict], unseen: list[Path]) -> None:
    """The images folder holds the pictures of the rows, all of one size."""
    pictures = [CLIPART / row["image"] for row in rows]
    assert set(pictures) == set((CLIPART / "images").iterdir())
    for path in [*pictures, *unseen]:
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", (224, 224)), path
            assert picture.mode in {"RGB", "P"}, path


def test_counts_and_bytes_are_within_bounds(rows: list[dict], unseen: list[Path]) -> None:
    """Each label has enough examples to be learnt and the folder stays small."""
    assert 1_500 <= len(rows) <= 2_500
    assert 90 <= len(unseen) <= 120
    assert min(Counter(row["category"] for row in rows).values()) >= 20
    assert min(Counter(tag for row in rows for tag in row["tags"]).values()) >= 20
    files = [path for path in CLIPART.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_no_picture_stands_twice(hashes: list[str]) -> None:
    """A copy on both sides of a split would be a leak."""
    assert len(set(hashes)) == len(hashes)


def test_unseen_shares_no_picture_and_no_title(rows: list[dict], hashes: list[str], unseen: list[Path]) -> None:
    """Nothing that a model is trained on comes back among the unseen pictures."""
    pictures = {make_clipart.picture_hash(path.read_bytes()) for path in unseen}
    assert len(pictures) == len(unseen)
    assert not pictures & set(hashes)
    titles = [path.with_suffix(".txt").read_text("utf-8") for path in unseen]
    assert all(title.endswith("\n") and title.count("\n") == 1 for title in titles)
    keys = {make_clipart.title_key(title) for title in titles}
    assert len(keys) == len(unseen)
    assert not keys & {make_clipart.title_key(row["text"]) for row in rows}
    assert len(list((CLIPART / "unseen").iterdir())) == 2 * len(unseen)


def test_the_readme_counts_what_is_there(rows: list[dict], unseen: list[Path]) -> None:
    """The two tables and the first sentence agree with the files."""
    categories = readme_table("| Category |")
    assert {name: counts[0] for name, counts in categories.items()} == Counter(row["category"] for row in rows)
    assert sum(counts[1] for counts in categories.values()) == len(unseen)
    assert min(counts[1] for counts in categories.values()) >= 1
    tags = Counter(tag for row in rows for tag in row["tags"])
    assert {name: counts[0] for name, counts in readme_table("| Tag |").items()} == tags
    readme = (CLIPART / "README.md").read_text("utf-8")
    assert f"\n{len(rows)} pairs of a picture" in readme
    assert f"\n{len(unseen)} further pictures" in readme


def test_metadata_is_read_from_the_work_of_the_svg() -> None:
    """The title is the work's, not the publisher's; empty and repeated keywords go."""
    about = make_clipart.read_metadata(SVG)
    assert about.text == "Caf\u00e9 au lait"
    assert about.keywords == ["beverage", "cup"]
    assert about.author == "Ada <L>"
    assert about.license == PUBLIC_DOMAIN
    assert not about.draws_text


def test_an_svg_without_metadata_is_refused() -> None:
    """Without metadata there is no license either."""
    with pytest.raises(make_clipart.Dropped, match="no RDF metadata"):
        make_clipart.read_metadata('<svg xmlns="http://www.w3.org/2000/svg"/>')
    with pytest.raises(make_clipart.Dropped, match="not well-formed"):
        make_clipart.read_metadata("<svg>")


def test_a_license_that_is_not_public_domain_is_refused(tmp_path: Path) -> None:
    """Another license and a missing one both keep a picture out."""
    other = SVG.replace(PUBLIC_DOMAIN, "http://creativecommons.org/licenses/GPL/2.0/")
    with pytest.raises(make_clipart.Dropped, match="not public domain"):
        make_clipart.read_clip(write_svg(tmp_path, "food/other.svg", other), tmp_path)
    none = re.sub(r"<cc:license .*/>", "", SVG)
    with pytest.raises(make_clipart.Dropped, match="not public domain"):
        make_clipart.read_clip(write_svg(tmp_path, "food/none.svg", none), tmp_path)
    make_clipart.require_public_domain("http://creativecommons.org/licenses/publicdomain/")


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("special/cup.svg", "", "", "does not name a subject"),
        ("food/cup.svg", "Caf\u00e9_au\n      lait", "12", "fewer than 3 letters"),
        ("food/cup.svg", "Caf\u00e9_au\n      lait", "Food", "name of a folder"),
        ("food/cup.svg", "</svg>", "<text>cup</text></svg>", "needs a font"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, name: str, old: str, new: str, reason: str) -> None:
    """Each rule of the README's table of reasons stops its picture."""
    path = write_svg(tmp_path, name, SVG.replace(old, new) if old else SVG)
    with pytest.raises(make_clipart.Dropped, match=reason):
        make_clipart.read_clip(path, tmp_path)


def test_clips_are_read_in_order_and_drops_are_counted(tmp_path: Path) -> None:
    """A link to a picture is no second picture."""
    write_svg(tmp_path, "food/hot drinks/cup.svg")
    write_svg(tmp_path, "animals/cat.svg")
    write_svg(tmp_path, "unsorted/cup.svg")
    (tmp_path / "food" / "link.svg").symlink_to(tmp_path / "animals" / "cat.svg")
    drops: Counter[str] = Counter()
    clips = make_clipart.read_clips(tmp_path, drops)
    assert [one.id for one in clips] == ["animals__cat", "food__hot-drinks__cup"]
    assert [one.category for one in clips] == ["animals", "food"]
    assert drops == {"the top folder does not name a subject": 1}
    assert list(clips[0].row()) == KEYS


def test_rare_labels_go_with_the_rows_that_need_them() -> None:
    """A row that leaves can make another label rare; the rule holds in what comes back."""
    many = [clip(f"a{number}", "food", ["fruit"]) for number in range(20)]
    rare_tag = clip("b", "food", ["medlar"])
    rare_category = clip("c", "fog", ["fruit", "grey"])
    drops: Counter[str] = Counter()
    assert make_clipart.drop_rare([*many, rare_tag, rare_category], drops) == many
    assert drops.total() == 2
    assert make_clipart.drop_rare(many, drops, spare=1) == []


def test_tags_that_name_no_subject_go() -> None:
    """Placeholders, numbers and the names of categories are no tags."""
    one = clip("a", "food", ["unsorted", "hash", "11", "Food", "fruit"])
    make_clipart.drop_non_tags([one])
    assert one.tags == ["fruit"]


def test_unseen_are_chosen_from_every_category_among_titles_used_once() -> None:
    """The choice does not depend on the order of the clips."""
    clips = [clip(f"{name}{n}", name, ["x"]) for name in ("food", "fog") for n in range(30)]
    clips += [clip(f"same{n}", "food", ["x"], text="Same") for n in range(30)]
    chosen = make_clipart.choose_unseen(clips)
    assert {one.category for one in chosen} == {"food", "fog"}
    assert all(one.text != "Same" for one in chosen)
    backwards = make_clipart.choose_unseen(clips[::-1])
    assert {one.id for one in backwards} == {one.id for one in chosen}


def test_a_drawing_is_centred_on_white() -> None:
    """A drawing twice as wide as high leaves white bands above and below."""
    pytest.importorskip("resvg_py", reason="rendering needs the package resvg-py")
    png = make_clipart.render(SVG)
    picture = Image.open(io.BytesIO(png))
    assert (picture.mode, picture.size) == ("P", (224, 224))
    rgb = picture.convert("RGB")
    assert rgb.getpixel((112, 112)) == (255, 0, 0)
    assert rgb.getpixel((112, 10)) == rgb.getpixel((112, 213)) == (255, 255, 255)
    assert make_clipart.picture_hash(png) == make_clipart.picture_hash(make_clipart.render(SVG))
    with pytest.raises(make_clipart.Dropped, match="nothing is drawn"):
        make_clipart.render(SVG.replace("#ff0000", "#ffffff"))
