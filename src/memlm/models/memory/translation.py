"""Chunks of a decoder's tokens in the tokens of an encoder that has a tokenizer of its own: through their text."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import decode_piece, encode_texts, eos_id, load_tokenizer, pad_id
from memlm.errors import CheckpointError, TokenizerError

FOLDER = "encoder_tokenizer"
"""Beside a model's weights."""
_MOST_CUT = 0.05


class Translation:
    """A decoder's chunks to an encoder's.

    Args:
        reader: the decoder's tokenizer.
        writer: the encoder's.
        length: tokens that the encoder reads at once; what is longer is cut, and counted.
    """

    def __init__(self, reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase, *, length: int) -> None:
        self.reader, self.writer, self.length = reader, writer, length
        self.tokens = self.cut = 0

    def __call__(
        self, ids: Int[Tensor, "chunks tokens"], mask: Int[Tensor, "chunks tokens"]
    ) -> tuple[Int[Tensor, "chunks length"], Int[Tensor, "chunks length"]]:
        """The same texts; one that does not fill a chunk is ended by the encoder's end of text, as in its training."""
        blank = pad_id(self.reader)
        own = [row[kept.bool() & (row != blank)].tolist() for row, kept in zip(ids, mask, strict=True)]
        found = encode_texts(self.writer, [decode_piece(self.reader, row) for row in own])
        self.tokens += sum(map(len, found))
        self.cut += sum(max(0, len(row) - self.length) for row in found)
        ended = [[*row, eos_id(self.writer)][: self.length] for row in found]
        out = torch.full((len(ended), self.length), pad_id(self.writer), device=ids.device)
        seen = torch.zeros_like(out)
        for i, row in enumerate(ended):
            out[i, : len(row)] = torch.tensor(row, device=ids.device)
            seen[i, : len(row)] = 1
        return out, seen

    def require_fitting(self, chunk_length: int) -> None:
        """Refuse an encoder that most chunks do not fit.

        Raises:
            TokenizerError: over a twentieth of the encoder's tokens were cut.
        """
        if self.cut > _MOST_CUT * self.tokens:
            raise TokenizerError(
                f"chunks of {chunk_length} decoder tokens do not fit the encoder's {self.length}: "
                f"{100 * self.cut / self.tokens:.0f} % of its tokens were cut; lower model.chunk_length."
            )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every id the same piece."""
    return one.get_vocab() == other.get_vocab()


def translation_in(folder: str | Path, *, length: int) -> Translation:
    """Of a saved model.

    Raises:
        CheckpointError: no encoder's tokenizer beside it.
        TokenizerError: a tokenizer that cannot be loaded.
    """
    own = Path(folder) / FOLDER
    if not own.is_dir():
        raise CheckpointError(f"no {FOLDER} in '{folder}', which this model's encoder needs; restore it.")
    return Translation(load_tokenizer(folder), load_tokenizer(own), length=length)
