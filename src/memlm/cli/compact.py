"""`memlm compact`: a store without what was deleted."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from memlm.cli.arguments import parse


@dataclass(frozen=True)
class Compact:
    """Write a store's documents together and give the space of deleted ones back; readers are not disturbed."""

    store: Positional[str]
    """Folder of the store."""
    wait: float = 0.0
    """Seconds to wait while another process writes to the store."""


def run(arguments: list[str]) -> None:
    """Parse, compact, print."""
    options = parse(Compact, arguments, command="compact")
    from memlm.store import MemoryStore
    from memlm.training.loop.callbacks import ProgressView

    with MemoryStore.open(options.store, write=True, wait=options.wait) as store:
        dead = store.stats().dead_chunks
        view = ProgressView(sum(1 for _ in store.entries()), shown=True, noun="document")
        view.start(0)
        try:
            store.compact(progress=lambda done, _: view.update(done, ""))
        finally:
            view.stop()
    print(f"{dead} chunks of deleted documents are gone from {options.store}")
