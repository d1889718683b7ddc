"""A run: the folder that `labeler train` writes, with all that is needed to label and to know how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labeler.artifacts import read_json, verify
from labeler.errors import BadInputError
from labeler.models import model_module
from labeler.records import LabelSet, read_label_set

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from labeler.end_to_end import EndToEnd

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class Run(NamedTuple):
    """A trained model, opened: its name, weights, tokenizer, labels, temperature, thresholds and what it takes as input.

    The model is an EndToEnd where the run has an image tower of its own, which was fine-tuned with it.
    """

    folder: Path
    name: str
    model: PreTrainedModel | EndToEnd
    tokenizer: PreTrainedTokenizerBase
    label_set: LabelSet
    thresholds: list[float] | None
    temperature: float  # of its logits; 1.0 for runs that were made before it was fitted
    preprocessor: dict[str, Any]
    manifest: dict[str, Any]
    history: dict[str, Any]


def load_run(folder: Path | str, device: Any = "cpu") -> Run:
    """Return the run in `folder`, every file compared with its sha256 first; on `device`, where `auto` is a GPU if there is one.

    Raises BadInputError when it is no run, damaged, lacks weights of today's model or has others, or holds a pickle (which could
    run code when opened).
    """
    folder = Path(folder)
    manifest = verify(folder, "train")
    refuse_pickles(folder)
    from transformers import AutoTokenizer

    from labeler.encoders.pretrained import load_model
    from labeler.inference import choose_device

    name = manifest["arguments"]["model"]
    model: Any = load_model(model_module(name).Model, folder, name, "train")
    preprocessor = read_json(folder / "preprocessor.json")
    if preprocessor["image"].get("fine_tuned"):
        from labeler.encoders.image import averaged_as_recorded, load_image_encoder
        from labeler.encoders.weights import TOWER
        from labeler.end_to_end import EndToEnd

        tower = averaged_as_recorded(load_image_encoder(str(folder / TOWER)), preprocessor["image"])
        model = EndToEnd(model, tower)
    thresholds, temperature = read_fitted(folder)
    return Run(
        folder=folder,
        name=name,
        model=model.to(choose_device(device) if isinstance(device, str) else device).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        label_set=read_label_set(folder),
        thresholds=thresholds,
        temperature=temperature,
        preprocessor=preprocessor,
        manifest=manifest,
        history=read_json(folder / "history.json"),
    )


def refuse_pickles(folder: Path) -> None:
    """Raise BadInputError when a run holds a pickle."""
    pickled = [path for path in sorted(folder.rglob("*")) if path.suffix in PICKLED]
    if pickled:
        raise BadInputError(f"{pickled[0]}: a pickle, which could run code; a run holds safetensors only, remove it")


def read_fitted(folder: Path) -> tuple[list[float] | None, float]:
    """Return the thresholds (None: one label a row) and the temperature that were fitted on validation rows."""
    thresholds, calibration = folder / "thresholds.json", folder / "calibration.json"
    return (
        read_json(thresholds)["thresholds"] if thresholds.is_file() else None,
        read_json(calibration)["temperature"] if calibration.is_file() else 1.0,
    )
