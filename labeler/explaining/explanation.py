"""Explanations: which words and which regions of the picture drove a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labeler.artifacts import read_json
from labeler.errors import BadInputError, UsageError
from labeler.evaluation import scores_of, settle
from labeler.inputs import found_again
from labeler.items import Item
from labeler.pictures.decoding import Wanted, prepare_images
from labeler.pictures.images import ImageError, Prepared
from labeler.records import IMAGE_SHA256, Record, read_records
from labeler.taxonomy import taxonomy_of
from labeler.values import RowError, clean_text

if TYPE_CHECKING:
    from labeler.batches import Pair
    from labeler.encoders.image import ImageEncoder
    from labeler.runs import Run
    from labeler.store import Store


class Subject(NamedTuple):
    """A pair to explain: its id, text, a picture file's bytes to look at, and what the model gets.

    boxes: of a detector's regions [V, 4], x1 y1 x2 y2 as shares of width and height; else None.
    """

    id: str
    text: str | None
    picture: bytes | None
    pair: Pair
    boxes: np.ndarray | None = None


class Word(NamedTuple):
    """A word as it stands in the text, from character `start` up to `end`, and what it adds to the label's logit."""

    text: str
    start: int
    end: int
    weight: float


class Region(NamedTuple):
    """A part of the picture, x1 y1 x2 y2 as shares of its width and height, and what it adds to the label's logit."""

    box: tuple[float, float, float, float]
    weight: float


class BlockMaps(NamedTuple):
    """What one co-attention block attends to: text_to_visual [T, V] and visual_to_text [V, T], each row's sum 1."""

    text_to_visual: np.ndarray
    visual_to_text: np.ndarray


class Explanation(NamedTuple):
    """Why a pair has the score that it has for one label.

    label, score: calibrated, as `predict` gives it; logit, baseline_logit: of the pair, and of one that says nothing
    (`labeler.explaining.attribution`); words, grid [rows, cols], class_tokens (a tower's tokens for the whole picture) and
    regions (a detector's): what each adds to the logit. All of them together are logit - baseline_logit but for `error`. grid
    is None and the rest is empty where there is no such thing. maps: of each co-attention block, over `tokens` and the real
    visual tokens.
    """

    id: str
    label: str
    score: float
    logit: float
    baseline_logit: float
    error: float
    steps: int
    text: str | None
    words: list[Word]
    picture: bytes | None
    grid: np.ndarray | None
    class_tokens: list[float]
    regions: list[Region]
    tokens: list[str]
    maps: list[BlockMaps]

    @property
    def text_sum(self) -> float:
        """Return what all words add to the logit."""
        return sum(word.weight for word in self.words)

    @property
    def picture_sum(self) -> float:
        """Return what the whole picture adds to the logit."""
        grid = 0.0 if self.grid is None else float(self.grid.sum())
        return grid + sum(self.class_tokens) + sum(region.weight for region in self.regions)

    def as_json(self) -> dict[str, Any]:
        """Return all of it but the picture, as JSON can hold it."""
        values = self._asdict()
        del values["picture"]
        return values | {
            "words": [word._asdict() for word in self.words],
            "grid": None if self.grid is None else self.grid.tolist(),
            "regions": [region._asdict() for region in self.regions],
            "maps": [{name: value.tolist() for name, value in block._asdict().items()} for block in self.maps],
        }


def explanation_of(values: dict[str, Any], picture: bytes | None) -> Explanation:
    """Return the explanation that `as_json` made these values of, with its picture."""
    words = [Word(**word) for word in values["words"]]
    regions = [Region(tuple(region["box"]), region["weight"]) for region in values["regions"]]
    maps = [BlockMaps(**{name: np.array(rows) for name, rows in block.items()}) for block in values["maps"]]
    grid = None if values["grid"] is None else np.array(values["grid"])
    parts = {"words": words, "regions": regions, "maps": maps, "grid": grid, "picture": picture}
    return Explanation(**(values | parts))


def strongest(explanation: Explanation, most: int) -> list[tuple[float, str]]:
    """Return the weights and names of the words and parts of the picture that weigh most, at most so many."""
    found = [(word.weight, repr(word.text)) for word in explanation.words]
    if explanation.grid is not None:
        found += [(float(value), f"row {row + 1}, column {column + 1}")
                  for row, values in enumerate(explanation.grid) for column, value in enumerate(values)]  # fmt: skip
    found += [(weight, f"class token {number + 1}") for number, weight in enumerate(explanation.class_tokens)]
    found += [(weight, "box " + " ".join(f"{edge:.2f}" for edge in box)) for box, weight in explanation.regions]
    return sorted(found, key=lambda entry: -abs(entry[0]))[:most]


def explain_item(
    run: Path, identity: str, *, data: Path | None = None, label: str | None = None, device: str = "auto"
) -> list[Explanation]:
    """Return why the run gives its labels, or `label`, to the pair `identity` of a store, by default that it was trained on.

    Raises BadInputError when run or store are damaged, do not belong together, or there is no such pair; UsageError for an
    unknown label.
    """
    from labeler.evaluating import refuse_mismatch
    from labeler.store import Store

    opened = open_run(run, device)
    folder = data or found_again(run, opened.manifest["inputs"][0])
    if data is None and not folder.is_dir():
        raise BadInputError(f"{folder}: the store that {run} was trained on is not there; name it with --data STORE")
    store = Store(folder)
    refuse_mismatch(opened, store)
    return explain_pairs(opened, stored_subjects(opened, store, [identity]), label)


def explain_given(
    run: Path, image: Path | None, text: str | None, *, label: str | None = None, device: str = "auto"
) -> list[Explanation]:
    """Return why the run gives its labels, or `label`, to a picture's file with a text; one of them may be missing.

    Raises BadInputError when the run is damaged, or picture or text cannot be used; UsageError for an unknown label.
    """
    opened = open_run(run, device)
    try:
        record = Record(id=str(image or "text"), text=None if text is None else clean_text(text, "text"))
    except RowError as error:
        raise BadInputError(f"--text: {error}") from None
    if image is None and not record.text:
        raise BadInputError("--text: empty; give a text, a picture with --image, or both")
    return explain_pairs(opened, decoded_subjects(opened, [(record, image, None)]), label)


def open_run(folder: Path, device: str) -> Run:
    """Return the run, on the device."""
    from labeler.inference import choose_device
    from labeler.runs import load_run

    return load_run(folder, choose_device(device))


def stored_subjects(run: Run, store: Store, ids: Sequence[str]) -> list[Subject]:
    """Return the store's pairs of those ids, as the run's model takes them.

    Raises BadInputError naming the closest ids when there is none of one, and when a fine-tuned tower's pictures are gone.
    """
    from labeler.batches import Pair, tokenize
    from labeler.end_to_end import EndToEnd
    from labeler.store import BOXES

    numbers = {identity: row for row, identity in enumerate(store.rows["id"])}
    for identity in ids:
        if identity not in numbers:
            close = get_close_matches(identity, numbers, n=3)
            hint = f"; the closest are {', '.join(map(repr, close))}" if close else ""
            hint = "; of a file: --image FILE" if not close and Path(identity).is_file() else hint
            raise BadInputError(f"{store.folder}: no pair with the id {identity!r}{hint}")
    if isinstance(run.model, EndToEnd):
        return decoded_subjects(run, original_pictures(store, ids))
    rows = [numbers[identity] for identity in ids]
    texts = [store.rows["text"][row] for row in rows]
    token_ids = tokenize(run.tokenizer, texts, run.preprocessor["max_text_tokens"])
    tokens, masks = store.visual_tokens(rows)
    boxes = store.visual_boxes(rows) if BOXES in store.dataset.schema.names else [None] * len(rows)
    pictures = store.dataset.take(rows, columns=["image"]).column(0).to_pylist()
    return [
        Subject(
            identity,
            texts[n],
            pictures[n],
            Pair(token_ids[n], tokens[n], bool(masks[n].any()), None, masks[n]),
            boxes[n],
        )
        for n, identity in enumerate(ids)
    ]


def original_pictures(store: Store, ids: Sequence[str]) -> list[tuple[Record, Path | None, str | None]]:
    """Return the records of those ids, each with its picture's file and sha256; raises BadInputError where they are gone."""
    from labeler.pixels import records_of

    folder = records_of(store)
    root = folder / read_json(folder / "profile.json")["root"]
    records = {record.id: record for record in read_records(folder) if record.id in set(ids)}
    return [
        (record, root / record.image if record.image else None, record.meta.get(IMAGE_SHA256))
        for record in (records[identity] for identity in ids)
    ]


def decoded_subjects(run: Run, given: Sequence[tuple[Record, Path | None, str | None]]) -> list[Subject]:
    """Return records as the run's model takes them, their pictures' files decoded; raises BadInputError where one cannot be."""
    from labeler.engines.native import image_tower, make_pairs

    tower = image_tower(run)
    files = [None if path is None else Wanted(path, sha256) for _, path, sha256 in given]
    pictures: list[Prepared | None] = []
    for picture in prepare_images(files, tower.size, looks=True):
        if isinstance(picture, ImageError):
            raise BadInputError(str(picture))
        pictures.append(picture)
    items = [
        Item(record, path, pixels=picture and picture.pixels)
        for (record, path, _), picture in zip(given, pictures, strict=True)
    ]
    pairs = make_pairs(items, run, tower, batch_size=1)
    return [
        Subject(item.record.id, item.record.text, picture and picture.thumbnail, pair, boxes_of(tower, picture))
        for item, picture, pair in zip(items, pictures, pairs, strict=True)
    ]


def boxes_of(tower: ImageEncoder, picture: Prepared | None) -> np.ndarray | None:
    """Return the boxes [V, 4] of the regions that a detector sees in a picture; None for another tower."""
    if picture is None or tower.regions is None:
        return None
    boxes = tower.see([picture.pixels]).boxes
    return None if boxes is None else boxes[0].numpy()


def explain_pairs(run: Run, subjects: Sequence[Subject], label: str | None = None) -> list[Explanation]:
    """Return why each of `subjects` has its labels: one explanation for each label that was chosen, or for `label` alone.

    Where several labels may be chosen and none was, it is that with the highest score.

    Raises UsageError naming the closest label when `label` is none, or one that the model has no logit for.
    """
    from labeler.explaining.attribution import Sight

    wanted = None if label is None else label_number(run, label)
    found = []
    for subject in subjects:
        sight = Sight(run, subject.pair, subject.text)
        scores, chosen = chosen_labels(run, sight.logits)
        numbers = [wanted] if wanted is not None else np.flatnonzero(chosen).tolist() or [int(scores.argmax())]
        shown = taxonomy_of(run.label_set).scores(scores[None])[0, -len(scores) :]  # a parent's holds its children's
        found += [explanation(run, subject, sight, number, float(shown[number])) for number in numbers]
    return found


def label_number(run: Run, label: str) -> int:
    """Return the label's number; raises UsageError when there is none of that name."""
    from labeler.models import check_choice

    if label in run.label_set.parents:
        children = [item.name for item in run.label_set.labels if item.parent == label]
        raise UsageError(
            f"--label {label}: a parent, whose score is its children's; ask for one of {', '.join(children)}"
        )
    return run.label_set.names.index(check_choice("label", label, run.label_set.names))


def chosen_labels(run: Run, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair's scores [L], each label's own, and which labels it gets, [L] bool, for its logits [L]."""
    taxonomy = taxonomy_of(run.label_set)
    scores, chosen = settle(taxonomy, scores_of(taxonomy.task, logits[None], run.temperature), run.thresholds)
    return scores[0], chosen[0]


def explanation(run: Run, subject: Subject, sight: Any, number: int, score: float) -> Explanation:
    """Return why a pair has its score for the label of that number; `sight`: what the model sees of it."""
    given = sight.attribute(number)
    words = [Word(subject.text[start:end], start, end, weight)
             for (start, end), weight in sight.merged(given.text)] if subject.text else []  # fmt: skip
    grid, class_tokens, regions = None, np.zeros(0), []
    if subject.pair.has_image and subject.boxes is not None:
        real = np.flatnonzero(sight.visual_mask)
        regions = [Region(tuple(subject.boxes[n].tolist()), float(given.visual[n])) for n in real]
    elif subject.pair.has_image:
        side = math.isqrt(len(given.visual))  # towers take squares; what is over are class tokens, which come first
        class_tokens, grid = np.split(given.visual, [len(given.visual) - side * side])
        grid = grid.reshape(side, side)
    return Explanation(
        id=subject.id,
        label=run.label_set.names[number],
        score=score,
        logit=given.logit,
        baseline_logit=given.baseline_logit,
        error=given.error,
        steps=given.steps,
        text=subject.text,
        words=words,
        picture=subject.picture,
        grid=grid,
        class_tokens=class_tokens.tolist(),
        regions=regions,
        tokens=sight.tokens,
        maps=[BlockMaps(*maps) for maps in sight.maps],
    )
