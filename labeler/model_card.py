"""The model card: the README of a run, as a person and the Hugging Face hub read it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labeler.artifacts import read_json
from labeler.evaluation import ANSWERS, HEADLINE, kept_promise
from labeler.evaluation.measuring import FEW_POSITIVES
from labeler.records import LabelSet, read_label_set
from labeler.training_options import TrainOptions, options_for, trains_pretrained
from labeler.zero_shot import TEMPLATES

METRICS = {
    "single": ("accuracy", "weighted_f1", "macro_f1"),
    "multi": ("mean_average_precision", "micro_f1", "macro_f1"),
}
WORDS = {"mean_average_precision": "mean average precision", "micro_f1": "micro F1", "macro_f1": "macro F1",
         "weighted_f1": "weighted F1", ANSWERS: "VQA accuracy"}  # fmt: skip
USE = """from labeler import label, load_run

run = load_run({folder!r})
print(label(run, [{{"image": "photo.jpg", "text": "its caption"}}]))"""


def model_card(
    folder: Path, trained: dict[str, Any], metrics: dict[str, Any] | None = None, place: Path | None = None,
    exported: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Return the card of the run in `folder`, or of its export, which will be found at `place` (in `folder`, by default).

    `trained` has the manifest's `arguments`, `inputs` and `seed`; `metrics` is what `labeler evaluate` measured, None before
    it did. `exported` is what the check of the export gave.
    """
    from huggingface_hub import ModelCard, ModelCardData

    labels, name = read_label_set(folder), trained["arguments"]["model"]
    data = ModelCardData(
        library_name="labeler",
        tags=["image-text-classification", f"{labels.task}-label", name],
        model_name=name if metrics else None,
        eval_results=results(labels, metrics) if metrics else None,
    )
    parts = [
        f"# {name}",
        purpose(labels, trained),
        usage(place or folder, exported is None),
        checks(exported) if exported else "",
        figures(labels, metrics),
        sureness(metrics),
        label_table(folder, labels, metrics),
        limits(folder, labels, metrics),
        origin(folder, trained, shlex.join(command(trained, folder if exported else place or folder))),
    ]
    text = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def results(labels: LabelSet, metrics: dict[str, Any]) -> list[Any]:
    """Return the figures as the hub's results."""
    from huggingface_hub import EvalResult

    data = metrics["data"]
    return [
        EvalResult(task_type="image-text-classification", dataset_type=data["sha256"][:12], dataset_name=cell(data["name"]),
                   dataset_split=data["split"], metric_type=metric, metric_value=round(metrics[metric], 4))
        for metric in METRICS[labels.task] if metrics[metric] is not None
    ]  # fmt: skip


def purpose(labels: LabelSet, trained: dict[str, Any]) -> str:
    """Return what the model does."""
    each = "one of" if labels.task == "single" else "any number of"
    return (
        f"Labels pairs of a picture and a text with {each} {len(labels.names)} labels; either part of a pair may be missing. "
        f"Trained by `labeler` on the pairs in `{trained['inputs'][0]['path']}`."
    )


def usage(place: Path, is_run: bool) -> str:
    """Return how to label with it, from the command line and, where it is a run, from Python."""
    command = shlex.join(["labeler", "predict", "FOLDER", "--model", str(place), "--out", "labels.jsonl"])
    if not is_run:
        return f"## Use\n\n    {command}"
    return f"## Use\n\n    {command}\n\n```python\n{USE.format(folder=str(place))}\n```"


def checks(exported: dict[str, Any]) -> str:
    """Return how each way to run an export compares with the run in PyTorch."""
    tokens = exported["visual_tokens"]
    fewer = f", {tokens} visual tokens a picture in place of the tower's" if tokens else ""
    pairs = "validation pairs, and parts of them," if exported["validation"] else "made pairs"
    lines = [
        "## Export",
        "",
        f"ONNX{', the image tower in int8' if exported['int8'] else ''}{fewer}. Compared with the run in PyTorch (float32) on "
        f"{exported['pairs']} {pairs} when it was made; pairs a second are those of that machine and moment. The figures further "
        "down are the run's.",
        "",
        "| | pairs/s | largest difference of a score | same labels | validation |",
        "|---|---|---|---|---|",
    ]
    for name, found in {"PyTorch": exported["native"], **exported["ways"]}.items():
        metric = next((key for key in HEADLINE.values() if key in found), None)
        cells = [
            f"{found['pairs_per_second']:.1f}",
            f"{found['largest_difference']:.1e}" if "same_labels" in found else "",
            f"{found['same_labels']:.1%}" if "same_labels" in found else "",
            f"{WORDS.get(metric, metric)} {figure(found, metric)}" if metric else "",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(labels: LabelSet, metrics: dict[str, Any] | None) -> str:
    """Return the table of figures with intervals, the baselines' beside them."""
    if metrics is None:
        return "## Figures\n\nNot measured on held-out pairs yet: `labeler evaluate` does that, and writes them here."
    data, names = metrics["data"], [*METRICS[labels.task], *([ANSWERS] if ANSWERS in metrics else [])]
    lines = [
        "## Figures",
        "",
        f"On the {metrics['n']} pairs of the {data['split']} split of {cell(data['name'])} (sha256 `{data['sha256'][:12]}`), "
        f"{unread(data)}; in brackets 95 % intervals (BCa bootstrap by group).",
        "",
        "| model | " + " | ".join(WORDS.get(metric, metric) for metric in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    lines += [
        f"| {row['name']} | " + " | ".join(figure(row, metric) for metric in names) + " |"
        for row in (*metrics["baselines"], metrics)
    ]
    if aim := aimed_at(metrics):
        lines += ["", f"{aim}."]
    modalities = metrics.get("modalities") or {}
    if modalities.get("both", {}).get(HEADLINE[labels.task]) is not None:
        headline = HEADLINE[labels.task]
        lines += [
            "",
            f"{WORDS.get(headline, headline).capitalize()} on the {modalities['both']['n']} pairs that have both: "
            + ", ".join(
                f"{words} {figure(modalities[key], headline)}"
                for key, words in (("text", "text alone"), ("image", "picture alone"), ("both", "both"))
            )
            + ".",
        ]
    return "\n".join(lines)


def aimed_at(metrics: dict[str, Any]) -> str | None:
    """Return what thresholds were fitted for where that is not the best F1, which figures are of unless told."""
    aim = metrics.get("aim") or "f1"
    if aim == "f1":
        return None
    return f"Thresholds were fitted for {aim} (`--aim`), not for the best F1: precision, recall and F1 are of these"


def unread(data: dict[str, Any]) -> str:
    """Return what is known of whether training has read the rows that were measured; notes say more."""
    if not data.get("trained_on_it", True):
        return "not of the store that it was trained on"
    return "of which what it was made from may have read some" if "caution" in data else "which training did not read"


def sureness(metrics: dict[str, Any] | None) -> str:
    """Return how well scores are calibrated and which promises of precision held."""
    if metrics is None or "calibration" not in metrics or metrics["calibration"]["after"]["ece"] is None:
        return ""
    found = metrics["calibration"]
    lines = [
        "## Scores",
        "",
        f"Calibrated by a temperature of {found['temperature']:.3f}, fitted on the validation split; expected calibration error "
        f"{found['before']['ece']:.3f} before, {found['after']['ece']:.3f} after.",
    ]
    promises = [one for one in metrics.get("abstention", {"promises": []})["promises"] if one["threshold"] is not None]
    if promises:
        lines += [
            "",
            "| `--min-precision` | score at least | labels given | of them right | |",
            "|---|---|---|---|---|",
        ]
        for one in promises:
            seen = f"{one['precision']:.3f} {bounds(one['precision_ci95'])}" if one["n"] else "–"
            word = kept_promise(one)
            lines.append(
                f"| {one['promised']:g} | {one['threshold']:.3f} | {one['n']} of {one['total']} | {seen} | {word} |"
            )
    return "\n".join(lines)


def label_table(folder: Path, labels: LabelSet, metrics: dict[str, Any] | None) -> str:
    """Return each label with its rows, its threshold and its figures."""
    given = folder / "thresholds.json"
    thresholds = read_json(given)["thresholds"] if given.is_file() else None
    thresholds = metrics["thresholds"] if metrics and metrics.get("thresholds") else thresholds
    heads = ["label", "pairs in the data"]
    columns = [[cell(label.name) for label in labels.labels], [str(label.count) for label in labels.labels]]
    if thresholds:
        heads.append("threshold")
        columns.append([f"{threshold:.3f}" for threshold in thresholds])
    if metrics:
        for key in ("support", "precision", "recall", "f1"):
            heads.append({"support": f"pairs in {metrics['data']['split']}", "f1": "F1"}.get(key, key))
            values = [row[key] for row in metrics["per_class"]]
            columns.append(["–" if v is None else str(v) if key == "support" else f"{v:.3f}" for v in values])
    rows = ["| " + " | ".join(row) + " |" for row in zip(*columns, strict=True)]
    return "\n".join(["## Labels", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])


def limits(folder: Path, labels: LabelSet, metrics: dict[str, Any] | None) -> str:
    """Return what the model is not good for, as far as figures and settings say."""
    preprocessor = read_json(folder / "preprocessor.json")
    lines = [
        "It knows these labels and no others, and was measured on pairs like those it was trained on.",
        f"Texts are cut at {preprocessor['max_text_tokens']} tokens; pictures are stretched to the image tower's square.",
    ]
    rare = [label.name for label in labels.labels if label.count < 2 * FEW_POSITIVES]
    if rare:
        lines.append(
            f"Fewer than {2 * FEW_POSITIVES} pairs carry {', '.join(map(cell, rare))}: little could be learned of them."
        )
    lines += [f"{cell(note[:1].upper() + note[1:])}." for note in (metrics or {}).get("notes", [])]
    if metrics:
        beaten = max(
            (base for base in metrics["baselines"]), key=lambda base: base[HEADLINE[labels.task]] or 0, default=None
        )
        headline = HEADLINE[labels.task]
        if beaten and (metrics[headline] or 0) <= (beaten[headline] or 0):
            lines.append(f"On held-out pairs it is not above {beaten['name']}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def origin(folder: Path, trained: dict[str, Any], typed: str) -> str:
    """Return how it was trained; `typed` is the command."""
    history = read_json(folder / "history.json")
    best = history["epochs"][history["best_epoch"] - 1]
    lines = [
        "## How it was trained",
        "",
        f"    {typed}",
        "",
        f"Best of {len(history['epochs'])} epochs: epoch {history['best_epoch']}, validation {history['metric']} "
        f"{best['validation_metric']:.4f} on {history['validation_pairs']} pairs; trained on {history['train_pairs']} pairs in "
        f"{history['train_seconds']:.0f} s. `manifest.json` holds all arguments, the data's hash "
        f"(`{trained['inputs'][0]['sha256'][:12]}`), the versions and a sha256 for every file.",
    ]
    if trained["arguments"].get("finetune_image"):
        lines.append(
            "\n`image-tower/` is the image tower that was fine-tuned; `labeler preprocess --image-encoder` takes it too."
        )
    return "\n".join(lines)


def command(trained: dict[str, Any], out: Path) -> list[str]:
    """Return the words to type to train it again as `out`, with the options that are not the model's own.

    DESCRIBED.json stands for the phrases of zero-shot labels, which are in the manifest.
    """
    arguments = asdict(TrainOptions()) | trained["arguments"]  # an earlier version's run had what is no model's own
    store, *others = (item["path"] for item in trained["inputs"])
    name = arguments.pop("model")
    words = ["labeler", "train", name, store]
    if arguments.pop("init", False):
        words += ["--init", others.pop(0)]  # what is left are teachers
    for teacher in taught_by(others, arguments):
        words += ["--teacher", teacher]
    for prompts in list(arguments.pop("zero_shot_teachers", {}).values())[:1]:  # one description is for all of them
        words += prompt_words(prompts)
    if not trains_pretrained(name, arguments.get("freeze", False)):
        arguments.pop("learning_rate", None)  # which `labeler train` would refuse
    tower = {"finetune_image": True} if arguments.get("finetune_image") else {}
    own = asdict(options_for(name, tower)) | {"finetune_image": False}
    return [*words, "--out", str(out), *given(arguments, own), "--seed", str(trained["seed"])]


def prompt_words(prompts: dict[str, Any]) -> list[str]:
    """Return what says how labels were told, as a manifest has it: {templates, described}."""
    templates = prompts.get("templates", list(TEMPLATES))
    words = [word for template in templates if templates != list(TEMPLATES) for word in ("--template", template)]
    return words + (["--describe", "DESCRIBED.json"] if prompts.get("described") else [])


def taught_by(teachers: list[str], arguments: dict[str, Any]) -> list[str]:
    """Return what `--teacher` was given for the folders or names of a run's teachers, with the run's `arguments`."""
    told = arguments.get("zero_shot_teachers", {})  # by their place
    return [f"zero-shot:{path}" if str(number) in told else path for number, path in enumerate(teachers)]


def given(arguments: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Return what to type for those `arguments` that are not a model's `own`."""
    words = []
    for key, value in arguments.items():
        if own.get(key) != value:
            words.append(f"--{key.replace('_', '-')}")
            if value is not True:
                words.append(str(value))
    return words


def figure(row: dict[str, Any], metric: str) -> str:
    """Return a figure with its interval, a dash where it is not defined."""
    return "–" if row[metric] is None else f"{row[metric]:.3f} {bounds(row[f'{metric}_ci95'])}".rstrip()


def bounds(interval: list[float] | None) -> str:
    """Return an interval in brackets, nothing where there is none."""
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def cell(value: Any) -> str:
    """Return a value so that it stays one cell and plain text in a Markdown table."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]|":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
