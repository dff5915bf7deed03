"""`memlm regenerate`: a text through memory and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import DataError

MAX_INPUT_BYTES = 64 * 2**20
"""What stdin may hold: enough for a shelf of books, and a bound."""


@dataclass(frozen=True)
class Regenerate:
    """Send a text through a run's memory and print what comes back; the share of right tokens goes to stderr."""

    directory: Positional[str]
    """Folder of a trained run."""
    text: Positional[str]
    """The text, or - to read it from stdin."""


def run(arguments: list[str]) -> None:
    """Parse, remember, regenerate, print."""
    # a text may begin with a dash
    plain = len(arguments) == 2 and not set(arguments) & {"-h", "--help"}
    options = Regenerate(*arguments) if plain else parse(Regenerate, arguments, command="regenerate")
    from memlm.reports.table import percent
    from memlm.session import load

    memory = load(options.directory)
    text = _stdin() if options.text == "-" else options.text
    if not text:
        raise DataError("the text is empty; give at least one character.")
    memories = memory.encode(text)
    sys.stdout.write(memory.regenerate(memories)[0])
    sys.stdout.write("" if options.text == "-" else "\n")
    chunks, numbers = len(memories[0]), memories[0].numel()
    print(
        f"{percent(memory.fidelity(text)[0])} % of tokens right, {chunks} chunks, {numbers} numbers",
        file=sys.stderr,
    )


def _stdin() -> str:
    content = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(content) > MAX_INPUT_BYTES:
        raise DataError(f"stdin holds more than {MAX_INPUT_BYTES} bytes; split the text.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 at byte {error.start}; convert it first.") from error
