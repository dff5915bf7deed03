"""Documents written by the processes of a launcher (torchrun), on one machine or several, in their order.

The first process holds texts and store; the others have only the model. What goes between them is bytes: text there,
safetensors back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from memlm.encoders import Encoder
from memlm.errors import StoreError
from memlm.store.codec import ChunkCodec
from memlm.store.format.document import StoredDocument
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import Bits
from memlm.store.text_store import Unit, write_units
from memlm.store.wire import Sent, received, sent


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
