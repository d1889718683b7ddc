"""Ctrl-C and SIGTERM: the first asks a training to stop, the second ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("labeler")


@contextmanager
def stop_on_interrupt(fit: Any) -> Iterator[None]:
    """Let the first Ctrl-C, or SIGTERM, ask `fit` to stop after the step it is in, and the second end it at once."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        restore()
        fit.interrupted = True
        log.warning("stopping after this step and saving a checkpoint; Ctrl-C again stops at once")

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()
