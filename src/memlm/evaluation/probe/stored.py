"""Reading the texts of a store back from its memories alone, for an audit.

Keys and values of a decoder do not give their text back by themselves: the decoder continues behind them. It is
therefore *cued*: behind the memories of a chunk stand the chunk's first tokens, and the decoder, which has seen this
beginning before, goes on with what followed it. No decoder is trained, and none is told what to do. An autoencoder's
memories are decoded as the store decodes them, without corrections and without a cue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from memlm.data import Passages, decode_piece, eos_id
from memlm.errors import DataError
from memlm.evaluation.probe.audit import TextsRead
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.store import TextStore
from memlm.store.format.document import StoredDocument
from memlm.store.slot_codec import SlotCodec

Progress = Callable[[int, int], None]
"""Receives the numbers of texts read, and of all."""


@dataclass
class _Collected:
    texts: list[str] = field(default_factory=list[str])
    owners: list[int] = field(default_factory=list[int])
    read: list[str] = field(default_factory=list[str])
    blank: list[str] = field(default_factory=list[str])


def first_words(store: TextStore) -> str:
    """Return in one sentence what a store gives away besides its memories."""
    if store.store.header.slots is not None:
        return (
            "This store keeps its texts themselves, deflated: whoever has its folder reads everything verbatim, "
            "without a model. The audit says what its memories alone give away."
        )
    return (
        "This store keeps corrections of its memories: whoever has its folder and its model reads everything verbatim. "
        "The audit says what its memories alone give away."
    )


def read_store(store: TextStore, *, limit: int, cue: int, progress: Progress | None = None) -> TextsRead:
    """Read the texts of a store back from its memories.

    Args:
        store: of a decoder's slots, or of an autoencoder's memories.
        limit: greatest number of texts that are read: chunks of a decoder, documents of an autoencoder. They are taken
            from as many documents as possible, the first chunks first.
        cue: tokens of each chunk that the decoder is given, which do not count as read.
        progress: is told how far it is.

    Raises:
        DataError: no chunk has more tokens than the cue.
        DamagedStoreError: data that is not what was written.
    """
    found, tell = _Collected(), progress or (lambda _done, _all: None)
    names = [entry.id for entry in store.store.documents()]
    codec = store.codec
    if not isinstance(codec, SlotCodec):
        for number, name in enumerate(names[:limit]):
            found.texts.append(store.recall(name))
            found.read.append(store.reading(name))
            found.owners.append(number)
            tell(number + 1, min(limit, len(names)))
    else:
        chosen = _chosen(store, names, limit, cue)
        for number, (owner, part, chunk) in enumerate(chosen):
            ids = store.tokens(part, [chunk])[chunk]
            memories = codec.memories(part, chunks=[chunk])
            found.texts.append(decode_piece(codec.tokenizer, ids[cue:]))
            found.read.append(_continued(codec.model, ids, cue, memories))
            found.blank.append(_continued(codec.model, ids, cue, None))
            found.owners.append(owner)
            tell(number + 1, len(chosen))
    if not found.texts:
        raise DataError(f"no chunk of '{store.store.folder}' has more than the {cue} tokens of the cue; give less.")
    passages = Passages(tuple(found.texts), torch.tensor(found.owners), tuple(names))
    return TextsRead(passages, found.read, found.blank or None)


def _chosen(store: TextStore, names: list[str], limit: int, cue: int) -> list[tuple[int, StoredDocument, int]]:
    """Return document, part and number of the chunks that are read: the first of every document, then the second."""
    chunks = [iter(_chunks(store, owner, name, cue)) for owner, name in enumerate(names)]
    chosen: list[tuple[int, StoredDocument, int]] = []
    while chunks and len(chosen) < limit:
        left: list[Iterator[tuple[int, StoredDocument, int]]] = []
        for iterator in chunks:
            found = next(iterator, None)
            if found is not None and len(chosen) < limit:
                chosen.append(found)
                left.append(iterator)
        chunks = left
    # rows of a document stand together, as intervals over pieces of documents need them
    return sorted(chosen, key=lambda found: found[0])


def _chunks(store: TextStore, owner: int, name: str, cue: int) -> Iterator[tuple[int, StoredDocument, int]]:
    for part in store.parts(name):
        yield from ((owner, part, chunk) for chunk, size in enumerate(part.tokens.tolist()) if size > cue)


@torch.no_grad()
def _continued(model: MemoryDecoder, ids: list[int], cue: int, memories: SlotMemories | None) -> str:
    """Return what a decoder writes behind memories and the first tokens of a chunk, as many tokens as the chunk has."""
    first = [model.reader.first_token_id] if memories is None else []
    inputs = model.inputs([[*first, *ids[:cue]]], memories)
    options = {"do_sample": False, "max_new_tokens": len(ids) - cue, "pad_token_id": eos_id(model.tokenizer)}
    found = cast(Any, model.decoder).generate(**inputs, **options)
    new, end = found[0, inputs["input_ids"].shape[1] :].tolist(), eos_id(model.tokenizer)
    return decode_piece(model.tokenizer, new[: new.index(end)] if end in new else new)
