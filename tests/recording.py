"""Records of single rows, as `labeler ingest` makes them, and files of records that a test has made up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from labeler.records import Record, Row, json_bytes
from labeler.rows.chunks import RowReading, chunk_of
from labeler.rows.lines import in_split
from labeler.sources import image_root
from labeler.values import SPLITS, RowError


def record_from(
    row: Row, mapping: Mapping[str, str] | None = None, *, labelled: bool = True, separator: str = "|"
) -> Record:
    """Return the record of a row, with the split and the group that it gives itself; raises RowError where it is rejected."""
    root = Path(os.path.realpath(image_root(Path(row.source))))
    chunk = chunk_of([row], RowReading(root, dict(mapping or {}), separator, allow_outside=True, labelled=labelled))
    for reject in chunk.rejects:
        raise RowError(reject.code, reject.message)
    split = [*SPLITS, None][chunk.columns.split[0]]
    record = Record.model_validate_json(in_split(chunk.lines, json.dumps(split).encode(), None))
    meta = dict(record.meta)
    group = meta.pop("group") if chunk.columns.group[0] else None
    return record.model_copy(update={"group": group, "meta": meta})


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as canonical jsonl: fixed field order, UTF-8, one line each."""
    with open(path, "wb") as file:
        file.writelines(json_bytes(record.model_dump()) + b"\n" for record in records)
