"""`memlm search`: the nearest memories of a store, with their text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from memlm.cli.arguments import parse


@dataclass(frozen=True)
class Search:
    """The chunks of a store that are nearest to a text, by exact cosine, with their own text."""

    store: Positional[str]
    """Folder of the store."""
    query: Positional[str]
    """A text; of a long one the chunk that is nearest counts."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many."""
    document: tuple[str, ...] = ()
    """Search in these documents only."""
    model: str | None = None
    """Folder of the model, where it is not at its old place."""
    json: bool = False
    """Print one JSON object a line."""


def run(arguments: list[str]) -> None:
    """Parse, search, print."""
    import json

    options = parse(Search, arguments, command="search")
    from memlm.cli.stores import one_line, open_texts

    with open_texts(options.store, options.model, retrieval=True) as store:
        for hit in store.search(options.query, options.k, documents=options.document or None):
            text = store.text_of(hit)
            if options.json:
                print(json.dumps({**asdict(hit), "text": text}))
                continue
            place = str(hit.chunk) if hit.part is None else f"{hit.part}:{hit.chunk}"
            print(f"{hit.score:.4f}  {hit.id} {place}  {one_line(text)}")
