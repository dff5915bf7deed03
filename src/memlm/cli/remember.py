"""`memlm remember`: texts become memories in a store."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.cli.stores import model_of
from memlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from memlm.store import TextStore


@dataclass(frozen=True)
class Remember:
    """Write text files to a store of memories, each verified as written: what a memory does not give back is kept too.

    A file's path is its id. Files that are there already are left; what was stopped goes on by the same command.
    Under torchrun, on one machine or several, all processes encode; files and store are those of the first one.
    """

    paths: Positional[tuple[str, ...]]
    """Text files, UTF-8."""
    store: str = "memories.mem"
    """Folder of the store; made where there is none."""
    model: str | None = None
    """Folder of a trained run; by default the one that the store was made with."""
    bits: Literal[16, 8, 4] | None = None
    """Of one number, in a new store: 8 by default."""
    replace: bool = False
    """Put new texts in the place of old ones with the same path."""
    retrieval: str | None = None
    """A new store is searched by this encoder's vectors (a model's folder or id), not by memories."""
    workers: int = 1
    """Processes that encode, each with its share of the cores."""
    wait: float = 0.0
    """Seconds to wait while another process writes to the store."""


def run(arguments: list[str]) -> None:
    """Parse, write, say what became of each file."""
    options = parse(Remember, arguments, command="remember")
    from memlm.store import TextStore
    from memlm.training.loop.callbacks import ProgressView
    from memlm.training.loop.distributed import launched

    if options.workers < 1:
        raise ConfigError(f"--workers ({options.workers}) must be at least 1.")
    if launched() and options.workers > 1:
        raise ConfigError(f"--workers ({options.workers}) is for one process; under torchrun start more processes.")
    if int(os.environ.get("RANK", "0")):
        _serve(options)
        return
    paths = [_file(path) for path in options.paths]
    if not paths:
        raise DataError("no files; give at least one text file.")
    model = options.model or (model_of(options.store) if Path(options.store).exists() else None)
    if model is None:
        raise ConfigError("a new store needs a model; give --model RUN, the folder of a trained run.")
    view = ProgressView(sum(path.stat().st_size for path in paths), shown=True, noun="byte")
    with TextStore.open(
        options.store, model, write=True, bits=options.bits, retrieval=_retrieval(options), wait=options.wait
    ) as store:
        outcomes = _written(store, paths, options, Path(model), view)
        stats = store.store.stats()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    print(f"{counts}; {stats.documents} documents in {options.store}, {100 * stats.fidelity:.2f} % of tokens by memory")


def _written(store: TextStore, paths: list[Path], options: Remember, model: Path, view: Any) -> dict[str, int]:
    from memlm.data.corpus import stream_file
    from memlm.store import encode_over_ranks, encode_with_workers
    from memlm.training import Interrupted
    from memlm.training.loop.distributed import joined, launched

    outcomes = {"written": 0, "replaced": 0, "unchanged": 0}
    done, tokens, began = 0, 0, time.monotonic()

    def progress(size: int, now: int) -> None:
        nonlocal done, tokens
        done, tokens = done + size, tokens + now
        view.update(done, f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s")

    header = store.store.header
    encode = None
    if launched():
        encode = partial(encode_over_ranks, codec=store.codec, header=header, retrieval=store.retrieval)
    elif options.workers > 1:
        found = header.retrieval_model
        encode = partial(encode_with_workers, model=model, header=header, retrieval=found, workers=options.workers)
    documents = ((str(path), stream_file(path)) for path in paths)
    view.start(0)
    try:
        remembered = store.add(documents, replace=options.replace, encode=encode, progress=progress)
        with joined(), closing(remembered) as told:
            for one in told:
                outcomes[one.outcome] += 1
    except KeyboardInterrupt:
        raise Interrupted("stopped, what was written is kept: the same command goes on.") from None
    finally:
        view.stop()
    return outcomes


def _serve(options: Remember) -> None:
    """A process that only encodes."""
    from memlm.encoders import open_encoder
    from memlm.store import ChunkCodec, serve_rank
    from memlm.training.loop.distributed import joined

    if options.model is None:
        raise ConfigError("under torchrun every process needs the model; give --model RUN.")
    codec = ChunkCodec.load(options.model)
    retrieval = None if options.retrieval is None else open_encoder(options.retrieval)
    with joined():
        serve_rank(codec, retrieval)


def _retrieval(options: Remember) -> str | None:
    from memlm.store import read_header

    if Path(options.store).exists():
        kept = read_header(Path(options.store)).retrieval_model
        return options.retrieval or kept
    return options.retrieval


def _file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        what = "a folder; give its files" if path.is_dir() else "not there"
        raise DataError(f"'{name}' is {what}.")
    return path
