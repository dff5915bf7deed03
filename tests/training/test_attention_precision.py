"""On processors attention over few positions is computed in fp32 where the rest of a training step is in bf16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as make_callback
from torch.overrides import TorchFunctionMode

from memlm.models.runtime import ShortAttentionInFp32
from memlm.training import train_run
from memlm.training.config import RunConfig, merge_run

BF16 = torch.autocast("cpu", torch.bfloat16)


class Spy(TorchFunctionMode):
    """What attention was asked in: types of its query, and whether autocast would change them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[torch.dtype, bool]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is make_callback:
            self.asked.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
        return func(*args, **kwargs or {})


def parts(length: int) -> list[torch.Tensor]:
    """Query, key and value that ask for gradients."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=draw).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("mask", [None, "bool", "float", "bf16"])
def test_short_attention_is_that_of_fp32(mask: str | None) -> None:
    query, key, value = parts(7)
    readable = torch.ones(7, 7).tril().bool()
    types = {"float": torch.float32, "bf16": torch.bfloat16}
    allowed = readable if mask == "bool" else None
    if mask in types:
        allowed = torch.zeros(7, 7, dtype=types[mask]).masked_fill(~readable, -1e4)
    with BF16, ShortAttentionInFp32():
        found = make_callback(query.bfloat16(), key.bfloat16(), value, attn_mask=allowed)
    rounded = [query.bfloat16().float(), key.bfloat16().float(), value]
    expected = make_callback(*rounded, attn_mask=None if mask is None else readable)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(("length", "bf16", "asked"), [(255, True, False), (256, True, True), (7, False, False)])
def test_only_short_attention_under_autocast_changes(length: int, bf16: bool, asked: bool) -> None:
    with Spy() as spy, torch.autocast("cpu", torch.bfloat16, enabled=bf16), ShortAttentionInFp32():
        make_callback(*parts(length))
    assert spy.asked == [(torch.float32, asked)]


def test_training_in_bf16_attends_in_fp32(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = merge_run(tiny_config, {"model": {"backbone": "llama"}})
    training = tiny_config.training.model_copy(update={"precision": "bf16", "steps": 2, "evaluate_every": 10})
    with Spy() as spy:
        train_run(config.model_copy(update={"training": training}), tmp_path / "run", progress=False)
    # both steps, two layers each; looks at held-out text need no way back
    assert spy.asked.count((torch.float32, False)) >= 4
