"""Corrections make a memory lossless: they hold the tokens that reading the memory does not reliably give back.

A model reads each chunk from its stored memory and ranks all tokens at each position. If no other token's logit lies
within MARGIN of the stored token's, the position is described by the token's rank: no machine, thread count, batch size
or precision moves logits so far that the rank names another token. Otherwise the token itself is stored. Rank 0 takes
no space, since only the other positions are listed; the list is deflated (RFC 1951) if that is shorter. The text itself
is stored if it is shorter when deflated, or if the tokenizer does not reproduce it.
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
"""The rank of a position whose token itself is stored."""
MARGIN: Final = 1.0
"""A distance of logits. Rounding weights and activations to bfloat16 moves them by half as much (LOG.md)."""
_LARGEST_RANK: Final = 254
_LISTED, _LISTED_DEFLATED, _TEXT, _TEXT_DEFLATED = range(4)
_VARINT_BYTES: Final = 5
Bytes = npt.NDArray[np.uint8]


def stable_ranks(
    logits: Float[Tensor, "chunks length vocabulary"], input_ids: Int[Tensor, "chunks length"]
) -> UInt8[Tensor, "chunks length"]:
    """Return each stored token's rank among the logits of its rounded memory, (chunks, length).

    It is EXPLICIT if another logit is too near or the rank is too high.
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
    """Return the stored tokens, (chunks, length), from logits that are read now and the ranks at the time of encoding.

    Only where the rank is EXPLICIT, the token is that of `explicit`.
    """
    tokens = logits.argmax(-1)
    ranked = (ranks > 0) & (ranks < EXPLICIT)
    deepest = int(ranks[ranked].max()) + 1 if bool(ranked.any()) else 0
    if deepest:
        order = logits[ranked].topk(min(deepest, logits.shape[-1]), dim=-1).indices
        columns = ranks[ranked].long()[:, None].clamp(max=order.shape[-1] - 1)
        tokens[ranked] = order.gather(-1, columns)[:, 0]
    return torch.where(ranks == EXPLICIT, explicit, tokens)


def pack(ranks: UInt8[Tensor, " tokens"], input_ids: Int[Tensor, " tokens"], text: bytes, *, by_tokens: bool) -> bytes:
    """Return a document's corrections in their shortest form, or no bytes if every rank is 0.

    Args:
        ranks: (tokens,), the result of `stable_ranks`.
        input_ids: (tokens,).
        text: the text of the tokens in UTF-8.
        by_tokens: True if decoding the tokens reproduces the text.
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
    """Return the text itself, or ranks and explicit tokens, from the result of `pack`; nothing longer is inflated.

    Raises:
        DamagedStoreError: `pack` does not write such bytes.
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
    """Serialize the number of listed positions, the gaps between them, their ranks and their explicit tokens."""
    positions = np.flatnonzero(ranks)
    gaps = np.diff(positions, prepend=-1)
    listed = ranks[positions]
    parts = (_varints(np.array([len(positions)])), _varints(gaps), listed, _varints(ids[positions[listed == EXPLICIT]]))
    return b"".join(part.tobytes() for part in parts)


def _from_list(body: Bytes, tokens: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
    (count,), body = _read_varints(body, 1)
    if count > tokens:
        raise _damaged(f"{count} positions of {tokens} tokens")
    gaps, body = _read_varints(body, int(count))
    positions = np.cumsum(gaps) - 1
    listed, body = body[:count], body[count:]
    if len(listed) < count or (count and (int(positions[-1]) >= tokens or not bool((gaps > 0).all()))):
        raise _damaged("its positions lie outside the text")
    own = positions[listed == EXPLICIT]
    values, rest = _read_varints(body, len(own))
    if len(rest):
        raise _damaged(f"{len(rest)} bytes too many")
    ranks, explicit = np.zeros(tokens, np.uint8), np.zeros(tokens, np.int64)
    ranks[positions], explicit[own] = listed, values
    return ranks, explicit


def _varints(values: npt.NDArray[np.int64]) -> Bytes:
    """Encode numbers as LEB128: seven bits a byte, the highest bit set if more bytes follow."""
    groups = values[:, None] >> (7 * np.arange(_VARINT_BYTES))
    more = groups >> 7 > 0
    used = np.concatenate([np.ones((len(values), 1), bool), more[:, :-1]], axis=1)
    return ((groups & 127) | (more << 7)).astype(np.uint8)[used]


def _read_varints(body: Bytes, count: int) -> tuple[npt.NDArray[np.int64], Bytes]:
    """Decode `count` numbers; return them and the bytes behind them."""
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
    return zlib.compress(content, 9, wbits=-zlib.MAX_WBITS)


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
