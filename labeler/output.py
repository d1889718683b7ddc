"""What `predict` writes: a line an item, as jsonl or csv, in a file that appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from labeler.artifacts import BadInputError, neutral


class LineWriter:
    """Writes lines as jsonl, or as csv with a column for each label's score."""

    def __init__(self, file: IO[str], form: str, names: Sequence[str], review: bool = False):
        """Write to `file`; for csv, the header first, with a column for what is for review."""
        self.file, self.names, self.extra = file, names, ["review"] if review else []
        self.table = csv.writer(file, lineterminator="\n") if form == "csv" else None
        if self.table:
            self.table.writerow(
                [
                    "id",
                    "image",
                    "text",
                    "labels",
                    "model",
                    "error",
                    *self.extra,
                    *(neutral(f"score:{name}") for name in names),
                ]
            )

    def __call__(self, line: dict[str, Any]) -> None:
        """Write one line."""
        if self.table is None:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        cells = [line["id"], line["image"], line["text"], "|".join(line["labels"]), line["model"], line["error"]]
        cells += [str(line[name]).lower() for name in self.extra]
        self.table.writerow([neutral(cell) for cell in cells] + [line["scores"].get(name, "") for name in self.names])


@contextmanager
def writing(out: Path | None) -> Iterator[IO[str]]:
    """Yield the file to write to: standard output, or a partial file that is renamed to `out` at the end."""
    if out is None:
        yield sys.stdout
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{out.parent}: cannot be made a folder ({error.strerror}); choose another --out"
        ) from error
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
