"""`memlm recall`: a document of a store."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from memlm.cli.arguments import parse


@dataclass(frozen=True)
class Recall:
    """Print a document of a store: byte for byte, or what its memories alone give back."""

    store: Positional[str]
    """Folder of the store."""
    id: Positional[str]
    """The document's id: the path it was written from."""
    exact: Annotated[bool, tyro.conf.arg(help="Every byte, checked; --no-exact: from memories alone.")] = True
    model: str | None = None
    """Folder of the model, where it is not at its old place."""


def run(arguments: list[str]) -> None:
    """Parse, read, print."""
    options = parse(Recall, arguments, command="recall")
    from memlm.cli.stores import open_texts

    with open_texts(options.store, options.model) as store:
        out = sys.stdout.buffer
        if options.exact:
            for part in store.recall_parts(options.id):
                out.write(part)
        else:
            out.write(store.reading(options.id).encode(errors="replace"))
        out.flush()
