"""The profile of a data set: rows in and out, labels, lengths and sizes, what stands twice, what leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from labeler.records import SPLITS, Record, Reject
from labeler.sources.captions import LEFT_OUT
from labeler.sources.jsonl import LITERAL
from labeler.sources.text import ENCODING
from labeler.splits import Key, group_rows, leaks

MOST_PAIRS = 50
BAR = 40  # characters for a label that every row has
OURS = ("image_sha256", "group")  # what ingest itself puts into a record's meta
KINDS = {"bytes": "picture, byte by byte", "look": "look of a picture", "text": "text", "text, verbatim": "text, verbatim",
         "group": "group"}  # fmt: skip


def counted(counts: Counter[str], rejects: Sequence[Reject]) -> dict[str, Any]:
    """Return the profile's figures on what was read: rows, what had to be guessed or repaired, rejects by code."""
    encodings = {name.removeprefix(ENCODING): count for name, count in counts.items() if name.startswith(ENCODING)}
    return {
        "rows": counts["rows"],
        "python_literal_lines": counts[LITERAL],
        "encodings": encodings,
        "fixed_texts": counts["fixed_texts"],
        "captions_left_out": counts[LEFT_OUT],
        "rejected": len(rejects),
        "rejects": dict(Counter(reject.code for reject in rejects).most_common()),
    }


def profile_of(
    records: Sequence[Record], keys: Sequence[list[Key]], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the profile's figures on what was kept.

    Args:
        records: with their splits.
        keys: for each record what must not lie in two splits (`labeler.ingestion.leak_keys`).
        sizes: the pictures' widths and heights.
    """
    by_split = {split: [record for record in records if record.split == split] for split in SPLITS}
    joined = Counter(group_rows(keys))
    splits = [record.split or "train" for record in records]
    verbatim = [[("text, verbatim", record.text)] if record.text else [] for record in records]
    leaked = leaks([[*row, *exact] for row, exact in zip(keys, verbatim, strict=True)], splits)
    leaked_by = {split: Counter(kind for number, kinds in leaked.items() if records[number].split == split for kind in kinds)
                 for split in SPLITS[1:]}  # fmt: skip
    together = Counter(pair for record in records for pair in combinations(sorted(record.labels), 2))
    texts = [record.text for record in records if record.text]
    return {
        "kept": len(records),
        "splits": {split: len(rows) for split, rows in by_split.items()},
        "labels": {
            split: dict(Counter(name for row in rows for name in row.labels).most_common())
            for split, rows in by_split.items()
        },
        "labels_together": [[*pair, count] for pair, count in together.most_common(MOST_PAIRS)],
        "groups": len(joined),
        "joined_rows": sum(size for size in joined.values() if size > 1),
        "duplicates": duplicates(keys),
        "leaked_rows": len(leaked),
        "leaks": {split: dict(sorted(kinds.items())) for split, kinds in leaked_by.items()},
        "without_image": sum(record.image is None for record in records),
        "without_text": sum(record.text is None for record in records),
        "text_characters": quantiles([len(text) for text in texts]),
        "text_words": quantiles([len(text.split()) for text in texts]),
        "image_width": quantiles([width for width, _ in sizes]),
        "image_height": quantiles([height for _, height in sizes]),
        "unused_fields": dict(
            Counter(key for record in records for key in record.meta if key not in OURS).most_common()
        ),
    }


def duplicates(keys: Sequence[list[Key]]) -> dict[str, dict[str, int]]:
    """Return, by kind, how many values stand on more than one row, and on how many rows they stand."""
    counts = Counter(key for row in keys for key in row)
    found: dict[str, dict[str, int]] = {}
    for (kind, _), count in counts.items():
        if count > 1 and kind != "group":
            entry = found.setdefault(kind, {"values": 0, "rows": 0})
            entry["values"] += 1
            entry["rows"] += count
    return found


def described(profile: dict[str, Any]) -> list[str]:
    """Return the profile as lines for a terminal."""
    lines = [f"rows        {profile['rows']:,} read, {profile['kept']:,} kept, {profile['rejected']:,} rejected"]
    lines += [f"  {code:<24} {count:>9,}" for code, count in profile["rejects"].items()]
    guessed = {"Python literals": profile["python_literal_lines"], "texts repaired": profile["fixed_texts"],
               "captions left out": profile.get("captions_left_out", 0)}  # fmt: skip
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


def quantiles(values: list[int]) -> dict[str, int] | None:
    """Return the smallest, median, 95th-percentile and largest value; None where there is none."""
    if not values:
        return None
    ordered = sorted(values)
    at = {"min": 0, "median": len(ordered) // 2, "p95": int(0.95 * (len(ordered) - 1)), "max": len(ordered) - 1}
    return {name: ordered[index] for name, index in at.items()}
