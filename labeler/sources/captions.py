"""Rows whose text is a list of captions of one picture: the longest is the text, or each makes a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from labeler.records import Row, find_field
from labeler.values import RowError, clean_text

LEFT_OUT = "caption left out"  # a row's note, once for each caption that is not its text


def with_captions(row: Row, take: str, mapping: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows that a row with a list of captions stands for; any other row as it is.

    Args:
        row: as its source gave it; its text is the field that `mapping` or an alias names.
        take: `longest`, one row with the longest caption (of equals the first); `each`, a row a caption that is not blank, its id
            ID-NUMBER and, where it has no group, its picture's id as the group: they never lie in two splits.
        mapping: {our field: their field}.
    """
    name = find_field(row.fields, "text", mapping)
    captions = row.fields.get(name) if name else None
    if (
        name is None
        or not isinstance(captions, (list, tuple))
        or not all(isinstance(caption, str) for caption in captions)
    ):
        yield row
        return
    numbered = [(number, caption) for number, caption in enumerate(captions, 1) if caption.strip()]
    if take == "longest" or len(numbered) < 2:
        longest = max((caption for _, caption in numbered), key=lambda caption: len(caption.strip()), default=None)
        notes = (*row.notes, *[LEFT_OUT] * (len(numbered) - 1))
        yield row._replace(fields=row.fields | {name: longest}, notes=notes)
    else:
        identity, borrowed = identity_of(row, mapping)
        grouping = find_field(row.fields, "group", mapping) or "group"
        # a field that was named and is nowhere is not made here, where it would hide that it is nowhere
        lacks = row.fields.get(grouping) is None and (grouping in row.fields or "group" not in mapping)
        group = {grouping: identity} if lacks else {}
        for number, caption in numbered:
            own = {mapping.get("id", "id"): f"{identity}-{number}", name: caption}
            yield row._replace(fields=row.fields | group | own, borrowed=borrowed)


def identity_of(row: Row, mapping: Mapping[str, str]) -> tuple[str, bool]:
    """Return the id of a row, or the name of its picture, or its place in its source: the first that can be an id; and
    whether it is not its own.
    """
    for field in ("id", "image"):
        name = find_field(row.fields, field, mapping)
        value = row.fields.get(name) if name else None
        try:
            if shown := clean_text(value, field):
                return shown, field != "id"
        except RowError:
            continue
    return row.place, True
