"""Bottlenecks and readouts one by one, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from memlm.models import TextAutoencoderConfig
from memlm.models.layers.backbone import LlamaBackbone
from memlm.models.layers.bottleneck import BOTTLENECKS, QuantizationNoise
from memlm.models.layers.readout import READOUTS
from tests.variants import TINY

HIDDEN = torch.arange(12.0).view(1, 6, 2)  # token t is (2t, 2t + 1)
MASK = torch.tensor([[True, True, True, True, False, False]])


def pooled(kind: str, memories: int = 1) -> list[float]:
    settings = TextAutoencoderConfig(chunk_length=6, memories_per_chunk=memories, hidden_size=2, num_heads=1)
    return BOTTLENECKS[kind](settings)(HIDDEN, MASK)[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "memories", "expected"),
    [
        ("last_token", 1, [6.0]),
        ("penultimate", 1, [4.0]),
        ("mean", 1, [3.0]),
        ("last_token", 2, [4.0, 6.0]),
        ("penultimate", 2, [2.0, 6.0]),
        ("mean", 2, [2.0, 6.0]),
        ("last_token", 3, [2.0, 6.0, 0.0]),
    ],
)
def test_each_stretch_is_pooled_without_its_padding(kind: str, memories: int, expected: list[float]) -> None:
    assert pooled(kind, memories) == expected


def readout(kind: str, *, numbers: int, memories: int = 1) -> Any:
    return READOUTS[kind](length=6, width=12, memories=memories, numbers=numbers, rank=3)


def naive_windows(memory: torch.Tensor, length: int) -> torch.Tensor:
    """The windows of the unrolled embedding, element by element."""
    width = len(memory)
    return torch.stack([torch.stack([memory[(i + j) % width] for j in range(width // 2)]) for i in range(length)])


@pytest.mark.parametrize("memories", [1, 2])
def test_windows_equal_the_slow_loop(memories: int) -> None:
    module = readout("windowed", numbers=12, memories=memories)
    given = torch.randn(3, memories, 12)
    stretch = 6 // memories
    slow = torch.stack([torch.cat([naive_windows(m, stretch) for m in row]) for row in given])
    torch.testing.assert_close(module(given), module.spread(slow))


def test_repeated_memories_stand_on_their_stretch() -> None:
    module = readout("repeated", numbers=12, memories=3)
    given = torch.randn(2, 3, 12)
    assert torch.equal(module(given), given[:, [0, 0, 1, 1, 2, 2]])


def test_a_position_writes_into_its_own_slice_and_reads_it_alone() -> None:
    config = TextAutoencoderConfig(**{**TINY, "bottleneck_size": 18})
    bottleneck, reader = BOTTLENECKS["slices"](config), readout("slices", numbers=18)
    for module in (bottleneck, reader):
        torch.nn.init.normal_(module.maps)
    hidden, mask = torch.randn(1, 6, 12), torch.ones(1, 6, dtype=torch.bool)
    changed = hidden.clone()
    changed[:, 2] += 1
    moved = (bottleneck(changed, mask) - bottleneck(hidden, mask))[0, 0]
    assert moved.nonzero().flatten().tolist() == [6, 7, 8]
    memory = torch.randn(1, 1, 18)
    other = memory.clone()
    other[..., 7] += 1
    assert (reader(other) - reader(memory)).abs().sum(-1)[0].nonzero().flatten().tolist() == [2]


def test_slices_are_shared_where_numbers_do_not_divide() -> None:
    maps = BOTTLENECKS["slices"](TextAutoencoderConfig(**{**TINY, "bottleneck_size": 9})).maps
    assert tuple(maps.shape) == (3, 2 * 12, 3)  # three pairs of positions, three numbers each


def test_llama_layers_are_transformers_own() -> None:
    config = TextAutoencoderConfig(**{**TINY, "backbone": "llama"})
    ours = LlamaBackbone(config, num_layers=2, length=6).eval()
    plain = LlamaModel(LlamaConfig(**{**ours.stack.config.to_dict(), "vocab_size": 1})).eval()
    plain.load_state_dict(ours.stack.state_dict(), strict=False)
    inputs = torch.randn(2, 6, 12)
    torch.testing.assert_close(ours(inputs), plain(inputs_embeds=inputs).last_hidden_state)


def test_noise_is_off_without_bits() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(QuantizationNoise(None).train()(x), x)
    assert torch.equal(QuantizationNoise(4).eval()(x), x)
    assert not torch.equal(QuantizationNoise(4).train()(x), x)
