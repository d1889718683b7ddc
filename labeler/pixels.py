"""Pictures as an image tower takes them, for a tower that is fine-tuned: decoded once a data set, kept beside the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from labeler.artifacts import Input, Recipe, already_made, making, verify
from labeler.errors import BadInputError
from labeler.inputs import found_again
from labeler.preprocessing import counted, load_batches
from labeler.store import Store

FILE = "pixels.npy"


class Pixels(NamedTuple):
    """Decoded pictures, mapped from a file: [P, side, side, 3] uint8 RGB; numbers [N] int64: each row's picture, -1 for none."""

    pictures: np.ndarray
    numbers: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Return the picture of the store's row, [3, side, side] uint8; zeros where it has none."""
        number = self.numbers[row]
        picture = self.pictures[number] if number >= 0 else np.zeros(self.pictures.shape[1:], dtype=np.uint8)
        return np.ascontiguousarray(picture.transpose(2, 0, 1))


def stored_pixels(store: Store, side: int) -> Pixels:
    """Return the pictures of all rows of the store, `side` x `side` pixels, exactly as `preprocess` shows them to a tower.

    They are read from the files that the store was made of, once, and kept in `STORE-pixels-SIDE` beside it, 3 * side * side
    bytes a picture. Stores of other towers on the same records share it.

    Raises BadInputError when they are not there yet and the records or pictures are gone or have changed.
    """
    source = store.manifest["inputs"][0]
    out = store.folder.with_name(f"{store.folder.name}-pixels-{side}")
    recipe = Recipe("pixels", (Input(source["path"], source["sha256"]),), {"side": side})
    has_image = store.has_image
    if not already_made(out, recipe):
        records = records_of(store)
        with making(out, recipe) as folder, open(folder / FILE, "wb") as file:
            shape = int(has_image.sum()), side, side, 3
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            # written, not mapped: on a full disk that would be a signal in place of an error
            with tqdm(total=len(has_image), desc="decoding pictures", unit="pair", disable=None) as bar:
                for batch in counted(load_batches(records, side), bar):
                    for item in batch:
                        if item.picture is not None:
                            file.write(item.picture.pixels.tobytes())
    pictures = np.load(out / FILE, mmap_mode="r")
    return Pixels(pictures, np.where(has_image, np.cumsum(has_image) - 1, -1))


def records_of(store: Store) -> Path:
    """Return the records that the store was made of; raises BadInputError where they are gone or have changed."""
    source = store.manifest["inputs"][0]
    records = found_again(store.folder, source)
    why = f"{store.folder} was made of them, and a fine-tuned image tower reads their pictures"
    try:
        found = verify(records, "ingest")["content_sha256"]
    except BadInputError as error:
        raise BadInputError(f"{error}; {why}") from error
    if found != source["sha256"]:
        raise BadInputError(f"{records}: other records by now; {why}: run `labeler preprocess` again")
    return records


def pixels_for(run: Any, store: Store) -> Pixels | None:
    """Return the store's pictures where the run has an image tower of its own to show them to, else None."""
    return stored_pixels(store, run.model.encoder.size) if run.preprocessor["image"].get("fine_tuned") else None
