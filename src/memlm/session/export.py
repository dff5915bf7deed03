"""Models and prompts for other programs: a decoder as a plain Hugging Face model, memories as prompt embeddings.

Serving engines that take a prompt's embeddings in place of its tokens (vLLM's `prompt_embeds`) read memories without
knowing of them: a memory's slots are decoder inputs like any other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from memlm.errors import CheckpointError
from memlm.files import write_folder_atomic, write_tensors_atomic
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import plain_decoder
from memlm.session.session import MemorySession

PROMPT_FILE = "prompt_embeds.safetensors"


def export_decoder(
    model: MemoryModelForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    merged: bool = False,
) -> None:
    """The decoder and its tokenizer, for any program that reads Hugging Face folders.

    Args:
        model: whose decoder it is.
        tokenizer: of the decoder.
        folder: to write.
        merged: with what adapters add, as text behind memories is read; without: the decoder as it was.

    Raises:
        CheckpointError: the folder exists, or cannot be written.
    """
    path = Path(folder)
    if path.exists():
        raise CheckpointError(f"'{folder}' exists already; give another folder.")

    def fill(draft: Path) -> None:
        plain_decoder(model.decoder, merged=merged).save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    try:
        write_folder_atomic(path, fill)
    except OSError as error:
        raise CheckpointError(f"cannot write to '{folder}' ({error.strerror or error}).") from error


@torch.inference_mode()
def export_prompt(session: MemorySession, folder: str | Path) -> int:
    """What a session of one row reads next, as `prompt_embeds` (positions, width) in PROMPT_FILE; how many positions.

    Raises:
        UserError: a model whose decoder by itself would read something else.
    """
    history = session.histories[0]
    found = session.model.prompt_embeddings([history.pieces()])["inputs_embeds"][0]
    write_tensors_atomic(Path(folder) / PROMPT_FILE, {"prompt_embeds": found.float().cpu().contiguous()})
    return len(found)
