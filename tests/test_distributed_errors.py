"""An error of a worker is the command's: Ray starts all workers again before it gives up, which takes a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labeler.artifacts import LabelerError, UsageError
from labeler.training import train


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_is_said_as_by_one(store, options, tmp_path):
    with pytest.raises(LabelerError, match="resnet-gru has no fused streams to pretrain") as caught:
        train("resnet-gru", store, tmp_path / "run", replace(options, pretrain=1), device="cpu", workers=2)
    assert caught.value.exit_code == UsageError.exit_code
