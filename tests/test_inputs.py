"""Inputs: a store of records that were made again is told of, and a run of another model is not lost by a slip."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from labeler.artifacts import read_manifest, write_json
from labeler.errors import UsageError
from labeler.ingest_options import IngestOptions
from labeler.ingestion import ingest
from labeler.inputs import verified_store
from labeler.training import train


@pytest.fixture
def both(store, tmp_path):
    """Return records and a store that names them as what it was made from."""
    source, records, copied = store.parent / "source" / "pairs.jsonl", tmp_path / "records", tmp_path / "store"
    ingest([source], records, IngestOptions())
    shutil.copytree(store, copied)
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    made_from = {"path": str(records), "sha256": read_manifest(records, "ingest")["content_sha256"]}
    write_json(copied / "manifest.json", manifest | {"inputs": [made_from, *manifest["inputs"][1:]]})
    return records, copied


def test_a_store_whose_records_were_made_again_is_told_of_once(both, store, caplog):
    records, copied = both
    assert verified_store(copied)["stage"] == "preprocess"
    assert not caplog.records
    ingest([store.parent / "source" / "pairs.jsonl"], records, IngestOptions(split="0.5,0.25,0.25"))
    for _ in range(2):
        verified_store(copied)
    told = f"{copied}: made from {records}, which have changed since; `labeler preprocess` reads them again"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [told]


def test_records_that_are_gone_are_no_matter(both, caplog):
    records, copied = both
    shutil.rmtree(records)
    verified_store(copied)
    assert not caplog.records


def test_a_run_of_another_model_is_replaced_with_force_alone(store, options, tmp_path):
    one, run = dataclasses.replace(options, epochs=1), tmp_path / "run"
    train("resnet-gru", store, run, one, device="cpu")
    before = (run / "model.safetensors").stat().st_mtime_ns
    told = r"holds a run of resnet-gru; choose another --out, or --force replaces it by late-fusion$"
    with pytest.raises(UsageError, match=told):
        train("late-fusion", store, run, one, device="cpu")
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    train("late-fusion", store, run, one, device="cpu", force=True)
    assert read_manifest(run, "train")["arguments"]["model"] == "late-fusion"
