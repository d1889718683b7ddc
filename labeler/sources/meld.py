"""MELD as released: `train_sent_emo.csv`, `dev_sent_emo.csv`, `test_sent_emo.csv`, and a folder of mp4 clips where at hand.

Poria et al. 2019, "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations". A row is an
utterance; its picture is a frame of its clip; its group is its dialogue, whose utterances know each other's answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from labeler.errors import BadInputError
from labeler.records import Reject, Row
from labeler.sources import csv

SUFFIX = "_sent_emo.csv"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
LABELS = ("emotion", "sentiment", "sentiment-binary")
# folders as the release's three archives unpack
CLIPS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def claims(path: Path) -> bool:
    """Return whether `path` is one of MELD's tables, or a folder that holds one."""
    return bool(tables(path))


def tables(path: Path) -> list[Path]:
    """Return MELD's tables at `path`: the file itself, or those in the folder, train first."""
    if path.is_dir():
        return [path / f"{name}{SUFFIX}" for name in SPLITS if (path / f"{name}{SUFFIX}").is_file()]
    return [path] if path.name.endswith(SUFFIX) and path.name.removesuffix(SUFFIX) in SPLITS else []


def read(path: Path, label: str | None = None, frames: int = 1, encoding: str | None = None) -> Iterator[Row | Reject]:
    """Yield the utterances of a table, or of the folder's tables, with `frames` evenly spaced frames of each clip.

    Args:
        path: a `*_sent_emo.csv`, or a folder with some; clips are looked for in the folder and in those that
            the release's archives make. Where there are no clips at all, every row is a text.
        label: `emotion` (7 labels, the default), `sentiment` (3), or `sentiment-binary`, which rejects neutral rows.
        frames: rows a clip; with 1, its first frame.
        encoding: of the tables; found by default.

    Raises BadInputError where there is no table, a column is missing, or there is no such label.
    """
    if label and label.lower() not in LABELS:
        raise BadInputError(f"--label {label}: MELD has {', '.join(LABELS)}")
    found = tables(path)
    if not found:
        expected = ", ".join(f"{name}{SUFFIX}" for name in SPLITS)
        raise BadInputError(f"{path}: no table of MELD's; expected {expected}")
    for table in found:
        yield from read_table(table, label, frames, encoding)


def read_table(table: Path, label: str | None, frames: int, encoding: str | None) -> Iterator[Row | Reject]:
    """Yield the utterances of one table."""
    kind = (label or "emotion").lower()
    part = table.name.removesuffix(SUFFIX)
    folder = clip_folder(table.parent, part)
    for item in csv.read(table, encoding):
        if isinstance(item, Reject):
            yield item
            continue
        missing = [name for name in COLUMNS if name not in item.fields]
        if missing:
            raise BadInputError(f"{table}: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
        name = f"dia{item.fields['Dialogue_ID']}_utt{item.fields['Utterance_ID']}"
        identity = f"{part}/{name}"
        if kind == "sentiment-binary" and item.fields["Sentiment"] == "neutral":
            yield Reject(item.source, item.line, identity, "neutral", "neutral has no place among two sentiments")
            continue
        fields = {
            "id": identity,
            "text": item.fields["Utterance"],
            label or "label": item.fields["Emotion" if kind == "emotion" else "Sentiment"],
            "split": SPLITS[part],
            "group": f"{part}/dia{item.fields['Dialogue_ID']}",
            "speaker": item.fields["Speaker"],
        }
        # the clip's path is relative to the table, or to the folder of tables: the same folder
        clip = None if folder is None else (folder / f"{name}.mp4").relative_to(table.parent).as_posix()
        if clip is None:
            yield item._replace(fields=fields)
            continue
        for frame in range(frames):
            place = {} if frames == 1 else {"id": f"{identity}#frame={frame + 1}of{frames}"}
            image = clip if frames == 1 else f"{clip}#frame={frame + 1}of{frames}"
            yield item._replace(fields=fields | place | {"image": image})


def clip_folder(root: Path, part: str) -> Path | None:
    """Return the folder with the clips of `part` (train, dev or test) at or below `root`; None where there is none."""
    for folder in (root / CLIPS[part], root / part, root / part / CLIPS[part]):
        if folder.is_dir():
            return folder
    # all clips beside the tables: names repeat between the parts, so only a folder with one part can be so
    return root if len(tables(root)) == 1 and next(root.glob("dia*_utt*.mp4"), None) else None
