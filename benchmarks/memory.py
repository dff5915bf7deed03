"""Time and memory that the memory cache and parallel reading save.

    python -m benchmarks.memory

Both cases of a pair are timed alternately in one process, so that other load affects both alike. The ratio is the
median of the pairs' ratios, and its interval is their middle half. Peak memory is measured in a process of its own.
The first pair is a training step of the curriculum's decoder (forward, backward, optimizer) with cached memories, and
with the frozen encoder run in every step. The second is a forward and backward pass over whole documents, with all
chunks at once, and one chunk after the other (memlm.models.memory.naive).
The encoders are those of autoencoder-chunk-tiny, autoencoder-chunk-deep and autoencoder-chunk-small, and two sizes
between: the first takes a small part of a step, the others show from which size on the cache saves time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch

from memlm.data import PackedRows
from memlm.models import MemoryModelConfig, MemoryModelForCausalLM
from memlm.models.memory.naive import naive_logits
from memlm.models.runtime import ShortAttentionInFp32
from memlm.objectives import next_token, token_nats
from memlm.recipes.autoencoder import autoencoder_chunk_deep, autoencoder_chunk_small, autoencoder_chunk_tiny
from memlm.recipes.memory import memory_tiny
from memlm.training import build_optimizer
from memlm.training.config import OptimizerConfig, Stage, merge_run
from memlm.training.memory.batches import MemoryBatches
from memlm.training.memory.cache import MemoryCache
from memlm.training.model_settings import TokenIds
from memlm.training.run import build_model

CASES = ("memory cache", "frozen encoder", "parallel", "sequential")
"""In pairs: what is compared with what."""
_WARMING = 2
"""Pairs that are not counted."""
_VOCABULARY = 1024


def settings_of(encoder_layers: int, encoder_width: int) -> MemoryModelConfig:
    """The tiny recipe's model behind an encoder of this size."""
    encoder = {"num_encoder_layers": encoder_layers, "hidden_size": encoder_width}
    return cast(MemoryModelConfig, merge_run(memory_tiny(), {"model": {"encoder": encoder}}).model)


def model_of(settings: MemoryModelConfig, *, frozen: bool) -> MemoryModelForCausalLM:
    """Fresh weights, in training mode."""
    model = build_model(settings, TokenIds(vocab_size=_VOCABULARY), seed=0)
    assert isinstance(model, MemoryModelForCausalLM)  # noqa: S101  (not recurrent)
    model.config.freeze_encoder = frozen
    model.encoder.requires_grad_(not frozen)
    return model.train()


def training_step(settings: MemoryModelConfig, *, batch_size: int, kept: bool, bf16: bool) -> Callable[[], None]:
    """One step of the curriculum's last stage."""
    model = model_of(settings, frozen=True)
    ids = torch.randint(2, _VOCABULARY, (batch_size, settings.document_length))
    rows = PackedRows(ids, torch.ones_like(ids), torch.zeros(batch_size, dtype=torch.long), ("d",))
    writer = cast(Any, settings.encoder)
    shape = (batch_size, settings.num_chunks, writer.memories_per_chunk, writer.bottleneck_size)
    stage = Stage(name="mixture", objectives={"next_token": 1.0, "blank_copy": 1.0}, steps=1)
    batch_fn = MemoryBatches(
        rows,
        stage,
        rows_per_step=batch_size,
        chunk_length=settings.chunk_length,
        blank_id=0,
        seed=0,
        kept=MemoryCache(torch.randn(shape), torch.randn(shape[2:])) if kept else None,
    )
    optimizer = build_optimizer(model, OptimizerConfig())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), ShortAttentionInFp32():
            loss = model(**batch_fn(torch.arange(batch_size), 0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def full_pass(settings: MemoryModelConfig, *, batch_size: int, parallel: bool, bf16: bool) -> Callable[[], None]:
    """Forward and backward over documents, asked for their next tokens."""
    model = model_of(settings, frozen=False)
    ids = torch.randint(2, _VOCABULARY, (batch_size, settings.document_length))
    mask = torch.ones_like(ids)
    labels = next_token(ids, mask).labels

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), ShortAttentionInFp32():
            logits = model(ids, mask).logits if parallel else naive_logits(model, ids, mask)
        token_nats(logits.float(), labels).mean().backward()

    return step


def step_of(case: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return the step of a case."""
    settings = settings_of(*options.encoder[0])
    shared: dict[str, Any] = {"batch_size": options.batch_size, "bf16": options.precision == "bf16"}
    if case in CASES[:2]:
        return training_step(settings, kept=case == "memory cache", **shared)
    return full_pass(settings, parallel=case == "parallel", **shared)


def time_pair(fast: str, slow: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of both, in turn, so that what else the machine does is the same for both; medians, and of the ratio."""
    steps = [step_of(case, options) for case in (fast, slow)]
    pairs = [[timed(step) for step in steps] for _ in range(_WARMING + options.repeats)][_WARMING:]
    ratios = sorted(b / a for a, b in pairs)
    quarter = len(ratios) // 4
    return {
        fast: statistics.median(a for a, _ in pairs),
        slow: statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "low": ratios[quarter],
        "high": ratios[-1 - quarter],
    }


def timed(step: Callable[[], None]) -> float:
    """Seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak_of(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Bytes, of this process."""
    step = step_of(case, options)
    for _ in range(3):
        step()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def compare(fast: str, slow: str, encoder: tuple[int, int], options: argparse.Namespace) -> None:
    """Print a pair's two rows."""
    size = f"{encoder[0]}x{encoder[1]}"
    flags = ["--encoder", size, "--batch-size", str(options.batch_size), "--repeats", str(options.repeats)]
    flags += ["--precision", options.precision]
    found = _json_of(["--pair", fast, *flags], {})
    # freed tensors go back to the system at once: the peak is of what is in use, not of what malloc has kept
    weighing = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    peaks = {case: _json_of(["--peak", case, *flags], weighing)["peak"] for case in (fast, slow)}
    saved = (peaks[slow] - peaks[fast]) / 1e6
    times = f"{found['ratio']:.2f} times as fast [{found['low']:.2f}, {found['high']:.2f}]"
    against = f"{times}, {abs(saved):.0f} MB {'less' if saved >= 0 else 'more'}"
    for case, said in ((fast, against), (slow, "")):
        print(f"| {size} | {case} | {1000 * found[case]:.1f} | {peaks[case] / 1e6:.0f} | {said} |", flush=True)


def _json_of(flags: list[str], environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", *flags]
    # this very module, with flags that argparse has checked
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})  # noqa: S603
    return json.loads(done.stdout)


def _size(written: str) -> tuple[int, int]:
    layers, _, width = written.partition("x")
    return int(layers), int(width)


def _size_of(autoencoder: Any) -> tuple[int, int]:
    return autoencoder.num_encoder_layers, autoencoder.hidden_size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tiny, deep, small = (r().model for r in (autoencoder_chunk_tiny, autoencoder_chunk_deep, autoencoder_chunk_small))
    parser.add_argument("--batch-size", type=int, default=64, help="documents in a step")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each, in turn, of which the median counts")
    parser.add_argument(
        "--encoder",
        type=_size,
        nargs="+",
        default=[_size_of(tiny), _size_of(deep), (4, 256), (6, 384), _size_of(small)],
        help="layers x width of each frozen encoder; chunks are read in parallel by the first",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="what matrices are multiplied in")
    parser.add_argument("--pair", choices=CASES[::2], help="one pair's times alone, as JSON; named by its first")
    parser.add_argument("--peak", choices=CASES, help="one case's peak memory alone, as JSON")
    options = parser.parse_args()
    if options.pair:
        print(json.dumps(time_pair(options.pair, CASES[CASES.index(options.pair) + 1], options)))
        return
    if options.peak:
        print(json.dumps(peak_of(options.peak, options)))
        return
    print(f"{options.batch_size} documents of 4 x 16 tokens, {torch.get_num_threads()} threads, {options.precision}")
    print("| encoder | case | step, ms | peak memory, MB | against the next |")
    print("| --- | --- | --- | --- | --- |")
    for encoder in options.encoder:
        compare(*CASES[:2], encoder, options)
    compare(*CASES[2:], options.encoder[0], options)


if __name__ == "__main__":
    main()
