"""An error of a worker is the command's: Ray starts all workers again before it gives up, which takes a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_resume import interrupt_at

from labeler.artifacts import work_folder
from labeler.errors import InterruptedRun, LabelerError, UsageError
from labeler.fitting.distributed import say_if_waiting
from labeler.ray_cluster import cpus_each
from labeler.training import train


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [([8], 2, 4), ([2], 2, 1), ([2], 5, 1), ([8, 8], 1, 8), ([8, 8], 3, 4), ([4, 12], 2, 6), ([], 2, 1)],
)
def test_a_worker_gets_as_many_cpus_as_leave_room_for_all_on_whole_machines(cpus, workers, each):
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    gone = [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    assert cpus_each(nodes + gone, workers) == each


def test_that_workers_wait_for_places_is_said(caplog):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
             {"Alive": True, "Resources": {"CPU": 2.0}}]  # fmt: skip
    say_if_waiting(nodes, 6, gpus=False)
    say_if_waiting(nodes, 1, gpus=True)
    assert not caplog.messages
    say_if_waiting(nodes, 7, gpus=False)
    say_if_waiting(nodes, 2, gpus=True)
    assert caplog.messages == ["7 workers, each with a CPU of its own, and Ray has 6: waiting for more",
                               "2 workers, each with a GPU of its own, and Ray has 1: waiting for more"]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "said"),
    [("gpu", "--device gpu with --workers or --ray-address: Ray gives each worker its own; choose from auto, cpu, cuda"),
     ("cuda", "--device cuda, --workers 64: each takes a GPU, and this machine has")],
)  # fmt: skip
def test_a_device_that_workers_cannot_have_is_refused_before_an_interrupted_run_is_touched(
    store, options, tmp_path, monkeypatch, device, said
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(InterruptedRun, match="stopped after step 1"):
            train("resnet-gru", store, tmp_path / "run", options, device="cpu")
    with pytest.raises(UsageError, match=said):
        train("resnet-gru", store, tmp_path / "run", options, device=device, workers=64)
    assert (work_folder(tmp_path / "run") / "trainer" / "checkpoint-1").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_is_said_as_by_one(store, options, tmp_path):
    with pytest.raises(LabelerError, match="resnet-gru has no fused streams to pretrain") as caught:
        train("resnet-gru", store, tmp_path / "run", replace(options, pretrain=1), device="cpu", workers=2)
    assert caught.value.exit_code == UsageError.exit_code
