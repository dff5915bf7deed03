"""`memlm remember`: text files become memories in a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from memlm.cli.arguments import Seconds, TextOptions, TokensPerMemory, Workers, parse, text_field_of
from memlm.cli.store import model_of, progress_view, ratio_of, retrieval_of
from memlm.durable import is_vacant
from memlm.errors import ConfigError, DataError
from memlm.processes import rank_of_launcher

if TYPE_CHECKING:
    from memlm.store import TextStore
    from memlm.store.text_store import EncodeBatches
    from memlm.training.loop.callbacks import ProgressView


@dataclass(frozen=True, kw_only=True)
class Remember(TextOptions):
    """Store texts as memories, with the corrections that make every text exact.

    The path of a file is its id in the store; the id of a record (JSONL, JSON, CSV, Parquet) is its file's path and
    its own id. Texts that are stored already are not encoded again, and the same command continues where an earlier
    one was stopped. Under torchrun, on one machine or several, all processes encode; the
    files and the store are those of the first process.

    A decoder's memories give no text back, so that its stores keep the texts themselves, too.

      memlm remember notes/*.md --store notes.mem --model runs/demo
      memlm remember notes/*.md --store slots.mem --model PATH_OR_HUB_ID --tokens-per-memory 8 --bits 4
    """

    paths: Positional[tuple[str, ...]]
    """Files (UTF-8 text, JSONL, JSON, CSV, Parquet, also compressed), folders or globs."""
    store: str = "memories.mem"
    """Folder of the store; it is created if it does not exist."""
    model: str | None = None
    """Folder of a trained run, or folder or Hub id of a decoder; by default the one that the store was made with."""
    tokens_per_memory: TokensPerMemory = None
    """Tokens for each memory of a decoder in a new store; 8 by default."""
    bits: Literal[16, 8, 4] | None = None
    """Bits of a stored number in a new store; 8 by default."""
    replace: bool = False
    """Replace stored texts that have the same path and another content."""
    retrieval: str | None = None
    """In a new store, search vectors of this encoder (a folder or an id) instead of the memories."""
    prompt: str | None = None
    """In a new store, the prompt before each text for --retrieval: a name that it declares, or a text."""
    workers: Workers = 1
    """Number of processes that encode; they share the cores."""
    wait: Seconds = 0.0
    """Seconds to wait while another process writes to the store."""


def run(arguments: list[str]) -> None:
    """Encode text files into a store, and print the number of files by outcome."""
    options = parse(Remember, arguments, command="remember")
    from memlm.store import TextStore, read_header
    from memlm.training.loop.distributed import launched

    if options.prompt is not None and options.retrieval is None:
        raise ConfigError("--prompt is for a retrieval encoder; give --retrieval, too.")
    if launched() and options.workers > 1:
        raise ConfigError(f"--workers ({options.workers}) is for one process; under torchrun start more processes.")
    if rank_of_launcher():
        _serve(options)
        return
    size = _checked_size(options.paths)
    stored = None if is_vacant(Path(options.store)) else read_header(Path(options.store))
    model = options.model or (model_of(options.store) if stored else None)
    retrieval = options.retrieval or (retrieval_of(options.store) if stored else None)
    if model is None:
        raise ConfigError("a new store needs a model; give --model RUN, the folder of a trained run.")
    with TextStore.open(
        options.store,
        model,
        write=True,
        bits=options.bits,
        retrieval=retrieval,
        prompt=options.prompt,
        tokens_per_memory=options.tokens_per_memory,
        wait=options.wait,
    ) as store:
        outcomes = _add(store, size, options, model, retrieval)
        stats = store.store.stats()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    slots = store.store.header.slots
    kept = f"{100 * stats.fidelity:.2f} % of tokens by memory" if slots is None else ratio_of(slots)
    print(f"{counts}; {stats.documents} documents in {options.store}, {kept}")


def _add(store: TextStore, size: int, options: Remember, model: str, retrieval: str | None) -> dict[str, int]:
    from memlm.data import stream_documents
    from memlm.training import Interrupted
    from memlm.training.loop.distributed import joined

    outcomes = {"written": 0, "replaced": 0, "unchanged": 0}
    field = text_field_of(options, model)
    documents = stream_documents(options.paths, text_field=field, strict=options.strict)
    add = partial(
        store.add, documents, replace=options.replace, encode=_parallel_encoder(store, options, model, retrieval)
    )
    try:
        with progress_view(size, "byte") as view, joined(), closing(add(progress=_speed(view))) as results:
            for result in results:
                outcomes[result.outcome] += 1
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was stored is kept, and the same command continues.") from None
    return outcomes


def _parallel_encoder(store: TextStore, options: Remember, model: str, retrieval: str | None) -> EncodeBatches | None:
    from memlm.store import encode_over_ranks, encode_with_workers
    from memlm.training.loop.distributed import launched

    header, workers = store.store.header, options.workers
    if launched():
        return partial(encode_over_ranks, codec=store.codec, header=header, retrieval=store.retrieval)
    if workers > 1:
        return partial(encode_with_workers, model=model, header=header, retrieval=retrieval, workers=workers)
    return None


def _speed(view: ProgressView) -> Callable[[int, int], None]:
    """Return a callback that shows bytes done and tokens encoded per second."""
    done, tokens, began = 0, 0, time.monotonic()

    def progress(size: int, encoded: int) -> None:
        nonlocal done, tokens
        done, tokens = done + size, tokens + encoded
        view.update(done, f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s")

    return progress


def _serve(options: Remember) -> None:
    """Encode for the first process of a launcher."""
    from memlm.encoders import open_encoder
    from memlm.store import serve_rank
    from memlm.training.loop.distributed import joined

    if options.model is None:
        raise ConfigError("under torchrun every process needs the model; give --model RUN.")
    retrieval = None if options.retrieval is None else open_encoder(options.retrieval, prompt=options.prompt)
    with joined():
        serve_rank(options.model, retrieval)


def _checked_size(sources: tuple[str, ...]) -> int:
    """Return the bytes of all files.

    Raises:
        DataError: a source that is not there; such a name never goes to the Hub.
    """
    from memlm.data.corpus import LeftOut
    from memlm.data.sources import BUNDLED, find_files

    if not sources:
        raise DataError("no files; give at least one text file.")
    size = 0
    for source in sources:
        files = find_files(source, LeftOut())
        if not files and source not in BUNDLED and not source.startswith("hub:"):
            raise DataError(f"'{source}' is {'a folder without texts' if Path(source).is_dir() else 'not there'}.")
        size += sum(path.stat().st_size for path in files)
    return size
