"""Small offline stand-ins, shared by the rooms above the models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from memlm.data import train_tokenizer
from memlm.models import TextAutoencoder, TextAutoencoderConfig

CHUNK = 8


def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too"] * 3, vocab_size=270)


def small_config(vocab_size: int) -> TextAutoencoderConfig:
    return TextAutoencoderConfig(
        vocab_size=vocab_size,
        chunk_length=CHUNK,
        hidden_size=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        bottleneck_size=CHUNK,
        bottleneck_rank=2,
        readout_rank=2,
    )


def small_model(vocab_size: int) -> TextAutoencoder:
    torch.manual_seed(0)
    return TextAutoencoder(small_config(vocab_size)).eval()


class Mirror(TextAutoencoder):
    """Writes ids into its memory and reads them back; `wrong_at` positions answer wrongly."""

    wrong_at: tuple[int, ...] = ()
    encoded_batches: tuple[int, ...] = ()

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.encoded_batches = (*self.encoded_batches, len(input_ids))
        ids = input_ids if attention_mask is None else input_ids * attention_mask
        padded = F.pad(ids, (0, CHUNK - ids.shape[1]))
        return padded[:, None].float() / self.config.vocab_size

    def decode(self, memories: Tensor) -> Tensor:
        self._check_memories(memories)
        vocab = self.config.vocab_size
        ids = (memories[:, 0] * vocab).round().long().clamp(0, vocab - 1)
        for place in self.wrong_at:
            ids[:, place] = (ids[:, place] + 1) % vocab
        return 20.0 * F.one_hot(ids, vocab).float()


def mirror(vocab_size: int, *, wrong_at: tuple[int, ...] = ()) -> Mirror:
    model = Mirror(small_config(vocab_size)).eval()
    model.wrong_at = wrong_at
    return model
