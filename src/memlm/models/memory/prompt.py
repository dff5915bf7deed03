"""Prompts of memories and tokens in any order, as arguments of `generate()`.

    [padding | masked slots | slots of chunk 1 | tokens of chunk 2 | slots of chunk 3 | newest tokens]

Masked slots replace the memories that a shorter history lacks, so that text has the positions that it had in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.errors import MemoryShapeError, UserError
from memlm.models.memory.configuration import MemoryModelConfig
from memlm.models.memory.slots import memory_shape
from memlm.shapes import TokenIds, TokenMask

Piece = Float[Tensor, "_ memories numbers"] | Sequence[int]
"""A part of a history: memories of chunks, or tokens."""


def has_prompts(config: MemoryModelConfig) -> bool:
    """Return True if a model of this configuration can read prompts of memories and tokens."""
    return config.filler == "masked" and config.layout in ("aligned", "variable")


def lay_out(config: MemoryModelConfig, rows: Sequence[Sequence[Piece]], device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `memories` of rows, each a history in the order in which it was read.

    Args:
        config: of a model with masked fillers and the aligned or variable layout.
        rows: the pieces of each row.
        device: the model's device.

    Raises:
        UserError: a layout or filler that has no prompts, or no rows.
        MemoryShapeError: memories of another shape than the encoder writes.
    """
    if not has_prompts(config):
        raise UserError(
            f"prompts need masked fillers and the aligned or variable layout; this model has filler "
            f"'{config.filler}' and layout '{config.layout}'."
        )
    if not rows:
        raise UserError("a prompt needs at least one row; give a text.")
    held = [_memories(config, pieces, device) for pieces in rows]
    rows = [_behind_first_token(config, pieces) for pieces in rows]
    blocks = max(len(own) + _missing(config, pieces) for own, pieces in zip(held, rows, strict=True))
    masked = [blocks - len(own) for own in held]
    ids = [_ids(config, pieces, masked=count) for count, pieces in zip(masked, rows, strict=True)]
    width, pad = max(map(len, ids)), config.pad_token_id or 0
    unread = [width - len(row) + count * config.slots_per_chunk for row, count in zip(ids, masked, strict=True)]
    empty = [own.new_zeros(count, *own.shape[1:]) for own, count in zip(held, masked, strict=True)]
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device),
        "attention_mask": torch.tensor([[0] * count + [1] * (width - count) for count in unread], device=device),
        "memories": torch.stack([torch.cat(pair) for pair in zip(empty, held, strict=True)]),
    }


def positions_of(config: MemoryModelConfig, input_ids: TokenIds, attention_mask: TokenMask) -> TokenIds:
    """Return the positions that training gave slots and tokens; only the variable layout skips masked slots."""
    if config.layout == "variable":
        return (attention_mask.bool().long().cumsum(-1) - 1).clamp(min=0)
    is_slot = input_ids == config.memory_token_id
    positions = (attention_mask.bool() | is_slot).long().cumsum(-1) - 1
    # text without slots has the positions that it had in training
    missing = ~is_slot.any(-1, keepdim=True) * (config.num_chunks - 1) * config.slots_per_chunk
    return (positions + missing).clamp(min=0)


def chunk_positions_of(config: MemoryModelConfig, input_ids: TokenIds, attention_mask: TokenMask) -> TokenIds:
    """Return each token's position in its chunk (0 for slots); chunks begin after slots and follow one another."""
    is_slot = input_ids == config.memory_token_id
    counted = (attention_mask.bool() & ~is_slot).long().cumsum(-1)
    before = torch.where(is_slot, counted, 0).cummax(-1).values
    return (counted - before - 1).clamp(min=0) % config.chunk_length


def span_of(config: MemoryModelConfig, pieces: Sequence[Piece]) -> int:
    """Return the number of decoder positions that a history takes."""
    pieces = _behind_first_token(config, pieces)
    return sum(len(p) * (config.slots_per_chunk if isinstance(p, Tensor) else 1) for p in pieces)


def _behind_first_token(config: MemoryModelConfig, pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Put the configured first token before a history that has memories."""
    if config.first_token_id is None or not any(isinstance(p, Tensor) and len(p) for p in pieces):
        return pieces
    return [[config.first_token_id], *pieces]


def _missing(config: MemoryModelConfig, pieces: Sequence[Piece]) -> int:
    """Return how many blocks of slots a history lacks to be as long as in training."""
    if config.layout == "variable":  # positions begin with the first memory
        return 0
    newest = 0 if not pieces or isinstance(pieces[-1], Tensor) else len(pieces[-1])
    trained = (config.num_chunks - 1) * config.slots_per_chunk
    return max(0, -(-(trained - span_of(config, pieces) + newest) // config.slots_per_chunk))


def _memories(config: MemoryModelConfig, pieces: Sequence[Piece], device: torch.device) -> Tensor:
    expected = memory_shape(config)
    found = [piece.to(device) for piece in pieces if isinstance(piece, Tensor)]
    for memories in found:
        if memories.ndim != 3 or tuple(memories.shape[1:]) != expected:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape)} do not fit this model, which writes {expected} "
                "(memories, numbers) per chunk."
            )
    return torch.cat([torch.zeros(0, *expected, device=device), *found])


def _ids(config: MemoryModelConfig, pieces: Sequence[Piece], *, masked: int) -> list[int]:
    slot, per_chunk = config.memory_token_id, config.slots_per_chunk
    ids = [slot] * (masked * per_chunk)
    for piece in pieces:
        ids += [slot] * (len(piece) * per_chunk) if isinstance(piece, Tensor) else list(piece)
    return ids
