"""Training on several workers, on one machine or many: Ray Train around the same `Fit`.

Each worker trains on its part of every batch and the gradients are averaged, so that N workers take the steps that one would
take; in pretraining a pair's negatives are those of its worker's part. The first alone validates, saves and says how it goes.
Where a worker dies, Ray starts all of them again, and they go on from the last checkpoint. Workers of other machines read the
store and write the run by the same paths. Imports neither ray nor torch until asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from labeler.artifacts import read_json, write_json
from labeler.errors import InterruptedRun, LabelerError, UsageError
from labeler.interrupts import stop_on_interrupt
from labeler.ray_cluster import cpus_each, ray_running
from labeler.training_options import TrainOptions

DEVICES = ("auto", "cpu", "cuda")  # which one of several GPUs a worker has is for Ray to say
MAX_FAILURES = 10  # as often are workers started again
ERROR_FILE, MESSAGES_FILE = "error.json", "said.txt"  # what the workers leave for whoever started them
STOP = "stop"  # and what that leaves for them
HISTORY = "history.json"

log = logging.getLogger("labeler")


def check_can_shard(options: TrainOptions, workers: int) -> None:
    """Raise UsageError where a model cannot be divided: there is one worker, or an option needs the whole of it in training."""
    if workers < 2:
        raise UsageError("--shard divides a model among workers; add --workers 2, or more, or leave it out")
    for name in ("ema", "pretrain", "finetune_image"):
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} needs the whole model on a worker, --shard divides it; leave out one of the two"
            )


def check_device(device: str, workers: int, address: str | None) -> None:
    """Raise UsageError for a device that is none of DEVICES, or more workers than this machine has GPUs: Ray would wait."""
    if device not in DEVICES:
        raise UsageError(
            f"--device {device} with --workers or --ray-address: Ray gives each worker its own; choose from {', '.join(DEVICES)}"
        )
    if device == "cuda" and address is None:
        import torch

        there = torch.cuda.device_count()
        if there < workers:
            raise UsageError(
                f"--device cuda, --workers {workers}: each takes a GPU, and this machine has {there}; give fewer, or --device cpu"
            )


def say_if_waiting(nodes: Sequence[Mapping[str, Any]], workers: int, gpus: bool) -> None:
    """Say it where Ray's `nodes` lack a CPU, or a GPU, for each of so many workers: it waits until there are more."""
    kind = "GPU" if gpus else "CPU"
    there = sum(int(node["Resources"].get(kind, 0)) for node in nodes if node["Alive"])
    if there < workers:
        log.warning("%d workers, each with a %s of its own, and Ray has %d: waiting for more", workers, kind, there)


def fit_on_workers(fit: dict[str, Any], folder: Path, *, workers: int, address: str | None = None) -> dict[str, Any]:
    """Train what the arguments `fit` of `labeler.fitting.fit.Fit` say in `folder`, on that many workers; return the history.

    Ray is there and the device is one of DEVICES: see `check_ray` and `check_device`, which come before anything is touched.

    The run's files lie in `folder` afterwards. Training goes on from the checkpoints in it, if there are any.

    Ctrl-C, or SIGTERM, asks the workers to save a checkpoint and stop; a second one stops them at once.

    Raises LabelerError with what a worker raised, and when workers have died more than MAX_FAILURES times; InterruptedRun after
    Ctrl-C.
    """
    decode_ahead(fit["data"], fit["options"], fit["teachers"])
    with ray_running(address, workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        there = ray.cluster_resources()
        gpus = fit["device"] == "cuda" or (fit["device"] == "auto" and there.get("GPU", 0) >= workers)
        say_if_waiting(ray.nodes(), workers, gpus)
        resources = {"CPU": cpus_each(ray.nodes(), workers)} | ({"GPU": 1} if gpus else {})
        config = {"fit": fit, "gpus": gpus, "folder": str(folder.resolve()), "cwd": os.getcwd()}
        lost, storage = folder / ERROR_FILE, folder / "ray"
        lost.unlink(missing_ok=True)
        asked = Asked(folder / STOP)
        (folder / MESSAGES_FILE).write_text("")
        trainer = TorchTrainer(
            work,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name="run", storage_path=str(storage.resolve()), failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )  # fmt: skip
        try:
            with meanwhile(partial(repeat, folder / MESSAGES_FILE)), stop_on_interrupt(asked):
                in_a_thread(trainer.fit)
        except ray.train.TrainingFailedError as error:
            if not lost.is_file():
                raise LabelerError(
                    f"the workers failed ({error}); --resume goes on from the last checkpoint"
                ) from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
            (folder / MESSAGES_FILE).unlink()
    stopped = asked.interrupted and not (folder / HISTORY).is_file()
    asked.file.unlink(missing_ok=True)
    if stopped:
        raise InterruptedRun("stopped; the same command with --resume goes on from the last checkpoint")
    if lost.is_file():
        told = read_json(lost)
        lost.unlink()
        raised = LabelerError(told["message"])
        raised.exit_code = told["exit_code"]
        raise raised
    return read_json(folder / HISTORY)


def decode_ahead(data: Path, options: TrainOptions, teachers: Sequence[Any]) -> None:
    """Store the pictures that every worker will read, as `labeler.pixels.stored_pixels` does: all at once they could not."""
    published = [teacher for teacher in teachers if getattr(teacher, "published", False)]
    if not options.finetune_image and not published:
        return
    from labeler.encoders.image import recorded_image_encoder
    from labeler.pixels import stored_pixels
    from labeler.published_towers import load_published
    from labeler.store import Store

    store = Store(data, check=False)
    sizes = [load_published(teacher.source)[0].size for teacher in published]
    if options.finetune_image:
        sizes.append(recorded_image_encoder(store.towers["image"], data).size)
    for size in sizes:
        stored_pixels(store, size)


class Asked:
    """Whether the workers are asked to stop, which they see by a file."""

    def __init__(self, file: Path):
        """Ask nothing yet."""
        self.file = file
        file.unlink(missing_ok=True)

    @property
    def interrupted(self) -> bool:
        """Return whether they are."""
        return self.file.exists()

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self.file.touch()


def in_a_thread(function: Callable[[], Any]) -> None:
    """Call `function` in a thread of its own and wait for it; raise what it raises.

    In the main thread Ray Train would take Ctrl-C for itself.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)  # which a second Ctrl-C does not wait for
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
    for error in raised:
        raise error


@contextlib.contextmanager
def meanwhile(function: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `function` in a thread while the block runs; it is called with what is set when the block ends, and waited for."""
    over = threading.Event()
    thread = threading.Thread(target=function, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def repeat(file: Path, over: threading.Event) -> None:
    """Say every second what has been added to a file, until it is `over`."""
    with open(file, encoding="utf-8") as lines:
        while True:
            last = over.wait(1)
            for line in lines:
                log.info("%s", line.rstrip())
            if last:
                return


def work(config: dict[str, Any]) -> None:
    """Be one of the workers: train, and if it is the first, write the run.

    A LabelerError is left in a file, for whoever started the workers. If it comes before training, all workers end without one,
    so that Ray does not start them again; later the others wait for one that has failed until Ray stops them.
    """
    from ray.train.torch import get_device

    from labeler.fitting import workers
    from labeler.fitting.fit import Fit

    folder = Path(config["folder"])
    with contextlib.suppress(OSError):  # on another machine there may be no such place; relative towers need it
        os.chdir(config["cwd"])
    if workers.is_first():
        log.setLevel(logging.INFO)
        log.addHandler(logging.FileHandler(folder / MESSAGES_FILE, encoding="utf-8"))
    fit = None
    # one that finds another's error ends too, but not before they have met: that one waits for it
    with contextlib.suppress(LabelerError), left_in(folder):
        if not (folder / ERROR_FILE).is_file():
            fit = Fit(**config["fit"] | {"device": str(get_device()) if config["gpus"] else "cpu"})
    if workers.any_of(fit is None) or fit is None:
        return
    looking = meanwhile(partial(look_for, folder / STOP, fit))
    with left_in(folder), looking if workers.is_first() else contextlib.nullcontext():  # it tells the others
        history = fit.run(folder, resume=True)
        if workers.is_first() and not fit.interrupted:
            fit.save(folder, history)
        workers.wait()


def look_for(file: Path, fit: Any, over: threading.Event) -> None:
    """Ask `fit` to stop as soon as there is such a file, until it is `over`."""
    while not over.wait(0.5):
        fit.interrupted = fit.interrupted or file.exists()


@contextlib.contextmanager
def left_in(folder: Path) -> Iterator[None]:
    """Leave a LabelerError in a file in `folder` for whoever started the workers, and raise it."""
    try:
        yield
    except LabelerError as error:
        write_json(folder / ERROR_FILE, {"message": str(error), "exit_code": error.exit_code})
        raise
