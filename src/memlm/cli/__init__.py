"""The command line: a command parses its arguments, calls one function, and prints or writes the result.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

from memlm.errors import ConfigError, MemlmError, UserError, did_you_mean, is_out_of_memory, one_line
from memlm.processes import Stopped, rank_of_launcher, stoppable
from memlm.switches import SWITCHES
from memlm.version import __version__

_LONGEST = 2000
"""The greatest number of characters of an error that is shown in full."""
_LATER = 3.0
"""Seconds in which a launcher notices that its first process has ended."""
STORE_COMMANDS = ("stats", "verify", "recall", "search", "forget", "compact")
"""Commands that are functions of `memlm.cli.store`."""
COMMANDS = (
    *(
        "demo",
        "train",
        "evaluate",
        "eval-harness",
        "probe",
        "probe-compare",
        "probe-table",
        "claims",
        "regenerate",
        "report",
        "recipes",
    ),
    "remember",
    *STORE_COMMANDS,
    *("measure-heads", "ask", "chat", "generate", "export", "bench"),
)
"""All commands. Each other one is a module of this package with a `run(arguments)`, imported when it is called."""

_HELP = f"""memlm {__version__}: memory models for language

usage: memlm COMMAND [--help]

  demo        train a small text autoencoder on bundled speeches and show what it retains
  train       train a recipe, or your own settings, on any text
  evaluate    measure a trained run, on its held-out text or on yours
  eval-harness
              run tasks of lm-evaluation-harness, with memories and without
  probe       measure how much of a text the vector of any encoder retains
  probe-compare
              compare what vectors of several encoders give away and find, rounded too
  probe-table measure what vectors retain by the objective of their encoder (the paper's table)
  claims      check the paper's claims on a small scale and print each verdict
  regenerate  encode a text as memories and print the text that they give back
  report      write a run's report page again
  recipes     list the recipes, or print one as YAML to change

  remember    store text files as memories, with exact corrections
  stats       print the size of a store and the fidelity of its memories
  verify      check every byte of a store
  recall      print a document of a store, byte for byte
  search      print the chunks of a store that are nearest to a text
  forget      remove documents from a store
  compact     free the space of removed documents
  measure-heads
              measure which heads of a decoder need more memories
  ask         answer questions about documents that a decoder reads as memories
  chat        the same, as a conversation
  generate    continue a text after documents that are read as memories
  export      write a memory model's decoder, or a prompt of memories, for other programs
  bench       time a decoder behind memories against one that reads the full context

with any command:
{chr(10).join(f"  {switch.flag:<19}  {switch.does}" for switch in SWITCHES)}

a first look:
  memlm demo --quick
  memlm train autoencoder-tiny --text 'notes/*.md' --out runs/notes
  memlm evaluate runs/notes --json
  memlm probe --encoder runs/notes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 on success, 2 on an error of the user's, 130 on Ctrl-C, 143 on SIGTERM."""
    _open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    switched = [switch for switch in SWITCHES if switch.flag in given]
    given = [argument for argument in given if argument not in [switch.flag for switch in switched]]
    if not given or given[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if given[0] == "--version":
        print(f"memlm {__version__}")
        return 0
    try:
        with _notes_on_stderr(), stoppable(), ExitStack() as switches:
            for switch in switched:
                switches.enter_context(switch.everywhere())
            rank_of_launcher()
            _command(given[0])(given[1:])
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if os.environ.get("MEMLM_TRACEBACK") == "1" and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        return _exit_code(error)
    return 0


def _open_standard_streams() -> None:
    """Let output be written where a character has no place in its encoding, and where a stream was closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which no other file may get
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _notes_on_stderr() -> Generator[None]:
    """Print what the library logs, such as the number of items that were left out, as lines on stderr."""
    logger, handler = logging.getLogger("memlm"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print a note; of several processes, the first one does."""
        if not _rank():
            print(f"memlm: note: {_fitting(record.getMessage())}", file=sys.stderr)


def _rank() -> int:
    """Return the number of this process, and 0 where the launcher's variables are unusable."""
    try:
        return rank_of_launcher()
    except ConfigError:
        return 0


def _fitting(message: str) -> str:
    """Return a message in one line that moves no cursor, without its middle where it is very long."""
    line = one_line(message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _command(name: str) -> Callable[[list[str]], None]:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'. {did_you_mean(name, COMMANDS)}")
    if name in STORE_COMMANDS:
        return getattr(import_module("memlm.cli.store"), name)
    return import_module(f"memlm.cli.{name.replace('-', '_')}").run


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, BrokenPipeError):
        # what is still buffered would be written, and fail, when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    stopped = Stopped.exit_code()  # libraries raise errors of their own where they are interrupted
    if _rank() and stopped is None:
        # the launcher ends this process when the first one has printed the same error; other errors are printed here
        time.sleep(_LATER)
    if stopped is not None or isinstance(error, KeyboardInterrupt):
        told = str(error) if isinstance(error, MemlmError) else "stopped."
        if not _rank():
            print(f"memlm: {_fitting(told)}", file=sys.stderr)
        return stopped or 130
    if isinstance(error, OSError):
        # a full disk, or a folder in place of a file: the system's message is the best one
        message = f"{error.filename or 'writing'}: {error.strerror or error}"
        print(f"memlm: error: {_fitting(message)}", file=sys.stderr)
        return 2
    if not isinstance(error, MemlmError):
        reason = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            reason = "the memory is full; give smaller sizes, or less text at once"
        print(f"memlm: error: {_fitting(reason)} (MEMLM_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2
    print(f"memlm: error: {_fitting(str(error))}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 130
