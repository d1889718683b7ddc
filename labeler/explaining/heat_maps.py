"""Explanations as a picture: a heat map over the pair's picture, its text with words shaded by weight."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from labeler.artifacts import appearing
from labeler.errors import BadInputError
from labeler.explaining.explanation import Explanation
from labeler.pictures.images import decode_image
from labeler.replacing import is_marked

log = logging.getLogger("labeler")

# told apart by those who see no red or no green
FOR, AGAINST = (230, 97, 1), (46, 104, 191)
INK, FAINT, PAPER = (34, 34, 34), (110, 110, 110), (255, 255, 255)
SIDE, MARGIN, GAP = 420, 28, 20
WIDTH = 2 * MARGIN + 2 * SIDE + GAP
LEGEND = 160
WORD_SIZE, LINE, LONGEST = 22, 38, 60  # pixels, pixels, characters of a word
FONTS = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts", "~/Library/Fonts", "/Library/Fonts",
         "/System/Library/Fonts")  # fmt: skip
NO_SIGN = "\ufffe"  # no character, so that every font draws its sign for a missing one


def write_heat_maps(explanations: Sequence[Explanation], path: Path) -> None:
    """Write explanations below one another as a PNG; the file appears whole or not at all.

    Raises BadInputError when it cannot be written.
    """
    panels = [panel(explanation) for explanation in explanations]
    if lost := lost_signs(explanations):
        log.warning("no font on this system has %s; in the picture they are empty boxes", " ".join(lost))
    page = Image.new("RGB", (WIDTH, sum(one.height for one in panels)), PAPER)
    top = 0
    for one in panels:
        page.paste(one, (0, top))
        top += one.height
    mark = PngInfo()
    mark.add_text("Software", "labeler")
    try:
        with appearing(path) as partial:
            page.save(partial, "PNG", pnginfo=mark)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def is_heat_map(path: Path) -> bool:
    """Return whether `write_heat_maps` has written a file."""
    return is_marked(path, b"tEXtSoftware\0labeler")


def panel(explanation: Explanation) -> Image.Image:
    """Return one explanation: label and score, the picture without and with its heat map, the text, a legend."""
    page = Image.new("RGB", (WIDTH, 10_000), PAPER)
    pen = ImageDraw.Draw(page)
    top = draw_text(pen, f"{explanation.label}  {explanation.score:.3f}", MARGIN, MARGIN, 26, INK) + 14
    if explanation.picture is not None:
        picture = decode_image(explanation.picture)
        scale = SIDE / max(picture.size)
        picture = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
        )
        for number, image in enumerate((picture, heated(picture, explanation))):
            left = MARGIN + number * (SIDE + GAP) + (SIDE - picture.width) // 2
            page.paste(image, (left, top))
            pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=(205, 205, 205))
        top += picture.height + 18
    if explanation.words:
        top = draw_words(pen, explanation, top) + 10
    top = draw_legend(pen, explanation, top)
    return page.crop((0, 0, WIDTH, top + MARGIN))


def heated(picture: Image.Image, explanation: Explanation) -> Image.Image:
    """Return the picture, paler, under its heat map: a smooth one of a grid, or a detector's boxes."""
    pale = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), 0.35)
    heat = heat_map(explanation, picture.size)
    pale.paste(heat, (0, 0), heat)
    return pale


def heat_map(explanation: Explanation, size: tuple[int, int], most: float | None = None) -> Image.Image:
    """Return what each place of the picture adds to the label as an RGBA image of that size, clear where it adds nothing.

    A weight of `most`, by default the strongest one's, or more has the full colour.
    """
    width, height = size
    weights = np.zeros((height, width), np.float32)
    if explanation.grid is not None:
        grid = Image.fromarray(explanation.grid.astype(np.float32))
        weights = np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
    for (left, top, right, bottom), weight in explanation.regions:
        rows, columns = (slice(int(a * side), int(np.ceil(b * side)))
                         for a, b, side in ((top, bottom, height), (left, right, width)))  # fmt: skip
        weights[rows, columns] += weight
    strength = np.minimum(np.abs(weights) / (most or max(float(np.abs(weights).max()), 1e-12)), 1.0)
    colours = np.where(weights[..., None] > 0, np.array(FOR), np.array(AGAINST))
    return Image.fromarray(np.dstack([colours, 215 * strength**0.8]).astype(np.uint8))


def draw_words(pen: ImageDraw.ImageDraw, explanation: Explanation, top: int) -> int:
    """Draw the text from `top` on, words on a ground as strong as their weight; return where it ends."""
    most = max(abs(word.weight) for word in explanation.words) or 1.0
    text, left, end = explanation.text or "", MARGIN, 0
    for word in explanation.words:
        gap, shown = text[end : word.start], " ".join(word.text.split())[:LONGEST]
        left += 6 * gap[:1].isspace()
        wide, strength = width_of(shown, WORD_SIZE), abs(word.weight) / most
        if left > MARGIN and left + wide + 8 > WIDTH - MARGIN:
            left, top = MARGIN, top + LINE
        ground = mixed(FOR if word.weight > 0 else AGAINST, 0.85 * strength)
        pen.rounded_rectangle((left, top - 3, left + wide + 8, top + WORD_SIZE + 7), 5, fill=ground)
        draw_text(pen, shown, left + 4, top, WORD_SIZE, INK if strength < 0.75 else PAPER)
        left, end = left + wide + 10, word.end
    if text[end:].strip():  # longer than what the model reads
        draw_text(pen, "…", left + 6, top, WORD_SIZE, FAINT)
    return top + LINE


def draw_legend(pen: ImageDraw.ImageDraw, explanation: Explanation, top: int) -> int:
    """Draw what the colours mean and how much text and picture add; return where it ends."""
    for x in range(LEGEND):
        share = 2 * x / (LEGEND - 1) - 1
        pen.line(
            (MARGIN + 70 + x, top + 3, MARGIN + 70 + x, top + 15), fill=mixed(FOR if share > 0 else AGAINST, abs(share))
        )
    draw_text(pen, "against", MARGIN, top, 15, FAINT)
    draw_text(
        pen,
        f"for {explanation.label}; text and picture each on a scale of their own",
        MARGIN + LEGEND + 82,
        top,
        15,
        FAINT,
    )
    sums = f"logit {explanation.logit:.2f} = {explanation.baseline_logit:.2f} of nothing"
    sums += f" {explanation.text_sum:+.2f} of the text {explanation.picture_sum:+.2f} of the picture"
    return draw_text(pen, f"{sums} (error {explanation.error:.2f})", MARGIN, top + 26, 15, FAINT)


def mixed(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """Return the colour at that share, on paper."""
    red, green, blue = (round(share * own + (1 - share) * paper) for own, paper in zip(colour, PAPER, strict=True))
    return red, green, blue


def draw_text(pen: ImageDraw.ImageDraw, text: str, left: int, top: int, size: int, fill: Any) -> int:
    """Draw a line of text in a font that has its signs; return where it ends."""
    pen.text((left, top), text, font=font_for(text, size), fill=fill)
    return top + round(1.3 * size)


def width_of(text: str, size: int) -> int:
    """Return how many pixels wide a text is."""
    return round(font_for(text, size).getlength(text))


@cache
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, or the first of the system's that has all signs of the text; Pillow's where there is none."""
    own = ImageFont.load_default(size)
    if has_signs(own, text):
        return own
    for path in system_fonts():
        try:
            font = ImageFont.truetype(path, size)
            if has_signs(font, text):
                return font
        except OSError:  # a font that Pillow cannot read
            continue
    return own


def has_signs(font: Any, text: str) -> bool:
    """Return whether the font has a sign of its own for every character of the text."""
    missing = bytes(font.getmask(NO_SIGN))
    return all(sign.isspace() or bytes(font.getmask(sign)) != missing for sign in set(text))


def lost_signs(explanations: Sequence[Explanation]) -> list[str]:
    """Return which signs of the words no font has."""
    words = {word.text for explanation in explanations for word in explanation.words}
    return sorted({sign for word in words for sign in word if not has_signs(font_for(word, WORD_SIZE), sign)})


@cache
def system_fonts() -> list[Path]:
    """Return the files of the fonts that the system has: regular ones first, and those with many scripts before others."""
    found = [
        path
        for folder in FONTS
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    ]
    return sorted(
        found, key=lambda path: ("CJK" not in path.name, "Regular" not in path.name, "Mono" in path.name, str(path))
    )
