"""An error of a worker is the command's: Ray starts all workers again before it gives up, which takes a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labeler.errors import LabelerError, UsageError
from labeler.fitting.distributed import check_places, cpus_each
from labeler.training import train


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [([8], 2, 4), ([2], 2, 1), ([2], 5, 1), ([8, 8], 1, 8), ([8, 8], 3, 4), ([4, 12], 2, 6), ([], 2, 1)],
)
def test_a_worker_gets_as_many_cpus_as_leave_room_for_all_on_whole_machines(cpus, workers, each):
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    gone = [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    assert cpus_each(nodes + gone, workers) == each


def test_more_workers_than_there_are_places_for_are_refused_in_place_of_waiting():
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
             {"Alive": True, "Resources": {"CPU": 2.0}}]  # fmt: skip
    check_places(nodes, 6, gpus=False)
    check_places(nodes, 1, gpus=True)
    with pytest.raises(
        UsageError, match="--workers 7, each with a CPU of its own, and Ray has 6; give fewer, or start Ray on"
    ):
        check_places(nodes, 7, gpus=False)
    with pytest.raises(UsageError, match="and Ray has 1; give fewer, or --device cpu"):
        check_places(nodes, 2, gpus=True)


def test_a_device_that_workers_cannot_be_given_is_refused(store, options, tmp_path):
    with pytest.raises(
        UsageError, match="--device gpu with --workers: Ray gives each its own; choose from auto, cpu, cuda"
    ):
        train("resnet-gru", store, tmp_path / "run", options, device="gpu", workers=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_is_said_as_by_one(store, options, tmp_path):
    with pytest.raises(LabelerError, match="resnet-gru has no fused streams to pretrain") as caught:
        train("resnet-gru", store, tmp_path / "run", replace(options, pretrain=1), device="cpu", workers=2)
    assert caught.value.exit_code == UsageError.exit_code
