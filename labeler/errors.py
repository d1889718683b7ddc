"""Errors that are told in a sentence: a user's mistake, or a machine's bad luck. Each has the command's exit code."""

from __future__ import annotations


class LabelerError(Exception):
    """A user's mistake or a machine's bad luck: the message says what, where, and what to do next."""

    exit_code = 1


class UsageError(LabelerError):
    """The command was called with something it cannot take."""

    exit_code = 2


class BadInputError(LabelerError):
    """The data, or an artifact given as input, cannot be used."""

    exit_code = 3


class LockedError(LabelerError):
    """Another process is making the same artifact."""

    exit_code = 5


class CodedError(ValueError):
    """One row, picture or piece of work among many that cannot be used; `code` is what it is counted under."""

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class DivergedError(LabelerError):
    """Training has come to a loss that is no number."""


class InterruptedRun(LabelerError):
    """Ctrl-C stopped the stage after it had saved what it had."""

    exit_code = 130
