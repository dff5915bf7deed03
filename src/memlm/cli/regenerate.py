"""`memlm regenerate`: a text through memory and back."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import CheckpointError, ConfigError, DataError

MAX_INPUT_BYTES = 64 * 2**20
"""The greatest size of a text on stdin."""
RUNS = Path("runs")
"""The folder whose newest finished autoencoder is the default."""


@dataclass(frozen=True)
class Regenerate:
    """Encode a text as memories and print the text that they give back.

    The share of tokens that come back correctly is printed to stderr. Without --model the command uses the autoencoder
    below runs/ that was finished last, and prints its folder to stderr.

      memlm regenerate "We have met in council to speak of peace." --model runs/demo
    """

    text: Positional[str]
    """The text, or - to read it from stdin."""
    model: str | None = None
    """Folder of a trained autoencoder; by default the one below runs/ that was finished last."""


def run(arguments: list[str]) -> None:
    """Encode a text, decode its memories and print the result."""
    options = _options(arguments)
    from memlm.reports.tables import percent
    from memlm.session import TextMemory

    memory = TextMemory.from_pretrained(_newest_run() if options.model is None else options.model)
    text = _stdin() if options.text == "-" else options.text
    if not text:
        raise DataError("the text is empty; give at least one character.")
    memories = memory.encode(text)
    sys.stdout.write(memory.regenerate(memories)[0])
    sys.stdout.write("" if options.text == "-" else "\n")
    chunks, numbers = len(memories[0]), memories[0].numel()
    share = percent(memory.fidelity(text)[0])
    print(f"{share} % of tokens correct, {chunks} chunks, {numbers} numbers", file=sys.stderr)


def _options(arguments: list[str]) -> Regenerate:
    """Parse the arguments; a text may begin with a dash, which the parser would take for a flag."""
    flag = arguments.index("--model") if "--model" in arguments[:-1] else len(arguments)
    others = arguments[:flag] + arguments[flag + 2 :]
    if len(others) == 1 and not re.fullmatch(r"--?[a-z][a-z=-]*", others[0]):
        return Regenerate(others[0], *arguments[flag + 1 : flag + 2])
    return parse(Regenerate, arguments, command="regenerate")


def _newest_run() -> Path:
    from memlm.models import TextAutoencoderConfig
    from memlm.models.loading import kind_of

    weights = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (path.parent for path in weights):
        try:
            if kind_of(folder) == TextAutoencoderConfig.model_type:
                print(f"model: {folder}", file=sys.stderr)
                return folder
        except CheckpointError:
            continue  # a damaged run is not a default
    others = f" (it has {', '.join(str(path.parent) for path in weights[:5])})" if weights else ""
    raise ConfigError(f"no finished autoencoder in '{RUNS}'{others}; give --model RUN, or train one with memlm demo.")


def _stdin() -> str:
    content = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(content) > MAX_INPUT_BYTES:
        raise DataError(f"stdin holds more than {MAX_INPUT_BYTES} bytes; split the text.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 at byte {error.start}; convert it first.") from error
