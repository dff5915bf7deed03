"""`memlm forget`: documents out of a store."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import StoreError


@dataclass(frozen=True)
class Forget:
    """Remove documents from a store, all of those named or none; `memlm compact` gives their space back."""

    store: Positional[str]
    """Folder of the store."""
    ids: Positional[tuple[str, ...]]
    """Ids: the paths they were written from."""
    wait: float = 0.0
    """Seconds to wait while another process writes to the store."""


def run(arguments: list[str]) -> None:
    """Parse, remove, print."""
    options = parse(Forget, arguments, command="forget")
    from memlm.store import MemoryStore, with_parts

    if not options.ids:
        raise StoreError("no ids; give at least one document.")
    with MemoryStore.open(options.store, write=True, wait=options.wait) as store:
        store.delete(with_parts(store, options.ids))
        print(f"{len(set(options.ids))} removed, {len(store)} documents left in {options.store}")
