"""Data sets with typed columns: which of them holds the picture."""

from __future__ import annotations

from collections.abc import Sequence

from labeler.artifacts import BadInputError
from labeler.records import ALIASES


def picture_column(place: str, names: Sequence[str], wanted: str | None) -> str | None:
    """Return the column with the picture among the `names` of those that hold bytes; None where there is none.

    It is the one `wanted`, else the first alias of `image`, else the only one. Raises BadInputError, which names the
    data set `place`, where it cannot be told among several.
    """
    known = next((name for name in (wanted, *ALIASES["image"]) if name in names), None)
    if known is None and len(names) > 1:
        raise BadInputError(f"{place}: pictures or bytes in {', '.join(names)}; choose one with --map image=COLUMN")
    return known or next(iter(names), None)
