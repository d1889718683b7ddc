"""How the runs came to be: the commands that make them again, versions, hashes, seeds and settings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from labeler.artifacts import read_json, read_manifest
from labeler.encoders.weights import EMBEDDED
from labeler.errors import BadInputError, UsageError
from labeler.inputs import replaced
from labeler.model_card import command, prompt_words
from labeler.pretraining import pretrain_command
from labeler.report.comparison import Model
from labeler.report.runs import MeasuredRun


def how(model: Model) -> dict[str, Any]:
    """Return how a model came to be: {name, baseline, values: [(what, value)]}."""
    values: dict[str, Any] = {"run": str(model.run.folder), "preset": model.run.metrics.get("preset")}
    said: dict[str, Any] = {}
    if not model.baseline:
        manifest, said = model.run.manifest, model.run.manifest["arguments"]
        paths = [item["path"] for item in manifest["inputs"]]
        values |= {"seed": model.metrics["seed"], "trained on": paths[:1]}
        others = paths[1:]  # what it started from, then the teachers
        if said.get("init"):
            values["started from"] = others.pop(0)
        if others:
            values["teachers"] = others
        values |= {"artifact sha256": manifest["content_sha256"], "versions": manifest["versions"]}
        values |= {f"argument {key}": value for key, value in said.items()}
    values |= {key: value for key, value in model.metrics["settings"].items() if said.get(key) != value}
    return {"name": model.name, "baseline": model.baseline, "values": [(key, plain(v)) for key, v in values.items()]}


def commands(runs: list[MeasuredRun], split: str, explain: int) -> list[str]:
    """Return what to type to make store, runs and report again, from the records on."""
    folders = [str(run.folder) for run in runs]
    lines = [
        *dict.fromkeys(line for run in runs for line in preprocess_command(run)),
        *filter(None, map(train_command, runs)),
        *(
            ["labeler", "evaluate", str(run.folder), "--data", str(run.store), "--split", split]
            + zero_shot_words(run, split)
            + (["--aim", run.metrics["aim"]] if run.metrics.get("aim") else [])
            for run in runs
        ),
        ("labeler", "report", *folders, "--split", split, "--explain", str(explain)),
    ]
    return [shlex.join(words) for words in lines]


def zero_shot_words(run: MeasuredRun, split: str) -> list[str]:
    """Return what says how labels were told to a run that has learned none."""
    if run.manifest["stage"] != "pretrain":
        return []
    told = read_manifest(run.folder, "evaluate", f"manifest-{split}.json")["arguments"]["zero_shot"]
    return ["--zero-shot", *prompt_words(told)]


def preprocess_command(run: MeasuredRun) -> list[tuple[str, ...]]:
    """Return the words of the command that makes the store that `run` was measured on, none where it is gone or replaced."""
    if replaced(run.store, run.measured_on):
        return []
    try:
        manifest = read_manifest(run.store, "preprocess")
    except BadInputError:
        return []
    asked = manifest["arguments"]
    options = {f"--{name.replace('_', '-')}": asked.get(name) for name in ("text_encoder", "image_encoder")}
    chosen = [word for option, tower in options.items() if tower not in (None, EMBEDDED) for word in (option, tower)]
    if has_unknown_words(run.store):
        chosen.append("--allow-unknown-words")
    if asked.get("visual_tokens"):
        chosen += ["--visual-tokens", str(asked["visual_tokens"])]
    return [("labeler", "preprocess", manifest["inputs"][0]["path"], "--out", str(run.store), *chosen)]


def has_unknown_words(store: Path) -> bool:
    """Return whether the text tower knows too few of the store's words for `labeler preprocess` to make it unasked."""
    try:
        return "unknown_share" in read_json(store / "towers.json")["text"]
    except (OSError, ValueError, KeyError):
        return False


def train_command(run: MeasuredRun) -> list[str]:
    """Return the words of the command that trains `run`, none where this labeler does not have its model."""
    made = pretrain_command if run.manifest["stage"] == "pretrain" else command
    try:
        return made(run.manifest, run.folder)
    except UsageError:
        return []


def plain(value: Any) -> str:
    """Return a value as one reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(plain, value)) or "–"
    return value if isinstance(value, str) else json.dumps(value)
