"""The profile of a data set: rows in and out, labels, lengths and sizes, what stands twice, what leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from labeler.chunks import FIXED, Columns
from labeler.records import SPLITS
from labeler.selection import Records, Selected
from labeler.sources.jsonl import LITERAL
from labeler.sources.text import ENCODING
from labeler.splits import Keys, RowLabels, leaks

MOST_PAIRS = 50
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
        "rejected": sum(rejects.values()),
        "rejects": dict(rejects.most_common()),
        "unused_fields": {name[1]: count for name, count in counts.most_common() if isinstance(name, tuple)},
    }


def profile_of(records: Records, selected: Selected) -> dict[str, Any]:
    """Return the profile's figures on what was kept."""
    kept = selected.kept
    columns, labels = Columns(*(values[kept] for values in records.columns)), records.labels.of(kept)
    keys = {kind: values[kept] for kind, values in selected.keys.items()}
    splits, names = selected.split[kept], records.names
    sizes = np.bincount(selected.group[kept])
    found = leaks(keys | {"text, verbatim": columns.text}, splits)
    leaked = np.any(list(found.values()), axis=0)
    return {
        "split": selected.how,
        "task": selected.task,
        "kept": len(splits),
        "splits": {split: int((splits == place).sum()) for place, split in enumerate(SPLITS)},
        "labels": {split: label_counts(labels, names, splits == place) for place, split in enumerate(SPLITS)},
        "labels_together": labels_together(labels, names),
        "groups": int((sizes > 0).sum()),
        "joined_rows": int(sizes[sizes > 1].sum()),
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
        "without_image": int((columns.image == 0).sum()),
        "without_text": int((columns.characters < 0).sum()),
        "text_characters": quantiles(columns.characters[columns.characters >= 0]),
        "text_words": quantiles(columns.words[columns.characters >= 0]),
        "image_width": quantiles(columns.width[columns.width > 0]),
        "image_height": quantiles(columns.height[columns.height > 0]),
    }


def label_counts(labels: RowLabels, names: Sequence[str], rows: np.ndarray) -> dict[str, int]:
    """Return {label: number of the chosen rows that carry it}, most frequent first, ties by name."""
    counts = np.bincount(labels.of(rows).codes, minlength=len(names)).tolist()
    ordered = sorted(zip(names, counts, strict=True), key=lambda item: (-item[1], item[0]))
    return {name: count for name, count in ordered if count}


def labels_together(labels: RowLabels, names: Sequence[str]) -> list[list[Any]]:
    """Return the pairs of labels that most often stand on one row: [label, label, rows]."""
    if not (labels.counts > 1).any():
        return []
    from scipy.sparse import csr_array, triu

    ones = np.ones(len(labels.codes), np.int64)
    table = csr_array(
        (ones, labels.codes, np.append(0, np.cumsum(labels.counts))), shape=(len(labels.counts), len(names))
    )
    pairs = triu(table.T @ table, k=1).tocoo()
    found = [(*sorted((names[a], names[b])), int(count)) for a, b, count in zip(*pairs.coords, pairs.data, strict=True)]
    return [list(pair) for pair in sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:MOST_PAIRS]]


def duplicates(keys: Keys) -> dict[str, dict[str, int]]:
    """Return, by kind, how many values stand on more than one row, and on how many rows they stand."""
    found = {}
    for kind, values in keys.items():
        ordered = np.sort(values[values != 0])
        same = ordered[1:] == ordered[:-1]
        more, values_of_several = int(same.sum()), int((same & ~np.append(False, same[:-1])).sum())
        if kind != "group" and more:
            found[kind] = {"values": values_of_several, "rows": more + values_of_several}
    return found


def described(profile: dict[str, Any]) -> list[str]:
    """Return the profile as lines for a terminal."""
    lines = [f"rows        {profile['rows']:,} read, {profile['kept']:,} kept, {profile['rejected']:,} rejected"]
    lines += [f"  {code:<24} {count:>9,}" for code, count in profile["rejects"].items()]
    guessed = {"Python literals": profile["python_literal_lines"], "texts repaired": profile["fixed_texts"]}
    guessed |= {f"read as {name}": count for name, count in profile["encodings"].items()}
    lines += [f"  {what:<24} {count:>9,}" for what, count in guessed.items() if count]
    lines += [f"splits      {profile['split']}", *label_table(profile)]
    if profile["labels_together"]:
        lines += ["labels that most often stand together"]
        lines += [f"  {count:>9,}  {a} + {b}" for a, b, count in profile["labels_together"][:5]]
    lines += ["lengths and sizes              min   median      p95      max"]
    for name in ("text_characters", "text_words", "image_width", "image_height"):
        if values := profile[name]:
            numbers = "".join(f"{values[key]:>9,}" for key in ("min", "median", "p95", "max"))
            lines.append(f"  {name.replace('_', ' '):<22}{numbers}")
    missing = {"without a picture": profile["without_image"], "without a text": profile["without_text"]}
    lines += [f"  {what:<24} {count:>9,}" for what, count in missing.items() if count]
    lines += [
        f"twice       {profile['joined_rows']:,} rows share a picture, text or group with another; {profile['groups']:,} groups"
    ]
    lines += [f"  the same {KINDS[kind]:<22} {found['rows']:>9,} rows, {found['values']:,} values"
              for kind, found in profile["duplicates"].items()]  # fmt: skip
    lines += [f"leaks       {profile['leaked_rows']:,} rows outside train share a picture, text or group with train"]
    lines += [f"  {split:<12} the same {KINDS[kind]:<22} {count:>6,} rows"
              for split, kinds in profile["leaks"].items() for kind, count in kinds.items()]  # fmt: skip
    return lines


def label_table(profile: dict[str, Any]) -> list[str]:
    """Return a line for each label, most frequent first: its rows in each split, its share, and a bar of it."""
    totals = Counter[str]()
    for counts in profile["labels"].values():
        totals.update(counts)
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
