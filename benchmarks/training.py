"""Training throughput of a recipe, and its share of the machine's matrix throughput.

    python -m benchmarks.training [RECIPE]

Measures matrix products in the model's sizes and precision, then training steps (forward, backward, optimizer) on
random tokens. Floating-point operations are counted by torch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from memlm.models.runtime import wants_bf16
from memlm.recipes import RECIPES, get_recipe
from memlm.training import RunConfig, build_optimizer
from memlm.training.model_settings import TokenIds
from memlm.training.run import build_model

_AUTOENCODERS = [name for name in RECIPES if name.startswith("autoencoder")]


def matmul_rate(config: RunConfig, *, bf16: bool) -> float:
    """Return the largest throughput of matrix products, in floating-point operations per second."""
    rows, width = config.training.batch_size * config.model.chunk_length, config.model.hidden_size
    inner = config.model.intermediate_size or 4 * width
    kind = torch.bfloat16 if bf16 else torch.float32
    rates: list[float] = []
    for shape in ((rows, width, inner), (rows, inner, width), (2048, 2048, 2048)):
        a, b = torch.randn(shape[:2], dtype=kind), torch.randn(shape[1:], dtype=kind)
        seconds = median_seconds(lambda a=a, b=b: a @ b, repeats=15)
        rates.append(2 * shape[0] * shape[1] * shape[2] / seconds)
    return max(rates)


def median_seconds(call: Callable[[], object], *, repeats: int) -> float:
    """Return the median time of a call, after two calls that are not counted."""
    for _ in range(2):
        call()
    times: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print tokens per second and the share of matrix throughput."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="autoencoder-tiny", choices=_AUTOENCODERS)
    config = cast(RunConfig, get_recipe(parser.parse_args().recipe))
    bf16 = wants_bf16(config.training.precision)
    vocabulary = config.data.vocab_size
    model = build_model(config.model, TokenIds(vocab_size=vocabulary), seed=config.training.seed).train()
    optimizer = build_optimizer(model, config.training.optimizer)
    ids = torch.randint(2, vocabulary, (config.training.batch_size, config.model.chunk_length))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, torch.ones_like(ids), labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    rate = matmul_rate(config, bf16=bf16)
    seconds = median_seconds(step, repeats=15)
    tokens = ids.numel()
    work = counter.get_total_flops()
    print(f"recipe           {config.recipe}, {torch.get_num_threads()} threads, {'bf16' if bf16 else 'fp32'}")
    print(f"tokens/s         {tokens / seconds:,.0f}")
    print(f"step             {1000 * seconds:.1f} ms (median of 15), {work / 1e9:.1f} GFLOP in matrix products")
    print(f"throughput       {work / seconds / 1e9:.0f} GFLOP/s")
    print(f"matmul           {rate / 1e9:.0f} GFLOP/s (best of the feed-forward's sizes and 2048 cubed)")
    print(f"share of matmul  {100 * work / seconds / rate:.1f} %")


if __name__ == "__main__":
    main()
