"""`labeler ingest`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from labeler.cli import options

# labeler.sources.FORMATS, which --help need not load
FORMATS = (
    "auto",
    "jsonl",
    "json",
    "csv",
    "parquet",
    "label-studio",
    "coco",
    "meld",
    "folder",
    "class-folders",
    "lance",
    "hub",
)
MOST_TOLD = 8  # labels whose numbers are printed
MOST_ALIKE = 3  # sets of labels that a warning names
FEW = 20  # rows of a split that say next to nothing
USES = {"train": "learn from", "validation": "choose an epoch by", "test": "tell how good a model is"}


def parse_columns(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields of a list with commas, of several lists one after the other, each once."""
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


@click.command("ingest")
@click.argument("sources", nargs=-1, required=True, type=options.PATH)
@options.out("The folder to write: records.jsonl, labels.json, rejects.jsonl, profile.json.")
@click.option("--format", type=click.Choice(FORMATS), default="auto", show_default=True,
              help="auto: told by names and content. class-folders: sub-folders are labels. hub: as on the hub.")  # fmt: skip
@options.encoding
@click.option("--fix-text", is_flag=True, help="Repair texts that were read in a wrong encoding somewhere (mojibake).")
@click.option(
    "--frames", type=int, default=1, show_default=True, help="MELD: rows a clip, frames evenly spaced; 1: the first."
)
@click.option("--caption", type=click.Choice(["longest", "each"]), default="longest", show_default=True,
              help="Where a text is a list of captions: take the longest, or make each a pair.")  # fmt: skip
@click.option(
    "--label",
    multiple=True,
    callback=options.parse_once,
    metavar="FIELD",
    help="The field that holds the label or labels [default: the first of label, labels, tags, ...].",
)
@click.option("--label-columns", multiple=True, callback=parse_columns, metavar="A,B,...",
              help="Fields that say of a label each if it applies: 1 or 0, true or false, yes or no, x or blank.")  # fmt: skip
@click.option("--labels", type=options.PATH, metavar="FILE",
              help="All labels that there are, one a line; a row with any other is rejected.")  # fmt: skip
@click.option("--answers", type=options.PATH, metavar="FILE",
              help="The same for answers to questions, but any other answer becomes <unk>.")  # fmt: skip
@click.option("--top-answers", type=click.IntRange(min=1), metavar="N",
              help="Keep the N most frequent answers, or labels, of the train rows; any other becomes <unk>.")  # fmt: skip
@click.option("--taxonomy", type=options.PATH, metavar="FILE",
              help='JSON, {"child": "parent"} or {"parent": ["child"]}: a label brings its parent.')  # fmt: skip
@click.option("--task", type=click.Choice(["auto", "single", "multi"]), default="auto", show_default=True,
              help="One label a pair, or any number; auto: multi where a field holds a list.")  # fmt: skip
@options.mapping
@options.image_folder
@click.option(
    "--label-separator",
    default="|",
    show_default=True,
    help="Stands between labels in one string; empty: nothing does.",
)
@click.option("--split", default="auto", show_default=True,
              help="keep: as given in the data. 0.7,0.15,0.15: draw train, validation, test. 2/5: test is the second of "
                   "five folds, validation an eighth of the rest. auto: keep if given; where no row is for validation, some of "
                   "train are.")  # fmt: skip
@click.option("--drop-leaks", is_flag=True,
              help="With given splits: leave out train rows that share a picture, text or group with others.")  # fmt: skip
@click.option("--group-by", help="A field whose equal values must not lie in two splits.")
@click.option("--allow-missing-image", is_flag=True, help="Keep a row without its picture as a text.")
@click.option("--allow-unlabelled", is_flag=True,
              help="Keep a row without a label: for `labeler pretrain`, and for `labeler train --teacher`.")  # fmt: skip
@click.option("--allow-outside", is_flag=True, help="Read pictures outside the source's folder.")
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be used (exit 3).")
@options.seed
@options.force
@options.as_json
@click.pass_context
def command(
    context: click.Context, sources: tuple[Path, ...], out: Path, seed: int, force: bool, as_json: bool, **given: Any
) -> None:
    """Read labelled pairs into records.

    A SOURCE is a file (jsonl, csv, tsv, parquet, json of rows, Label Studio or COCO), a folder (pictures, MELD, a Lance
    dataset), or a data set of the Hugging Face hub: hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT. NAME may be a
    folder with a copy of one.

    \b
      labeler ingest pairs.jsonl --out data/mine/records
      labeler ingest flickr8k.lance --caption each --label mood --out data/flickr8k/records
      labeler ingest hub:owner/textvqa --top-answers 1000 --out data/textvqa/records

    A row is {"id", "image", "text", "label"}, or {"image", "question", "answers"}: its label is then the most frequent
    answer. Rows that cannot be used are counted and listed in rejects.jsonl (exit 4), the rest goes on. Splits are
    drawn so that no picture, no text and no group lies in two of them.
    """  # noqa: D301 (click looks for the character itself)
    from labeler.ingest_options import IngestOptions
    from labeler.ingestion import ingest
    from labeler.rows.profile import taxonomy_line

    given["separator"] = given.pop("label_separator")
    result = ingest(sources, out, IngestOptions(**given), seed=seed, force=force)
    profile = result.profile
    sizes = ", ".join(f"{name} {count}" for name, count in profile["splits"].items())
    reasons = ", ".join(f"{code} {count}" for code, count in profile["rejects"].items())
    lines = [
        *([options.already(out)] if result.already else []),
        f"{out}: {profile['kept']} of {profile['rows']} rows kept, {profile['rejected']} rejected"
        + (f" ({reasons})" if reasons else ""),
        f"  splits ({profile['split']}): {sizes}; {profile['joined_rows']} rows share a picture, text or group with another",
    ]
    lines += told_labels(profile)
    if profile["python_literal_lines"]:
        lines.append(f"  {profile['python_literal_lines']} lines were Python literals, not JSON; read safely")
    lines += [f"  {count} rows were not UTF-8, read as {name} (--encoding names another)"
              for name, count in profile["encodings"].items()]  # fmt: skip
    if profile["captions_left_out"]:
        lines.append(f"  {profile['captions_left_out']} captions left out: the longest is the text (--caption each)")
    if profile["fixed_texts"]:
        lines.append(f"  {profile['fixed_texts']} texts repaired")
    if profile.get("unlabelled"):
        lines.append(f"  {profile['unlabelled']} rows without a label")
    if "taxonomy" in profile:
        lines.append(f"  taxonomy: {taxonomy_line(profile)}")
    rare = rare_labels(profile, given["split"])
    lines += rare + warnings_of(profile, given["split"], rare=bool(rare))
    lines += alike_labels(profile)
    if given["task"] != "single":
        lines += joint_labels(profile)
    if given["label"] is None and not given["label_columns"]:
        lines += other_labels(profile)
    lines += told_leaks(profile, given["drop_leaks"])
    if profile["rejected"]:
        lines.append(f"  the rejected rows, with reasons: {out / 'rejects.jsonl'}")
    options.say("\n".join(lines), {"out": out, "already": result.already, **profile}, as_json)
    context.exit(4 if profile["rejected"] else 0)


def rare_labels(profile: dict[str, Any], split: str) -> list[str]:
    """Return a warning where no label has rows in all of the splits that were drawn as the option `split` says."""
    from labeler.rows.profile import label_totals
    from labeler.rows.selection import smallest_share
    from labeler.values import SPLITS

    counts = [profile["labels"].get(name, {}) for name in SPLITS]
    totals = label_totals(profile)
    if not totals or not profile["split"].startswith("drawn"):
        return []
    least, drawn = smallest_share(split)
    wanted = [count for count, is_drawn in zip(counts, drawn, strict=True) if is_drawn]
    if any(all(name in count for count in wanted) for name in totals):
        return []
    most = min(totals, key=lambda name: (-totals[name], name))
    return [
        f"  warning: no label has enough rows to be in every split: the most frequent, {most!r}, has {totals[most]}; a label "
        f"needs {math.ceil(1 / least)} or more that share no picture, text or group, or it cannot be both learned and tested"
    ]


def warnings_of(profile: dict[str, Any], split: str, *, rare: bool = False) -> list[str]:
    """Return what a glance at the counts says is not as it was meant.

    Not that there are few rows of a split that the option `split` gives no share, and for `rare` labels not that one has no row.
    """
    from labeler.rows.selection import smallest_share
    from labeler.values import SPLITS, shown_names

    lines, unused = [], list(profile["unused_fields"])
    for ours, what in (("image", "picture"), ("text", "text")):
        if unused and profile[f"without_{ours}"] == profile["kept"]:
            lines.append(
                f"  warning: no row has a {what}; is it in one of these fields? {shown_names(unused)}: --map {ours}=FIELD"
            )
    least, drawn = smallest_share(split)
    largest = profile.get("largest_group", 0)
    if profile["split"].startswith("drawn") and largest >= FEW and largest > least * profile["kept"]:
        lines.append(
            f"  warning: {largest} rows share a picture, a text or a group, and so lie in one split, whatever its share; a text "
            "that says nothing, such as 'untitled', is better left out"
        )
    for name, is_drawn in zip(SPLITS, drawn, strict=True):
        count = profile["splits"].get(name, 0)
        if is_drawn and count < FEW and (count or not rare):
            lines.append(
                f"  warning: {count} rows in {name}: too few to {USES[name]}; more rows, or other shares by --split"
            )
    return lines


def told_leaks(profile: dict[str, Any], drop: bool) -> list[str]:
    """Return how many rows leak, or that there was nothing to `drop` where the splits were drawn."""
    if drop and profile["split"].startswith("drawn"):
        return ["  --drop-leaks had nothing to do: the data bring no splits, and those that are drawn leak nothing"]
    lines = []
    if profile["leaked_rows"]:
        lines.append(
            f"  warning: {profile['leaked_rows']} rows outside train share a picture, text or group with train; --drop-leaks "
            "leaves the train rows out, --split draws new splits"
        )
    if profile.get("leaked_from_validation"):
        lines.append(
            f"  warning: {profile['leaked_from_validation']} test rows share a picture, text or group with validation, by which "
            "epochs and thresholds are chosen; --split draws new splits"
        )
    return lines


def alike_labels(profile: dict[str, Any]) -> list[str]:
    """Return a warning where labels differ in capitals or in how a number is written alone."""
    found = profile.get("labels_alike") or []
    if not found:
        return []
    shown = "; ".join(", ".join(map(repr, names)) for names in found[:MOST_ALIKE])
    if len(found) > MOST_ALIKE:
        shown += "; ..."
    return [f"  warning: labels that may be one, written in several ways: {shown}: they stay as they are"]


def joint_labels(profile: dict[str, Any]) -> list[str]:
    """Return a warning where labels look like several in one string that nothing has taken apart.

    They do where most of them hold a comma or semicolon, or where one holds another: `anger, surprise` beside `anger`.
    """
    from labeler.rows.profile import label_totals

    names = list(label_totals(profile))
    sign = max(",;", key=lambda sign: sum(sign in name for name in names))
    joint = [name for name in names if sign in name]
    alone = {name.casefold() for name in names}
    made = [name for name in joint if any(part.strip().casefold() in alone for part in name.split(sign))]
    if profile["labels_together"] or not (made or 2 * len(joint) > len(names)):
        return []
    share, example = f"{len(joint)} of {len(names)}", (made or joint)[0]
    return [f"  warning: {share} labels look like several each, such as {example!r}: --label-separator '{sign}'?"]


def other_labels(profile: dict[str, Any]) -> list[str]:
    """Return a warning where labels could have been taken from another field too."""
    from labeler.records import find_field
    from labeler.values import shown_names

    unused, found = list(profile["unused_fields"]), []
    while name := find_field(unused, "labels", {}):
        unused.remove(name)
        found.append(name)
    if not found:
        return []
    return [
        f"  warning: fields that may hold labels too, and were not read: {shown_names(found)}: --label FIELD takes one"
    ]


def told_labels(profile: dict[str, Any]) -> list[str]:
    """Return what the kept rows are made of: how many have which label, a picture, a text."""
    from labeler.rows.profile import label_totals

    counts = label_totals(profile)
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(MOST_TOLD))
    more = f" and {len(counts) - MOST_TOLD} more" if len(counts) > MOST_TOLD else ""
    kind = {"single": "one a row", "multi": "several a row"}[profile["task"]]
    texts, images, both = profile["without_image"], profile["without_text"], profile["kept"]
    parts = [
        (both - texts - images, "with picture and text"),
        (images, "with a picture alone"),
        (texts, "with a text alone"),
    ]
    rows = ", ".join(f"{count} {what}" for count, what in parts if count)
    return [*([f"  labels ({kind}): {shown}{more}"] if counts else []), f"  rows: {rows}"]
