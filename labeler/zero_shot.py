"""Zero-shot labels: the label whose words lie nearest to a pair, in the space that `labeler pretrain` has made; none is learned.

    "signs" -> "a drawing of a flag", "a drawing of a road sign", ... -> text tower -> prompts [P, S] -+
                                                                                      cosine * scale -> softmax over labels
    a pair's text and picture -> both towers -> text, image embeddings [B, S] each ---+

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", sections 3.1.2 and 3.1.4.
Differences: a pair's text counts too, where it has one (both cosines are added); and a label may be described by several
phrases, whose probabilities are averaged, since one point of the space is too narrow for flags and road signs at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from labeler.artifacts import read_manifest
from labeler.errors import BadInputError, UsageError
from labeler.records import Label, LabelSet
from labeler.sources.jsonl import unique_keys
from labeler.values import RowError, clean_text

if TYPE_CHECKING:
    from labeler.runs import Run

TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "a photo of {}")


class Prompts(NamedTuple):
    """What stands for labels: {label: its phrases}, and the templates that each phrase is put into."""

    phrases: Mapping[str, Sequence[str]]
    templates: Sequence[str] = TEMPLATES

    def arguments(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {
            "phrases": {name: list(phrases) for name, phrases in self.phrases.items()},
            "templates": list(self.templates),
        }


def parse_prompts(text: str, templates: Sequence[str] = ()) -> Prompts:
    """Return the prompts of `joy,anger,a cat`, of `signs=flag|road sign,animals`, or of a JSON file {label: phrase or phrases}.

    Raises UsageError where there are fewer than two labels, one is empty, no text or stands twice, or a template lacks its `{}`;
    BadInputError where the file cannot be read.
    """
    if text.endswith(".json"):
        return checked(read_phrases(Path(text)), templates)
    parts = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"zero-shot labels: {twice[0]!r} stands twice; name each label once")
    return checked(
        {name.strip(): phrases.split("|") if sign else [spoken(name)] for name, sign, phrases in parts}, templates
    )


def read_phrases(path: Path) -> dict[str, list[str]]:
    """Return {label: phrases} of a JSON file, cleaned as texts are; raises BadInputError where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
        given = {name: [phrases] if isinstance(phrases, str) else phrases for name, phrases in found.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadInputError(
            f'{path}: expected JSON like {{"signs": ["flag", "road sign"], "animals": "animal"}} ({error})'
        ) from error
    lists = all(isinstance(phrases, list) for phrases in given.values())
    if not lists or not all(isinstance(phrase, str) for phrases in given.values() for phrase in phrases):
        raise BadInputError(f"{path}: a phrase that is no string; expected each label with a phrase or a list of them")
    try:
        return tidied(given)
    except RowError as error:
        raise BadInputError(f"{path}: {error}; write each once, in UTF-8") from None


def prompts_of(
    label_set: LabelSet, described: Mapping[str, Sequence[str]] | None, templates: Sequence[str] = ()
) -> Prompts:
    """Return the prompts for a store's labels: their phrases where they are `described`, else their names.

    Raises UsageError when something is described that is none of the labels.
    """
    described = described or {}
    if strange := [name for name in described if name not in label_set.names]:
        raise UsageError(
            f"a description of {strange[0]!r}, which is no label here; there are: {', '.join(label_set.names)}"
        )
    return checked({name: described.get(name) or [spoken(name)] for name in label_set.names}, templates)


def told_by(described: Mapping[str, Sequence[str]] | None, templates: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a manifest records of how a store's labels are told (see `prompts_of`)."""
    return {"described": dict(described or {}), "templates": list(templates or TEMPLATES)}


def checked(phrases: Mapping[str, Sequence[str]], templates: Sequence[str]) -> Prompts:
    """Return prompts of these, in TEMPLATES where no templates are given; raises UsageError (see `parse_prompts`)."""
    try:
        tidy = tidied(phrases)
        templates = [clean_text(template, "template") or "" for template in templates]
    except RowError as error:
        raise UsageError(f"zero-shot labels: {error}; write each once, in UTF-8") from None
    if len(tidy) < 2:
        raise UsageError(f"zero-shot labels: {len(tidy)} given, expected two or more, such as --zero-shot 'joy,anger'")
    if empty := [name for name, found in tidy.items() if not (name and found and all(found))]:
        raise UsageError(
            f"zero-shot labels: an empty label or phrase ({empty[0]!r}); write each as NAME or NAME=PHRASE|PHRASE"
        )
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise UsageError(f"--template {wrong[0]!r}: expected one {{}} in it, where the label goes")
    return Prompts(tidy, tuple(templates) or TEMPLATES)


def tidied(phrases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return labels and phrases cleaned as texts are, blank ones as ""; raises RowError for what is no text or a label twice."""
    tidy: dict[str, list[str]] = {}
    for given, found in phrases.items():
        name = clean_text(given, "label") or ""
        if name in tidy:
            raise RowError("label-invalid", f"{name!r} stands twice")
        tidy[name] = [clean_text(phrase, "phrase") or "" for phrase in found]
    return tidy


def spoken(name: str) -> str:
    """Return a label's name as words."""
    return name.replace("_", " ").strip()


def refuse_towers(folder: Path, option: str) -> None:
    """Raise BadInputError for a run of `labeler pretrain` where one with labels is wanted: it knows some with `option` alone."""
    try:
        stage = read_manifest(folder)["stage"]
    except BadInputError:
        return  # who opens it says what it is
    if stage == "pretrain":
        raise BadInputError(
            f"{folder}: made by `labeler pretrain`, expected the output of `labeler train`; or add {option}"
        )


def label_set_of(prompts: Prompts) -> LabelSet:
    """Return the prompts' labels, of which a pair has one."""
    return LabelSet(task="single", labels=tuple(Label(name=name, count=0) for name in prompts.phrases))


def zero_shot_run(folder: Path, prompts: Prompts, label_set: LabelSet | None = None, device: Any = "cpu") -> Run:
    """Return the run of `labeler pretrain` in `folder` as a model for the prompts' labels, with logits as a trained one has.

    `label_set` are the labels as a store has them; by default one label a pair. Raises what `load_towers_run` raises.
    """
    from labeler.embedding import load_towers_run
    from labeler.zero_shot_model import ZeroShot

    run = load_towers_run(folder, device)
    label_set = label_set or label_set_of(prompts)
    model: Any = ZeroShot(
        cast(Any, run.model), run.tokenizer, run.preprocessor["max_text_tokens"], prompts, label_set.task
    )
    return run._replace(name=f"{run.name} zero-shot", model=model, label_set=label_set)
