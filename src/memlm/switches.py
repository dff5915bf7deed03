"""Choices that hold for a whole command, wherever it reads a folder, and for the processes that it starts.

A choice is a variable of the environment, never a setting that a run or a store keeps: a file from outside cannot make
it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final


class Switch:
    """A choice that is off unless a flag, or a variable of the environment that is 1, turns it on."""

    def __init__(self, flag: str, does: str) -> None:
        self.flag, self.does = flag, does
        self.variable = f"MEMLM_{flag.strip('-').replace('-', '_').upper()}"
        self._here = ContextVar(flag, default=False)

    def is_on(self) -> bool:
        """Return whether the choice was made."""
        return self._here.get() or os.environ.get(self.variable) == "1"

    @contextmanager
    def here(self) -> Generator[None]:
        """Make the choice inside the block, in this process alone."""
        token = self._here.set(True)
        try:
            yield
        finally:
            self._here.reset(token)

    @contextmanager
    def everywhere(self) -> Generator[None]:
        """Make the choice inside the block, also in the processes that this one starts."""
        before = os.environ.get(self.variable)
        os.environ[self.variable] = "1"
        try:
            yield
        finally:
            os.environ.pop(self.variable)
            os.environ |= {} if before is None else {self.variable: before}


IGNORE_CHECKSUMS: Final = Switch("--ignore-checksums", "read runs and sessions that are not what was written")
TRUST_REMOTE_CODE: Final = Switch("--trust-remote-code", "run Python code that comes with a model or an encoder")
SWITCHES: Final = (IGNORE_CHECKSUMS, TRUST_REMOTE_CODE)
"""Flags that every command takes."""
OWN_CODE: Final = (
    "brings code of its own, which memlm does not run; give a model that transformers knows, or --trust-remote-code "
    "(trust_remote_code=True) where you trust its code."
)
"""The words about a model that needs code of its own."""


def needs_code(error: Exception) -> bool:
    """Return whether transformers raised an error because it may not run the code of a model."""
    return "custom code" in str(error)
