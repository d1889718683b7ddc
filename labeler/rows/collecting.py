"""Collecting: the records read so far, as arrays and as lines in a file, and all of them when they have been read."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, BinaryIO

import numpy as np
import orjson

from labeler.rows.chunks import Chunk, Columns, row_labels
from labeler.rows.lines import json_id, json_image, with_id
from labeler.rows.looks import look_groups


class Collected:
    """All records read so far: columns, labels and looks are gathered chunk by chunk, lines go to a file."""

    def __init__(self, spool: BinaryIO | None = None):
        """Begin with no record; without `spool` the lines are only hashed."""
        self.spool = spool
        self.chunks: list[Columns] = []
        self.codes: list[np.ndarray] = [np.zeros(0, np.int32)]
        self.sources: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.looks: list[bytes] = []
        self.look_rows: list[int] = []
        self.several = False
        self.counts: Counter[Any] = Counter(rows=0)
        self.total = 0

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk."""
        sources = np.array([self.sources.setdefault(name, len(self.sources)) for name in chunk.sources], np.int32)
        names = np.array([self.names.setdefault(name, len(self.names)) for name in chunk.labels], np.int32)
        self.chunks.append(chunk.columns._replace(source=sources[chunk.columns.source]))
        self.codes.append(names[chunk.label_codes])
        if chunk.looks:
            seen = [number for number, look in enumerate(chunk.looks) if look]
            self.looks += [chunk.looks[number] or b"" for number in seen]
            self.look_rows += [self.total + number for number in seen]
        self.several = self.several or chunk.several
        self.counts.update(chunk.counts)
        self.total += len(chunk.columns.line)
        if self.spool:
            self.spool.write(chunk.lines)

    def look_keys(self) -> np.ndarray:
        """Return [N] uint64: equal for pictures that look alike, 0 where there is none that can be compared."""
        keys = np.zeros(self.total, np.uint64)
        if self.looks:
            keys[self.look_rows] = (
                look_groups(np.frombuffer(b"".join(self.looks), np.uint8).reshape(len(self.looks), -1)) + 1
            )
        return keys


class Records:
    """All records when they have been read: their columns, their labels, and each one's line."""

    def __init__(self, collected: Collected):
        """Open the lines that `collected` has written."""
        assert collected.spool is not None
        collected.spool.flush()
        self.columns = Columns(*(np.concatenate(parts) for parts in zip(*collected.chunks, strict=True)))
        self.labels = row_labels(np.concatenate(collected.codes), self.columns)
        self.names, self.sources = list(collected.names), list(collected.sources)
        self.looks = collected.look_keys()
        self.several = collected.several
        self.ends = np.cumsum(self.columns.size)
        self.file = collected.spool.fileno()
        self.renamed: dict[int, str] = {}  # ids in place of those of the records' lines

    def line(self, row: int) -> bytes:
        """Return a record's line, with GAP for its split."""
        line = self.block(row, 1)
        return with_id(line, self.renamed[row]) if row in self.renamed else line

    def block(self, first: int, count: int) -> bytes:
        """Return the lines of `count` records, from the record `first` on, as they were written."""
        size = int(self.ends[first + count - 1] - self.ends[first] + self.columns.size[first])
        return os.pread(self.file, size, int(self.ends[first] - self.columns.size[first]))

    def id(self, row: int) -> str:
        """Return a record's id."""
        return orjson.loads(json_id(self.line(row)))

    def image(self, row: int) -> str | None:
        """Return what a record calls its image."""
        return orjson.loads(json_image(self.line(row)))

    def place(self, row: int) -> tuple[str, int]:
        """Return the source and line of a record."""
        return self.sources[self.columns.source[row]], int(self.columns.line[row])
