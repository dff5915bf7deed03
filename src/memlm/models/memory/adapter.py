"""Low-rank adapters (LoRA, PEFT) in a pretrained decoder, active only behind memories.

A pretrained decoder that is trained to read memories forgets how to read text. Adapters keep what it learns apart from
its own weights: rows that read no memory skip them, so that their logits are bit for bit those of the original decoder.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memlm.errors import ConfigError


@dataclass(frozen=True)
class LoraSettings:
    """Settings of low-rank adapters."""

    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 32.0
    """Adapters' outputs are scaled by alpha / rank."""
    targets: list[str] | str = "all-linear"
    """Names of linear layers; all except the output layer by default."""
    gated: bool = False
    """Multiply each adapter's output by the tanh of a gate that starts at zero (as in LLaMA-Adapter, arXiv 2303.16199)
    and start both of its maps at random; without a gate the second map starts at zero."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> LoraSettings:
        """Return the settings in a configuration's mapping.

        Raises:
            ConfigError: unknown names, or sizes out of range.
        """
        try:
            found = cls(**values)
        except TypeError as error:
            raise ConfigError(f"lora ({values!r}) does not fit: {error}.") from None
        if found.rank < 1 or found.alpha <= 0:
            raise ConfigError(f"lora's rank ({found.rank}) must be at least 1 and its alpha ({found.alpha}) above 0.")
        return found


def add_adapter(decoder: PreTrainedModel, settings: LoraSettings) -> None:
    """Add adapters to a decoder in place; at first they change nothing.

    Raises:
        ConfigError: targets that the decoder does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(Any, settings.alpha),
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
        # GPT-2's layers store their weights transposed
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.modules()),
    )
    try:
        inject_adapter_in_model(config, decoder)
    except ValueError as error:
        raise ConfigError(f"lora's targets ({settings.targets}) are not in this decoder: {error}") from error
    if settings.gated:
        for layer in adapter_layers(decoder):
            for name, up in layer.lora_B.items():
                layer.lora_B[name] = GatedMap(up)
    for layer in adapter_layers(decoder):
        for module in (*layer.lora_A.modules(), *layer.lora_B.modules()):
            module._is_hf_initialized = True  # keeps transformers from initialising these weights again
    set_adapter_trainable(decoder)


class GatedMap(nn.Module):
    """A linear layer times a gate that starts at zero; PEFT reads `weight` to merge it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.gate = nn.Parameter(torch.zeros(()))
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight, gate included."""
        return torch.tanh(self.gate) * self.linear.weight

    @property
    def bias(self) -> None:
        """Always None."""
        return None

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Return the gated product, which is zero at first."""
        return nn.functional.linear(x, self.weight)


def set_adapter_trainable(decoder: PreTrainedModel) -> None:
    """Enable gradients for adapters and disable them for the decoder's own weights."""
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapter_layers(decoder: PreTrainedModel) -> list[Any]:
    """Return the layers that have an adapter."""
    if "peft" not in sys.modules:  # nothing can have made one
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in decoder.modules() if isinstance(module, BaseTunerLayer)]


def set_adapters_active(decoder: PreTrainedModel, active: bool) -> None:
    """Activate or deactivate all adapters of a decoder; a decoder without adapters stays as it is."""
    for layer in adapter_layers(decoder):
        # PEFT also switches the gradients of adapters
        gradients = [(weight, weight.requires_grad) for weight in layer.parameters()]
        layer.enable_adapters(active)
        for weight, required in gradients:
            weight.requires_grad_(required)


@contextmanager
def adapters_active(decoder: PreTrainedModel, active: bool) -> Generator[None]:
    """Activate or deactivate all adapters within the context."""
    layers = adapter_layers(decoder)
    before = bool(layers) and not layers[0].disable_adapters
    set_adapters_active(decoder, active)
    try:
        yield
    finally:
        set_adapters_active(decoder, before)


def base_weights_into(decoder: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Load a plain model's weights into the same model with adapters.

    Raises:
        ConfigError: weights of another model.
    """
    layers = set(map(id, adapter_layers(decoder)))
    wrapped = {name for name, module in decoder.named_modules() if id(module) in layers}

    def target_name(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{module}.base_layer.{leaf}" if module in wrapped else name

    missing, unexpected = decoder.load_state_dict({target_name(n): w for n, w in weights.items()}, strict=False)
    lost = [name for name in missing if "lora_" not in name]
    if lost or unexpected:
        raise ConfigError(f"weights of another model: {[*lost, *unexpected][0]} does not fit this decoder.")


def plain_decoder(decoder: PreTrainedModel, *, merged: bool = False) -> PreTrainedModel:
    """Return the decoder as a plain transformers model.

    Args:
        decoder: a decoder with or without adapters.
        merged: merge the adapters into the weights, so that all text is read as the memory model reads text behind
            memories; otherwise they are removed.
    """
    if not adapter_layers(decoder):
        return decoder
    own = copy.deepcopy(decoder)
    for layer in adapter_layers(own) if merged else ():
        layer.merge(safe_merge=True)
    found = cast(PreTrainedModel, AutoModelForCausalLM.from_config(decoder.config, dtype=decoder.dtype))
    found.load_state_dict({n.replace(".base_layer.", "."): w for n, w in own.state_dict().items() if "lora_" not in n})
    return found.eval()
