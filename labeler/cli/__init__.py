"""The `labeler` command. Each sub-command is a file of this package, imported only when it is called."""

from __future__ import annotations

import difflib
import errno
import gc
import importlib
import io
import logging
import os
import sys
import traceback

import click

from labeler import __version__
from labeler.errors import LabelerError

COMMANDS = {
    "ingest": "Read labelled pairs into records, with leakage-free splits.",
    "inspect": "Show a data set: labels, duplicates, leaks, likely errors.",
    "preprocess": "Decode every picture once and show it to the frozen towers.",
    "pretrain": "Learn which text belongs to which picture, without labels.",
    "train": "Train a model on the train split.",
    "tune": "Search a model's training options on the validation split.",
    "evaluate": "Measure a run, and the baselines, on held-out pairs.",
    "report": "Compare runs: offline HTML pages, JSON, Markdown and CSV.",
    "export": "Write a run as ONNX, to label faster and without PyTorch.",
    "predict": "Label folders, pictures, tables: all that `ingest` reads.",
    "index": "Make a store's texts and pictures searchable.",
    "search": "Find pictures or texts by words, or by a picture.",
    "explain": "Show which words and regions drove a label.",
    "export-tasks": "Write predictions or records as tasks for Label Studio.",
}


def set_quiet(context: click.Context, option: click.Parameter, quiet: bool) -> None:
    """Let nothing but warnings and errors be said, where that is asked for before the sub-command or behind it."""
    if quiet or context.parent is None:
        logging.getLogger("labeler").setLevel(logging.WARNING if quiet else logging.INFO)


# before the sub-command or behind it
SHARED = [
    click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
    click.Option(
        ["--quiet"], is_flag=True, expose_value=False, callback=set_quiet, help="Say only warnings and errors."
    ),
]


class Commands(click.Group):
    """The sub-commands, in the order in which they are run; `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the sub-commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the sub-command of that name."""
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(f"labeler.cli.{cmd_name.replace('-', '_')}").command
            command.params += [option for option in SHARED if option not in command.params]
            return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the sub-command called; an unknown one is answered with the closest name."""
        if args and args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands."""
        with formatter.section("Stages, in their order"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Put emotion and topic labels on image+text pairs.

    \b
    Every stage reads folders and writes one new folder, whole or not at all:
      labeler ingest pairs.jsonl --out data/mine/records
      labeler preprocess data/mine/records --out data/mine/store
      labeler train visualbert-coattn data/mine/store --out checkpoints/mine
      labeler evaluate checkpoints/mine --data data/mine/store
      labeler report checkpoints/mine --out report
      labeler predict holiday-photos/ --model checkpoints/mine --out labels.jsonl

    \b
    Exit codes: 0 done, 1 failure, 2 usage, 3 bad input, 4 done with rejects,
    5 another process holds the output, 130 interrupted.
    """  # noqa: D301 (click looks for the character itself)


cli.params += SHARED


class Messages(logging.Handler):
    """Messages to standard error, without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        prefix = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        click.echo(prefix + record.getMessage(), err=True)


def main() -> None:
    """Run the command; turn what goes wrong into one sentence and the right exit code."""
    open_streams()
    # PyTorch comes with half a million objects: to look through them for garbage again and again while they are imported would
    # take a sixth of the time that the import takes
    gc.set_threshold(100_000)
    logger = logging.getLogger("labeler")
    if not any(isinstance(handler, Messages) for handler in logger.handlers):  # of a call before, in this process
        logger.addHandler(Messages())
    # hubs' libraries draw bars and give advice of their own
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PyTorch's threads wait for each other by spinning, for some ms; where other work runs too that takes its time from all of
    # them: with one such process on two cores a training step takes 1.5 s in place of .95 (docs/LOG.md)
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False, prog_name="labeler")
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = fail("interrupted", 130, debug)
    except LabelerError as error:
        code = fail(str(error), error.exit_code, debug)
    except SystemExit as error:
        # 1 is click's answer when the reader has seen enough (`| head`), after it has silenced standard output
        code = 0 if error.code in (None, 0, 1) else error.code
    except OSError as error:
        code = fail(system_error(error), 1, debug)
    except Exception as error:
        code = fail(f"{type(error).__name__}: {error} (a bug; --debug shows where)", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def open_streams() -> None:
    """Open the null device where a standard stream is closed, since the next file that is opened would stand in its place; have
    standard output carry any text, whatever the locale: in UTF-8, as all files are.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            free = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(free, True)  # as a stream is
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def fail(message: str, code: int, debug: bool) -> int:
    """Say what went wrong; return the exit code."""
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    return code


def system_error(error: OSError) -> str:
    """Return an operating system's error as a sentence."""
    place = f"{error.filename}: " if error.filename else ""
    advice = "; free some space or choose another --out" if error.errno == errno.ENOSPC else ""
    return f"{place}{error.strerror or error}{advice}"
