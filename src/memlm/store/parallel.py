"""Encoding on several processes: worker processes of this machine, or the ranks of a launcher."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from memlm.encoders import Encoder, open_encoder
from memlm.errors import StoreError
from memlm.store.codec import ChunkCodec
from memlm.store.format.document import StoredDocument, document_of, tensors_of
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import Bits
from memlm.store.text_store import Unit, write_units


@dataclass(frozen=True)
class Sent:
    """One document.

    Attributes:
        id: of the document.
        tensors: as safetensors.
        text_sha256: of its text.
        size: of its text, in bytes.
    """

    id: str
    tensors: bytes
    text_sha256: str
    size: int


def sent(documents: list[StoredDocument]) -> list[Sent]:
    """To be sent; torch would hand over a file for each tensor."""
    return [Sent(d.id, save(tensors_of(d)), d.text_sha256, d.text_bytes) for d in documents]


def received(documents: list[Sent], header: StoreHeader) -> list[StoredDocument]:
    """As they were, for a store of this header."""
    return [
        document_of(load(d.tensors), header, name=d.id, text_sha256=d.text_sha256, text_bytes=d.size) for d in documents
    ]


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


def write_over_ranks(
    batches: Iterator[list[Unit]], *, codec: ChunkCodec, header: StoreHeader, retrieval: Encoder | None
) -> Iterator[list[StoredDocument]]:
    """What `write_units` gives for each list, in order; for the first process.

    Args:
        batches: texts to write.
        codec: of this process, which takes its share.
        header: of the store that they are for.
        retrieval: encoder of this process.

    Raises:
        StoreError: another process has another model.
    """
    others = range(1, dist.get_world_size())
    waited_for: list[int] = []
    try:
        for rank in others:
            _send([str(header.bits).encode()], rank)
            _check_model(_receive(rank), header, rank)
        batch = _handed_out(batches, waited_for)
        while batch is not None:
            written = [write_units(codec, batch, header.bits, retrieval)]
            written += [received(_documents(_receive(rank)), header) for rank in waited_for]
            # the others have work again before these are committed
            waited_for.clear()
            batch = _handed_out(batches, waited_for)
            yield from written
    finally:
        _end(others, waited_for)


def serve_rank(codec: ChunkCodec, retrieval: Encoder | None) -> None:
    """For every other process: write what the first one sends, until it sends nothing more."""
    first = _receive(0)
    if not first:
        return
    bits: Bits = {b"16": 16, b"8": 8, b"4": 4}[first[0]]  # type: ignore[assignment]
    fingerprint = "" if retrieval is None else retrieval.fingerprint
    _send([codec.header(bits).decoder.encode(), fingerprint.encode()], 0)
    while message := _receive(0):
        pairs = zip(message[::2], message[1::2], strict=True)
        units = [Unit(name.decode(), text.decode()) for name, text in pairs]
        _send(_flat(sent(write_units(codec, units, bits, retrieval))), 0)


def _handed_out(batches: Iterator[list[Unit]], waited_for: list[int]) -> list[Unit] | None:
    """One list for each process: this one's is given back."""
    own = next(batches, None)
    for rank, batch in enumerate(islice(batches, dist.get_world_size() - 1), 1):
        _send([field.encode() for unit in batch for field in (unit.id, unit.text)], rank)
        waited_for.append(rank)
    return own


def _check_model(message: list[bytes], header: StoreHeader, rank: int) -> None:
    if message != [header.decoder.encode(), (header.retrieval or "").encode()]:
        raise StoreError(f"process {rank} has another model or retrieval encoder than the store; give it the same.")


def _end(others: range, waited_for: list[int]) -> None:
    """Nothing is left in a pipe, and everybody knows; where one is gone already the launcher ends the rest."""
    with suppress(RuntimeError):
        for rank in waited_for:
            _receive(rank)
        for rank in others:
            _send([], rank)


def _flat(documents: list[Sent]) -> list[bytes]:
    return [field for d in documents for field in (d.id.encode(), d.tensors, d.text_sha256.encode(), b"%d" % d.size)]


def _documents(message: list[bytes]) -> list[Sent]:
    fields = [message[i::4] for i in range(4)]
    return [Sent(i.decode(), t, s.decode(), int(n)) for i, t, s, n in zip(*fields, strict=True)]


def _send(parts: list[bytes], rank: int) -> None:
    """How many parts, how long each is, and all of them as one."""
    dist.send(torch.tensor([len(parts)]), rank)
    if parts:
        dist.send(torch.tensor([len(part) for part in parts]), rank)
        dist.send(_bytes_of(b"".join(parts)), rank)


def _receive(rank: int) -> list[bytes]:
    count = torch.zeros(1, dtype=torch.long)
    dist.recv(count, rank)
    if not int(count):
        return []
    sizes = torch.zeros(int(count), dtype=torch.long)
    dist.recv(sizes, rank)
    body = torch.zeros(int(sizes.sum()), dtype=torch.uint8)
    if len(body):
        dist.recv(body, rank)
    return [part.numpy().tobytes() for part in body.split(sizes.tolist())]


def _bytes_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
