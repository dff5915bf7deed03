"""The encoder of chunks: that of a text autoencoder with the same weight names, or any transformers model.

    input_ids ── embed_tokens ── encoder ── bottleneck ──▶ memories
    (C, L)       (C, L, D)       (C, L, D)                 (C, M, W)

The token table belongs to the encoder and is never shared with the decoder, so a frozen encoder stays complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from memlm.chunking import padded
from memlm.data import decode_piece, encode_texts, eos_id, load_tokenizer, pad_id
from memlm.errors import CheckpointError, TokenizerError, UserError
from memlm.models.autoencoder.modeling import TextAutoencoder
from memlm.models.base import MemlmModel
from memlm.models.layers.backbone import build_backbone
from memlm.models.layers.bottleneck import MemoryWriter
from memlm.models.memory.configuration import ChunkEncoderConfig
from memlm.shapes import Memories, TokenIds, TokenMask


class ChunkEncoder(MemlmModel):
    """Turns chunks into memories; each row of the batch is one chunk with its text first."""

    config: ChunkEncoderConfig
    config_class = ChunkEncoderConfig

    def __init__(self, config: ChunkEncoderConfig) -> None:
        super().__init__(config)
        if config.base is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
            self.encoder = build_backbone(config, num_layers=config.num_encoder_layers, length=config.chunk_length)
        else:
            self.base = AutoModel.from_config(config.base)
        self.bottleneck = MemoryWriter(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token table."""
        return self.embed_tokens if self.config.base is None else self.base.get_input_embeddings()

    def forward(self, input_ids: TokenIds, attention_mask: TokenMask, **kwargs: Any) -> Memories:
        """Return the memories of chunks.

        Args:
            input_ids: (chunks, tokens), text first, at most `chunk_length` tokens.
            attention_mask: (chunks, tokens), nonzero for text.
            kwargs: ignored.

        Returns:
            (chunks, memories, numbers); memories of chunks without text carry no meaning.

        Raises:
            UserError: more tokens than a chunk holds.
        """
        if input_ids.shape[1] > self.config.chunk_length:
            raise UserError(
                f"{input_ids.shape[1]} tokens do not fit this encoder's chunk of {self.config.chunk_length}; "
                "split the text first (memlm.chunking.split)."
            )
        mask = attention_mask.bool()
        return self.bottleneck(self._hidden(input_ids, mask), mask)

    def _hidden(self, input_ids: Tensor, mask: Tensor) -> Float[Tensor, "chunks tokens width"]:
        if self.config.base is None:
            return self.encoder(self.embed_tokens(input_ids), mask)
        # a row that may read nothing is NaN in some attention kernels; its memories are never read
        readable = (mask | ~mask.any(-1, keepdim=True)).long()
        return self.base(input_ids=input_ids, attention_mask=readable, use_cache=False).last_hidden_state


def encoder_of(model: PreTrainedModel) -> ChunkEncoder:
    """Return the encoder of a memory model, or that of an autoencoder with the same weights, in evaluation mode."""
    if isinstance(model.encoder, ChunkEncoder):
        return model.encoder.eval()
    autoencoder = cast(TextAutoencoder, model)
    encoder = ChunkEncoder(ChunkEncoderConfig.of_autoencoder(autoencoder.config))
    weights = autoencoder.state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return encoder.eval()


FOLDER = "encoder_tokenizer"
"""Folder beside a model's weights with the tokenizer of its encoder."""
_MOST_CUT = 0.05
"""Largest share of an encoder's tokens that may be cut."""


class Translation:
    """Turns a decoder's token ids of chunks into those of an encoder with another tokenizer, through the text.

    Args:
        decoder_tokenizer: tokenizer of the chunks.
        encoder_tokenizer: tokenizer of the encoder.
        length: number of tokens that the encoder reads; longer chunks are cut, and the cut tokens counted.
    """

    def __init__(
        self, decoder_tokenizer: PreTrainedTokenizerBase, encoder_tokenizer: PreTrainedTokenizerBase, *, length: int
    ) -> None:
        self.decoder_tokenizer, self.encoder_tokenizer, self.length = decoder_tokenizer, encoder_tokenizer, length
        self.tokens = self.cut = 0

    @classmethod
    def in_folder(cls, folder: str | Path, *, length: int) -> Translation:
        """Load the translation of a model saved in a folder, whose encoder reads `length` tokens.

        Raises:
            CheckpointError: the folder has no tokenizer of the encoder.
            TokenizerError: a tokenizer that cannot be loaded.
        """
        encoder_folder = Path(folder) / FOLDER
        if not encoder_folder.is_dir():
            raise CheckpointError(f"no {FOLDER} in '{folder}', which this model's encoder needs; restore it.")
        return cls(load_tokenizer(folder), load_tokenizer(encoder_folder), length=length)

    def __call__(
        self, ids: Int[Tensor, "chunks tokens"], mask: Int[Tensor, "chunks tokens"]
    ) -> tuple[Int[Tensor, "chunks length"], Int[Tensor, "chunks length"]]:
        """Return ids and mask of the same texts; one shorter than `length` ends with the encoder's end-of-text token.

        Args:
            ids: (chunks, tokens), the decoder's ids.
            mask: (chunks, tokens), nonzero for text.
        """
        blank = pad_id(self.decoder_tokenizer)
        rows = [row[kept.bool() & (row != blank)].tolist() for row, kept in zip(ids, mask, strict=True)]
        found = encode_texts(self.encoder_tokenizer, [decode_piece(self.decoder_tokenizer, row) for row in rows])
        self.tokens += sum(map(len, found))
        self.cut += sum(max(0, len(row) - self.length) for row in found)
        ended = [[*row, eos_id(self.encoder_tokenizer)][: self.length] for row in found]
        out, out_mask = padded(ended, length=self.length, pad_token_id=pad_id(self.encoder_tokenizer))
        return out.to(ids.device), out_mask.to(ids.device)

    def require_fitting(self, chunk_length: int) -> None:
        """Check that the encoder has room for the chunks translated so far.

        Args:
            chunk_length: tokens of the decoder in a chunk, for the message.

        Raises:
            TokenizerError: more than 5 % of the encoder's tokens were cut.
        """
        if self.cut > _MOST_CUT * self.tokens:
            raise TokenizerError(
                f"chunks of {chunk_length} decoder tokens do not fit the encoder's {self.length}: "
                f"{100 * self.cut / self.tokens:.0f} % of its tokens were cut; lower model.chunk_length."
            )
