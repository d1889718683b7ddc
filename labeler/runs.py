"""A run: the folder that `labeler train` writes, with all that is needed to label and to know how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labeler.artifacts import BadInputError, verify
from labeler.models import model_module
from labeler.records import LabelSet, read_label_set

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class Run(NamedTuple):
    """A trained model, opened: its name, weights, tokenizer, labels, thresholds and what it takes as input."""

    folder: Path
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label_set: LabelSet
    thresholds: list[float] | None
    preprocessor: dict[str, Any]
    manifest: dict[str, Any]
    history: dict[str, Any]


def load_run(folder: Path, device: Any = "cpu") -> Run:
    """Return the run in `folder`, every file compared with its sha256 first.

    Raises BadInputError when it is no run, damaged, lacks weights of today's model, or holds a pickle (which could run code
    when opened).
    """
    manifest = verify(folder, "train")
    pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
    if pickled:
        raise BadInputError(
            f"{folder / pickled[0]}: a pickle, which could run code; a run holds safetensors only, remove it"
        )
    from transformers import AutoTokenizer

    name = manifest["arguments"]["model"]
    model, loading = model_module(name).Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise BadInputError(
            f"{folder}: weights that {name} has now are not in it ({', '.join(missing[:3])}), an older labeler made it; train it "
            "again with `labeler train --force`"
        )
    thresholds = folder / "thresholds.json"
    return Run(
        folder=folder,
        name=name,
        model=model.to(device).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        label_set=read_label_set(folder),
        thresholds=read_json(thresholds)["thresholds"] if thresholds.is_file() else None,
        preprocessor=read_json(folder / "preprocessor.json"),
        manifest=manifest,
        history=read_json(folder / "history.json"),
    )


def read_json(path: Path) -> Any:
    """Return what the JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))
