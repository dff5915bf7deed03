"""The command line: one module a command, each parses, calls one function, and prints or writes what came of it.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module

from memlm.errors import MemlmError, UserError, did_you_mean
from memlm.version import __version__

_LATER = 3.0
"""Seconds in which a launcher sees that its first process has ended."""
COMMANDS = (
    *("demo", "train", "evaluate", "eval-harness", "probe", "probe-table", "claims", "regenerate", "report", "recipes"),
    *("remember", "stats", "verify", "recall", "search", "forget", "compact", "generate", "export", "bench"),
)
"""Each is a module of this package with a `run(arguments)`; only the one that is called gets imported."""

_HELP = f"""memlm {__version__}: memory models for language

usage: memlm COMMAND [--help]

  demo        train a small text autoencoder on bundled speeches and show what it keeps
  train       train a recipe, or your own settings, on any text
  evaluate    measure a trained run, on its held-out text or on yours
  eval-harness
              run tasks of lm-evaluation-harness, with memories and without
  probe       measure how much of a text any encoder's vector keeps
  probe-table what a vector keeps, by what its encoder was trained for (the paper's table)
  claims      the paper's claims, small, each with its verdict
  regenerate  send a text through a run's memory and print what comes back
  report      write a run's report page again
  recipes     list the recipes, or print one as YAML to change

  remember    write text files to a store of memories, each verified
  stats       how much a store holds, and how faithfully
  verify      check every byte of a store
  recall      print a document of a store, byte for byte
  search      the chunks of a store nearest to a text
  forget      remove documents from a store
  compact     give the space of removed documents back
  generate    continue a text behind what was read as memories
  export      a memory model's decoder, and prompts of memories, for other programs
  bench       time memory against full context

a first look:
  memlm demo --quick
  memlm train autoencoder-tiny --text 'notes/*.md' --out runs/notes
  memlm evaluate runs/notes --json
  memlm probe --encoder runs/notes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 where the user can mend it, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if given[0] == "--version":
        print(f"memlm {__version__}")
        return 0
    try:
        _command(given[0])(given[1:])
    except (MemlmError, KeyboardInterrupt, OSError, SystemExit) as error:
        return _exit_code(error)
    return 0


def _command(name: str) -> Callable[[list[str]], None]:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'. {did_you_mean(name, COMMANDS)}")
    return import_module(f"memlm.cli.{name.replace('-', '_')}").run


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, BrokenPipeError):
        return 0
    if os.environ.get("RANK", "0") != "0":
        # the launcher ends this process as soon as the first one has said the same; what only this one knows is said
        time.sleep(_LATER)
    if isinstance(error, KeyboardInterrupt):
        print("memlm: stopped.", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        # a full disk, a folder where a file should be: what the system says is what can be said
        print(f"memlm: error: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"memlm: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 130
