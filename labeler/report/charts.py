"""Charts as numbers: the geometry that the SVG macros of `charts.html.j2` draw."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 12, 40
ROW = 24  # pixels of a row of dots
COLOURS = 8  # series colours in the style sheet; from the ninth on they come again, dashed


class Series(NamedTuple):
    """One line: its points, the x of the one to mark, and how many things each point stands for, where that differs."""

    name: str
    points: list[tuple[float, float]]
    marked: float | None = None
    counts: list[int] | None = None


def line_chart(
    title: str,
    series: list[Series],
    x_title: str = "epoch",
    *,
    shares: bool = False,
    diagonal: bool = False,
) -> dict[str, Any]:
    """Return a chart for the macro `lines`: ticks and points in pixels of a 460 x 270 box.

    With `shares` both axes are shares in percent, x from 0 to 1, and the points have no dots; with `diagonal` both reach from
    0 to 1, and a line shows where they are equal.
    """
    values = [point for line in series for point in line.points]
    x_low, x_high = (0.0, 1.0) if shares else (min(x for x, _ in values), max(x for x, _ in values))
    lowest = 0.0 if shares else min(y for _, y in values)
    y_ticks = ticks(lowest, 1.0 if diagonal else max(y for _, y in values))

    def across(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / ((x_high - x_low) or 1), 1)

    def up(y: float) -> float:
        span = y_ticks[-1] - y_ticks[0]
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_ticks[0]) / span, 1)

    def text(value: float) -> str:
        return f"{100 * value:g} %" if shares else f"{value:g}"

    lines = [
        {
            "name": line.name,
            "colour": number % COLOURS + 1,
            "dashed": number >= COLOURS,
            "dots": [
                (across(x), up(y), x == line.marked, radius)
                for (x, y), radius in zip(line.points, radii(line), strict=True)
            ],
        }
        for number, line in enumerate(series)
    ]
    x_ticks = [x for x in ticks(x_low, x_high, 6) if x_low <= x <= x_high and (shares or x == int(x))]
    return {
        "title": title,
        "x_title": x_title,
        "x_ticks": [(across(x), text(x)) for x in x_ticks],
        "y_ticks": [(up(y), text(y)) for y in y_ticks],
        "lines": lines,
        "dotted": diagonal or not shares,
        "diagonal": [across(0), up(0), across(1), up(1)] if diagonal else None,
        "box": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
    }


def radii(line: Series) -> list[float]:
    """Return a radius for each point in pixels: its dot's area grows with what it stands for."""
    if line.counts is None:
        return [6.0 if x == line.marked else 3.0 for x, _ in line.points]
    return [round(1.5 + 6 * math.sqrt(count / max(line.counts)), 1) for count in line.counts]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 2 round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def axis_of(intervals: list[list[float]]) -> tuple[float, float]:
    """Return the ends of one axis, in steps of 10 %, that holds all intervals (fractions in 0..1)."""
    low, high = min(bounds[0] for bounds in intervals), max(bounds[1] for bounds in intervals)
    first, last = math.floor(low * 10 + 1e-9) / 10, math.ceil(high * 10 - 1e-9) / 10
    return max(first, 0.0), max(last, first + 0.1)


def histogram_chart(title: str, histogram: dict[str, Any]) -> dict[str, Any]:
    """Return a chart of a profile's histogram for the macro `histogram`: bars and ticks in pixels of a 460 x 270 box.

    The last bucket holds all values from its start on; its label says so where it is not the only one.
    """
    start, width, counts = histogram["start"], histogram["width"], histogram["counts"]
    y_ticks = [tick for tick in ticks(0, max(counts)) if tick == int(tick)]
    slot = (WIDTH - LEFT - RIGHT) / len(counts)
    span = HEIGHT - TOP - BOTTOM
    names = [f"{start + number * width:,}" for number in range(len(counts))]
    if width > 1:
        names = [f"{name}–{start + (number + 1) * width - 1:,}" for number, name in enumerate(names)]
    if len(counts) > 1:
        names[-1] = f"{start + (len(counts) - 1) * width:,} and more"
    bars = []
    for number, count in enumerate(counts):
        height = span * count / y_ticks[-1]
        bars.append({"x": round(LEFT + number * slot, 1), "y": round(HEIGHT - BOTTOM - height, 1),
                     "width": round(max(slot - 1.5, 1), 1), "height": round(height, 1),
                     "name": f"{names[number]}: {count:,}"})  # fmt: skip
    every = math.ceil(len(counts) / 6)
    return {
        "title": title,
        "rows": sum(counts),
        "bars": bars,
        "x_ticks": [(round(LEFT + n * slot, 1), f"{start + n * width:,}") for n in range(0, len(counts), every)],
        "y_ticks": [(round(HEIGHT - BOTTOM - span * y / y_ticks[-1], 1), f"{y:,.0f}") for y in y_ticks],
        "box": {"left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "height": HEIGHT},
    }


def dot_chart(rows: list[str], series: list[tuple[str, list[float | None]]]) -> dict[str, Any]:
    """Return a chart for the macro `dots`: of each row a dot a series on an axis from 0 to 100 %, none where a value is None."""
    left, right = 190, WIDTH * 2 - RIGHT - 10
    height = len(rows) * ROW

    def across(share: float) -> float:
        return round(left + (right - left) * share, 1)

    lines = []
    for number, row in enumerate(rows):
        dots = [
            (across(value), place % COLOURS + 1, f"{row}, {name}: {100 * value:.1f} %")
            for place, (name, values) in enumerate(series)
            if (value := values[number]) is not None
        ]
        lines.append({"name": row, "y": TOP + ROW * number + ROW // 2, "dots": dots})
    return {
        "rows": lines,
        "names": [(name, place % COLOURS + 1) for place, (name, _) in enumerate(series)],
        "x_ticks": [(across(share / 5), f"{20 * share} %") for share in range(6)],
        "box": {
            "width": WIDTH * 2,
            "height": height + TOP + 30,
            "left": left,
            "right": right,
            "top": TOP,
            "bottom": height + TOP,
        },
    }
