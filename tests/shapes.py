"""The drawn data set of the tests: a shape of one colour on grey paper, with a caption that names both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "square")
COLOURS = ("red", "green", "blue", "yellow")
NUMBERS = ("one", "two", "three")


def draw(shape: str, colour: str, seed: int) -> Image.Image:
    """Return a picture of 48 x 40 pixels: one shape of that colour on grey paper."""
    rng = np.random.default_rng(seed)
    paper = rng.integers(150, 200, (40, 48, 3), dtype=np.uint8)
    image = Image.fromarray(paper)
    x, y = (int(value) for value in rng.integers(2, 14, 2))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((x, y, x + 20, y + 20), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + 20, y + 20), fill=colour)
    else:
        pen.line((x, y, x + 20, y + 20), fill=colour, width=5)
        pen.line((x, y + 20, x + 20, y), fill=colour, width=5)
    return image


def draw_source(folder: Path, task: str) -> Path:
    """Draw 36 pictures with captions, and pairs.jsonl with 38 rows: 25 train, 6 validation, 7 test.

    One pair of train and one of test have no picture, one of each no text.
    """
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(36):
        shape, colour, count = SHAPES[number % 3], COLOURS[number // 3 % 4], NUMBERS[number // 12]
        name = f"pictures/{shape}-{colour}-{count}.png"
        draw(shape, colour, number).save(folder / name)
        text = f"{count} {colour} {shape}" + " drawn by hand with very much care" * (number % 2)
        labels = shape if task == "single" else [shape, colour]
        split = ("train" if number < 24 else "validation") if number < 30 else "test"
        rows.append({"id": name[9:-4], "image": name, "text": text, "labels": labels, "split": split})
    rows[5]["text"] = rows[33]["text"] = None
    for split, count in (("train", "three"), ("test", "two")):
        labels = "square" if task == "single" else ["square", "red"]
        text = f"a red square on paper {count}"
        rows.append({"id": f"{split}-words", "image": None, "text": text, "labels": labels, "split": split})
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "pairs.jsonl"
