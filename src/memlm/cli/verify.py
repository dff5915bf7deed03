"""`memlm verify`: is every bit of a store still there."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import DamagedStoreError


@dataclass(frozen=True)
class Verify:
    """Check every file and every document of a store against the hashes that were kept of them."""

    store: Positional[str]
    """Folder of the store."""
    texts: bool = False
    """Recall every document too, and compare its hash: needs the model, and takes as long as writing did."""
    model: str | None = None
    """Folder of the model, where it is not at its old place."""
    wait: float = 0.0
    """Seconds to wait while another process writes to the store."""


def run(arguments: list[str]) -> None:
    """Parse, check, print each problem."""
    options = parse(Verify, arguments, command="verify")
    from memlm.store import MemoryStore
    from memlm.training.loop.callbacks import ProgressView

    view = ProgressView(0, shown=True, noun="document")

    def progress(done: int, total: int) -> None:
        if not view.total:
            view.total = total
            view.start(0)
        view.update(done, "")

    try:
        problems = MemoryStore.verify(options.store, wait=options.wait, progress=progress)
    finally:
        view.stop()
    problems += _texts(options) if options.texts and not problems else []
    for problem in problems:
        print(problem)
    if problems:
        raise DamagedStoreError(f"{len(problems)} problems in '{options.store}'; restore it from a copy.")
    print(f"{options.store}: every byte is as it was written.")


def _texts(options: Verify) -> list[str]:
    from memlm.cli.stores import open_texts

    found: list[str] = []
    with open_texts(options.store, options.model) as store:
        for entry in store.store.documents():
            try:
                for _ in store.recall_parts(entry.id):
                    pass
            except DamagedStoreError as error:
                found.append(str(error))
    return found
