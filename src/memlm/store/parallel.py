"""Encoding by several processes: worker processes of this machine, or the ranks of a launcher such as torchrun.

Both receive one message of bytes for each list of units and answer with one message of documents (JSON and safetensors;
nothing is unpickled by a rank), and one loop hands out the lists and returns the answers in order.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from memlm.encoders import Encoder, open_encoder
from memlm.errors import StoreError
from memlm.processes import worker_pool
from memlm.store.codec import Codec
from memlm.store.codecs import open_codec
from memlm.store.format.document import StoredDocument, document_of, tensors_of
from memlm.store.format.header import StoreHeader
from memlm.store.ingest import Unit, encode_units
from memlm.store.quantize import Bits

_AHEAD = 2
"""Lists that wait for each worker process, so that none is idle and memory stays bounded."""
EncodeMessage = Callable[[bytes], bytes]
Submit = Callable[[bytes], Callable[[], bytes]]
"""A function that starts the encoding of one message and returns a function that waits for the answer."""


def encode_with_workers(
    batches: Iterator[list[Unit]],
    *,
    model: Path | str,
    header: StoreHeader,
    retrieval: str | None,
    workers: int,
    trust_remote_code: bool = False,
) -> Iterator[list[StoredDocument]]:
    """Encode lists of units with worker processes, which share this machine's cores; results come in order.

    Every worker loads the run in the folder `model` and the retrieval encoder, a folder or id.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    given = (str(model), header.model_dump_json(), retrieval, trust_remote_code, threads)
    with worker_pool(workers, _start_worker, *given) as pool:
        yield from _in_order(batches, lambda m: pool.run(_run_worker, m).result, header, workers * _AHEAD)


def encode_over_ranks(
    batches: Iterator[list[Unit]], *, codec: Codec, header: StoreHeader, retrieval: Encoder | None
) -> Iterator[list[StoredDocument]]:
    """Encode lists of units with all ranks of a launcher; called by rank 0, and results come in order.

    The codec and the retrieval encoder are those of this rank, which encodes its share.

    Raises:
        StoreError: another rank has another model or retrieval encoder.
    """
    ranks = _Ranks(_encoder(codec, header.bits, retrieval))
    try:
        ranks.start(header)
        yield from _in_order(batches, ranks.submit, header, dist.get_world_size())
    finally:
        ranks.stop()


def serve_rank(model: str, retrieval: Encoder | None) -> None:
    """Encode what rank 0 sends until it sends nothing more; called by every other rank."""
    first = _receive(0)
    if not first:
        return
    header = StoreHeader.model_validate_json(first)
    codec, bits = open_codec(model, header), header.bits
    _send(_identity(codec.header(bits).decoder, None if retrieval is None else retrieval.fingerprint), 0)
    encode = _encoder(codec, bits, retrieval)
    while message := _receive(0):
        _send(encode(message), 0)


def _in_order(
    batches: Iterator[list[Unit]], submit: Submit, header: StoreHeader, limit: int
) -> Iterator[list[StoredDocument]]:
    """Keep at most `limit` lists in work, and yield their documents in order."""
    waiting: deque[Callable[[], bytes]] = deque()
    for batch in batches:
        answer = waiting.popleft()() if len(waiting) == limit else None
        # the next list is sent before the answer is committed, so that no process waits for the disk
        waiting.append(submit(json.dumps(batch).encode()))
        if answer is not None:
            yield _unpack(answer, header)
    while waiting:
        yield _unpack(waiting.popleft()(), header)


def _encoder(codec: Codec, bits: Bits, retrieval: Encoder | None) -> EncodeMessage:
    """Return the function that every process applies to a message."""

    def encode(message: bytes) -> bytes:
        return _pack(encode_units(codec, [Unit(*unit) for unit in json.loads(message)], bits, retrieval))

    return encode


def _pack(documents: list[StoredDocument]) -> bytes:
    """Serialize documents; torch would open a file for each tensor that it hands to another process."""
    rows = [(document.id, document.text_sha256, document.text_bytes) for document in documents]
    tensors = {f"{i}.{name}": t.contiguous() for i, d in enumerate(documents) for name, t in tensors_of(d).items()}
    return save(tensors, metadata={"documents": json.dumps(rows)})


def _unpack(message: bytes, header: StoreHeader) -> list[StoredDocument]:
    size = int.from_bytes(message[:8], "little")
    rows = json.loads(json.loads(message[8 : 8 + size])["__metadata__"]["documents"])
    tensors: list[dict[str, torch.Tensor]] = [{} for _ in rows]
    for key, tensor in load(message).items():
        number, _, name = key.partition(".")
        tensors[int(number)][name] = tensor
    return [
        document_of(own, header, name=name, text_sha256=digest, text_bytes=text_bytes)
        for own, (name, digest, text_bytes) in zip(tensors, rows, strict=True)
    ]


_worker: dict[str, EncodeMessage] = {}
"""The function of a worker process, set when it starts."""


def _start_worker(model: str, header: str, retrieval: str | None, trust_remote_code: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    known = StoreHeader.model_validate_json(header)
    encoder: Encoder | None = None
    if retrieval is not None:
        encoder = open_encoder(retrieval, prompt=known.retrieval_prompt, trust_remote_code=trust_remote_code)
    _worker["encode"] = _encoder(open_codec(model, known), known.bits, encoder)


def _run_worker(message: bytes) -> bytes:
    return _worker["encode"](message)


class _Ranks:
    """The ranks of a launcher as a pool that takes messages in turn; rank 0 encodes when its answer is wanted."""

    def __init__(self, encode: EncodeMessage) -> None:
        self.encode = encode
        self.turns = cycle(range(dist.get_world_size()))
        self.busy: list[int] = []

    def start(self, header: StoreHeader) -> None:
        for rank in range(1, dist.get_world_size()):
            _send(header.model_dump_json().encode(), rank)
            if _receive(rank) != _identity(header.decoder, header.retrieval):
                raise StoreError(
                    f"process {rank} has another model or retrieval encoder than the store; give the same."
                )

    def submit(self, message: bytes) -> Callable[[], bytes]:
        rank = next(self.turns)
        if not rank:
            return partial(self.encode, message)
        _send(message, rank)
        self.busy.append(rank)
        return partial(self._answer, rank)

    def _answer(self, rank: int) -> bytes:
        self.busy.remove(rank)
        return _receive(rank)

    def stop(self) -> None:
        """Receive what is still on its way and end the other ranks; the launcher ends the rest if one is gone."""
        with suppress(RuntimeError):
            for rank in self.busy:
                _receive(rank)
            for rank in range(1, dist.get_world_size()):
                _send(b"", rank)


def _identity(decoder: str, retrieval: str | None) -> bytes:
    return f"{decoder} {retrieval or ''}".encode()


def _send(content: bytes, rank: int) -> None:
    dist.send(torch.tensor([len(content)]), rank)
    if content:
        dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), rank)


def _receive(rank: int) -> bytes:
    size = torch.zeros(1, dtype=torch.long)
    dist.recv(size, rank)
    body = torch.zeros(int(size), dtype=torch.uint8)
    if len(body):
        dist.recv(body, rank)
    return body.numpy().tobytes()
