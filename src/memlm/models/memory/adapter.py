"""Low-rank adapters (LoRA, PEFT) in a decoder, at work only behind memories: without memories it is the model it was.

A pretrained decoder that learns to read memories forgets how to read text (paper, 1.8). Here what it learns stands
apart: adapters are added to its linear layers, and rows that read no memory pass them by, so that their logits are bit
for bit those of the original.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memlm.errors import ConfigError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """Of adapters.

    Attributes:
        rank: numbers that pass through each.
        alpha: what they add is scaled by alpha / rank.
        targets: names of linear layers; all but the output map by default.
        gated: what each adds passes a gate of its own, tanh of one number that begins at zero (as in LLaMA-Adapter,
            arXiv 2303.16199), and both of its maps begin at random; else the second map begins at zero.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: list[str] | str = field(default=ALL_LINEAR)
    gated: bool = False

    @classmethod
    def of(cls, values: dict[str, Any]) -> LoraSettings:
        """From a configuration's mapping.

        Raises:
            ConfigError: unknown names, or sizes that cannot be.
        """
        try:
            found = cls(**values)
        except TypeError as error:
            raise ConfigError(f"lora ({values!r}) does not fit: {error}.") from None
        if found.rank < 1 or found.alpha <= 0:
            raise ConfigError(f"lora's rank ({found.rank}) must be at least 1 and its alpha ({found.alpha}) above 0.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As a configuration keeps it."""
        return asdict(self)


def add_adapter(decoder: PreTrainedModel, settings: LoraSettings) -> None:
    """In place; what an adapter adds is zero at first.

    Raises:
        ConfigError: targets that the decoder does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(Any, settings.alpha),
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
        # GPT-2's layers keep their weights the other way round
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
            module._is_hf_initialized = True  # transformers would draw these weights again, and they begin at zero
    set_adapter_trainable(decoder)


class GatedMap(nn.Module):
    """A linear map behind a gate that begins shut; PEFT reads its weight where it merges."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.gate = nn.Parameter(torch.zeros(()))
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """What it multiplies by."""
        return torch.tanh(self.gate) * self.linear.weight

    @property
    def bias(self) -> None:
        """It has none."""
        return None

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Zero at first."""
        return nn.functional.linear(x, self.weight)


def set_adapter_trainable(decoder: PreTrainedModel) -> None:
    """Adapters may learn, the decoder's own weights may not."""
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapter_layers(decoder: PreTrainedModel) -> list[Any]:
    """Layers with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in decoder.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def adapter_off(decoder: PreTrainedModel) -> Generator[None]:
    """Within it the decoder is the model it was."""
    layers = adapter_layers(decoder)
    trained = [p for layer in layers for n, p in layer.named_parameters() if "lora_" in n and p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            for name, parameter in layer.named_parameters():
                if "lora_" in name:
                    parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def base_weights_into(decoder: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """A plain model's weights into the same model with adapters.

    Raises:
        ConfigError: weights of another model.
    """
    layers = set(map(id, adapter_layers(decoder)))
    wrapped = {name for name, module in decoder.named_modules() if id(module) in layers}

    def there(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{module}.base_layer.{leaf}" if module in wrapped else name

    missing, unexpected = decoder.load_state_dict({there(n): w for n, w in weights.items()}, strict=False)
    lost = [name for name in missing if "lora_" not in name]
    if lost or unexpected:
        raise ConfigError(f"weights of another model: {[*lost, *unexpected][0]} does not fit this decoder.")


def plain_decoder(decoder: PreTrainedModel, *, merged: bool = False) -> PreTrainedModel:
    """The model by itself: as it was, or with what its adapters add merged into its weights.

    Args:
        decoder: with adapters or without.
        merged: then it reads all text as the memory model reads text behind memories.
    """
    if not adapter_layers(decoder):
        return decoder
    own = copy.deepcopy(decoder)
    for layer in adapter_layers(own) if merged else ():
        layer.merge(safe_merge=True)
    found = cast(PreTrainedModel, AutoModelForCausalLM.from_config(decoder.config, dtype=decoder.dtype))
    found.load_state_dict({n.replace(".base_layer.", "."): w for n, w in own.state_dict().items() if "lora_" not in n})
    return found.eval()
