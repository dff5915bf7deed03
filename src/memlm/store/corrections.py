"""What makes a memory lossless: the tokens that its reading does not give back for sure, kept beside it.

A model reads each chunk back from its stored memory, and ranks all tokens at each place. A place is kept by its rank
where no other token's logit lies within MARGIN of the right one's: no machine, thread count, batch size or precision
moves logits so far that the rank names another token. Elsewhere the token itself is kept. Rank 0 takes no space: only
the other places are listed, and deflated (RFC 1951) where that is shorter. Where even the text itself, deflated, is
shorter, or where the tokenizer does not give the text back, that is kept.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from memlm.errors import DamagedStoreError

EXPLICIT: Final = 255
"""In place of a rank: the token itself is kept."""
MARGIN: Final = 1.0
"""In logits; rounding weights and activations to bfloat16 moves ours by half of it (LOG.md)."""
_LARGEST_RANK: Final = 254
_LISTED, _LISTED_DEFLATED, _TEXT, _TEXT_DEFLATED = range(4)
_VARINT_BYTES: Final = 5
Bytes = npt.NDArray[np.uint8]


def stable_ranks(
    logits: Float[Tensor, "chunks length vocabulary"], input_ids: Int[Tensor, "chunks length"]
) -> UInt8[Tensor, "chunks length"]:
    """Each token's place in the order of likelihood, or EXPLICIT where another token is too near, or it is far down.

    Args:
        logits: as read back from stored memories.
        input_ids: what was stored.
    """
    own = logits.gather(-1, input_ids[..., None])
    alone = ((logits - own).abs() < MARGIN).sum(-1) == 1
    ranks = (logits > own).sum(-1)
    return torch.where(alone & (ranks <= _LARGEST_RANK), ranks, EXPLICIT).to(torch.uint8)


def tokens_of(
    logits: Float[Tensor, "chunks length vocabulary"],
    ranks: UInt8[Tensor, "chunks length"],
    explicit: Int[Tensor, "chunks length"],
) -> Int[Tensor, "chunks length"]:
    """The tokens that were stored.

    Args:
        logits: as read back now.
        ranks: of `stable_ranks`, as it was then.
        explicit: the tokens where the rank is EXPLICIT; anything elsewhere.
    """
    tokens = logits.argmax(-1)
    ranked = (ranks > 0) & (ranks < EXPLICIT)
    deepest = int(ranks[ranked].max()) + 1 if bool(ranked.any()) else 0
    if deepest:
        order = logits[ranked].topk(min(deepest, logits.shape[-1]), dim=-1).indices
        places = ranks[ranked].long()[:, None].clamp(max=order.shape[-1] - 1)
        tokens[ranked] = order.gather(-1, places)[:, 0]
    return torch.where(ranks == EXPLICIT, explicit, tokens)


def pack(ranks: UInt8[Tensor, " tokens"], input_ids: Int[Tensor, " tokens"], text: bytes, *, by_tokens: bool) -> bytes:
    """A document's corrections in the shortest of their forms; none at all where every rank is 0.

    Args:
        ranks: of `stable_ranks`, in order.
        input_ids: the tokens.
        text: what they stand for.
        by_tokens: whether the tokens give the text back at all.
    """
    if by_tokens and not bool(ranks.any()):
        return b""
    forms = [bytes([_TEXT]) + text, bytes([_TEXT_DEFLATED]) + _deflated(text)]
    if by_tokens:
        listed = _list_of(ranks.numpy(), input_ids.numpy())
        forms += [bytes([_LISTED]) + listed, bytes([_LISTED_DEFLATED]) + _deflated(listed)]
    return min(forms, key=len)


def unpack(
    corrections: bytes, *, tokens: int, text_bytes: int
) -> bytes | tuple[UInt8[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """The text itself, or ranks and explicit tokens.

    Args:
        corrections: of `pack`.
        tokens: how many the document has.
        text_bytes: how many its text has; nothing longer is inflated.

    Raises:
        DamagedStoreError: bytes that `pack` does not write.
    """
    if not corrections:
        return torch.zeros(tokens, dtype=torch.uint8), torch.zeros(tokens, dtype=torch.long)
    form, body = corrections[0], corrections[1:]
    if form in (_TEXT, _TEXT_DEFLATED):
        return body if form == _TEXT else _inflated(body, text_bytes)
    if form == _LISTED_DEFLATED:
        body = _inflated(body, _VARINT_BYTES + tokens * (2 * _VARINT_BYTES + 1))
    elif form != _LISTED:
        raise _damaged(f"form {form} is unknown")
    ranks, explicit = _from_list(np.frombuffer(body, np.uint8), tokens)
    return torch.from_numpy(ranks), torch.from_numpy(explicit)


def _list_of(ranks: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64]) -> bytes:
    """How many places are listed, the gaps between them, their ranks, and the explicit tokens among them."""
    places = np.flatnonzero(ranks)
    gaps = np.diff(places, prepend=-1)
    listed = ranks[places]
    parts = (_varints(np.array([len(places)])), _varints(gaps), listed, _varints(ids[places[listed == EXPLICIT]]))
    return b"".join(part.tobytes() for part in parts)


def _from_list(body: Bytes, tokens: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
    (count,), body = _read_varints(body, 1)
    if count > tokens:
        raise _damaged(f"{count} places of {tokens} tokens")
    gaps, body = _read_varints(body, int(count))
    places = np.cumsum(gaps) - 1
    listed, body = body[:count], body[count:]
    if len(listed) < count or (count and (int(places[-1]) >= tokens or not bool((gaps > 0).all()))):
        raise _damaged("its places lie outside the text")
    own = places[listed == EXPLICIT]
    values, rest = _read_varints(body, len(own))
    if len(rest):
        raise _damaged(f"{len(rest)} bytes too many")
    ranks, explicit = np.zeros(tokens, np.uint8), np.zeros(tokens, np.int64)
    ranks[places], explicit[own] = listed, values
    return ranks, explicit


def _varints(values: npt.NDArray[np.int64]) -> Bytes:
    """LEB128: seven bits a byte, the highest bit where more follow."""
    groups = values[:, None] >> (7 * np.arange(_VARINT_BYTES))
    more = groups >> 7 > 0
    used = np.concatenate([np.ones((len(values), 1), bool), more[:, :-1]], axis=1)
    return ((groups & 127) | (more << 7)).astype(np.uint8)[used]


def _read_varints(body: Bytes, count: int) -> tuple[npt.NDArray[np.int64], Bytes]:
    """So many values, and what follows them."""
    ends = np.flatnonzero(body < 128)[:count] if count else np.zeros(0, np.int64)
    if len(ends) < count:
        raise _damaged("it ends early")
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    if count and int((ends - starts).max()) >= _VARINT_BYTES:
        raise _damaged("a number is too long")
    used = int(ends[-1]) + 1 if count else 0
    shifts = np.arange(used) - np.repeat(starts, ends - starts + 1)
    parts = (body[:used].astype(np.int64) & 127) << (7 * shifts)
    return np.add.reduceat(parts, starts) if count else np.zeros(0, np.int64), body[used:]


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def _inflated(content: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(content, most + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if len(found) > most or not unpacker.eof or unpacker.unused_data:
        raise _damaged(f"it does not inflate to at most {most} bytes")
    return found


def _damaged(why: str) -> DamagedStoreError:
    return DamagedStoreError(f"corrections are damaged ({why}); restore the store from a copy.")
