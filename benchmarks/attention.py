"""Fused attention, forward and back, in bf16 and in fp32: where training is to attend in which (models/precision.py).

    OMP_NUM_THREADS=1 python -m benchmarks.attention

Seconds of this process, so that what else runs changes little; medians.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro
from torch.nn.functional import scaled_dot_product_attention as attend


@dataclass(frozen=True)
class Options:
    """What is timed."""

    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    """Positions."""
    positions: int = 4096
    """In all rows together; at least one row."""
    heads: int = 4
    """Of each position."""
    width: int = 32
    """Of each head."""
    repeats: int = 9
    """Of each."""


def seconds(length: int, dtype: torch.dtype, options: Options) -> tuple[float, float]:
    """Forward and back, of parts that come in bf16."""
    shape = (max(1, options.positions // length), options.heads, length, options.width)
    parts = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    forth, back = [], []
    for _ in range(options.repeats + 1):
        began = time.process_time()
        found = attend(*(part.to(dtype) for part in parts), is_causal=True).bfloat16()
        between = time.process_time()
        torch.autograd.grad(found, parts, torch.ones_like(found))
        forth.append(between - began)
        back.append(time.process_time() - between)
    return statistics.median(forth[1:]), statistics.median(back[1:])


def main(options: Options) -> None:
    """Print the table."""
    print("| positions | bf16: forward, back, ms | fp32: forward, back, ms | bf16 / fp32 |")
    print("| --- | --- | --- | --- |")
    for length in options.lengths:
        times = [seconds(length, dtype, options) for dtype in (torch.bfloat16, torch.float32)]
        columns = " | ".join(f"{1000 * forth:.1f}, {1000 * back:.1f}" for forth, back in times)
        print(f"| {length} | {columns} | {sum(times[0]) / sum(times[1]):.2f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
