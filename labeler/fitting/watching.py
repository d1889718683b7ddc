"""What is seen of a training while it runs, and when a checkpoint is due."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback

from labeler.fitting import workers
from labeler.memory import give_back_freed_memory

if TYPE_CHECKING:
    from labeler.fitting.fit import Fit

log = logging.getLogger("labeler")


class Watch(TrainerCallback):
    """Draws the progress bar, says a line an epoch, measures training apart from validation, passes Ctrl-C on."""

    name = "training"

    def __init__(self, fit: Fit):
        """Watch `fit`."""
        self.fit = fit
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, and the clock after which a checkpoint is due."""
        self.saved = time.perf_counter()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, unit="step",
                        disable=None if workers.is_first() else True)  # fmt: skip

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; validation and saving are not training."""
        self.begun = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out the validation of an epoch cut short."""
        if self.fit.interrupted and not self.is_over(args, state):
            control.should_evaluate = control.should_save = False
        give_back_freed_memory()  # or validation and saving would come on top of what the largest batch took

    @staticmethod
    def is_over(args: Any, state: Any) -> bool:
        """Return whether the step was the epoch's last."""
        return state.global_step % (state.max_steps // args.num_train_epochs) == 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; save a checkpoint when one is due, and after Ctrl-C, and then stop.

        After an epoch's last step none is saved before its validation: who went on from it would have none.
        """
        now = time.perf_counter()
        self.fit.progress.seconds += now - self.begun
        self.begun = now
        self.bar.update()
        self.fit.step = state.global_step
        if self.fit.averaged:
            self.fit.averaged.update(self.fit.model)
        due, stop = workers.from_first((now - self.saved > self.fit.save_seconds, self.fit.interrupted))
        if (due or stop) and not self.is_over(args, state):
            control.should_save = True
        if stop:
            control.should_training_stop = self.fit.interrupted = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the next checkpoint from now on."""
        self.saved = self.begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Say how the epoch went."""
        epoch, name = round(state.epoch), self.fit.metric
        line = (f"epoch {epoch}/{self.fit.options.epochs}: training loss {metrics['eval_train_loss']:.3f}, "
                f"validation loss {metrics['eval_loss']:.3f}, {name} {metrics['eval_metric']:.4f}")  # fmt: skip
        self.bar.clear()
        log.info("%s", line)
        self.bar.refresh()
        if self.fit.report:
            self.fit.report(epoch, metrics["eval_metric"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()
