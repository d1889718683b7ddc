"""Lines: records as canonical jsonl, before their splits are known, and what is read and changed in such lines later."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import orjson

from labeler.records import json_bytes
from labeler.values import Split

GAP = b"\0"  # stands in a record's line where its split will; JSON escapes it, so that no line holds one
JSON_VALUE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|null')
HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"),"image":("(?:[^"\\]|\\.)*"|null)')  # how a record's line begins


class Fields(NamedTuple):
    """N records field by field, and where each one stood: lists of N."""

    line: list[int]
    source: list[str]
    id: list[str]
    image: list[str | None]
    text: Sequence[str | None]
    labels: list[tuple[str, ...] | None]
    split: list[Split | None]
    group: list[str | None]
    meta: list[dict[str, Any]]


def lines_of(records: Fields) -> bytes:
    """Return the records' lines, with GAP for their splits; a record's group is its id until groups are known."""
    ids, i = each_json(records.id)
    images, j = each_json(records.image) if any(records.image) else (b"null", b"")
    texts, k = each_json(records.text)
    names = {labels: json_bytes(labels) for labels in set(records.labels)}
    # as slices, since orjson's own bytes keep a kilobyte each
    meta = [json_bytes(meta)[1:] for meta in records.meta] if any(records.meta) else b"}"
    parts: tuple[bytes | Iterable[bytes], ...] = (
        b'{"id":' + i, ids, i + b',"image":' + j, images, j + b',"text":' + k, texts, k + b',"labels":',
        map(names.__getitem__, records.labels), b',"split":' + GAP + b',"group":' + i, ids, i + b',"meta":{', meta, b"}\n",
    )  # fmt: skip
    columns: list[Iterable[bytes]] = []
    constant = b""  # what stands between two columns
    for part in parts:
        if isinstance(part, bytes):
            constant += part
        else:
            columns += [repeat(constant), part]
            constant = b""
    return b"".join(chain.from_iterable(zip(*columns, repeat(constant), strict=False)))


def each_json(values: Sequence[str | None]) -> tuple[list[bytes], bytes]:
    """Return each of the values as JSON but for what stands before and after all of them, and that: a quote or nothing."""
    whole = json_bytes(values)
    if values and all(values) and (b"\\" not in whole or b'\\"' not in whole):  # half the time
        return whole[2:-2].split(b'","'), b'"'
    return JSON_VALUE.findall(whole), b""


def with_meta(line: bytes, name: str, value: str) -> bytes:
    """Return the record's line with one more string in its meta, last."""
    comma = b"" if line.endswith(b"{}}\n") else b","
    return b"%b%b%b:%b}}\n" % (line[:-3], comma, orjson.dumps(name), orjson.dumps(value))


def json_id(line: bytes) -> bytes:
    """Return the id of a record's line, as JSON."""
    return HEAD.match(line)[1]  # type: ignore[index]


def with_id(line: bytes, identity: str) -> bytes:
    """Return the record's line with another id, which names its group too, as in `lines_of`."""
    old, new = json_id(line), orjson.dumps(identity)
    head, tail = line.split(GAP)
    group = b',"group":'
    return b'{"id":%b%b%b%b%b%b' % (
        new,
        head[len(b'{"id":') + len(old) :],
        GAP,
        group,
        new,
        tail[len(group) + len(old) :],
    )


def json_image(line: bytes) -> bytes:
    """Return what a record's line calls its image, as JSON."""
    return HEAD.match(line)[2]  # type: ignore[index]


def without_image(line: bytes) -> bytes:
    """Return the record's line with no image."""
    return HEAD.sub(rb'{"id":\1,"image":null', line, count=1)


def with_labels(line: bytes, labels: Iterable[str]) -> bytes:
    """Return the record's line with other labels."""
    head, tail = line.split(GAP)
    return b'%b,"labels":%b,"split":%b%b' % (head[: head.rindex(b',"labels":[')], orjson.dumps(list(labels)), GAP, tail)


def in_split(line: bytes, split: bytes, group: bytes | None) -> bytes:
    """Return the record's line with its split and, where it is not its own, its group's name; both as JSON."""
    head, tail = line.split(GAP)
    if group is not None:
        tail = b',"group":%b%b' % (group, tail[len(b',"group":') + len(json_id(line)) :])
    return head + split + tail


def in_splits(lines: bytes, splits: list[bytes]) -> bytes:
    """Return several records' lines, each with its split as JSON."""
    whole = [b""] * (2 * len(splits) + 1)
    whole[0::2], whole[1::2] = lines.split(GAP), splits
    return b"".join(whole)
