"""Decoding: what comes of pictures that are decoded in other processes, of what they share, and of those that end a process."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from crashing import decode
from PIL import Image

from labeler.pictures.decoding import NEAR, Wanted, asked_once, decoded, examine_images, prepare_images
from labeler.pictures.images import ImageError, Prepared, examine_image, load_image, stretch
from labeler.processes import in_workers


def photo(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def test_pictures_are_examined_and_prepared(tmp_path):
    paths = [photo(tmp_path / f"{number}.jpg", (900, 500), number) for number in range(3)]
    found = list(examine_images([*paths, None, tmp_path / "no.jpg"]))
    assert found[:3] == [examine_image(path) for path in paths]
    assert (found[0].width, found[0].height, found[3], found[4].code) == (900, 500, None, "image-missing")
    other = found[1].sha256
    prepared = list(
        prepare_images([Wanted(paths[0]), None, Wanted(paths[0], found[0].sha256), Wanted(paths[0], other)], 64)
    )
    assert prepared[1] is None
    assert prepared[0].pixels.shape == (64, 64, 3)
    assert prepared[0].pixels.dtype == np.uint8
    np.testing.assert_array_equal(prepared[0].pixels, prepared[2].pixels)
    assert isinstance(prepared[2], Prepared)
    assert (prepared[3].code, str(prepared[3])) == ("image-changed", f"{paths[0]}: another picture than at ingest")


def test_a_picture_that_ends_its_process_is_an_error_of_that_picture(monkeypatch):
    monkeypatch.setattr("labeler.pictures.decoding.in_workers", partial(in_workers, seconds=0.5))
    names = ["a", "abort", "hang", "memory", "refused", "b"]
    found = list(decoded(decode, [None, *((Path(name),) for name in names)]))
    codes = [item.code if isinstance(item, ImageError) else item for item in found]
    assert codes == [None, "a", "image-crashed", "image-timeout", "image-too-large", "image-unreadable", "b"]
    assert str(found[4]) == "memory: over 4 GiB of memory are needed"


def test_pictures_that_nobody_waits_for_any_more_leave_no_process(tmp_path):
    found = examine_images([photo(tmp_path / "a.png", (64, 64))] * 9)
    next(found)
    found.close()
    assert [child for child in psutil.Process().children() if "labeler.processes" in str(child.cmdline())] == []


def test_pictures_come_as_they_are_stretched_here(tmp_path):
    paths = [photo(tmp_path / f"{number}.png", (300 - number, 100 + 99 * number), number) for number in range(3)]
    for path, found in zip(paths, prepare_images(map(Wanted, paths), 32), strict=True):
        np.testing.assert_array_equal(found.pixels, stretch(np.array(load_image(path)), 32))


@pytest.mark.parametrize("ahead", [0, 1, 300])
@pytest.mark.parametrize("seed", range(4))
def test_what_several_rows_near_each_other_share_is_asked_for_once(ahead, seed):
    random = np.random.default_rng(seed)
    items = [None if item == 0 else (int(item), place // 300) for place, item in enumerate(random.integers(0, 9, 900))]
    asked = []

    def ask(wanted):
        waiting = deque()
        for item in wanted:
            asked.append(item)
            waiting.append(item and [item])
            while len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    found = list(asked_once(ask, items))
    assert found == [item and [item] for item in items]
    assert len([item for item in asked if item]) <= 3 * 8 * (300 // NEAR + 1)
    assert asked.count(None) == items.count(None)
    assert list(asked_once(ask, [])) == []


@pytest.mark.slow
def test_memory_stays_flat_over_many_pictures(tmp_path):
    path = photo(tmp_path / "a.jpg", (640, 360))

    def peak(pictures: int) -> int:
        found = prepare_images((Wanted(path) for _ in range(pictures)), 224)
        process = psutil.Process()
        return max(process.memory_info().rss for number, _ in enumerate(found) if number % 50 == 0)

    first = peak(400)
    assert peak(2000) < first + (30 << 20)
