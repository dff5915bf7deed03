"""Documents written by several processes, in their order; each has the model and its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from memlm.encoders import Encoder, open_encoder
from memlm.store.codec import ChunkCodec
from memlm.store.format.document import StoredDocument
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import Bits
from memlm.store.text_store import Unit, write_units
from memlm.store.wire import Sent, received, sent

_AHEAD = 2
"""Lists that each worker has waiting, so that none is idle and memory stays bounded."""


def write_side_by_side(
    batches: Iterator[list[Unit]], *, model: Path, header: StoreHeader, retrieval: str | None, workers: int
) -> Iterator[list[StoredDocument]]:
    """What `write_units` gives for each list, in order.

    Args:
        batches: texts to write.
        model: folder that each worker loads.
        header: of the store that they are for.
        retrieval: encoder that each worker loads.
        workers: processes.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    start = (str(model), header.bits, retrieval, threads)
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=start) as pool:
        waiting: deque[Future[list[Sent]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_work, [(unit.id, unit.text) for unit in batch]))
                if len(waiting) > workers * _AHEAD:
                    yield received(waiting.popleft().result(), header)
            while waiting:
                yield received(waiting.popleft().result(), header)
        finally:
            pool.shutdown(cancel_futures=True)


_here: dict[str, Any] = {}
"""A worker's model, encoder and bits."""


def _start(model: str, bits: Bits, retrieval: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    encoder: Encoder | None = None if retrieval is None else open_encoder(retrieval)
    _here.update(codec=ChunkCodec.load(model), bits=bits, retrieval=encoder)


def _work(units: list[tuple[str, str]]) -> list[Sent]:
    return sent(write_units(_here["codec"], [Unit(*unit) for unit in units], _here["bits"], _here["retrieval"]))
