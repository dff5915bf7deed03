"""Adapters that write memories, in a folder beside the name and the identity of their decoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.checksums import check_folder
from memlm.errors import CheckpointError, MemlmError
from memlm.files import create_folder, read_tensors, write_tensors_atomic
from memlm.models.runtime import load_decoder, local_model
from memlm.models.slots.configuration import SlotWriterConfig
from memlm.models.slots.injection import Injection
from memlm.models.slots.writer import SlotWriter

_STRIDE = 61
"""Every so many weights count for the identity of a decoder."""
_WEIGHTS = "model.safetensors"


def is_writer_folder(path: str | Path) -> bool:
    """Return whether a folder holds what `save_writer` wrote, or a run that trained a writer."""
    config = Path(path) / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") == SlotWriterConfig.model_type
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def tokenizer_folder(path: str | Path) -> Path:
    """Return the folder of the tokenizer: the folder itself, or for a checkpoint, the run that it belongs to."""
    folder = Path(path).resolve()
    if (folder / "tokenizer.json").is_file():
        return folder
    return next((run for run in folder.parents[:4] if (run / "run.json").is_file()), folder)


def load_writer(
    folder: str | Path, *, decoder: str | None = None, trust_remote_code: bool = False, **options: Any
) -> SlotWriter:
    """Load a decoder with the adapters of a folder.

    Args:
        folder: that `save_writer` or a run wrote.
        decoder: folder or Hub id of the decoder; the one that the folder names by default.
        trust_remote_code: run Python code that comes with the decoder.
        options: of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        CheckpointError: the decoder or the adapters cannot be loaded, or do not belong together.
    """
    config = _config(folder)
    path = decoder
    if path is None and config.decoder_path is None:
        raise CheckpointError(f"'{folder}' names no decoder; give it: decoder=PATH_OR_HUB_ID.")
    if path is None:
        remedy = "download it where you trust it (hf download), or give it: decoder=PATH_OR_HUB_ID"
        path = local_model(str(config.decoder_path), source=str(folder), remedy=remedy)
    if config.gguf_file is not None:
        options.setdefault("gguf_file", config.gguf_file)
    base = load_decoder(path, trust_remote_code=trust_remote_code, **options)
    _check_identity(folder, config, decoder_identity(base))
    writer = SlotWriter(config, base)
    if writer.unsaved != writer.state_dict().keys():
        _load_weights(writer, Path(folder) / _WEIGHTS)
    return writer


def load_adapters(writer: SlotWriter, folder: str | Path) -> None:
    """Give a writer the adapters of a folder, as a start for more training.

    Raises:
        CheckpointError: there are none, or they belong to another decoder or have other sizes.
    """
    if not is_writer_folder(folder):
        raise CheckpointError(f"'{folder}' holds no trained writer; give a run of memory-pretrained.")
    config = _config(folder)
    _check_identity(folder, config, str(writer.config.decoder_identity))
    for name in ("lora", "injection", "injection_layer", "injection_rank"):
        given, own = getattr(config, name), getattr(writer.config, name)
        if given != own:
            raise CheckpointError(
                f"the adapters in '{folder}' ({given}) differ from those of this run ({own}); set model.{name} alike."
            )
    _load_weights(writer, Path(folder) / _WEIGHTS)


def _config(folder: str | Path) -> SlotWriterConfig:
    check_folder(Path(folder))
    try:
        return SlotWriterConfig.from_pretrained(folder)
    except (MemlmError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the settings in '{folder}' cannot be read ({error}); save it again.") from error


def _check_identity(folder: str | Path, config: SlotWriterConfig, found: str) -> None:
    if config.decoder_identity is not None and found != config.decoder_identity:
        raise CheckpointError(
            f"this decoder ({found[:12]}) is not the one that '{folder}' belongs to ({config.decoder_identity[:12]}); "
            f"give that one ({config.decoder_path})."
        )


def _load_weights(writer: SlotWriter, file: Path) -> None:
    wanted, weights = set(writer.state_dict()) - writer.unsaved, read_tensors(file)
    if weights.keys() != wanted:
        name = sorted(wanted ^ weights.keys())[0]
        raise CheckpointError(f"'{file}' does not fit its settings ({name} is in one only); restore both.")
    try:
        writer.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"'{file}' does not fit this decoder ({' '.join(str(error).split())[:200]}).") from error


def save_writer(
    folder: str | Path,
    config: SlotWriterConfig,
    decoder: PreTrainedModel,
    injection: Injection,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write settings, tokenizer, adapters and the injection's maps; the decoder's own weights are not written.

    Raises:
        CheckpointError: the folder exists, or cannot be written.
    """
    adapters = {f"decoder.{n}": w for n, w in decoder.state_dict().items() if "lora_" in n}
    maps = {f"injection.{n}": w for n, w in injection.state_dict().items()}
    weights = {name: weight.detach().cpu() for name, weight in (adapters | maps).items()}

    def write(draft: Path) -> None:
        config.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if weights:
            write_tensors_atomic(draft / _WEIGHTS, weights)

    create_folder(folder, write, CheckpointError)


def decoder_identity(decoder: PreTrainedModel) -> str:
    """Return a text that tells decoders apart: a hash of the signs of some of their weights.

    Signs are the same in any floating-point type, so that adapters know their decoder in each.
    """
    digest = hashlib.sha256(str(decoder.config.model_type).encode())
    for name, weight in sorted(decoder.state_dict().items()):
        if "lora_" not in name and weight.ndim == 2 and weight.is_floating_point():
            signs = (weight.flatten()[::_STRIDE] > 0).cpu().numpy()
            digest.update(signs.tobytes())
    return digest.hexdigest()
