"""Embedding: a run of `labeler pretrain`, opened, and where it puts the texts and pictures of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labeler.artifacts import read_json, verify
from labeler.errors import BadInputError
from labeler.records import LabelSet
from labeler.rows.keys import comparables, keys_of
from labeler.runs import Run, refuse_pickles
from labeler.store import Store


def load_towers_run(folder: Path, device: Any = "cpu") -> Run:
    """Return the run of `labeler pretrain` in `folder`, every file compared with its sha256 first; it has no labels.

    Raises BadInputError when it is none, damaged, or holds a pickle.
    """
    manifest = verify(folder, "pretrain")
    refuse_pickles(folder)
    from labeler.models import model_module

    name = manifest["arguments"]["model"]
    model, tokenizer = model_module(name).load_towers(folder)
    return Run(
        folder=folder,
        name=name,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        label_set=LabelSet(task="single", labels=()),
        thresholds=None,
        temperature=1.0,
        preprocessor=read_json(folder / "preprocessor.json"),
        manifest=manifest,
        history=read_json(folder / "history.json"),
    )


def embed_pairs(
    model: Any, pairs: Any, pad_token_id: int, *, batch_size: int = 32, progress: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of the pairs' texts and pictures, [N, S] float32 each, zeros for what is missing."""
    import torch

    from labeler.inference import model_outputs

    def both(**batch: torch.Tensor) -> torch.Tensor:  # [B, 2, S]
        return torch.stack(tuple(model(**batch)), dim=1)

    values = model_outputs(model, pairs, pad_token_id, both, progress, batch_size)
    return values[:, 0], values[:, 1]


def pair_keys(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return [N, 2] int64: equal where texts are, but for case, blanks and punctuation, and where pictures (thumbnails) are."""
    thumbnails = store.thumbnails(rows)  # hashed as they pass by
    pictures = [keys_of([image]) for image in thumbnails]
    texts = keys_of(comparables([store.rows["text"][row] for row in rows]))
    return np.stack([texts, np.concatenate(pictures)], axis=1).view(np.int64)


def refuse_other_tower(run: Run, store: Store) -> None:
    """Raise BadInputError unless the store's visual tokens are of the image tower that the run was trained on."""
    refuse_other_pictures(run.folder, run.preprocessor["image"], store)


def refuse_other_pictures(run: Path, ours: dict[str, Any], store: Store) -> None:
    """Raise BadInputError unless the store's visual tokens are of `ours`, the image tower that the run recorded.

    How many they are is not looked at: what reads their mean alone may have more or fewer.
    """
    theirs = store.towers["image"]
    if ours["sha256"] != theirs["sha256"] and not ours.get("fine_tuned"):
        raise BadInputError(
            f"{run} reads visual tokens of {ours['name']!r}, {store.folder} holds those of {theirs['name']!r}; run "
            f"`labeler preprocess` with --image-encoder {ours['name']}"
        )
