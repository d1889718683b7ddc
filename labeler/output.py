"""What `predict` writes: a line an item, as jsonl or csv; to a stream at once, to a file by shards."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from labeler.artifacts import neutral
from labeler.shards import ERROR, PLAIN, REVIEW, Counts, Line, Shards, sharded

COLUMNS = ("id", "image", "text", "labels", "model", "error")


class LineFormat:
    """Lines as jsonl, or as csv with a column for each label's score. It can be pickled."""

    def __init__(self, form: str, names: Sequence[str], review: bool = False):
        """Write as `form`, jsonl or csv; `names` are those of the scores, `review`: whether lines say what is for review."""
        self.form, self.names, self.extra = form, list(names), ["review"] if review else []

    @property
    def header(self) -> str:
        """Return what stands before all lines."""
        if self.form != "csv":
            return ""
        return table_row([*COLUMNS, *self.extra, *(neutral(f"score:{name}") for name in self.names)])

    def __call__(self, line: dict[str, Any]) -> Line:
        """Return the line as it is written."""
        mark = ERROR if line["error"] is not None else REVIEW if line.get("review") else PLAIN
        if self.form != "csv":
            return Line(json.dumps(line, ensure_ascii=False) + "\n", mark)
        cells = [line["id"], line["image"], line["text"], "|".join(line["labels"]), line["model"], line["error"]]
        cells += [str(line[name]).lower() for name in self.extra]
        return Line(
            table_row([neutral(cell) for cell in cells] + [line["scores"].get(name, "") for name in self.names]), mark
        )


def table_row(cells: Sequence[Any]) -> str:
    """Return a line of a csv file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


class Stream:
    """Lines written as they come. It is called as `labeler.shards.Shards` is, and knows no row."""

    unchanged = False

    def __init__(self, file: IO[str], header: str):
        """Write to `file`."""
        self.file, self.counts = file, Counts(0, 0, 0)
        file.write(header)

    def known(self, key: int) -> bool:
        """Return False: every row is to be labelled."""
        return False

    def publish(self, lines: Sequence[Line]) -> None:
        """Write lines."""
        self.file.writelines(line.text for line in lines)
        self.file.flush()
        marks = [line.mark for line in lines]
        items, errors, review, *_ = self.counts
        self.counts = Counts(items + len(marks), errors + marks.count(ERROR), review + marks.count(REVIEW))

    def join(self) -> Counts:
        """Return what was written."""
        return self.counts


@contextmanager
def writing(out: Path | None, recipe: dict[str, Any], header: str, force: bool = False) -> Iterator[Shards | Stream]:
    """Yield what takes the lines: a stream for standard output (None), a pipe or a device; else the shards of the file `out`."""
    if out is None:
        yield Stream(sys.stdout, header)
    elif out.exists() and not out.is_file():
        with open(out, "w", encoding="utf-8", newline="") as file:
            yield Stream(file, header)
    else:
        with sharded(out, recipe, header, force) as shards:
            yield shards
