"""The profile of a data set: rows in and out, labels, lengths and sizes, what stands twice, what leaks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labeler.errors import UsageError
from labeler.pictures.images import MISSING
from labeler.records import LabelSet, Reject
from labeler.rows.chunks import FIXED, Columns
from labeler.rows.collecting import Records
from labeler.rows.selection import Selected
from labeler.rows.splits import Keys, RowLabels, leaks, repeated, sharing
from labeler.sources.captions import LEFT_OUT
from labeler.sources.class_folders import with_pictures
from labeler.sources.jsonl import LITERAL
from labeler.sources.text import ENCODING
from labeler.values import SPLITS, shown_names

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST_PAIRS = 50
MOST_LABELS = 12
MOST_BUCKETS = 24
SHOWN = 5  # rows of a kind on the terminal
NUMBER = re.compile(r"[+-]?[0-9]{1,50}(\.[0-9]{0,50})?")
BAR = 40  # characters for a label that every row has
KINDS = {"bytes": "picture, byte by byte", "look": "look of a picture", "text": "text", "text, verbatim": "text, verbatim",
         "group": "group"}  # fmt: skip


def counted(counts: Counter[Any], rejects: Counter[str]) -> dict[str, Any]:
    """Return the profile's figures on what was read: rows, what had to be guessed or repaired, rejects by code."""
    names = [name for name in counts if isinstance(name, str)]
    return {
        "rows": counts["rows"],
        "python_literal_lines": counts[LITERAL],
        "encodings": {name.removeprefix(ENCODING): counts[name] for name in names if name.startswith(ENCODING)},
        "fixed_texts": counts[FIXED],
        "captions_left_out": counts[LEFT_OUT],
        "rejected": sum(rejects.values()),
        "rejects": dict(rejects.most_common()),
        "unused_fields": {name[1]: count for name, count in counts.most_common() if name[0] == "field"},
    }


def refuse_strange_names(asked: Sequence[tuple[str, str, str]], counts: Counter[Any]) -> None:
    """Raise UsageError for one of the fields `asked` for, (option, theirs, ours), that no row has: splits would be none."""
    for option, theirs, ours in asked:
        if not counts["mapped", theirs]:
            fields = other_fields(counts)
            there = f"; there are also: {fields}" if fields else ""
            raise UsageError(f"{option}: no row has the field {theirs!r} (for {ours}){there}")


def nothing_usable(sources: Sequence[Path], counts: Counter[Any], rejects: Counter[str], first: Reject | None) -> str:
    """Return why there is nothing to go on with, by the `first` of the rejects, and which options may help."""
    source, shown = sources[0], ", ".join(map(str, sources))
    if not counts["rows"]:
        what = "no picture, text or metadata.jsonl lies in it" if source.is_dir() else "it holds no rows"
        return f"{shown}: {what}"
    text, fields = f"{shown}: no usable row among {counts['rows']}{left_out(rejects, first)}", other_fields(counts)
    if fields:
        text += f". Fields: {fields}; --label FIELD, --map image=FIELD and --map text=FIELD name those that are meant"
    if rejects["label-missing"] and source.is_dir() and (classes := with_pictures(source)):
        text += (
            f". Are the labels the sub-folders' names ({shown_names([path.name for path in classes])})? --format class-folders "
            "takes those; else a metadata.jsonl gives each picture its label"
        )
    elif first and first.code == "label-missing":
        told = "In a folder, a metadata.jsonl gives each picture its label; " if source.is_dir() else ""
        text += (
            f". {told}--label-columns A,B takes columns of 0 and 1, a label each; --allow-unlabelled pairs without any"
        )
    return text + (MISSING if rejects["image-missing"] else "")


def none_kept(rows: int, rejects: Counter[str], first: Reject | None) -> str:
    """Return why none of the rows that could be read is kept, and what helps where it is their ids."""
    text = f"none of {rows} rows is kept{left_out(rejects, first)}"
    if rejects["id-conflict"]:
        text += ". Ids name one row each: give every row its own, or name another field with --map id=FIELD"
    return text


def left_out(rejects: Counter[str], first: Reject | None) -> str:
    """Return how many rows were rejected for what, and why the `first` of the commonest was, as the end of a sentence."""
    codes = ", ".join(f"{code} {count}" for code, count in rejects.most_common())
    kind = f" {first.code}" if first and len(rejects) > 1 else ""
    return f" ({codes})" + (f"; the first{kind}{',' if first.line else ':'} {first.told}" if first else "")


def other_fields(counts: Counter[Any]) -> str:
    """Return what the fields are called that none of ours was taken from."""
    return shown_names(dict.fromkeys(name[1] for name in counts if name[0] in ("field", "refused")))


def profile_of(records: Records, selected: Selected) -> dict[str, Any]:
    """Return the profile's figures on what was kept."""
    kept = selected.kept
    columns, labels = Columns(*(values[kept] for values in records.columns)), selected.labels.of(kept)
    keys = {kind: values[kept] for kind, values in selected.keys.items()}
    splits, names = selected.split[kept], selected.names
    sizes = np.bincount(selected.group[kept])
    compared = keys | {"text, verbatim": columns.text}
    found = leaks(compared, splits)
    tested = sharing(compared, splits == SPLITS.index("test"), splits == SPLITS.index("validation"))
    leaked = np.any(list(found.values()), axis=0)
    totals = label_counts(labels, names, np.ones(len(splits), bool))
    text = columns.characters >= 0
    lengths = {
        "text_characters": columns.characters[text],
        "text_words": columns.words[text],
        "image_width": columns.width[columns.width > 0],
        "image_height": columns.height[columns.height > 0],
    }
    return {
        "split": selected.how,
        "task": selected.task,
        "kept": len(splits),
        "splits": {split: int((splits == place).sum()) for place, split in enumerate(SPLITS)},
        "labels": {split: label_counts(labels, names, splits == place) for place, split in enumerate(SPLITS)},
        "labels_alike": alike(names[code] for code in np.unique(labels.codes)),
        "labels_together": [list(pair) for pair in labels_together(labels, names)],
        "label_matrix": label_matrix(labels, names, list(totals)[:MOST_LABELS]),
        "groups": int((sizes > 0).sum()),
        "joined_rows": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max(initial=0)),
        "duplicates": duplicates(keys),
        "leaked_rows": int(leaked.sum()),
        "leaks": {
            split: {
                kind: int(rows[splits == place].sum())
                for kind, rows in sorted(found.items())
                if rows[splits == place].any()
            }
            for place, split in enumerate(SPLITS)
            if split != "train"
        },
        "leaked_from_validation": int(np.any(list(tested.values()), axis=0).sum()),
        "leaks_from_validation": {kind: int(rows.sum()) for kind, rows in sorted(tested.items()) if rows.any()},
        "without_image": int((columns.image == 0).sum()),
        "without_text": int((columns.characters < 0).sum()),
        **{name: quantiles(values) for name, values in lengths.items()},
        "histograms": {name: histogram(values) for name, values in lengths.items()},
    }


def label_counts(labels: RowLabels, names: Sequence[str], rows: np.ndarray) -> dict[str, int]:
    """Return {label: number of the chosen rows that carry it}, most frequent first, ties by name."""
    counts = np.bincount(labels.of(rows).codes, minlength=len(names)).tolist()
    ordered = sorted(zip(names, counts, strict=True), key=lambda item: (-item[1], item[0]))
    return {name: count for name, count in ordered if count}


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the labels, by name, that are one but for capitals, blanks or how a number is written (1, 1.0)."""
    found: dict[Any, list[str]] = {}
    for name in sorted(names):
        found.setdefault(Decimal(name) if NUMBER.fullmatch(name) else " ".join(name.casefold().split()), []).append(
            name
        )
    return [same for same in found.values() if len(same) > 1]


def taxonomy_counts(label_set: LabelSet, selected: Selected) -> dict[str, Any]:
    """Return the profile's figures on a taxonomy: {parent: [children]}, and how many rows' labels it has changed."""
    children: dict[str, list[str]] = {}
    for label in label_set.labels:
        if label.parent is not None:
            children.setdefault(label.parent, []).append(label.name)
    return {"taxonomy": children, "taxonomy_rows": int(selected.relabelled[selected.kept].sum())}


def taxonomy_line(profile: dict[str, Any]) -> str:
    """Return the taxonomy's figures in words."""
    children, rows = profile["taxonomy"], profile["taxonomy_rows"]
    changed = (
        "were given a parent" if profile["task"] == "multi" else "with a label and its parent keep the label alone"
    )
    line = f"{sum(map(len, children.values()))} labels under {', '.join(children) or 'no parent'}"
    return f"{line}; {rows:,} rows {changed}" if rows else line


def labels_together(labels: RowLabels, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the MOST_PAIRS pairs of labels that most often stand on one row: (label, label, rows), ties by name."""
    if not (labels.counts > 1).any():
        return []
    from scipy.sparse import triu

    table = row_label_table(labels, len(names))
    pairs = triu(table.T @ table, k=1).tocoo()
    least = np.partition(pairs.data, -MOST_PAIRS)[-MOST_PAIRS] if pairs.nnz > MOST_PAIRS else 0
    many = pairs.data >= least
    place = np.argsort(sorted(range(len(names)), key=names.__getitem__))  # of each label among all of them by name
    low, high = np.sort(place[np.stack(pairs.coords)[:, many]], axis=0)
    order = np.lexsort((high, low, -pairs.data[many]))[:MOST_PAIRS]
    ordered = sorted(names)
    found = zip(low[order].tolist(), high[order].tolist(), pairs.data[many][order].tolist(), strict=True)
    return [(ordered[a], ordered[b], count) for a, b, count in found]


def label_matrix(labels: RowLabels, names: Sequence[str], shown: Sequence[str]) -> dict[str, Any]:
    """Return how often each two of the labels `shown` stand together: {labels, counts: [[int]]}.

    The diagonal holds how often a label stands at all.
    """
    numbers = {name: code for code, name in enumerate(names)}
    columns = row_label_table(labels, len(names))[:, [numbers[name] for name in shown]]
    return {"labels": list(shown), "counts": (columns.T @ columns).toarray().tolist()}


def row_label_table(labels: RowLabels, number: int) -> csr_array:
    """Return [N, number] int, sparse: 1 where a row carries a label."""
    from scipy.sparse import csr_array

    ends = np.append(0, np.cumsum(labels.counts))
    return csr_array((np.ones(len(labels.codes), np.int32), labels.codes, ends), (len(labels.counts), number))


def duplicates(keys: Keys) -> dict[str, dict[str, int]]:
    """Return, by kind, how many values stand on more than one row, and on how many rows they stand."""
    found = {}
    for kind, values in keys.items():
        rows = repeated(values)
        if kind != "group" and len(rows):
            found[kind] = {"values": len(np.unique(values[rows])), "rows": len(rows)}
    return found


def profile_lines(profile: dict[str, Any]) -> list[str]:
    """Return the profile as lines for a terminal."""
    lines = [f"rows        {profile['rows']:,} read, {profile['kept']:,} kept, {profile['rejected']:,} rejected"]
    lines += [f"  {code:<24} {count:>9,}" for code, count in profile["rejects"].items()]
    guessed = {"Python literals": profile["python_literal_lines"], "texts repaired": profile["fixed_texts"],
               "captions left out": profile.get("captions_left_out", 0)}  # fmt: skip
    guessed |= {f"read as {name}": count for name, count in profile["encodings"].items()}
    lines += [f"  {what:<24} {count:>9,}" for what, count in guessed.items() if count]
    lines += [f"splits      {profile['split']}", *label_table(profile)]
    if "taxonomy" in profile:
        lines += [f"taxonomy    {taxonomy_line(profile)}"]
    if profile["labels_together"]:
        lines += ["labels that most often stand together"]
        lines += [f"  {count:>9,}  {a} + {b}" for a, b, count in profile["labels_together"][:5]]
    lines += ["lengths and sizes              min   median      p95      max"]
    for name in ("text_characters", "text_words", "image_width", "image_height"):
        if values := profile[name]:
            numbers = "".join(f"{values[key]:>9,}" for key in ("min", "median", "p95", "max"))
            lines.append(f"  {name.replace('_', ' '):<22}{numbers}")
    missing = {"without a picture": profile["without_image"], "without a text": profile["without_text"],
               "without a label": profile.get("unlabelled", 0)}  # fmt: skip
    lines += [f"  {what:<24} {count:>9,}" for what, count in missing.items() if count]
    lines += [
        f"twice       {profile['joined_rows']:,} rows share a picture, text or group with another; {profile['groups']:,} groups"
    ]
    lines += [f"  the same {KINDS[kind]:<22} {found['rows']:>9,} rows, {found['values']:,} values"
              for kind, found in profile["duplicates"].items()]  # fmt: skip
    lines += [f"leaks       {profile['leaked_rows']:,} rows outside train share a picture, text or group with train"]
    lines += [f"  {split:<12} the same {KINDS[kind]:<22} {count:>6,} rows"
              for split, kinds in profile["leaks"].items() for kind, count in kinds.items()]  # fmt: skip
    if tested := profile.get("leaked_from_validation"):  # a profile from before there was such a count has none
        lines += [f"            {tested:,} test rows share a picture, text or group with validation"]
        lines += [f"  {'test':<12} the same {KINDS[kind]:<22} {count:>6,} rows"
                  for kind, count in profile["leaks_from_validation"].items()]  # fmt: skip
    return lines + quality_lines(profile)


def quality_lines(profile: dict[str, Any]) -> list[str]:
    """Return what `labeler inspect` found in a store as lines for a terminal; none for records."""
    lines = []
    if pictures := profile.get("suspicious_pictures"):
        lines += [f"pictures    {pictures['count']:,} of {pictures['checked']:,} suspicious"]
        for kind, count in pictures["kinds"].items():
            first = ", ".join(row["id"] for row in pictures["first"][kind][:SHOWN])
            if count:
                lines.append(f"  {kind:<16} {count:>7,}  {first}")
    if errors := profile.get("label_errors"):
        lines += [f"labels      {errors['count']:,} of {errors['checked']:,} rows likely labelled wrong"]
        if "not_checked" in errors:
            lines.append(f"  not looked for: {errors['not_checked']}")
        for row in errors["first"][: 2 * SHOWN]:
            given, suggested = (", ".join(row[which]) or "no label" for which in ("given", "suggested"))
            lines += [f"  {row['score']:.4f}  {row['id']}: {given} → {suggested}"]
    return lines


def label_totals(profile: dict[str, Any]) -> Counter[str]:
    """Return on how many rows of all splits each label stands."""
    totals = Counter[str]()
    for counts in profile["labels"].values():
        totals.update(counts)
    return totals


def label_table(profile: dict[str, Any]) -> list[str]:
    """Return a line for each label, most frequent first: its rows in each split, its share, and a bar of it."""
    totals = label_totals(profile)
    width = max([len(name) for name in totals] + [12])
    heads = "".join(f"{split:>12}" for split in SPLITS)
    sizes = "".join(f"{profile['splits'][split]:>12,}" for split in SPLITS)
    lines = [f"  {'label':<{width}}{heads}       share", f"  {'(all rows)':<{width}}{sizes}"]
    for name, count in totals.most_common():
        numbers = "".join(f"{profile['labels'][split].get(name, 0):>12,}" for split in SPLITS)
        share = count / profile["kept"]
        lines.append(f"  {name:<{width}}{numbers}  {share:>8.1%}  {'█' * round(share * BAR)}".rstrip())
    return lines


def quantiles(values: np.ndarray) -> dict[str, int] | None:
    """Return the smallest, median, 95th-percentile and largest value; None where there is none."""
    if not len(values):
        return None
    ordered = np.sort(values)
    at = {"min": 0, "median": len(ordered) // 2, "p95": int(0.95 * (len(ordered) - 1)), "max": len(ordered) - 1}
    return {name: int(ordered[index]) for name, index in at.items()}


def histogram(values: np.ndarray) -> dict[str, Any] | None:
    """Return values in buckets of one round width, as {start, width, counts}; None where there is none.

    Bucket i holds start + i * width and above, up to the next bucket; the last holds all that is longer, so that a few
    giants do not flatten the rest (it begins at the 99th percentile at the latest).
    """
    if not len(values):
        return None
    low, high = int(values.min()), int(np.sort(values)[int(0.99 * (len(values) - 1))])
    steps = (times * 10**power for power in range(19) for times in (1, 2, 5))
    width = next(step for step in steps if high // step - low // step < MOST_BUCKETS)
    last = high // width - low // width
    counts = np.bincount(np.minimum(values // width - low // width, last), minlength=last + 1)
    return {"start": low // width * width, "width": width, "counts": counts.tolist()}
