"""Faults 5 to 11 of pictures, through `labeler ingest`; and crashing pictures through every stage that decodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from crashing import crashing_prepare
from picture_files import apng, chunk, claiming, encode, photo, png, tiff
from PIL import Image

from labeler.errors import BadInputError
from labeler.ingestion import ingest
from labeler.pictures.images import decode_image
from labeler.predicting import predict
from labeler.preprocessing import preprocess

ROOT = Path(__file__).parent.parent
MAIN = "from labeler.cli import main; main()"


class Answer(NamedTuple):
    """What `labeler ingest` answered: its exit code and messages, {id: code} of what it rejected, records, the profile."""

    code: int
    err: str
    rejects: dict[str, str]
    records: list[dict]
    profile: dict


@pytest.fixture
def labeler_ingest(tmp_path):
    """Return a function that runs `labeler ingest` in a process of its own on files, or given paths, with a caption each.

    Twelve good rows without a picture come first.
    """

    def run(pictures: dict[str, bytes | None], *options: str, code: str = MAIN) -> Answer:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        rows = [{"id": f"good {n}", "text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
        for number, (name, data) in enumerate(pictures.items()):
            if data is not None:
                (folder / name).write_bytes(data)
            rows.append({"id": name, "image": name, "text": f"caption {number}", "label": "ab"[number % 2]})
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [sys.executable, "-c", code, "ingest", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "out")]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [*command, "--force", *options], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        out = tmp_path / "out"
        lines = {name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
                 for name in ("rejects", "records")}  # fmt: skip
        profile = json.loads((out / "profile.json").read_text(encoding="utf-8"))
        assert profile["rows"] == len(rows) == profile["kept"] + profile["rejected"]
        assert {record["id"] for record in lines["records"]} >= {f"good {n}" for n in range(12)}
        assert all(item["line"] > 12 and item["message"] for item in lines["rejects"])
        rejects = {item["id"]: item["code"] for item in lines["rejects"]}
        return Answer(done.returncode, done.stderr, rejects, lines["records"], profile)

    return run


def test_fault_05_a_missing_image_is_rejected_unless_allowed(labeler_ingest):
    answer = labeler_ingest({"none.jpg": None, "some.png": encode(photo(), "PNG")})
    assert (answer.code, answer.rejects) == (4, {"none.jpg": "image-missing"})
    answer = labeler_ingest({"none.jpg": None, "some.png": encode(photo(), "PNG")}, "--allow-missing-image")
    assert (answer.code, answer.rejects) == (0, {})
    assert {record["id"]: record["image"] for record in answer.records[12:]} == {
        "none.jpg": None,
        "some.png": "some.png",
    }
    assert answer.profile["without_image"] == 13


def test_fault_06_truncated_jpeg_is_rejected(labeler_ingest):
    data = encode(photo(320, 240), "JPEG")
    progressive = encode(photo(320, 240), "JPEG", progressive=True)
    pictures = {f"cut {length}.jpg": data[:length] for length in (2, 20, 300, len(data) // 2, len(data) - 40)}
    pictures["progressive.jpg"] = progressive[: len(progressive) // 2]
    answer = labeler_ingest(pictures | {"whole.jpg": data})
    assert answer.code == 4
    assert answer.rejects == dict.fromkeys(pictures, "image-unreadable")
    assert [record["id"] for record in answer.records[12:]] == ["whole.jpg"]


SIZES = [("PNG", 60_000, 60_000), ("TIFF", 60_000, 60_000), ("BMP", 60_000, 60_000), ("JPEG", 65_500, 65_500),
         ("GIF", 65_535, 65_535), ("WEBP", 16_383, 16_383), ("AVIF", 16_000, 16_000)]  # fmt: skip
FORMATS = [form for form, _, _ in SIZES]


def huge_video(folder: Path) -> bytes:
    """Return an AVI of JPEG frames that claims 12000x8000."""
    import cv2

    path = folder / "small.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    assert video.isOpened()
    for number in range(3):
        video.write(np.asarray(photo(seed=number)))
    video.release()
    small, large = np.array([64, 48], "<i4").tobytes(), np.array([12_000, 8_000], "<i4").tobytes()
    data = path.read_bytes()
    assert data.count(small) >= 2
    frames = np.array([48, 64], ">u2").tobytes(), np.array([8_000, 12_000], ">u2").tobytes()
    assert data.count(frames[0]) >= 3
    return data.replace(small, large).replace(*frames)


def test_fault_07_huge_pictures_are_rejected_without_being_decoded(labeler_ingest, tmp_path):
    pictures = {f"huge.{form}": claiming(form, width, height) for form, width, height in SIZES}
    pictures |= {f"large.{form}": claiming(form, 12_000, 8_000) for form in FORMATS}
    pictures["video.avi"] = huge_video(tmp_path)
    answer = labeler_ingest(pictures)
    assert answer.code == 4
    assert answer.rejects == dict.fromkeys(pictures, "image-too-large")


MEASURE = """
import json, sys, time
from pathlib import Path
from PIL import Image
from crashing import most_memory
from labeler.pictures.images import ImageError, load_image
Image.init()
before = most_memory()
start = time.process_time()
try:
    load_image(Path(sys.argv[1]))
except ImageError as error:
    print(json.dumps([error.code, time.process_time() - start, most_memory() - before]))
"""


@pytest.mark.parametrize("form", FORMATS)
def test_fault_07_a_size_is_refused_before_it_takes_time_or_memory(tmp_path, form):
    (tmp_path / "a").write_bytes(claiming(form, 12_000, 8_000))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    code, seconds, grown = json.loads(done.stdout)
    assert code == "image-too-large"
    assert seconds < 1
    assert grown < 30 << 20, "as RGB it would take 288 MB"


def rgb(seed: int = 0) -> np.ndarray:
    return np.asarray(photo(40, 30, seed))


def over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return [H, W, 3] of `values` over white; `alpha` is [H, W] from 0 to 255."""
    share = alpha[..., None] / 255
    return np.rint(values * share + 255 * (1 - share)).astype(np.uint8)


def grey_of(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def golden() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return {name: (file, the RGB that it must give)}; both made from arrays."""
    pixels, grey = rgb(), rgb(1)[..., 0]
    height, width = grey.shape
    deep = (np.arange(height * width, dtype=np.uint32) * 54 % 65536).astype(np.uint16).reshape(height, width)
    dark = deep % 256  # all below 256: nearly black, and not to be taken for 8 bits
    shallow = np.rint(deep / 257)
    alpha = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    palette = np.random.default_rng(5).integers(0, 256, (256, 3), dtype=np.uint8)
    numbers = (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width)
    some = np.array([0, 128, 255, 64], np.uint8)  # alpha of the first palette entries, the others are opaque
    see_through = np.concatenate([some, np.full(252, 255, np.uint8)])
    bits = numbers % 3 == 0
    ink = np.stack([pixels[..., 0], pixels[..., 1], pixels[..., 2], grey // 4], axis=2)
    printed = np.rint((255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:]) / 255).astype(np.uint8)
    deep_alpha = np.dstack([grey, alpha]).astype(np.uint16) * 257
    lut = chunk(b"PLTE", palette.tobytes())
    return {
        "rgb.png": (png(pixels, 2), pixels),
        "rgb 16 bit.png": (png(pixels.astype(np.uint16) * 257, 2), pixels),
        "rgba.png": (png(np.dstack([pixels, alpha]), 6), over_white(pixels, alpha)),
        "grey.png": (png(grey, 0), grey_of(grey)),
        "grey with alpha.png": (png(np.dstack([grey, alpha]), 4), over_white(grey_of(grey), alpha)),
        "grey 16 bit with alpha.png": (png(deep_alpha, 4), over_white(grey_of(grey), alpha)),
        "one bit.png": (png(bits, 0), grey_of(bits * 255)),
        "16 bit.png": (png(deep, 0), grey_of(shallow)),
        "16 bit, dark.png": (png(dark, 0), grey_of(np.rint(dark / 257))),
        "16 bit little.tif": (tiff(deep, 1, "<"), grey_of(shallow)),
        "16 bit big.tif": (tiff(deep, 1, ">"), grey_of(shallow)),
        "16 bit dark.tif": (tiff(dark, 1, ">"), grey_of(np.rint(dark / 257))),
        "palette.png": (png(numbers, 3, lut), palette[numbers]),
        "palette, see-through.png": (
            png(numbers, 3, lut + chunk(b"tRNS", some.tobytes())), over_white(palette[numbers], see_through[numbers]),
        ),
        "one colour see-through.png": (
            png(pixels, 2, chunk(b"tRNS", pixels[3, 4].astype(">u2").tobytes())),
            np.where((pixels == pixels[3, 4]).all(axis=2, keepdims=True), 255, pixels).astype(np.uint8),
        ),
        "rgb little.tif": (tiff(pixels, 2, "<"), pixels),
        "rgb big.tif": (tiff(pixels, 2, ">"), pixels),
        "rgb 16 bit.tif": (tiff(pixels.astype(np.uint16) * 257, 2, ">"), pixels),
        "rgba.tif": (tiff(np.dstack([pixels, alpha]), 2, extra_samples=2), over_white(pixels, alpha)),
        "palette.tif": (tiff(numbers, 3, palette=palette), palette[numbers]),
        "one bit.tif": (tiff(bits[:, :40], 1), grey_of(bits * 255)),
        "one bit, white is zero.tif": (tiff(bits, 0), grey_of(~bits * 255)),
        "grey, white is zero.tif": (tiff(grey, 0), grey_of(255 - grey)),
        "cmyk.tif": (tiff(ink, 5), printed),
        "animated.png": (apng([pixels, rgb(7), rgb(8)]), pixels),
        "animated, with a default.png": (apng([pixels, rgb(7), rgb(8)], default_alone=True), pixels),
        "animated.webp": (encode(Image.fromarray(pixels), "WEBP", lossless=True, save_all=True,
                                 append_images=[Image.fromarray(rgb(7))]), pixels),
        "palette animated.gif": (animated_gif(numbers, palette), palette[numbers]),
        "rgb.bmp": (encode(Image.fromarray(pixels), "BMP"), pixels),
    }  # fmt: skip


def animated_gif(numbers: np.ndarray, palette: np.ndarray) -> bytes:
    frames = []
    for values in (numbers, numbers[::-1].copy()):
        frame = Image.fromarray(values)
        frame.putpalette(palette.tobytes())
        frames.append(frame)
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


GOLDEN = golden()


@pytest.mark.parametrize("name", GOLDEN)
def test_fault_08_every_kind_of_pixel_gives_the_right_rgb(name):
    data, expected = GOLDEN[name]
    image = decode_image(data)
    assert image.mode == "RGB"
    found = np.asarray(image).astype(int)
    # alpha blending and CMYK may round either way; all else is exact
    slack = 1 if any(word in name for word in ("alpha", "rgba", "see-through", "cmyk")) else 0
    assert np.abs(found - expected).max() <= slack


def test_fault_08_ingest_keeps_every_kind_of_picture(labeler_ingest):
    answer = labeler_ingest({name: data for name, (data, _) in GOLDEN.items()})
    assert (answer.code, answer.rejects) == (0, {})
    assert len(answer.records) == 12 + len(GOLDEN)
    assert answer.profile["image_width"]["max"] == 40


def test_fault_08_cmyk_jpegs_of_photoshop_are_not_negatives():
    ink = np.zeros((16, 24, 4), np.uint8)
    ink[:, :8], ink[:, 8:16], ink[:, 16:] = (0, 255, 255, 0), (255, 255, 0, 0), (0, 0, 0, 128)
    data = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=95)
    marker = data.index(b"\xff\xee")
    assert data[marker + 4 : marker + 9] == b"Adobe", "it holds inverted ink, as Photoshop writes it"
    found = np.asarray(decode_image(data)).astype(int)
    for column, colour in ((4, (255, 0, 0)), (12, (0, 0, 255)), (20, (127, 127, 127))):
        assert np.abs(found[8, column] - colour).max() <= 6


# What a viewer does to the stored rows to show the picture upright (Exif 2.3, tag 0x0112).
UPRIGHT = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
           6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_fault_08_a_rotated_photo_stands_upright(form, orientation):
    stored = rgb()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 97, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    if form == "TIFF":
        data = tiff(stored, 2, orientation=orientation)
    else:
        data = encode(Image.fromarray(stored), form, exif=exif, **options)
    found = np.asarray(decode_image(data)).astype(int)
    expected = UPRIGHT[orientation](stored)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (12 if form == "JPEG" else 0)


def test_fault_09_content_counts_and_not_the_name(labeler_ingest):
    image = photo()
    wrong_names = {
        "png.jpg": encode(image, "PNG"), "jpeg.gif": encode(image.rotate(90), "JPEG"), "webp.png": encode(photo(seed=1), "WEBP"),
        "gif": encode(photo(seed=2), "GIF"),
    }  # fmt: skip
    no_pictures = {
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "empty.png": b"",
        "figure.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "eps.eps": encode(image, "EPS"),
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        "paper.jpg": b"%PDF-1.4\n",
        "icon.png": encode(image, "ICO"),
        "targa.jpg": encode(image, "TGA"),
        "zeros.png": b"\0" * 999,
    }
    answer = labeler_ingest(wrong_names | no_pictures)
    assert answer.code == 4
    assert answer.rejects == dict.fromkeys(no_pictures, "image-unreadable")
    assert [record["id"] for record in answer.records[12:]] == list(wrong_names)


def test_fault_10_pictures_outside_are_rejected_unless_allowed(labeler_ingest, tmp_path):
    (tmp_path / "data").mkdir()
    for number, name in enumerate(("up.png", "whole.png", "linked.png")):
        (tmp_path / name).write_bytes(encode(photo(seed=number), "PNG"))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "linked.png")
    (tmp_path / "data" / "inside.png").symlink_to("own.png")
    outside = ["../up.png", str(tmp_path / "whole.png"), "link.png"]
    pictures = dict.fromkeys(outside) | {"own.png": encode(photo(seed=9), "PNG"), "inside.png": None}
    answer = labeler_ingest(pictures)
    assert (answer.code, answer.rejects) == (4, dict.fromkeys(outside, "image-outside"))
    assert [record["id"] for record in answer.records[12:]] == ["own.png", "inside.png"]
    answer = labeler_ingest(pictures, "--allow-outside")
    assert (answer.code, answer.rejects) == (0, {})


def test_fault_11_what_is_no_file_is_rejected_and_nothing_hangs(labeler_ingest, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    names = ["fifo.jpg", "folder.jpg", "zero.jpg", "loop.jpg", "x" * 300 + ".jpg"]
    start = time.monotonic()
    answer = labeler_ingest(dict.fromkeys(names), "--allow-outside")
    assert time.monotonic() - start < 100
    assert (answer.code, answer.rejects) == (4, dict.fromkeys(names, "image-unreadable"))


CRASHING = """
import labeler.pictures.decoding
from crashing import crashing_examine
labeler.pictures.decoding.examine_image = crashing_examine
"""


def test_pictures_that_crash_the_decoder_are_rejected_by_ingest(labeler_ingest):
    names = ["abort.png", "a.png", "segfault.png", "b.png", "exit.png", "memory.png", "c.png", "last abort.png"]
    pictures = {name: encode(photo(seed=number), "PNG") for number, name in enumerate(names)}
    answer = labeler_ingest(pictures, code=CRASHING + MAIN)
    assert answer.code == 4
    crashed = dict.fromkeys(["abort.png", "segfault.png", "exit.png", "last abort.png"], "image-crashed")
    assert answer.rejects == crashed | {"memory.png": "image-too-large"}
    assert [record["id"] for record in answer.records[12:]] == ["a.png", "b.png", "c.png"]
    assert "Traceback" not in answer.err


def write_pictures(folder: Path, names: list[str]) -> Path:
    """Write a picture for each name, and pairs.jsonl."""
    folder.mkdir()
    rows = []
    for number, name in enumerate(names):
        photo(seed=number).save(folder / name)
        rows.append({"image": name, "label": "ab"[number % 2]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "pairs.jsonl"


def test_a_picture_that_crashes_the_decoder_ends_preprocess_by_its_name(tmp_path, monkeypatch, text_tower, image_tower):
    names = [f"{number}.png" for number in range(40)] + ["abort.png"]
    ingest([write_pictures(tmp_path / "data", names)], tmp_path / "records")
    monkeypatch.setattr("labeler.pictures.decoding.prepare_image", crashing_prepare)
    with pytest.raises(BadInputError, match=r"abort.png: the process that read it died .* run `labeler ingest` again"):
        preprocess(tmp_path / "records", tmp_path / "out", text_encoder=str(text_tower), image_encoder=str(image_tower))
    assert not (tmp_path / "out").exists()


def test_pictures_that_crash_the_decoder_get_a_line_with_an_error_from_predict(tmp_path, monkeypatch, trained):
    names = ["a.png", "abort.png", "b.png", "segfault.png"]
    write_pictures(tmp_path / "data", names).unlink()
    monkeypatch.setattr("labeler.pictures.decoding.prepare_image", crashing_prepare)
    done = predict([tmp_path / "data"], trained("resnet-gru"), tmp_path / "out.jsonl", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (done.items, done.errors) == (4, 2)
    assert [line["id"] for line in lines] == names
    assert [line["error"] is None for line in lines] == [True, False, True, False]
    assert "abort.png: the process that read it died" in lines[1]["error"]
    assert [len(line["labels"]) for line in lines] == [1, 0, 1, 0]
