"""Selection: which of the records read are kept, in which split each goes, and the writing of them.

Works on arrays over all records (`labeler.rows.chunks.Columns`) and on the file that holds their lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from labeler.errors import BadInputError, UsageError
from labeler.records import Reject, Task
from labeler.rows.chunks import with_unknown
from labeler.rows.collecting import Records
from labeler.rows.keys import keys_of
from labeler.rows.lines import in_split, in_splits, json_id, with_id, with_labels
from labeler.rows.splits import Keys, RowLabels, group_rows, leaking, places, repeated, sharing, split_groups
from labeler.values import SPLITS

KEPT, DUPLICATE, ID_CONFLICT, LABEL_COUNT, LEAK = range(5)
CODES = ("", "duplicate", "id-conflict", "label-count", "leak")
BLOCK = 4096  # rows whose lines are written at once
DEFAULT_FRACTIONS = "0.7,0.15,0.15"
FOR_VALIDATION = 0.15  # of the train rows, where the data bring no validation rows
TRAIN, VALIDATION = SPLITS.index("train"), SPLITS.index("validation")


class Selected(NamedTuple):
    """What was decided on N records. reason: a place in CODES; about: the row or count that the reason is about; group:
    the first kept record that each is joined with; split: a place in SPLITS; both of kept records only.
    """

    reason: np.ndarray  # [N] int8
    about: np.ndarray  # [N] int64
    group: np.ndarray  # [N] int64
    split: np.ndarray  # [N] int8
    keys: Keys
    labels: RowLabels
    names: Sequence[str]  # what the labels' codes stand for
    relabelled: np.ndarray  # [N] bool: the labels are not those of the record's line
    task: Task
    how: str

    @property
    def kept(self) -> np.ndarray:
        """Return [N] bool."""
        return self.reason == KEPT


def chosen_task(records: Records, task: str) -> Task:
    """Return the task; for `auto` multi where any row has a list of labels, or several."""
    return "multi" if task == "multi" or (task == "auto" and records.several) else "single"


def select(
    records: Records,
    task: Task,
    split: str,
    drop_leaks: bool,
    top_answers: int | None,
    seed: int,
    parents: Mapping[str, str],
) -> Selected:
    """Decide which records are kept, and draw the splits that the data do not bring.

    Args:
        records: all that could be read.
        task: whether a record has one label or any number.
        split: `keep`, three shares, or `auto`: those of the data if they bring any, with train rows for validation where they
            bring none of these.
        drop_leaks: with given splits, leave out train records that share a key with one outside train.
        top_answers: how many labels stay, those that most train records have; the others become UNKNOWN.
        seed: decides the splits that are drawn.
        parents: {child: parent}; a record with a child has its parent too (multi), or not (single).

    Raises BadInputError where some records have a split and others none.
    """
    columns = records.columns
    labels, names, relabelled = in_tree(records.labels, records.names, parents, task)
    reason, about = repeated_ids(records)
    if task == "single":
        wrong = (reason == KEPT) & (labels.counts != 1) & (columns.label_count >= 0)
        reason[wrong], about[wrong] = LABEL_COUNT, labels.counts[wrong]
    keys = {"bytes": columns.image, "look": records.looks, "text": columns.text_key, "group": columns.group}
    given = split == "keep" or (split == "auto" and bool((columns.split[reason == KEPT] >= 0).any()))
    if given:
        refuse_missing_splits(records, reason == KEPT)
    if given and drop_leaks:
        rows = np.flatnonzero(reason == KEPT)
        other = leaking(only(keys, rows), columns.split[rows])
        reason[rows[other >= 0]], about[rows[other >= 0]] = LEAK, rows[other[other >= 0]]
    rows = np.flatnonzero(reason == KEPT)
    kept = only(keys, rows)
    groups, splits = np.zeros(len(reason), np.int64), columns.split.copy()
    if given:
        # Given splits cannot be mended: groups only tell which rows an interval must draw together. Short texts ("What?")
        # would join most dialogues of a set into one, so a row that has a group of its own is not joined by its text.
        own = dict(kept) | {"text": np.where(kept["group"] == 0, kept["text"], 0)}
        found, how = group_rows(own, len(rows)), "kept as given"
        if split == "auto" and not (splits[rows] == VALIDATION).any():
            taken = for_validation(
                kept, splits[rows] == TRAIN, labels.of(reason == KEPT), columns.label_count[rows] >= 0, seed
            )
            splits[rows[taken]] = VALIDATION
            how += f", but for {len(taken)} train rows drawn for validation" if len(taken) else ""
    else:
        found = group_rows(kept, len(rows))
        splits[rows], how = drawn(found, labels.of(reason == KEPT), split, seed)
        splits[rows[only_to_learn_from(found, columns.label_count[rows] >= 0)]] = TRAIN
    groups[rows] = rows[found]
    if top_answers:
        train = (reason == KEPT) & (splits == TRAIN)
        labels, names, relabelled = most_frequent(labels, names, train, top_answers)
    return Selected(reason, about, groups, splits, keys, labels, names, relabelled, task, how)


def for_validation(keys: Keys, train: np.ndarray, labels: RowLabels, labelled: np.ndarray, seed: int) -> np.ndarray:
    """Return the train rows, of N, to choose epochs by where the data bring none for that: whole groups, a share of each label.

    Of groups that share no key with a row outside train, unless all do: leaks must not move into the rows that a model is
    chosen by. None where these are all the rows with a label that there are to learn from.
    """
    rows = np.flatnonzero(train)
    groups = group_rows(only(keys, rows), len(rows))
    measuring = ~only_to_learn_from(groups, labelled[rows])
    leaked = np.any(list(sharing(keys, train, ~train).values()), axis=0)[rows]
    free = ~np.isin(groups, groups[leaked])
    if not (free & measuring).any():
        free[:] = True
    _, first, which = np.unique(groups[free], return_index=True, return_inverse=True)
    parts = np.zeros(len(rows), np.int8)
    parts[free] = split_groups(first[which], labels.of(train).of(free), (1 - FOR_VALIDATION, FOR_VALIDATION), seed)
    parts[~measuring] = 0
    return rows[parts == 1] if labelled[rows[parts == 0]].any() else rows[:0]


def only_to_learn_from(groups: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Return [N] bool: which rows are of groups [N] without a labelled row; they can measure nothing.

    Where nobody has labelled any row, False for all of them: then each split has its share.
    """
    if not labelled.any():
        return labelled
    if labelled.all():  # most data; to look in a million groups takes .1 s
        return ~labelled
    return ~np.isin(groups, groups[labelled])


def in_tree(
    labels: RowLabels, names: Sequence[str], parents: Mapping[str, str], task: Task
) -> tuple[RowLabels, Sequence[str], np.ndarray]:
    """Return labels, their names and [N] bool, which rows differ, with what {child: parent} says of them.

    Task multi: a row with a child has its parent too. Task single: of a child and its parent on one row the child is
    the label, since it says both.
    """
    changed = np.zeros(len(labels.counts), bool)
    if not parents:
        return labels, names, changed
    places = {name: code for code, name in enumerate(dict.fromkeys([*names, *parents.values()]))}
    above = np.full(len(places), -1)
    for child, parent in parents.items():
        if child in places:
            above[places[child]] = places[parent]
    held = labels.rows * len(places) + labels.codes  # a number for each row and label
    brought = np.unique((labels.rows * len(places) + above[labels.codes])[above[labels.codes] >= 0])
    if task == "multi":
        new = np.setdiff1d(brought, held)
        both = np.append(held, new)
        both = both[np.argsort(both // len(places), kind="stable")]
        changed[new // len(places)] = True
    else:
        implied = np.isin(held, brought)
        both, changed[labels.rows[implied]] = held[~implied], True
    rows, codes = np.divmod(both, len(places))
    return RowLabels(codes, np.bincount(rows, minlength=len(changed))), list(places), changed


def drawn(groups: np.ndarray, labels: RowLabels, split: str, seed: int) -> tuple[np.ndarray, str]:
    """Return [N] int8, places in SPLITS, drawn as `split` says (`parse_split_option`), and how that was, in words."""
    fold, shares = parse_split_option(DEFAULT_FRACTIONS if split == "auto" else split)
    if fold is None:
        how = f"drawn: {', '.join(f'{name} {share:g}' for name, share in zip(SPLITS, shares, strict=True))}"
        return split_groups(groups, labels, shares, seed), how
    folds = split_groups(groups, labels, shares, seed)
    rest = folds != fold - 1
    splits = np.full(len(groups), SPLITS.index("test"), np.int8)
    # a group's first row is in its fold too, so that those left have numbers among the rows left
    splits[rest] = split_groups((np.cumsum(rest) - 1)[groups[rest]], labels.of(rest), (7 / 8, 1 / 8), seed)
    return splits, f"drawn: test is fold {fold} of {len(shares)}, validation an eighth of the rest"


def most_frequent(
    labels: RowLabels, names: Sequence[str], train: np.ndarray, count: int
) -> tuple[RowLabels, list[str], np.ndarray]:
    """Return labels, their names and [N] bool, which rows differ, with UNKNOWN for all but the labels most frequent in train."""
    carried = np.bincount(labels.of(train).codes, minlength=len(names)).tolist()
    order = sorted(
        (code for code in range(len(names)) if carried[code]), key=lambda code: (-carried[code], names[code])
    )
    kept = {names[code] for code in order[:count]}
    found, counts, relabelled = [], [], np.zeros(len(train), bool)
    places: dict[str, int] = {}
    start = 0
    for row, number in enumerate(labels.counts.tolist()):
        own = [names[code] for code in labels.codes[start : start + number]]
        known = with_unknown(own, kept)
        relabelled[row] = list(known) != own
        found += [places.setdefault(name, len(places)) for name in known]
        counts.append(len(known))
        start += number
    return RowLabels(np.array(found, np.int32), np.array(counts, np.int32)), list(places), relabelled


def only(keys: Keys, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the keys of some rows."""
    return {kind: values[rows] for kind, values in keys.items()}


def repeated_ids(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Return reasons and what they are about: of equal records with one id the first is kept, of differing ones none.

    Of records that differ in the split that was given alone, that of the latest split is kept: what is tested is not trained on.

    A record whose source gave it no id bears its picture's name, or its own place. Of those with one such name each text of a
    picture, and each place, is a record of its own: all but the first get another id, which `records.renamed` holds.
    """
    ids, borrowed = records.columns.id, records.columns.borrowed
    reason, about = np.zeros(len(ids), np.int8), np.zeros(len(ids), np.int64)
    again = repeated(ids)
    order = again[np.argsort(ids[again], kind="stable")]
    same = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    runs = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else []
    others: list[tuple[str, list[int]]] = []  # ids of records that cannot keep theirs, and these records' rows
    for run in runs:
        by_id: dict[str, dict[Any, list[int]]] = {}  # two ids may have one hash
        for row in order[run[0] : run[-1] + 2].tolist():
            what = what_is_named(records, row) if borrowed[row] else None
            by_id.setdefault(records.id(row), {}).setdefault(what, []).append(row)
        for identity, named in by_id.items():
            for rows in named.values():
                settle(records, rows, reason, about)
            nameless = [rows for what, rows in named.items() if what is not None and reason[rows[0]] != ID_CONFLICT]
            first = 2 if None in named else 1  # a record with an id of its own keeps the plain name
            others += [(f"{identity}#{number}", rows) for number, rows in enumerate(nameless, first) if number > 1]
    new = keys_of([name.encode() for name, _ in others])
    there = ids[places(ids, np.sort(new)) >= 0]  # np.isin of a few in a million hashes all of these, .6 s
    for (name, rows), is_taken in zip(others, np.isin(new, there).tolist(), strict=True):
        while is_taken:
            name += "#"
            is_taken = keys_of([name.encode()])[0] in ids
        records.renamed |= dict.fromkeys(rows, name)
    return reason, about


def what_is_named(records: Records, row: int) -> tuple[Any, ...]:
    """Return what a record's borrowed id is the name of: its picture with its text, or its place."""
    image = records.image(row)
    return records.place(row) if image is None else (image, records.columns.text[row])


def settle(records: Records, rows: list[int], reason: np.ndarray, about: np.ndarray) -> None:
    """Write down for the rows of one id why they are not kept, where they are not."""
    first = records.line(rows[0])
    if any(records.line(row) != first for row in rows[1:]):
        reason[rows], about[rows] = ID_CONFLICT, len(rows)
    else:
        kept = max(rows, key=lambda row: (records.columns.split[row], -row))
        others = [row for row in rows if row != kept]
        reason[others], about[others] = DUPLICATE, kept


def refuse_missing_splits(records: Records, kept: np.ndarray) -> None:
    """Raise BadInputError where a kept record has no split."""
    missing = np.flatnonzero(kept & (records.columns.split < 0))
    if len(missing):
        source, line = records.place(missing[0])
        raise BadInputError(
            f"{source}:{line}: {len(missing)} rows have no split; give all rows one, or --split {DEFAULT_FRACTIONS}"
        )


def rejected(records: Records, selected: Selected) -> Iterator[Reject]:
    """Yield a reject for every record that is not kept, in order."""
    for row in np.flatnonzero(~selected.kept).tolist():
        code, about, identity = CODES[selected.reason[row]], int(selected.about[row]), records.id(row)
        if code == "duplicate":
            source, line = records.place(about)
            message = f"the same row as {source}:{line}"
        elif code == "id-conflict":
            nameless = (
                "without an id that have this picture and text, and " if records.columns.borrowed[row] else "that "
            )
            message = f"the id {identity!r} stands on {about} rows {nameless}differ"
        elif code == "label-count":
            message = f"{about} labels where the task is single; --task multi takes several"
        else:
            split = SPLITS[records.columns.split[about]]
            message = f"shares a picture, text or group with {records.id(about)} of {split}"
        yield Reject(*records.place(row), identity, code, message)


def write_selected(path: Path, records: Records, selected: Selected) -> None:
    """Write the kept records with their splits and groups as canonical jsonl."""
    split_words = np.array([orjson.dumps(name) for name in SPLITS], object)
    joined = selected.kept & (selected.group != np.arange(len(selected.group)))
    leads = np.zeros(len(joined), bool)
    leads[selected.group[joined]] = True
    renamed = np.isin(np.arange(len(joined)), list(records.renamed))
    starts = np.append(0, np.cumsum(selected.labels.counts))
    names: dict[int, bytes] = {}  # the leading records' ids, as JSON
    with open(path, "wb") as file:
        for start in range(0, len(joined), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(joined)))
            names |= {row: json_id(records.line(row)) for row in rows[leads[rows]].tolist()}
            words = split_words[selected.split[rows]].tolist()
            if selected.kept[rows].all() and not (joined[rows] | selected.relabelled[rows] | renamed[rows]).any():
                data = in_splits(records.block(start, len(rows)), words)
            else:
                lines = records.block(start, len(rows)).splitlines(keepends=True)
                for place in np.flatnonzero(renamed[rows]).tolist():
                    lines[place] = with_id(lines[place], records.renamed[rows[place]])
                for place in np.flatnonzero(selected.relabelled[rows]).tolist():
                    codes = selected.labels.codes[starts[rows[place]] : starts[rows[place] + 1]]
                    lines[place] = with_labels(lines[place], [selected.names[code] for code in codes])
                found = zip(lines, rows.tolist(), selected.group[rows].tolist(), words, strict=True)
                data = b"".join(
                    in_split(line, word, names[group] if group != row else None)
                    for line, row, group, word in found
                    if selected.reason[row] == KEPT
                )
            file.write(data)


def smallest_share(text: str) -> tuple[float, tuple[bool, ...]]:
    """Return the smallest share of the splits that are drawn as `text` says (see `drawn`), and which of SPLITS are drawn."""
    fold, shares = parse_split_option(DEFAULT_FRACTIONS if text in ("auto", "keep") else text)
    if fold is not None:
        shares = (7 / 8 * (1 - shares[0]), (1 - shares[0]) / 8, shares[0])
    return min(share for share in shares if share), tuple(share > 0 for share in shares)


def parse_split_option(text: str) -> tuple[int | None, tuple[float, ...]]:
    """Return which fold is the test split and the folds' shares (`2/5`), or None and those of train, validation and test.

    Raises UsageError unless the shares are three that add up to one, or the fold is one of at least two.
    """
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) and 2 <= int(count) <= 100:
        return int(number), (1 / int(count),) * int(count)
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise UsageError(
            f"--split {text}: expected `keep`, three shares that add up to 1, such as 0.7,0.15,0.15, or a fold, such as 1/5"
        )
    return None, shares
