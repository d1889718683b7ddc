"""The store: one Lance dataset a data set, with small pictures, text, labels and what the frozen towers see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labeler.artifacts import read_json, read_manifest, verify
from labeler.errors import BadInputError
from labeler.paths import by_name
from labeler.records import LabelSet, read_label_set
from labeler.values import Split

DATASET = "pairs.lance"
TOKENS, BOXES, ANSWERS, PATHS = "visual_tokens", "visual_boxes", "answers", "image_path"
THUMBNAIL_MIME = "image/jpeg"


class Example(NamedTuple):
    """One pair to look at; `image` holds the bytes of a picture file of type `mime`."""

    text: str | None
    image: bytes | None
    mime: str | None


class Store:
    """A preprocessed data set, read by row numbers: pictures and tokens as they are asked for, texts and labels once."""

    def __init__(self, folder: Path, *, check: bool = True):
        """Open `folder`; with `check`, compare every file with its sha256 first, since Lance reads flipped bits silently.

        Raises BadInputError when it is no store, or damaged.
        """
        import lance

        self.folder = by_name(folder)
        self.manifest = (verify if check else read_manifest)(folder, "preprocess")
        self.label_set: LabelSet = read_label_set(folder)
        self._own = self.label_set.names  # what the numbers in the dataset stand for
        self.dataset = lance.dataset(str(folder / DATASET))

    @property
    def sha256(self) -> str:
        """Return the hash of the store's content: of the records, the pictures and the towers' weights."""
        return self.manifest["content_sha256"]

    @cached_property
    def towers(self) -> dict[str, Any]:
        """Return which towers made the visual tokens and the text features, with their hashes and shapes."""
        return read_json(self.folder / "towers.json")

    @cached_property
    def rows(self) -> dict[str, list[Any]]:
        """Return the small columns whole: id, split, group, text, labels."""
        found = self.dataset.to_table(columns=["id", "split", "group", "text", "labels"]).to_pydict()
        if self.label_set.names != self._own:
            numbers = [self.label_set.names.index(name) for name in self._own]
            found["labels"] = [labels and [numbers[label] for label in labels] for labels in found["labels"]]
        return found

    def label_as(self, label_set: LabelSet) -> None:
        """Number the rows' labels as `label_set` does, which has each of them, and perhaps others that no row carries."""
        self.label_set = label_set
        self.__dict__.pop("rows", None)

    @cached_property
    def answers(self) -> list[list[str] | None] | None:
        """Return what people answered to each row's question, None for a row without one; None where no row has any."""
        if not self._has(ANSWERS):
            return None
        found: list[list[str] | None] = self.dataset.to_table(columns=[ANSWERS]).column(0).to_pylist()
        return found

    @cached_property
    def image_paths(self) -> list[str | None]:
        """Return where each row's picture is, as its record says; None for a row without one, and for all of an older store's."""
        if not self._has(PATHS):
            return [None] * len(self.rows["id"])
        found: list[str | None] = self.dataset.to_table(columns=[PATHS]).column(0).to_pylist()
        return found

    @cached_property
    def labelled(self) -> np.ndarray:
        """Return [N] bool: which of all rows somebody has labelled, be it with nothing."""
        return np.array([labels is not None for labels in self.rows["labels"]], dtype=bool)

    def rows_of(self, split: Split, *, unlabelled: bool = False) -> np.ndarray:
        """Return the numbers of the labelled rows in `split`, and of those without labels if asked, in the store's order.

        Raises BadInputError when there is none.
        """
        there = np.array(self.rows["split"]) == split
        found = np.flatnonzero(there if unlabelled else there & self.labelled)
        if not len(found) and there.any():
            raise BadInputError(f"{self.folder}: nobody has labelled a row of the {split} split; label some, or learn "
                                "from pairs without labels: labeler pretrain")  # fmt: skip
        if not len(found):
            raise BadInputError(f"{self.folder}: no row in the {split} split; --split of `labeler ingest` draws splits")
        return found

    def truth(self, rows: np.ndarray) -> np.ndarray:
        """Return [N, L] bool: which labels each of `rows` carries; none of a row that nobody has labelled."""
        truth = np.zeros((len(rows), len(self.label_set.names)), dtype=bool)
        for position, row in enumerate(rows):
            truth[position, self.rows["labels"][row] or []] = True
        return truth

    def complete(self, rows: np.ndarray) -> np.ndarray:
        """Return [N] bool: which of `rows` have a text and a picture."""
        return np.array([bool(self.rows["text"][row]) and self.has_image[row] for row in rows], dtype=bool)

    @cached_property
    def has_image(self) -> np.ndarray:
        """Return [N] bool: which of all rows have a picture."""
        found: np.ndarray = self.dataset.to_table(columns={"has_image": "image IS NOT NULL"}).column(0).to_numpy()
        return found

    def visual_tokens(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the frozen image tower's tokens [N, V, D] float16, and [N, V] bool: which of them are real.

        All are False in a row without a picture; of a detector's regions the last ones may be.
        """
        shape = self.towers["image"]
        table = self.dataset.take(list(rows), columns=[name for name in (TOKENS, BOXES) if self._has(name)])
        real = ~np.asarray(table.column(TOKENS).is_null())
        tokens = np.zeros((len(rows), shape["tokens"], shape["width"]), dtype=np.float16)
        tokens[real] = _numbers(table.column(TOKENS)).reshape(-1, shape["tokens"], shape["width"])
        mask = np.repeat(real[:, None], shape["tokens"], axis=1)
        if self._has(BOXES):
            mask[real] = region_mask(_numbers(table.column(BOXES)).reshape(-1, shape["tokens"], 4))
        return tokens, mask

    def visual_boxes(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the boxes [N, V, 4] float32 of a detector's regions: x1 y1 x2 y2 as shares of width and height, zeros for none.

        Raises BadInputError when the store's image tower is no detector.
        """
        if not self._has(BOXES):
            name = self.towers["image"]["name"]
            raise BadInputError(
                f"{self.folder}: the image encoder {name!r} gives no boxes; preprocess with regions:NAME"
            )
        column = self.dataset.take(list(rows), columns=[BOXES]).column(0)
        boxes = np.zeros((len(rows), self.towers["image"]["tokens"], 4), dtype=np.float32)
        boxes[~np.asarray(column.is_null())] = _numbers(column).reshape(-1, *boxes.shape[1:])
        return boxes

    def features(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the frozen towers' pooled features: image [N, Di] (mean of the real tokens) and text [N, Dt], float32."""
        image = np.concatenate([
            # those that are not real are zeros
            tokens.sum(axis=1, dtype=np.float32) / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
            for tokens, mask in self._token_pieces(rows)
        ])  # fmt: skip
        column = self.dataset.take(list(rows), columns=["text_features"]).column(0).combine_chunks()
        return image, column.flatten().to_numpy().reshape(len(rows), -1).astype(np.float32)

    def thumbnails(self, rows: np.ndarray | None = None, size: int = 256) -> Iterator[bytes | None]:
        """Yield each row's thumbnail, of all rows by default: the bytes of a picture file, None where there is no picture."""
        wanted = list(range(len(self.rows["id"]))) if rows is None else rows.tolist()
        for start in range(0, len(wanted), size):
            yield from self.dataset.take(wanted[start : start + size], columns=["image"]).column(0).to_pylist()

    def _token_pieces(self, rows: np.ndarray, size: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), size):
            yield self.visual_tokens(rows[start : start + size])

    def _has(self, column: str) -> bool:
        return column in self.dataset.schema.names


def region_mask(boxes: np.ndarray) -> np.ndarray:
    """Return [..., V] bool for boxes [..., V, 4], x1 y1 x2 y2: which are regions, and not the zeros that stand for none."""
    return boxes[..., 2] > boxes[..., 0]


def _numbers(column: Any) -> np.ndarray:
    """Return the numbers of a column of lists, one list after another; rows without a list have none."""
    return column.combine_chunks().drop_null().flatten().to_numpy()


def read_examples(folder: Path, ids: Sequence[str]) -> dict[str, Example]:
    """Return {id: Example} for those of `ids` that the store holds."""
    store = Store(folder, check=False)
    numbers = {identity: row for row, identity in enumerate(store.rows["id"])}
    known = [identity for identity in dict.fromkeys(ids) if identity in numbers]
    table = store.dataset.take([numbers[identity] for identity in known], columns=["text", "image"]).to_pydict()
    rows = zip(known, table["text"], table["image"], strict=True)
    return {identity: Example(text, image, THUMBNAIL_MIME if image else None) for identity, text, image in rows}
