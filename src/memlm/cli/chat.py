"""`memlm chat`: a conversation about documents, which a pretrained decoder reads as memories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from memlm.cli.arguments import parse
from memlm.cli.ask import Documents, answered, open_documents


@dataclass(frozen=True, kw_only=True)
class Chat(Documents):
    """Talk about documents, which a decoder reads as memories; each line is a question, and an empty one ends.

    memlm chat --model PATH_OR_HUB_ID --text notes/
    """


def run(arguments: list[str]) -> None:
    """Answer lines of standard input, one after the other."""
    options = parse(Chat, arguments, command="chat")
    with open_documents(options) as session:
        for question in _lines():
            answered(session, question, options, stream=True)


def _lines() -> Iterator[str]:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
