"""Time of fused attention, forward and backward, in bf16 and in fp32, for the choice in models/runtime.py.

    OMP_NUM_THREADS=1 python -m benchmarks.attention

Times are medians of the process's CPU time, which depends little on other processes.
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
    """The sizes of the attention."""

    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    """Positions in a row."""
    positions: int = 4096
    """Positions in all rows together; at least one row is timed."""
    heads: int = 4
    """Attention heads."""
    width: int = 32
    """Width of each head."""
    repeats: int = 9
    """Number of timed calls."""


def seconds(length: int, dtype: torch.dtype, options: Options) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward pass; inputs are given in bf16."""
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
    print("| positions | bf16: forward, backward, ms | fp32: forward, backward, ms | bf16 / fp32 |")
    print("| --- | --- | --- | --- |")
    for length in options.lengths:
        times = [seconds(length, dtype, options) for dtype in (torch.bfloat16, torch.float32)]
        columns = " | ".join(f"{1000 * forth:.1f}, {1000 * back:.1f}" for forth, back in times)
        print(f"| {length} | {columns} | {sum(times[0]) / sum(times[1]):.2f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
