"""Stage `tune`: training options searched on the validation split, in a study that is stored and can go on.

Trial after trial is trained by `labeler.training`, the first with the model's defaults. optuna proposes the others
(a tree-structured Parzen estimator: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization") and stops those
whose best epoch so far is below the median of the earlier trials at that epoch.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labeler.artifacts import (
    MANIFEST,
    Recipe,
    beside,
    differences,
    input_of,
    locked,
    make_parent,
    remove,
    write_json,
    write_manifest,
    write_text,
)
from labeler.errors import BadInputError, DivergedError, InterruptedRun, LabelerError, LockedError, UsageError
from labeler.inputs import verified_store
from labeler.models import check_name
from labeler.training import train
from labeler.training_options import TrainOptions, options_for, own_options, search_space

log = logging.getLogger("labeler")

STUDY, STUDY_NAME = "study.db", "tune"
RANDOM_TRIALS = 5  # before the sampler has seen enough to propose anything
LEFT = ("making", "old", "checkpoints", "adding")  # what a process that died may leave beside a run
JUDGES = 4  # trials that must be whole before one is stopped for being worse than their median
FIRST_JUDGED_EPOCH = 2
STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}


def tune(
    model: str,
    data: Path,
    out: Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    fixed: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Search training options of `model` on the store `data` until there are so many `trials` or `minutes` are over.

    Both count all that the folder `out` has seen. Trials are judged by their best epoch on the validation split; the test
    split is not read. All have the same `seed`, which also decides what is proposed. `fixed` options are the same in each. No
    trial is begun that would end too late if it took as long as the longest so far, but for the first; one that is not over
    when the time is up is stopped after its epoch.

    Writes `study.db` (optuna's), `best.json` (the best options, as `train --options` reads them), `trials.csv` and the best
    trial's run, `run-NUMBER`; the runs of the others are deleted. What is proposed follows from the seed and the finished trials,
    so that options whose trial was cut off (it is `failed`) are tried again, and a search that was stopped finds what
    another finds.

    Returns {out, metric, validation_pairs, trials, stopped, failed, seconds, defaults, run, best: {number, value, options}}:
    what the defaults reached (None where they were stopped), and the best trial.
    Raises UsageError for neither trials nor minutes or nothing to search; BadInputError when `out` holds something else or
    the study of another store, model, seed or other fixed options; LabelerError when no trial came to its end;
    InterruptedRun after Ctrl-C.
    """
    started, began = time.perf_counter(), datetime.now(timezone.utc)
    if trials is None and minutes is None:
        raise UsageError("how long to search? Give --trials N, --budget MINUTES or both")
    default = asdict(TrainOptions())  # which `best.json` says of teachers too
    if idle := sorted(name for name, value in (fixed or {}).items() if "teacher_" in name and value != default[name]):
        raise UsageError(f"{idle[0]}: tune has no teachers; leave it out of --options")
    start = options_for(check_name(model), fixed)
    space = search_space(model, fixed or {})
    if not space:
        raise UsageError(f"every option of {model} that could be searched is fixed; leave some out of --options")
    manifest = verified_store(data)
    arguments = {"model": model, **asdict(start), "space": space}
    recipe = Recipe("tune", (input_of(data, manifest),), arguments, seed, defaults=default)
    make_parent(out)
    with locked(out):
        study = open_study(out, recipe)
        (out / MANIFEST).unlink(missing_ok=True)
        search = Search(study, model, data, out, fixed or {}, space, seed, device, started)
        search.run(trials, None if minutes is None else minutes * 60)
        summary = search.summary()
        write_manifest(out, recipe, began)
    if summary["trials"] > 1:
        log.warning(
            "the best of %d trials on one validation split (%d pairs) is flattered: part of its lead is luck. Train it with "
            "several seeds (`labeler train --options %s --seeds 3`) and measure it on test pairs beside the defaults",
            summary["trials"], summary["validation_pairs"], out / "best.json",
        )  # fmt: skip
    return summary


def open_study(out: Path, recipe: Recipe) -> Any:
    """Return the study in `out`, a new one where there is none, or one of another recipe that has no finished trial.

    Raises BadInputError when `out` holds something else, a damaged study, or one of another recipe.
    """
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what there is to say is said here
    if out.exists() and not (out.is_dir() and ((out / STUDY).is_file() or not any(out.iterdir()))):
        raise BadInputError(f"{out}: exists and holds no search of `labeler tune`; choose another --out")
    out.mkdir(exist_ok=True)
    place = URL.create("sqlite", database=str(out / STUDY)).render_as_string()
    storage = place.replace("{", "{{").replace("}", "}}")  # optuna takes it for a template
    pruner = optuna.pruners.MedianPruner(n_startup_trials=JUDGES, n_warmup_steps=FIRST_JUDGED_EPOCH)
    how: dict[str, Any] = {"storage": storage, "study_name": STUDY_NAME}
    try:
        study = optuna.create_study(direction="maximize", pruner=pruner, load_if_exists=True, **how)
        stored = study.user_attrs.get("recipe")
        changed = differences(stored, recipe) if stored else []
        if changed and not finished(study):  # there is nothing to go on with: its options failed, perhaps
            optuna.delete_study(**how)
            study, stored, changed = optuna.create_study(direction="maximize", pruner=pruner, **how), None, []
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise BadInputError(f"{out / STUDY}: not readable as a study; choose another --out, or delete it") from error
    if stored is None:
        study.set_user_attr("recipe", recipe.recorded())
    if changed:
        raise BadInputError(f"{out}: holds another search ({'; '.join(changed)}); choose another --out")
    return study


def finished(study: Any) -> list[Any]:
    """Return the trials of a study that came to an end or were stopped early, in the order in which they were begun."""
    from optuna.trial import TrialState

    found: list[Any] = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    return found


def clear(run: Path, keep: bool) -> None:
    """Delete a trial's run, unless it is to be kept, and what a dead process has left beside it; nothing else is touched.

    Where somebody is evaluating the run, it stays: what comes after the next trial deletes it.
    """
    left = [beside(run, what) for what in LEFT]
    published = (run / MANIFEST).is_file()  # else it is no run, but somebody else's
    if not published and not any(path.exists() for path in (*left, beside(run, "lock"))):
        return
    with suppress(LockedError), locked(run):
        for path in () if keep else (*left, *([run] if published else [])):
            remove(path)


class Search:
    """A study that is going on: what it searches, and what it has cost."""

    def __init__(
        self, study: Any, model: str, data: Path, out: Path, fixed: dict[str, Any], space: dict[str, Any], seed: int,
        device: str, started: float,
    ):  # fmt: skip
        """Go on with `study`: a trial that was cut off has failed, and the defaults come first."""
        from optuna.trial import TrialState

        self.study, self.model, self.data, self.out = study, model, data, out
        self.fixed, self.space, self.seed, self.device = fixed, space, seed, device
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
        if not self.finished() and not study.get_trials(states=[TrialState.WAITING]):
            default = asdict(options_for(model, fixed))
            study.enqueue_trial({name: default[name] for name in space})
        self.settle()
        self.before = sum(trial.user_attrs.get("seconds", 0.0) for trial in study.trials)
        self.started = started
        self.end: float | None = None

    @property
    def spent(self) -> float:
        """Return the seconds that all trials have taken, and what has passed since this search went on."""
        return self.before + time.perf_counter() - self.started

    def finished(self) -> list[Any]:
        """Return the trials that came to an end or were stopped early, in the order in which they were begun."""
        return finished(self.study)

    def best(self) -> Any:
        """Return the best whole trial, the first of equals; None where there is none."""
        whole = [trial for trial in self.finished() if trial.state.name == "COMPLETE"]
        return max(whole, key=lambda trial: trial.value, default=None)

    def run(self, trials: int | None, seconds: float | None) -> None:
        """Train trial after trial until there are so many or the time is over."""
        self.end = seconds
        while trials is None or len(self.finished()) < trials:
            import labeler.fitting.fit  # noqa: F401 (loading torch takes seconds, but no trial's)
            from labeler.inference import choose_device

            choose_device(self.device)  # else each trial would fail by it, and count
            longest = max((trial.user_attrs["seconds"] for trial in self.finished()), default=0.0)
            if seconds is not None and self.finished() and self.spent + longest > seconds:
                log.info("%.0f of %.0f s are spent, and another trial may take %.0f s", self.spent, seconds, longest)
                return
            self.run_trial()
            self.settle()

    def run_trial(self) -> None:
        """Train what the sampler proposes next, and tell the study how it went."""
        from optuna import TrialPruned
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        before = self.finished()
        # a seed for each trial: a study that goes on is not proposed its first ones again, but what was cut off
        self.study.sampler = TPESampler(seed=(1000 * self.seed + len(before)) % 2**32, n_startup_trials=RANDOM_TRIALS)
        trial = self.study.ask({name: distribution(values) for name, values in self.space.items()})
        options = options_for(self.model, self.fixed | trial.params)
        log.info("trial %d%s: %s", trial.number, "" if before else " (the defaults)", shown(trial.params))
        started, run = time.perf_counter(), self.out / f"run-{trial.number}"

        def report(epoch: int, metric: float) -> None:
            trial.report(metric, epoch)
            trial.set_user_attr("seconds", time.perf_counter() - started)
            late = self.end is not None and before and self.spent > self.end
            if epoch < options.epochs and (late or trial.should_prune()):
                raise TrialPruned("the time is up" if late else "worse than the median of the trials before")

        value, state = None, TrialState.PRUNED
        try:
            trained = train(self.model, self.data, run, options, seed=self.seed, device=self.device, report=report)
            value, state = trained.best, TrialState.COMPLETE
            trial.set_user_attr("history", {name: trained.history[name] for name in ("metric", "validation_pairs")})
        except (TrialPruned, DivergedError) as error:
            log.info("trial %d stopped: %s", trial.number, error)
        except UsageError as error:
            if not before:  # it is not the proposed options
                raise
            log.info("trial %d stopped: %s", trial.number, error)
        except InterruptedRun as error:
            raise InterruptedRun(f"stopped in trial {trial.number}; the same command goes on") from error
        trial.set_user_attr("seconds", time.perf_counter() - started)
        self.study.tell(trial, value, state)

    def settle(self) -> None:
        """Keep the best trial's run alone, and write the best options and the table of all trials."""
        best = self.best()
        for trial in self.study.trials:
            clear(self.out / f"run-{trial.number}", keep=best is not None and trial.number == best.number)
        if best:
            options = options_for(self.model, self.fixed | best.params)
            write_json(self.out / "best.json", own_options(self.model, options))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["number", "state", *self.space, "validation_metric", "seconds"])
        for trial in self.study.trials:
            if trial.state.is_finished():
                metric = max(trial.intermediate_values.values(), default="")
                tried = [trial.params.get(name, "") for name in self.space]
                seconds = trial.user_attrs.get("seconds", 0.0)
                writer.writerow([trial.number, STATES[trial.state.name], *tried, metric, round(seconds, 2)])
        write_text(self.out / "trials.csv", table.getvalue())

    def summary(self) -> dict[str, Any]:
        """Return what `tune` returns; raises LabelerError when no trial came to its end."""
        best, finished = self.best(), self.finished()
        if not best:
            raise LabelerError(
                f"{self.out}: no trial came to its end (of {len(finished)}), the first since its loss was no longer a number, "
                "others for that or for the time; give lower rates in --options"
            )
        states = [trial.state.name for trial in self.study.trials]
        return {
            "out": str(self.out),
            **best.user_attrs["history"],
            "trials": len(finished),
            "stopped": states.count("PRUNED"),
            "failed": states.count("FAIL"),
            "seconds": round(sum(trial.user_attrs.get("seconds", 0.0) for trial in self.study.trials), 2),
            "defaults": finished[0].value if finished[0].state.name == "COMPLETE" else None,
            "run": str(self.out / f"run-{best.number}"),
            "best": {"number": best.number, "value": best.value, "options": best.params},
        }


def distribution(values: Any) -> Any:
    """Return what optuna calls an entry of `search_space`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    low, high, *log_scale = values
    return (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, log=bool(log_scale))


def shown(options: dict[str, Any]) -> str:
    """Return options as a person reads them."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in options.items()
    )
