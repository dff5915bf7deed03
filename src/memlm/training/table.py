"""An autoencoder's token table out of a language model's: its memories then stand where that model's tokens stand.

A decoder reads a memory sooner where tokens that are alike for it are alike in the memory (LOG.md).
"""

from __future__ import annotations

import torch

from memlm.errors import ConfigError
from memlm.models import TextAutoencoder
from memlm.training.memory.pretrained import load_decoder


@torch.no_grad()
def take_table(model: TextAutoencoder, path_or_id: str) -> None:
    """Principal components of a causal language model's token table, which training leaves alone; the head begins so.

    A padding token that the language model does not have gets zeros.

    Args:
        model: fresh, with the language model's vocabulary.
        path_or_id: folder or Hub id of the language model.

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: it has no table of tokens, or one that is narrower than the autoencoder.
    """
    found = load_decoder(path_or_id).get_input_embeddings()
    if not isinstance(found, torch.nn.Embedding):
        raise ConfigError(f"the model '{path_or_id}' has no table of token embeddings; leave model.table out.")
    words, width = model.embed_tokens.weight.shape
    if found.embedding_dim < width:
        raise ConfigError(
            f"model.hidden_size ({width}) must not exceed the width ({found.embedding_dim}) of '{path_or_id}', whose "
            "token table it takes."
        )
    table = found.weight[:words].float()
    table = table - table.mean(0)
    components = torch.linalg.eigh(table.T @ table).eigenvectors.flip(1)[:, :width]
    projected = table @ components
    projected = torch.nn.functional.pad(projected / projected.std(), (0, 0, 0, words - len(table)))
    model.embed_tokens.weight.copy_(projected)
    model.embed_tokens.requires_grad_(False)
    # a token's own logit then begins as the square root of the width, others about one
    model.lm_head.weight.copy_(projected * width**-0.5)
