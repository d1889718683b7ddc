"""Ray's cluster: one that is running, or one of this machine's own; how many CPUs each of its workers can have.

Ray: Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications". It is not imported until asked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from labeler.errors import BadInputError, UsageError

# no statistics are sent; workers are what the machine is for, by default they wait for everything else (niceness 15)
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
LOOPBACK = "127.0.0.2"  # for 127.0.0.1 Ray takes the machine's address in the network


def check_ray(asked: str = "--workers and --ray-address need") -> None:
    """Raise UsageError where Ray is not installed; `asked` says what needs it."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"{asked} Ray; install it: pip install 'ray[data,train]'")


@contextlib.contextmanager
def ray_running(address: str | None, workers: int) -> Iterator[Any]:
    """Yield the module ray, connected to the cluster at `address`, or to one of this machine alone that ends with the block.

    One that the caller has started is used as it is. What is started here cannot be reached from other machines, and leaves no
    files.

    Raises BadInputError when nothing answers at `address`.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    folder = tempfile.mkdtemp(prefix="labeler-ray-")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address:
            connect(ray, address, quiet)
        else:
            ray.init("local", num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False,
                     _node_ip_address=LOOPBACK, _temp_dir=folder, **quiet)  # fmt: skip
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray sets none either
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray's would end the process with an exit code that says all is well
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def cpus_each(nodes: Sequence[Mapping[str, Any]], workers: int) -> int:
    """Return how many CPUs each of so many workers can have where each has to fit on one of Ray's `nodes`; at least 1."""
    there = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    sizes = range(max(there, default=1), 1, -1)
    return next((size for size in sizes if sum(cpus // size for cpus in there) >= workers), 1)


def connect(ray: Any, address: str, settings: dict[str, Any]) -> None:
    """Connect to the Ray cluster at `address`; raises BadInputError when none answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, **settings)
    except (OSError, ValueError) as error:
        advice = "start one: ray start --head"
        raise BadInputError(f"--ray-address {address}: no Ray cluster answers there ({error}); {advice}") from error
