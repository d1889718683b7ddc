"""Stage `train`: one training path for all models, over a store's frozen visual tokens or the pictures themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from labeler.artifacts import (
    CARD,
    MANIFEST,
    Recipe,
    already_made,
    beside,
    check_free,
    differences,
    input_of,
    making,
    read_json,
    read_manifest,
    remove,
    sha256_json,
    work_folder,
    write_text,
)
from labeler.errors import BadInputError, InterruptedRun, UsageError
from labeler.fitting.distillation import ZeroShotTeacher, teacher_inputs
from labeler.fitting.distributed import check_can_shard, check_device, fit_on_workers
from labeler.inputs import verified_store
from labeler.interrupts import stop_on_interrupt
from labeler.models import check_name, constant, model_names
from labeler.ray_cluster import check_ray
from labeler.training_options import SAVE_MINUTES, TrainOptions, options_for

RECIPE = "recipe.json"
MOST_SEEDS = 2**32

log = logging.getLogger("labeler")


class Trained(NamedTuple):
    """What `train` did: where, whether it had been made before, and the history."""

    out: Path
    already: bool
    history: dict[str, Any]

    @property
    def best(self) -> float:
        """Return the best epoch's validation metric."""
        return self.history["epochs"][self.history["best_epoch"] - 1]["validation_metric"]


def train(
    model: str,
    data: Path,
    out: Path,
    options: TrainOptions | None = None,
    *,
    seed: int = 0,
    teachers: Sequence[Path | ZeroShotTeacher] = (),
    init: Path | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    save_minutes: float = SAVE_MINUTES,
    workers: int = 1,
    ray_address: str | None = None,
    shard: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train `model` on the train split of the store `data` and publish the run `out`.

    The weights kept are those of the epoch that was best on the validation split: by macro F1 (single) or mean
    average precision (multi). The test split is not read. The seed decides the new weights, the order of the
    pairs and the dropout. An interrupted or killed run leaves its checkpoints beside `out`, one an epoch and one every
    `save_minutes`; `resume` goes on from the newest that is whole, to the same weights, bit for bit, on a CPU.
    `teachers` are runs, trained on the same store, whose probabilities the model learns beside the labels, or of zero-shot
    labels (see `labeler.fitting.distillation`); with any, train rows that nobody has labelled are learned from too. `init` is a
    run of `labeler pretrain` to start from, for models that can.
    With more than one of `workers`, or on the Ray cluster at `ray_address`, see `labeler.fitting.distributed`; `shard` divides
    the model among them (`labeler.fitting.sharding`). `report` is called after each epoch with its number and its validation
    metric; what it raises ends training, where there is one worker.

    Raises UsageError for an unknown model, a teacher or another model's run as `out`, a detector that is to be fine-tuned, what
    `shard` cannot go with; BadInputError when `data` is no store or lacks a split, when a teacher cannot teach on it, or pictures
    are gone that a fine-tuned image tower reads; DivergedError when the loss is no longer a number; InterruptedRun after Ctrl-C
    or SIGTERM, once a checkpoint is written; LabelerError when the disk is full, or memory does not hold a single pair.
    """
    options = options or options_for(check_name(model))
    refuse_other_runs(model, out, teachers, init, force)
    if shard:
        check_can_shard(options, workers)
    manifest = verified_store(data)
    start = (input_of(init, read_manifest(init, "pretrain")),) if init else ()
    inputs = (input_of(data, manifest), *start, *teacher_inputs(teachers, data, manifest))
    recipe = Recipe("train", inputs, recorded(model, options, init, teachers), seed, defaults=asdict(TrainOptions()))
    if not force and already_made(out, recipe):
        remove(checkpoints_of(out))  # of a run that was killed when it had just been published
        return Trained(out, True, read_json(out / "history.json"))
    check_free(out, "train")
    if together := workers > 1 or ray_address is not None:
        check_ray()
        check_device(device, workers, ray_address)
    from labeler.model_card import model_card

    how: dict[str, Any] = {"model": model, "data": data, "options": options, "seed": seed, "device": device,
                           "teachers": teachers, "save_minutes": save_minutes, "init": init, "shard": shard}  # fmt: skip
    fit = None if together else new_fit(**how, report=report)
    trained = {"arguments": recipe.arguments, "inputs": [item._asdict() for item in inputs], "seed": seed}

    run = partial(run_here, fit) if fit is not None else partial(run_on_workers, how, workers, ray_address)
    return Trained(
        out, False, publish_run(run, out, recipe, resume, lambda folder: model_card(folder, trained, place=out))
    )


def recorded(
    model: str, options: TrainOptions, init: Path | None, teachers: Sequence[Path | ZeroShotTeacher]
) -> dict[str, Any]:
    """Return what a manifest records of a training beside its inputs, of which the second is `init`, if there is any."""
    arguments = {"model": model, **asdict(options)} | ({"init": True} if init else {})
    told = {str(number): teacher.arguments() for number, teacher in enumerate(teachers)
            if isinstance(teacher, ZeroShotTeacher)}  # fmt: skip
    return arguments | ({"zero_shot_teachers": told} if told else {})


def refuse_other_runs(
    model: str, out: Path, teachers: Sequence[Path | ZeroShotTeacher], init: Path | None, force: bool
) -> None:
    """Raise UsageError for a teacher as `out`, for another model's run there, which `force` replaces, and for a run to start from
    where the model can start from none.
    """
    folders = [Path(teacher.source) if isinstance(teacher, ZeroShotTeacher) else teacher for teacher in teachers]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UsageError(f"{out}: a teacher itself, which the new run would replace; choose another --out")
    if init and not constant(model, "PRETRAINING"):
        able = [name for name in model_names() if constant(name, "PRETRAINING")]
        raise UsageError(f"{model} starts from no run; leave out --init, or train {', '.join(able)}")
    if not force:
        refuse_another_model(out, model)


def refuse_another_model(out: Path, model: str) -> None:
    """Raise UsageError where `out` is a run of another model, which is hardly meant to be lost."""
    with suppress(BadInputError, KeyError):
        was = read_manifest(out, "train")["arguments"]["model"]
        if was != model:
            raise UsageError(f"{out}: holds a run of {was}; choose another --out, or --force replaces it by {model}")


def publish_run(
    run: Callable[[Path, bool], dict[str, Any]],
    out: Path,
    recipe: Recipe,
    resume: bool,
    card: Callable[[Path], str] | None = None,
) -> dict[str, Any]:
    """Publish what `run` makes as the run `out`, with the `card` that is told of its folder; return the history that `run` gives.

    `run` is called with the folder to fill, and whether it goes on from the checkpoints of an interrupted run there (`resume`).
    """
    continued = resume and interrupted_run(out, recipe)
    if not continued and any(folder.is_dir() for folder in checkpoint_folders(out)):
        same = is_of(recipe_beside(out), recipe)
        log.warning("%s: an interrupted run %s", out, "is started anew (--resume would have gone on with it)" if same else
                    "of other arguments or data lay there; its checkpoints are removed")  # fmt: skip
    with making(out, recipe, resume=continued, keep=True) as folder:
        take_checkpoints(out, folder, continued)
        # not by write_json: a rate may be infinite, which no manifest holds
        write_text(folder / "trainer" / RECIPE, json.dumps(recipe.recorded()))
        history = run(folder, continued)
        if card:
            write_text(folder / CARD, card(folder))
        (folder / "trainer").replace(checkpoints_of(out))
    remove(checkpoints_of(out))
    return history


def run_on_workers(
    how: dict[str, Any], workers: int, address: str | None, folder: Path, continued: bool
) -> dict[str, Any]:
    """Let workers run what `how` says, from the checkpoints in `folder` if there are any; return the history."""
    return fit_on_workers(how, folder, workers=workers, address=address)


def run_here(fit: Any, folder: Path, continued: bool) -> dict[str, Any]:
    """Let `fit` run in this process and save; return the history. Raises InterruptedRun after Ctrl-C or SIGTERM."""
    with stop_on_interrupt(fit):
        history: dict[str, Any] = fit.run(folder, resume=continued)
    if fit.interrupted:
        raise InterruptedRun(f"stopped after step {fit.step}; the same command with --resume goes on from there")
    fit.save(folder, history)
    return history


def new_fit(**arguments: Any) -> Any:
    """Return a new `Fit`; torch and transformers are imported only when there is something to train."""
    from labeler.fitting.fit import Fit

    return Fit(**arguments)


def train_seeds(
    model: str, data: Path, out: Path, options: TrainOptions | None, seeds: Sequence[int], *, resume: bool = False,
    force: bool = False, **how: Any,
) -> list[Trained]:  # fmt: skip
    """Train `model` once for each of `seeds`; return the runs `out`/seed-0 and so on, each a whole run with its own manifest.

    Those already made are found; with `force` they are made again, with `resume` too from the one that was interrupted on. `how`:
    see `train`, which raises what it raises.

    Raises BadInputError when `out` is a run itself, UsageError for a seed that is too large, and one of these runs as a teacher.
    """
    if (out / MANIFEST).exists():
        raise BadInputError(f"{out}: a run itself; choose another --out for the runs of several seeds")
    if max(seeds) >= MOST_SEEDS:
        raise UsageError(f"--seed {seeds[0]} with {len(seeds)} seeds: the largest seed is {MOST_SEEDS - 1}")
    runs = [out / f"seed-{seed}" for seed in seeds]
    for run in runs:  # before the first replaces another's teacher
        refuse_other_runs(model, run, how.get("teachers", ()), how.get("init"), force)
    interrupted = (
        next((number for number, run in enumerate(runs) if recipe_beside(run) is not None), 0) if resume else 0
    )
    return [
        train(model, data, run, options, seed=seed, resume=resume, force=force and number >= interrupted, **how)
        for number, (run, seed) in enumerate(zip(runs, seeds, strict=True))
    ]


def over_seeds(results: Sequence[Trained]) -> dict[str, Any]:
    """Return mean and standard deviation of the runs' best validation metric (None for one run), and each run's value."""
    best = [result.best for result in results]
    runs = [{"out": result.out, "already": result.already, "validation_metric": value}
            for result, value in zip(results, best, strict=True)]  # fmt: skip
    sd = stdev(best) if len(best) > 1 else None
    return {"metric": results[0].history["metric"], "mean": mean(best), "sd": sd, "runs": runs}


def is_of(found: Any, recipe: Recipe) -> bool:
    """Return whether an interrupted run, of which `recipe_beside` found that, is of this recipe."""
    if found is None:
        return False
    if "arguments" in found:
        return bool(found["stage"] == recipe.stage and not differences(found, recipe))
    told = [recipe.stage, [item.sha256 for item in recipe.inputs], recipe.arguments, recipe.seed]
    return bool(found == {"sha256": sha256_json(told)})  # all that an earlier version wrote


def checkpoints_of(out: Path) -> Path:
    """Return where the checkpoints lie while the run that they led to is being published: hours are not lost to a kill then."""
    return beside(out, "checkpoints")


def checkpoint_folders(out: Path) -> tuple[Path, Path]:
    """Return where checkpoints of an interrupted run may lie."""
    return checkpoints_of(out), work_folder(out) / "trainer"


def take_checkpoints(out: Path, folder: Path, continued: bool) -> None:
    """Let the checkpoints of a run to go on with lie in the work folder; without one, let none be left."""
    if continued and checkpoints_of(out).is_dir():
        remove(folder / "trainer")
        checkpoints_of(out).replace(folder / "trainer")
    remove(checkpoints_of(out))
    (folder / "trainer").mkdir(exist_ok=True)


def interrupted_run(out: Path, recipe: Recipe) -> bool:
    """Return whether an interrupted run of this recipe lies beside `out`.

    Raises BadInputError when one of another recipe does.
    """
    found = recipe_beside(out)
    if found is None:
        log.info("%s: nothing to resume, starting at the first step", out)
        return False
    if not is_of(found, recipe):
        raise BadInputError(
            f"{out}: the interrupted run had other arguments or data; repeat those, or leave out --resume"
        )
    return True


def recipe_beside(out: Path) -> Any:
    """Return what is written of the recipe of the interrupted run beside `out`; None where there is none."""
    path = next((folder / RECIPE for folder in checkpoint_folders(out) if (folder / RECIPE).is_file()), None)
    return None if path is None else read_json(path)
