"""The export that a run keeps of itself, and the choice of what computes for a job."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labeler.artifacts import check_free, read_manifest
from labeler.engines import CHECK, Choice, Precision, choose_way
from labeler.errors import BadInputError, LabelerError, LockedError, UsageError
from labeler.exporting import EXACT, KEPT
from labeler.inputs import found_again, replaced
from labeler.processes import python_command

log = logging.getLogger("labeler")

MANY = 1000  # items from which on making an export costs less time than it spares (docs/LOG.md)


def choose_engine(
    model: Path, device: str = "auto", runtime: str = "auto", precision: Precision = "auto", *, many: bool = True
) -> Choice:
    """Return what computes for `model`, a run or an export; `many`: whether the job has MANY items or more.

    Of a run, `auto` takes an export of the run's own: kept inside it in `export/`, made before the first job of many
    items. Before that, where it cannot be made or written, and on a GPU, it takes PyTorch; never in place of a runtime or
    precision that was asked for by name and is not PyTorch's.

    Raises BadInputError when `model` is neither; UsageError for a runtime or precision that it cannot be run in; LabelerError or
    OSError where that takes an export, and none can be made.
    """
    if (model / CHECK).is_file():
        if runtime == "native":
            raise UsageError(f"--runtime native: {model} is an export; name the run itself")
        refuse_other_device(device, "an export")
        choice = choose_way(model, runtime, precision)
        warn_of_another_run(model)
        return choice
    read_manifest(model, "train")
    asked = runtime != "auto" or precision not in ("auto", "fp32")  # for what PyTorch is not
    if runtime == "native" or not (asked or worth(model, device, many)):
        if precision not in ("auto", "fp32"):
            raise UsageError(
                f"--precision {precision}: PyTorch labels in float32; {precision} needs --runtime openvino"
            )
        return Choice(model)
    refuse_other_device(device, f"--runtime {runtime}" if runtime != "auto" else f"--precision {precision}")
    try:
        try:
            return choose_way(own_export(model), runtime, precision)
        except BadInputError as error:  # it is damaged, or of another version
            log.warning("%s; making it again", error)
            return choose_way(own_export(model, anew=True), runtime, precision)
    except (OSError, LabelerError) as error:
        if asked or isinstance(error, (UsageError, BadInputError)):
            raise
        log.warning("%s; labelling with PyTorch", error)
        return Choice(model)


def warn_of_another_run(export: Path) -> None:
    """Say where the run that an export was made of has been trained anew since."""
    run = read_manifest(export, "export")["inputs"][0]
    if replaced(found_again(export, run), run["sha256"], "train"):
        log.warning("%s: made of %s, which has changed since; `labeler export` makes it again", export, run["path"])


def refuse_other_device(device: str, what: str) -> None:
    """Raise UsageError where `what` is to run on anything but a processor."""
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device}: {what} runs on the processor; leave it out, or take --runtime native")


def worth(run: Path, device: str, many: bool) -> bool:
    """Return whether a job is to be done by the run's own export."""
    gpu = Path("/dev/nvidiactl").exists() if device == "auto" else device != "cpu"
    return not gpu and (many or (run / KEPT).is_dir())


def own_export(run: Path, *, anew: bool = False) -> Path:
    """Return the export that is kept inside the run, made when it is not there; checked on the run's store where that is left.

    With `anew`, it is made again. Where another process is making it, that one is waited for: a job must not label in another
    way than the one beside it, or than itself after an interruption, for being started a moment later.

    Raises LabelerError where it cannot be made or kept.
    """
    manifest, out = read_manifest(run, "train"), run / KEPT
    while anew or not is_kept(out, manifest):
        try:
            make_own(run, out, found_again(run, manifest["inputs"][0]), ["--force"] if anew else [])
            break
        except LockedError:
            log.info("%s: waiting for the export that another process is making", run)
            wait_for_other(out)
            anew = False
    return out


def is_kept(out: Path, run: dict[str, Any]) -> bool:
    """Return whether `out` is the exact export of the run with this manifest."""
    if not (out / CHECK).is_file():
        return False
    kept = read_manifest(out, "export")
    return bool(kept["inputs"][0]["sha256"] == run["content_sha256"] and kept["arguments"] == EXACT)


def make_own(run: Path, out: Path, store: Path, options: Sequence[str]) -> None:
    """Export the run, checked on its `store`, or where that will not do on made pairs.

    Raises LockedError when another process is making it, LabelerError where it cannot be made or kept.
    """
    try:
        check_free(out, "export")  # before the half minute that it takes
    except BadInputError as error:
        raise LabelerError(str(error).removesuffix("; choose another --out")) from None
    log.info("%s: exporting it first, once, so that this and later jobs take less time", run)
    done = export_apart(run, out, "--data", str(store), *options)
    if done.returncode == BadInputError.exit_code:
        log.info("%s; checking the export on made pairs", last_line(done))
        done = export_apart(run, out, *options)
    if done.returncode:
        raise (LockedError if done.returncode == LockedError.exit_code else LabelerError)(last_line(done))


def wait_for_other(out: Path) -> None:
    """Return when no other process is making `out` any more."""
    while True:
        try:
            return check_free(out, "export")
        except LockedError:
            time.sleep(1)


def export_apart(run: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own, and return it: what PyTorch and its exporter hold is not left in the one that labels."""
    command = [*python_command("from labeler.cli import main; main()"), "export", str(run), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a process said last on standard error, without the word that it begins with."""
    return (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("error: ")
