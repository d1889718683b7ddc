"""The model card of a run of `labeler pretrain`: what two towers without labels are for, and how well they find each other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from labeler.artifacts import read_json
from labeler.evaluation import HEADLINE
from labeler.evaluation.retrieval import DEPTHS, DIRECTIONS
from labeler.model_card import METRICS, WORDS, cell, figure, origin, unread

USE = """from pathlib import Path
from labeler.predicting import label
from labeler.zero_shot import parse_prompts, zero_shot_run

run = zero_shot_run(Path({folder!r}), parse_prompts("joy,anger"))
print(label(run, [{{"image": "photo.jpg", "text": "its caption"}}]))"""


def towers_card(
    folder: Path,
    trained: dict[str, Any],
    typed: str,
    metrics: dict[str, Any] | None = None,
    place: Path | None = None,
) -> str:
    """Return the card of the run in `folder`, which will be found at `place` (in `folder`, by default).

    `trained` has the manifest's `arguments`, `inputs` and `seed`, `typed` is the command that made it; `metrics` is what `labeler
    evaluate --zero-shot` measured, None before it did.
    """
    from huggingface_hub import ModelCard, ModelCardData

    place = place or folder
    name = trained["arguments"]["model"]
    data = ModelCardData(library_name="labeler", tags=["image-text-retrieval", "zero-shot-image-classification", name])
    parts = [
        f"# {name}, pretrained",
        "Puts texts and pictures into one space, where those that belong together are near each other. It was trained by "
        f"`labeler pretrain` on the pairs in `{trained['inputs'][0]['path']}` and has been told no label.",
        usage(place),
        figures(metrics),
        limits(folder),
        origin(folder, trained, typed),
    ]
    text = "\n\n".join(parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def usage(place: Path) -> str:
    """Return what can be done with it, from the command line and from Python."""
    run = str(place)
    commands = [
        ["labeler", "predict", "FOLDER", "--model", run, "--zero-shot", "joy,anger,a cat", "--out", "labels.jsonl"],
        ["labeler", "index", "STORE", "--model", run, "--out", "INDEX"],
        ["labeler", "search", "words", "--index", "INDEX"],
        ["labeler", "train", "clip", "STORE", "--init", run, "--out", "RUN"],
    ]
    lines = "\n".join(f"    {shlex.join(command)}" for command in commands)
    return f"## Use\n\n{lines}\n\n```python\n{USE.format(folder=run)}\n```"


def figures(metrics: dict[str, Any] | None) -> str:
    """Return how well texts and pictures find each other, and how often zero-shot labels are right, with intervals."""
    if metrics is None:
        how = "`labeler evaluate RUN --data STORE --zero-shot` does that, and writes them here"
        return f"## Figures\n\nNot measured on held-out pairs yet: {how}."
    data = metrics["data"]
    head = (
        f"## Figures\n\nOn the {data['split']} split of {cell(data['name'])} (sha256 `{data['sha256'][:12]}`), "
        f"{unread(data)}; in brackets 95 % intervals (BCa bootstrap by group)."
    )
    parts = [head, retrieval_table(metrics["retrieval"]), label_figures(metrics)]
    return "\n\n".join(part for part in parts if part)


def retrieval_table(retrieval: dict[str, Any]) -> str:
    """Return how well texts and pictures find each other; nothing where no pair has both."""
    if not retrieval:
        return ""
    names = [*(f"recall_at_{depth}" for depth in DEPTHS), "median_rank"]
    heads = [name.replace("_at_", "@").replace("_", " ") for name in names]
    rows = [[direction.replace("_", " "), *(figure(retrieval[direction], name) for name in names)]
            for direction in DIRECTIONS]  # fmt: skip
    chance = ["a random order", *(f"{value:.3f}" for value in retrieval["chance"].values()), ""]
    return in_rows([f"of {retrieval['n']} pairs", *heads], [*rows, chance])


def label_figures(metrics: dict[str, Any]) -> str:
    """Return how often zero-shot labels are right, the baselines' beside them."""
    names, headline = METRICS[metrics["task"]], HEADLINE[metrics["task"]]
    rows = [[row["name"], *(figure(row, name) for name in names)] for row in (*metrics["baselines"], metrics)]
    parts = [
        f"Zero-shot labels of {metrics['n']} pairs, {len(metrics['per_class'])} labels; the baselines have learned from labels:",
        in_rows(["model", *(WORDS.get(name, name) for name in names)], rows),
    ]
    modalities = metrics.get("modalities") or {}
    if modalities.get("both", {}).get(headline) is not None:
        alone = (f"by {words} alone {figure(modalities[key], headline)}"
                 for key, words in (("text", "text"), ("image", "picture")))  # fmt: skip
        parts.append(f"{WORDS.get(headline, headline).capitalize()} {', '.join(alone)}.")
    return "\n\n".join(parts)


def in_rows(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def limits(folder: Path) -> str:
    """Return what it is not good for, as far as settings say."""
    preprocessor = read_json(folder / "preprocessor.json")
    return (
        "## Limits\n\n"
        "- Zero-shot labels are as good as the words that stand for them; `--describe` gives a label several phrases. Where a "
        "few hundred pairs are labelled, a trained model is better.\n"
        f"- Texts are cut at {preprocessor['max_text_tokens']} tokens; pictures are stretched to the image tower's square.\n"
        "- It has seen pairs like those it was trained on, and no others."
    )
