"""Injections: what is kept of a text that a decoder read, and how it enters the same decoder again.

    kv       keys and values of all layers are kept, and stand in the decoder's cache as they are
    input    one vector for each memory, which stands in place of a token
    layer    one vector for each memory, which enters above some layers; the layers below see no memory
    code     one vector for each memory, from which a learned map makes what each layer reads

An injection turns a text into `SlotMemories`, so that everything behind them is the same for all. The decoder that
reads them is untouched.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor, nn

from memlm.errors import UserError
from memlm.models.slots.encoded import Budget, Reader
from memlm.models.slots.memories import SlotMemories
from memlm.models.slots.states import EncodingSettings


@runtime_checkable
class Encoded(Protocol):
    """Texts as a decoder read them, from which memories of any number are made."""

    def at(self, *, tokens_per_memory: int | float | None = None, slots: int | None = None) -> SlotMemories:
        """Return memories with one slot for `tokens_per_memory` tokens, or with `slots` slots for each text."""
        ...

    def beginnings(self, ends: Int[Tensor, " beginnings"], ratio: int) -> SlotMemories:
        """Return memories of the first `ends` tokens of each text, one row for each end, as they are in training.

        Args:
            ends: numbers of tokens.
            ratio: tokens for each memory.
        """
        ...


class Injection(nn.Module):
    """A way for memories to enter a decoder; its weights, if any, are trained with the decoder's adapters."""

    takes_start: bool = False
    """True if a text can be read at later positions than the first."""

    def encode(
        self,
        reader: Reader,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
    ) -> Encoded:
        """Read texts.

        Args:
            reader: of the decoder.
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.
            settings: of the encoding.
        """
        raise NotImplementedError

    def memories(
        self,
        reader: Reader,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        budget: Budget,
        *,
        start: int = 0,
    ) -> SlotMemories:
        """Read texts and make memories of them.

        Args:
            reader: of the decoder.
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.
            settings: of the encoding.
            budget: slots of the texts.
            start: number of positions between the token before the texts and the texts.

        Raises:
            UserError: an injection that has no keys to place further on.
        """
        if start:
            raise UserError("vectors are read at the first positions; leave start out.")
        found = self.encode(reader, ids, mask, settings)
        return found.at(tokens_per_memory=budget.tokens_per_memory, slots=budget.slots)


class KeyValueInjection(Injection):
    """Keys and values of all layers, which need no weights and no prefill."""

    takes_start = True

    def encode(
        self,
        reader: Reader,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
    ) -> Encoded:
        """Read texts, keeping the keys and values of all layers."""
        return reader.encode(ids, mask, settings)

    def memories(
        self,
        reader: Reader,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        budget: Budget,
        *,
        start: int = 0,
    ) -> SlotMemories:
        """Read texts and make memories of them layer by layer."""
        return reader.memories(ids, mask, settings, budget, start=start)
