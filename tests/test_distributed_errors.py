"""An error of a worker is the command's: Ray starts all workers again before it gives up, which takes a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labeler.errors import LabelerError, UsageError
from labeler.fitting.distributed import cpus_each
from labeler.training import train


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [([8], 2, 4), ([2], 2, 1), ([2], 5, 1), ([8, 8], 1, 8), ([8, 8], 3, 4), ([4, 12], 2, 6), ([], 2, 1)],
)
def test_a_worker_gets_as_many_cpus_as_leave_room_for_all_on_whole_machines(cpus, workers, each):
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    gone = [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    assert cpus_each(nodes + gone, workers) == each


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_is_said_as_by_one(store, options, tmp_path):
    with pytest.raises(LabelerError, match="resnet-gru has no fused streams to pretrain") as caught:
        train("resnet-gru", store, tmp_path / "run", replace(options, pretrain=1), device="cpu", workers=2)
    assert caught.value.exit_code == UsageError.exit_code
