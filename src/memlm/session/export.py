"""Exports for other programs: a decoder as a plain Hugging Face model, and memories as embeddings of a prompt.

A serving engine that takes embeddings instead of tokens (vLLM's `prompt_embeds`) can read memories without support for
them, because the slots of a memory are ordinary inputs of the decoder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from memlm.errors import CheckpointError
from memlm.files import create_folder, write_tensors_atomic
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import plain_decoder
from memlm.session.session import MemorySession

PROMPT_FILE = "prompt_embeds.safetensors"


def export_decoder(
    model: MemoryModelForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, merged: bool = False
) -> None:
    """Write a model's decoder and its tokenizer as a new Hugging Face folder.

    With `merged`, the adapters' weights are added, as for text behind memories; otherwise they are left out.

    Raises:
        CheckpointError: the folder exists already, or cannot be written.
    """

    def fill(draft: Path) -> None:
        plain_decoder(model.decoder, merged=merged).save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    create_folder(folder, fill, CheckpointError, sealed=False)


@torch.inference_mode()
def export_prompt(session: MemorySession, folder: str | Path) -> int:
    """Write what a session of one row reads next as `prompt_embeds` (positions, width) to PROMPT_FILE.

    Returns:
        The number of positions.

    Raises:
        UserError: the decoder alone would compute something else than the memory model.
    """
    history = session.histories[0]
    embeddings = session.model.prompt_embeddings([history.pieces()])["inputs_embeds"][0]
    write_tensors_atomic(Path(folder) / PROMPT_FILE, {"prompt_embeds": embeddings.float().cpu().contiguous()})
    return len(embeddings)
