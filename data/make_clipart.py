"""Make data/clipart from the Debian package openclipart-svg.

    apt-get download openclipart-svg
    python data/make_clipart.py openclipart-svg_*.deb

SOURCE is the .deb or the folder that `dpkg-deb -x` unpacked it into. The same package and the
same versions of resvg-py and Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import tempfile
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from PIL import Image

SVG_FOLDER = Path("usr/share/openclipart/svg")
CHANGELOG = Path("usr/share/doc/openclipart-svg/changelog.Debian.gz")
README_TEMPLATE = Path(__file__).with_name("clipart_readme.md.in")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
CC = "{http://web.resource.org/cc/}"

PIXELS = 224
COLOURS = 64
MIN_COUNT = 20
MAX_SHARED_TITLE = 12
UNSEEN_COUNT = 100
UNSEEN_MIN = 3
MAX_BYTES = 8_000_000
# Folders that tell how a picture is used or that nobody sorted it, not what it shows.
NOT_SUBJECTS = frozenset({"buttons", "decorations", "logos", "shapes", "special", "unsorted"})
# Keywords that stand for "no keyword": a placeholder, a hash printed by mistake, a bare number.
NOT_TAGS = re.compile(r"unsorted|hash|\d*")
ROW_KEYS = ("id", "image", "text", "category", "tags", "author", "license")


class Dropped(ValueError):
    """A picture that does not go into the data; the message is the reason, for the README."""


class Metadata(NamedTuple):
    """What an SVG says about itself, and whether it draws letters."""

    text: str
    keywords: list[str]
    author: str
    license: str
    draws_text: bool


@dataclass
class Clip:
    """One picture with what its SVG says about it."""

    id: str
    svg: Path
    text: str
    category: str
    tags: list[str]
    author: str
    license: str
    png: bytes = b""

    def row(self) -> dict[str, object]:
        """The line of pairs.jsonl, keys in their fixed order."""
        values = {**vars(self), "image": f"images/{self.id}.png"}
        return {key: values[key] for key in ROW_KEYS}


def tidy(text: str) -> str:
    """The text with underscores and runs of white space turned into single spaces."""
    return " ".join(text.replace("_", " ").split())


def title_key(text: str) -> str:
    """What two titles have in common when they are the same but for case and spacing."""
    return unicodedata.normalize("NFKC", tidy(text)).casefold()


def element_text(parent: ET.Element, path: str) -> str:
    """All text below the first element at the path, white space tidied; "" where there is none."""
    found = parent.find(path)
    return "" if found is None else " ".join("".join(found.itertext()).split())


def read_metadata(svg: str | bytes) -> Metadata:
    """Title, keywords, author and license of an SVG; Dropped where it carries no RDF work."""
    try:
        root = ET.fromstring(svg)
    except ET.ParseError as error:
        raise Dropped("the SVG is not well-formed XML") from error
    work = root.find(f".//{CC}Work")
    if work is None:
        raise Dropped("the SVG has no RDF metadata")
    licenses = [node.get(f"{RDF}resource", "") for node in work.findall(f"{CC}license")]
    items = work.findall(f"{DC}subject/{RDF}Bag/{RDF}li")
    keywords = [(item.text or "").strip() for item in items]
    return Metadata(
        text=tidy(element_text(work, f"{DC}title")),
        keywords=list(dict.fromkeys(word for word in keywords if word)),
        author=element_text(work, f"{DC}creator"),
        license=licenses[0] if len(licenses) == 1 else "",
        draws_text=draws_text(root),
    )


def draws_text(root: ET.Element) -> bool:
    """True where the drawing writes letters with a font of the machine that renders it."""
    written = (node for node in root.iter() if str(node.tag).endswith(("}text", "}flowRoot")))
    return any("".join(node.itertext()).strip() for node in written)


def require_public_domain(license_uri: str) -> None:
    """Nothing where the license is a public-domain dedication; Dropped otherwise."""
    if license_uri.rstrip("/").rsplit("/", 1)[-1].lower() != "publicdomain":
        raise Dropped("the license is not public domain")


def read_clip(svg: Path, root: Path) -> Clip:
    """The picture with all its keywords as tags; Dropped where it cannot be used at all."""
    parts = svg.relative_to(root).with_suffix("").parts
    if parts[0] in NOT_SUBJECTS:
        raise Dropped("the top folder does not name a subject")
    about = read_metadata(svg.read_bytes())
    require_public_domain(about.license)
    title = title_key(about.text)
    if sum(character.isalnum() for character in title) < 3:
        raise Dropped("the title has fewer than 3 letters or digits")
    if title in {title_key(part) for part in parts[:-1]}:
        raise Dropped("the title is only the name of a folder")
    if about.draws_text:
        raise Dropped("the drawing needs a font")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", "__".join(parts))
    return Clip(name, svg, about.text, parts[0], about.keywords, about.author, about.license)


def read_clips(root: Path, drops: Counter[str]) -> list[Clip]:
    """Every usable picture below root, by id; the reasons for the others are counted in drops."""
    clips = []
    for svg in sorted(root.rglob("*.svg")):
        if svg.is_symlink():
            continue
        try:
            clips.append(read_clip(svg, root))
        except Dropped as reason:
            drops[str(reason)] += 1
    return sorted(clips, key=lambda clip: clip.id)


def drop_shared_titles(clips: list[Clip], drops: Counter[str]) -> list[Clip]:
    """The clips whose title is not one of a whole collection."""
    uses = Counter(title_key(clip.text) for clip in clips)
    kept = [clip for clip in clips if uses[title_key(clip.text)] <= MAX_SHARED_TITLE]
    drops[f"the title stands on more than {MAX_SHARED_TITLE} pictures"] += len(clips) - len(kept)
    return kept


def drop_non_tags(clips: list[Clip]) -> None:
    """Take from the tags what names no subject: placeholders, authors, and the categories."""
    names = {clip.category for clip in clips} | {clip.author.casefold() for clip in clips}
    for clip in clips:
        words = [word for word in clip.tags if word.casefold() not in names]
        clip.tags = [word for word in words if not NOT_TAGS.fullmatch(word)]


def drop_rare(clips: list[Clip], drops: Counter[str], spare: int = 0) -> list[Clip]:
    """The clips whose tags all have MIN_COUNT examples among the clips returned.

    Their categories have `spare` more, to be taken out later.
    """
    kept = clips
    while True:
        categories = Counter(clip.category for clip in kept)
        tags = Counter(tag for clip in kept for tag in clip.tags)
        for clip in kept:
            clip.tags = [tag for tag in clip.tags if tags[tag] >= MIN_COUNT]
        enough = {name for name, count in categories.items() if count >= MIN_COUNT + spare}
        left = [clip for clip in kept if clip.tags and clip.category in enough]
        if len(left) == len(kept) and min(tags.values(), default=MIN_COUNT) >= MIN_COUNT:
            break
        kept = left
    drops["no common keyword, or a rare category"] += len(clips) - len(kept)
    return kept


def render(svg: str) -> bytes:
    """The drawing as a palette PNG of PIXELS x PIXELS, centred on white."""
    import resvg_py

    # Without a dpi resvg refuses sizes in mm; without system fonts every machine draws the same.
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS, dpi=96, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
    canvas = Image.new("RGBA", (PIXELS, PIXELS), "white")
    corner = ((PIXELS - picture.width) // 2, (PIXELS - picture.height) // 2)
    canvas.alpha_composite(picture, corner)
    small = canvas.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    if len(small.getcolors() or []) < 2:
        raise Dropped("nothing is drawn")
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def picture_hash(png: bytes) -> str:
    """A digest of the pixels, the same for two files that look the same."""
    pixels = Image.open(io.BytesIO(png)).convert("RGB").tobytes()
    return hashlib.sha256(pixels).hexdigest()


def render_clips(clips: list[Clip], drops: Counter[str]) -> list[Clip]:
    """The clips with their PNG, without blank pictures and without copies of an earlier one."""
    kept: dict[str, Clip] = {}
    for clip in clips:
        try:
            clip.png = render(clip.svg.read_text("utf-8"))
        except Dropped as reason:
            drops[str(reason)] += 1
            continue
        if kept.setdefault(picture_hash(clip.png), clip) is not clip:
            drops["the picture equals another one"] += 1
    return list(kept.values())


def id_hash(clip: Clip) -> str:
    """A key that sorts clips in an order that has nothing to do with what they show."""
    return hashlib.sha256(clip.id.encode()).hexdigest()


def choose_unseen(clips: list[Clip]) -> list[Clip]:
    """About UNSEEN_COUNT clips with a title of their own, spread over the categories by share."""
    titles = Counter(title_key(clip.text) for clip in clips)
    chosen = []
    for category, count in sorted(Counter(clip.category for clip in clips).items()):
        alone = [clip for clip in clips if titles[title_key(clip.text)] == 1]
        own = sorted((clip for clip in alone if clip.category == category), key=id_hash)
        chosen += own[: max(UNSEEN_MIN, round(UNSEEN_COUNT * count / len(clips)))]
    return chosen


def write_pairs(clips: list[Clip], out: Path) -> None:
    """Write pairs.jsonl and images/ below out."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for clip in clips:
        (out / "images" / f"{clip.id}.png").write_bytes(clip.png)
    lines = [json.dumps(clip.row(), ensure_ascii=False) + "\n" for clip in clips]
    (out / "pairs.jsonl").write_bytes("".join(lines).encode("utf-8"))


def write_unseen(clips: list[Clip], out: Path) -> None:
    """Write unseen/ below out: pictures and titles, under numbers that tell no category."""
    folder = out / "unseen"
    folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(sorted(clips, key=id_hash), start=1):
        (folder / f"unseen_{number:03}.png").write_bytes(clip.png)
        (folder / f"unseen_{number:03}.txt").write_bytes(f"{clip.text}\n".encode())


def table(heads: list[str], rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table with those column heads; every column but the first holds numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def readme(pairs: list[Clip], unseen: list[Clip], drops: Counter[str], package: str) -> str:
    """The text of README.md, its counts taken from the data."""
    categories = Counter(clip.category for clip in pairs)
    extra = Counter(clip.category for clip in unseen)
    tags = Counter(tag for clip in pairs for tag in clip.tags)
    by_category = [(name, count, extra[name]) for name, count in sorted(categories.items())]
    return README_TEMPLATE.read_text("utf-8").format(
        package=package,
        resvg=version("resvg-py"),
        pillow=version("pillow"),
        pairs=len(pairs),
        unseen=len(unseen),
        colours=COLOURS,
        pixels=PIXELS,
        min_count=MIN_COUNT,
        max_shared_title=MAX_SHARED_TITLE,
        drop_table=table(["Reason", "Pictures"], sorted(drops.items())),
        category_table=table(["Category", "Pairs", "Unseen"], by_category),
        tag_table=table(["Tag", "Pairs"], sorted(tags.items())),
    )


def package_version(unpacked: Path) -> str:
    """The package's version, from the first line of its changelog."""
    with gzip.open(unpacked / CHANGELOG, "rt", encoding="utf-8", errors="replace") as lines:
        found = re.match(r"\S+ \(([^)]+)\)", next(lines, ""))
    return found.group(1) if found else "unknown"


def make(unpacked: Path, out: Path) -> str:
    """Write the whole folder from an unpacked package and return a line that sums it up."""
    drops: Counter[str] = Counter()
    clips = drop_shared_titles(read_clips(unpacked / SVG_FOLDER, drops), drops)
    drop_non_tags(clips)
    clips = render_clips(drop_rare(clips, drops), drops)
    clips = drop_rare(clips, drops, spare=UNSEEN_MIN)
    unseen = choose_unseen(clips)
    chosen = {clip.id for clip in unseen}
    pairs = drop_rare([clip for clip in clips if clip.id not in chosen], drops)
    write_pairs(pairs, out)
    write_unseen(unseen, out)
    package = package_version(unpacked)
    (out / "README.md").write_bytes(readme(pairs, unseen, drops, package).encode("utf-8"))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise SystemExit(f"{out} has {size} bytes, more than {MAX_BYTES}; lower COLOURS")
    return f"{len(pairs)} pairs, {len(unseen)} unseen, {size} bytes in {out}"


def main() -> None:
    """Read the command line and make the data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="the .deb, or the folder it was unpacked into")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("clipart"))
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already; remove it, or name another with --out")
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = options.source
        if unpacked.is_file():
            subprocess.run(["dpkg-deb", "-x", str(unpacked), scratch], check=True)
            unpacked = Path(scratch)
        if not (unpacked / SVG_FOLDER).is_dir():
            parser.error(f"{options.source} holds no {SVG_FOLDER}")
        print(make(unpacked, options.out))


if __name__ == "__main__":
    main()
