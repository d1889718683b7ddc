"""MELD: tables alone or with clips; emotions, sentiments, dialogues that stay together."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from labeler.cli import cli
from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.pictures.images import ImageError, decode_image, frame_of, load_image
from labeler.records import Reject
from labeler.sources import Reading, find_format, read_source

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
EMOTIONS = {"joy": "positive", "anger": "negative", "neutral": "neutral"}
SHADES = [40, 90, 140, 190]
SHARED = Path(os.environ.get("LABELER_DATA", "/nonexistent")) / "meld"


def write_table(folder: Path, part: str, rows: list[tuple[str, int, int]]) -> None:
    lines = [
        f'{number},"Well, {emotion} {part} {number}!",Ross,{emotion},{EMOTIONS[emotion]},{dialogue},{utterance},1,1,'
        '"00:00:00,000","00:00:01,000"\n'
        for number, (emotion, dialogue, utterance) in enumerate(rows, 1)
    ]
    (folder / f"{part}_sent_emo.csv").write_text(HEADER + "".join(lines), encoding="utf-8")


def write_clip(path: Path, shades: list[int] = SHADES, frames_each: int = 5) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    assert writer.isOpened()
    for shade in shades:
        noise = np.random.default_rng(shades[0]).choice([-30, 30], (6, 8))  # so that each clip has a look of its own
        picture = np.clip(np.kron(noise, np.ones((8, 8)))[..., None] + shade + np.zeros(3), 0, 255).astype(np.uint8)
        for _ in range(frames_each):
            writer.write(picture)
    writer.release()


@pytest.fixture
def release(tmp_path) -> Path:
    """Return a folder as the release unpacks: three tables, clips for train and dev, one of them broken."""
    folder = tmp_path / "MELD"
    folder.mkdir()
    write_table(folder, "train", [("joy", 0, 0), ("anger", 0, 1), ("neutral", 1, 0), ("joy", 1, 1)])
    write_table(folder, "dev", [("anger", 0, 0), ("joy", 0, 1)])
    write_table(folder, "test", [("joy", 0, 0), ("anger", 0, 1)])
    for name, shade in {"dia0_utt0": 0, "dia0_utt1": 10, "dia1_utt0": 20}.items():
        write_clip(folder / "train_splits" / f"{name}.mp4", [value + shade for value in SHADES])
    (folder / "train_splits" / "dia1_utt1.mp4").write_bytes(
        (folder / "train_splits" / "dia0_utt0.mp4").read_bytes()[:700]
    )
    write_clip(folder / "dev_splits_complete" / "dia0_utt0.mp4", [60])
    return folder


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_release_becomes_records_with_its_own_splits(release, tmp_path):
    assert find_format(release) == "meld"
    result = ingest([release], tmp_path / "out")
    assert result.profile["rejects"] == {"image-unreadable": 1, "image-missing": 1}
    kept = {record["id"]: record for record in records(tmp_path / "out")}
    train = ["train/dia0_utt0", "train/dia0_utt1", "train/dia1_utt0"]
    assert list(kept) == [*train, "dev/dia0_utt0", "test/dia0_utt0", "test/dia0_utt1"]
    first = kept["train/dia0_utt0"]
    assert (first["image"], first["text"], first["labels"], first["split"]) == (
        "train_splits/dia0_utt0.mp4", "Well, joy train 1!", ["joy"], "train",
    )  # fmt: skip
    assert first["meta"]["speaker"] == "Ross"
    assert first["group"] == kept["train/dia0_utt1"]["group"] != kept["dev/dia0_utt0"]["group"]  # numbers repeat
    assert kept["test/dia0_utt0"]["image"] is None  # no folder with test's clips: texts alone
    assert kept["dev/dia0_utt0"]["split"] == "validation"


def test_evenly_spaced_frames_are_pairs_of_their_own(release, tmp_path):
    result = ingest([release], tmp_path / "out", IngestOptions(frames=4))
    images = [record["image"] for record in records(tmp_path / "out") if record["id"].startswith("train/dia0_utt0")]
    assert images == [f"train_splits/dia0_utt0.mp4#frame={number}of4" for number in (1, 2, 3, 4)]
    shades = [np.asarray(load_image(release / image)).mean() for image in images]
    assert np.diff(shades) == pytest.approx(np.diff(SHADES), abs=6)
    assert result.profile["rejects"]["image-unreadable"] == 4
    groups = {record["group"] for record in records(tmp_path / "out") if record["id"].startswith("train/dia0")}
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (None, {"joy", "anger", "neutral"}),
        ("emotion", {"joy", "anger", "neutral"}),
        ("Sentiment", {"positive", "negative", "neutral"}),
        ("sentiment-binary", {"positive", "negative"}),
    ],
)
def test_each_of_its_labels_can_be_asked_for(release, tmp_path, label, names):
    for folder in ("train_splits", "dev_splits_complete"):
        (release / folder).rename(tmp_path / folder)
    result = ingest([release], tmp_path / "out", IngestOptions(label=label))
    assert {name for record in records(tmp_path / "out") for name in record["labels"]} == names
    assert result.profile["rejects"] == ({"neutral": 1} if label == "sentiment-binary" else {})
    assert result.profile["without_image"] == result.profile["kept"]


def test_one_table_is_enough(release):
    rows = list(read_source(release / "dev_sent_emo.csv"))
    assert [row.fields["id"] for row in rows] == ["dev/dia0_utt0", "dev/dia0_utt1"]
    assert rows[0].fields["image"] == "dev_splits_complete/dia0_utt0.mp4"


def test_clips_may_lie_beside_a_table_of_their_own(tmp_path):
    write_table(tmp_path, "test", [("joy", 3, 4)])
    write_clip(tmp_path / "dia3_utt4.mp4")
    assert [row.fields["image"] for row in read_source(tmp_path)] == ["dia3_utt4.mp4"]


def test_what_is_not_meld_is_said_to_be_none(tmp_path, release):
    with pytest.raises(BadInputError, match="MELD has emotion, sentiment, sentiment-binary"):
        list(read_source(release, Reading(label="mood")))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BadInputError, match=r"no table of MELD's; expected train_sent_emo\.csv"):
        list(read_source(other, Reading(format="meld")))
    (other / "dev_sent_emo.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInputError, match="no column 'Utterance'"):
        list(read_source(other))
    (other / "dev_sent_emo.csv").write_text(HEADER + "1,too short\n")
    assert [(item.line, item.code) for item in read_source(other) if isinstance(item, Reject)] == [(2, "cell-count")]


def test_the_command_takes_it(release, tmp_path):
    arguments = ["ingest", str(release), "--out", str(tmp_path / "out"), "--format", "meld", "--label", "sentiment",
                 "--allow-missing-image", "--frames", "2", "--json"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 4  # the broken clip
    assert json.loads(result.stdout)["rejects"] == {"image-unreadable": 2}


def code_of(data: bytes) -> str | None:
    try:
        decode_image(data)
    except ImageError as error:
        return error.code
    return None


def test_fault_6_a_clip_cut_off_anywhere_is_refused_and_nothing_falls(release):
    data = (release / "train_splits" / "dia0_utt0.mp4").read_bytes()
    codes = {code_of(data[:length]) for length in range(0, len(data), 97)}
    # mp4 written with its table at the end may be whole before its last byte
    assert codes <= {None, "image-unreadable"}
    with pytest.raises(ImageError, match="video"):
        decode_image(data[: len(data) // 2])


def test_a_frame_is_named_by_the_path():
    assert frame_of(Path("a/b.mp4#frame=3of4")) == (Path("a/b.mp4"), 0.5)
    assert frame_of(Path("a/b.mp4#frame=9of4")) == (Path("a/b.mp4"), 0.75)
    for path in ("a/b.mp4", "a/b.mp4#frame=0of4", "a/b#frame.mp4"):
        assert frame_of(Path(path)) == (Path(path), 0.0)


def test_a_file_that_has_a_frames_name_is_itself(tmp_path):
    path = tmp_path / "b.mp4#frame=3of4"
    path.write_bytes(b"x")
    assert frame_of(path) == (path, 0.0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="LABELER_DATA names no folder with meld/")
def test_the_real_tables_have_their_published_counts(tmp_path):
    rows = [row for row in read_source(SHARED) if not isinstance(row, Reject)]
    assert Counter(row.fields["split"] for row in rows) == {"train": 9989, "validation": 1109, "test": 2610}
    assert len({row.fields["label"] for row in rows}) == 7
    profile = ingest([SHARED], tmp_path / "out", IngestOptions(label="sentiment")).profile
    assert profile["kept"] == 9989 + 1109 + 2610
    assert profile["rejected"] == 0
