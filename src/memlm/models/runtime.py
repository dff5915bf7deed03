"""Pretrained decoders, fingerprints of weights, numeric precision, and loading without progress bars."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from memlm.data.tokenizer import gguf_option
from memlm.errors import CheckpointError, ConfigError, UserError, Within
from memlm.switches import OWN_CODE, TRUST_REMOTE_CODE, needs_code

Device = Literal["auto", "cpu", "cuda"]
"""The device of a model; `auto` is the GPU where there is one."""


def device_of(device: Device) -> str:
    """Return the name of a device as PyTorch knows it.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device (cuda) is not here: PyTorch sees no GPU; leave it out, or give cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def sampling_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `generate()` in which temperature 0 means the most likely token.

    Raises:
        ConfigError: a temperature that is not a number from 0 to 100.
    """
    temperature = options.get("temperature")
    if temperature is None:
        return options
    Within(0, 100).check("temperature", temperature)
    if temperature:
        return options
    sampling = ("temperature", "do_sample", "top_k", "top_p", "min_p", "typical_p")
    return {name: value for name, value in options.items() if name not in sampling} | {"do_sample": False}


@contextmanager
def no_shard_bars() -> Generator[None]:
    """Hide the progress bars of transformers within the context."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_decoder(path_or_id: str, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or the Hub.

    Args:
        path_or_id: folder or Hub id.
        trust_remote_code: run Python code that comes with the model.
        options: of `AutoModelForCausalLM.from_pretrained`, such as `dtype`.

    Raises:
        CheckpointError: there is none, or it needs code of its own.
    """
    options |= {} if "gguf_file" in options else gguf_option(path_or_id)
    check_weight_files(Path(path_or_id), CheckpointError)
    trusted = trust_remote_code or TRUST_REMOTE_CODE.is_on()
    given: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": trusted, **options}
    try:
        with no_shard_bars():
            return AutoModelForCausalLM.from_pretrained(path_or_id, **given)
    except Exception as error:  # hub, safetensors, JSON and transformers each raise their own kind
        if needs_code(error):
            raise CheckpointError(f"'{path_or_id}' {OWN_CODE}") from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load a decoder from '{path_or_id}' ({reason}); give a causal language model's folder or Hub id."
        ) from error


SAFE_WEIGHTS = (
    "only safetensors are read, as .bin files can run code. Convert it where you trust it: "
    "transformers.AutoModel.from_pretrained(OLD).save_pretrained(NEW)."
)
"""The advice for weights of another format."""
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def unsafe_weights(folder: Path) -> list[str]:
    """Return the names of a folder's weights in formats that can run code, where it holds no safetensors."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix in _UNSAFE)


def check_weight_files(folder: Path, error: type[UserError]) -> None:
    """Check that a folder's weights can be read without running code; anything but a folder passes.

    Raises:
        error: they cannot, or they are adapters of another model, which transformers would look for elsewhere.
    """
    if unsafe := unsafe_weights(folder):
        raise error(f"'{folder}' holds its weights in {unsafe[0]}; {SAFE_WEIGHTS}")
    if (folder / "adapter_config.json").is_file():
        raise error(f"'{folder}' holds adapters of another model; merge them (peft: merge_and_unload) and save.")


def local_model(path_or_id: str, *, source: str, remedy: str) -> str:
    """Return the folder of a model that a file names: a folder, or the cached one of a Hub id; the Hub is not asked.

    Args:
        path_or_id: folder or Hub id.
        source: the file or folder that names it.
        remedy: how the user names a model.

    Raises:
        CheckpointError: it is not on this machine.
    """
    if Path(path_or_id).exists():
        return path_or_id
    try:
        return snapshot_download(path_or_id, local_files_only=True)
    except Exception as error:  # no such model in the cache, or no name of a model
        name = ascii(path_or_id)[:200]
        raise CheckpointError(f"'{source}' names the model {name}, which is not on this machine; {remedy}.") from error


def weights_fingerprint(model: nn.Module, *, before: str = "", after: str = "") -> str:
    """Return the SHA-256 of the names, types, shapes and values of all weights, between two texts, in hexadecimal."""
    digest = hashlib.sha256(before.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(after.encode())
    return digest.hexdigest()


_SHORT = 256
"""Number of positions below which fused attention is slower in bf16 than in fp32 on CPUs (LOG.md)."""


def wants_bf16(precision: str) -> bool:
    """Return whether to compute in bf16: as `precision` says, or for `auto` if the machine has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)  # pyright: ignore[reportPrivateUsage]
    return any(is_supported() for is_supported in supported)


class ShortAttentionInFp32(TorchFunctionMode):
    """Runs attention over few positions in fp32 on CPUs within the context, where autocast would choose bf16.

    On CPUs the backward pass of PyTorch's fused attention over few positions is several times slower in bf16 than in
    fp32 (`python -m benchmarks.attention`).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or not _is_slow(args[0]):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_in_fp32, args), **{name: _in_fp32(value) for name, value in kwargs.items()})
        return found.to(torch.get_autocast_dtype("cpu"))


def _is_slow(query: Tensor) -> bool:
    return query.device.type == "cpu" and torch.is_autocast_enabled("cpu") and query.shape[-2] < _SHORT


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
