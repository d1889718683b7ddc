"""What tests of ingest share: pictures, rows, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from labeler.ingestion import Ingested
from labeler.records import Record, read_records


def picture(path: Path, seed: int, side: int = 40, **options) -> Path:
    """Write a picture that no other seed's looks like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, **options)
    return path


def row(number: int, **fields) -> dict:
    return {"id": str(number), "text": f"text number {number}", "label": "joy" if number % 2 else "anger"} | fields


def write(path: Path, rows: list[dict | str]) -> Path:
    """Write rows as jsonl; a string stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def kept(result: Ingested) -> list[Record]:
    return list(read_records(result.out))


def rejects(result: Ingested) -> list[dict]:
    return [json.loads(line) for line in (result.out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def rejected(result: Ingested) -> list[tuple]:
    return [(item["line"], item["code"]) for item in rejects(result)]


def split_of(result: Ingested) -> dict[str, str]:
    return {record.id: record.split for record in kept(result)}
