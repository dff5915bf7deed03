"""The memory model read one chunk at a time, each behind its memories and nothing else: the reference of the tests."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.models.memory.modeling import MemoryModelForCausalLM
from memlm.models.memory.slots import UNUSED, Injection, SlotReadout, memory_blocks_needed, slot_table
from memlm.shapes import TokenIds, TokenMask


def naive_logits(
    model: MemoryModelForCausalLM, input_ids: TokenIds, attention_mask: TokenMask
) -> Float[Tensor, "documents tokens vocabulary"]:
    """Return the logits at every position of every document; zeros at padding.

    Args:
        model: any memory model.
        input_ids: (documents, tokens).
        attention_mask: (documents, tokens), nonzero for text, with padding on any side.
    """
    rows: list[Tensor] = []
    for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
        text = ids[mask]
        found = _document(model, text)
        row = found.new_zeros(len(ids), found.shape[-1])
        rows.append(row.masked_scatter(mask[:, None], found))
    return torch.stack(rows)


def _document(model: MemoryModelForCausalLM, text: Tensor) -> Tensor:
    config = model.config
    pieces = text.split(config.chunk_length)
    blocks = memory_blocks_needed(config.layout, chunks=len(pieces), trained=config.num_chunks)
    table = slot_table(config.layout, chunks=len(pieces), memory_blocks=blocks).tolist()
    memories: list[Tensor] = []
    logits: list[Tensor] = []
    for piece, held in zip(pieces, table, strict=True):
        own = model.encode_chunks(piece[None, None], torch.ones_like(piece)[None, None])[0]
        logits.append(_chunk(model, piece, held, [*memories, own]))
        memories.append(own)
    return torch.cat(logits)


def _chunk(model: MemoryModelForCausalLM, piece: Tensor, held: list[int], memories: list[Tensor]) -> Tensor:
    """Return one chunk's logits; unused blocks before the first memory are left out; positions stay."""
    config = model.config
    if isinstance(model.readout, Injection):
        return _injected(model, model.readout, piece, memories[-1])
    width = config.slots_per_chunk
    blocks = [_slots(model, chunk, memories) for chunk in held]
    first = next((i for i, block in enumerate(blocks) if block is not None), len(blocks))
    inputs: list[Tensor] = []
    readable: list[int] = []
    tokens = model.embed_chunk(piece)
    for block in blocks[first:]:
        inputs.append(tokens.new_zeros(width, tokens.shape[-1]) if block is None else block)
        readable += [int(block is not None)] * width
    if config.first_token_id is not None and inputs:
        inputs.insert(0, model.get_input_embeddings().weight[config.first_token_id][None])
        readable.insert(0, 1)
    start = 0 if config.layout == "variable" else first * width
    joined = torch.cat([*inputs, tokens])
    return _logits(
        model,
        piece,
        inputs_embeds=joined[None],
        attention_mask=torch.tensor([readable + [1] * len(piece)]),
        position_ids=torch.arange(start, start + len(joined))[None],
    )


def _logits(model: MemoryModelForCausalLM, piece: Tensor, **read: Tensor) -> Tensor:
    """Return the logits of the tokens of `piece`, the last inputs."""
    if model.blank_head is None:
        return model.decoder(**read, use_cache=False).logits[0, -len(piece) :]
    hidden = model.decoder.base_model(**read, use_cache=False).last_hidden_state[0, -len(piece) :]
    heads = (model.get_output_embeddings(), model.blank_head)
    blank = [int(token == (model.config.pad_token_id or 0)) for token in piece]
    return torch.stack([heads[kind](state) for kind, state in zip(blank, hidden, strict=True)])


def _injected(model: MemoryModelForCausalLM, readout: Injection, piece: Tensor, own: Tensor) -> Tensor:
    tokens = model.embed_chunk(piece)
    if model.config.use_memory:
        tokens = torch.stack([readout(token[None, None, None], own[None])[0, 0, 0] for token in tokens])
    return _logits(model, piece, inputs_embeds=tokens[None])


def _slots(model: MemoryModelForCausalLM, chunk: int, memories: list[Tensor]) -> Tensor | None:
    """Return the slots (slots, width) of one block, the filler if it is unused, None if it may not be read."""
    config, readout = model.config, cast(SlotReadout, model.readout)
    if chunk != UNUSED and config.use_memory:
        return readout(memories[chunk])[0]
    if config.filler == "masked":
        return None
    width = config.decoder_config.hidden_size
    filler = torch.ones(width, dtype=model.dtype) if readout.filler is None else readout.filler
    return filler.expand(config.slots_per_chunk, width)
