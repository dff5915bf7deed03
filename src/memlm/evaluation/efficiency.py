"""Time and memory of inference with memories, compared with full context: the same decoder on the same text.

The decoder reads a context either as all of its tokens with a KV cache (full context) or as the memories of its chunks
(memory). A prompt follows, and tokens are generated after it, as in a session that answers a question about a text.
Both ways are timed through `generate()`. Weights are random, since time does not depend on them. Each case runs in a
process of its own, so that its peak memory can be measured.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import StoppingCriteria

from memlm.errors import ConfigError
from memlm.measurement import Measurement
from memlm.models import MemoryModelConfig, MemoryModelForCausalLM
from memlm.models.base import CACHE_NAME
from memlm.processes import worker_pool
from memlm.training.memory.estimate import check_fits
from memlm.training.schema import Settings

Size = Annotated[int, Field(ge=1, le=2**20)]
_VOCABULARY = 1024
_SLOW = 5.0
"""Seconds beyond which a call is timed only once."""
_TIMES = 3


class EfficiencySettings(Settings):
    """The sizes of the model and of the text."""

    lengths: tuple[Size, ...] = (256, 1024, 4096, 16384)
    """Tokens of context."""
    batch_sizes: tuple[Size, ...] = (1, 8)
    """Texts in a batch."""
    chunk_length: Size = 128
    """Tokens per chunk."""
    slots_per_chunk: Size = 8
    """Decoder inputs that a chunk's memory takes."""
    hidden_size: Size = 256
    """Width of the decoder, which has Llama layers."""
    num_layers: Size = 4
    """Layers of the decoder."""
    num_heads: Size = 4
    """Heads of the decoder."""
    encoder_hidden_size: Size = 128
    """Width of the encoder."""
    encoder_num_layers: Size = 2
    """Layers of the encoder."""
    bottleneck_size: Size = 512
    """Numbers in a chunk's memory."""
    prompt_tokens: Size = 16
    """Tokens of the prompt after the context."""
    new_tokens: Size = 16
    """Tokens generated after the first one, to time them."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of torch; 0 for torch's own choice."""

    @model_validator(mode="after")
    def _check(self) -> EfficiencySettings:
        if self.hidden_size % (2 * self.num_heads):
            heads = f"num_heads ({self.num_heads})"
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be divisible by twice {heads}.")
        return self


@dataclass(frozen=True)
class Speed:
    """Time and memory of one way of reading, at one length and batch size.

    Attributes:
        encode_seconds: time to encode the memories; 0 for full context.
        first_seconds: time from a prompt to its first token, with memories given.
        token_seconds: median time of each later token.
        kv_bytes: size of the KV cache after the last token, of all rows together.
        context_kv_bytes: the part of `kv_bytes` that the context takes.
        rss_bytes: peak memory of the process, less its memory with the model loaded.
    """

    encode_seconds: float
    first_seconds: float
    token_seconds: float
    kv_bytes: int
    context_kv_bytes: int
    rss_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Both ways of reading at one length and batch size."""

    length: int
    batch_size: int
    memory: Speed
    full: Speed

    @property
    def ratios(self) -> dict[str, float]:
        """The ratio of full context to memory for each figure; above 1, memory is better."""
        m, f = self.memory, self.full
        return {
            "first_token": f.first_seconds / m.first_seconds,
            "first_token_with_encoding": f.first_seconds / (m.first_seconds + m.encode_seconds),
            "each_token": f.token_seconds / m.token_seconds,
            "context_kv_bytes": f.context_kv_bytes / m.context_kv_bytes,
            "kv_bytes": f.kv_bytes / m.kv_bytes,
        }


def compare_efficiency(settings: EfficiencySettings) -> Iterator[Comparison]:
    """Yield the comparison at each batch size and length.

    Raises:
        ConfigError: a length is not a multiple of `chunk_length`, or the model does not fit into memory.
    """
    for length in settings.lengths:
        if length % settings.chunk_length:
            raise ConfigError(
                f"a context of {length} tokens must be whole chunks of {settings.chunk_length}; change either."
            )
    with torch.device("meta"):
        check_fits(_untrained_model(settings), max(settings.batch_sizes))
    for batch_size in settings.batch_sizes:
        for length in settings.lengths:
            memory, full = (_in_own_process(settings, way, length, batch_size) for way in ("memory", "full"))
            yield Comparison(length, batch_size, memory, full)


def measurements_of(comparisons: list[Comparison]) -> list[Measurement]:
    """Return all figures as measurements."""
    found: list[Measurement] = []
    figure = partial(Measurement, count=1, split="random_tokens", protocol="timed")
    for one in comparisons:
        case = f"{one.length}_tokens/batch_{one.batch_size}"
        for way, speed in (("memory", one.memory), ("full_context", one.full)):
            for name, value in asdict(speed).items():
                unit = "s" if name.endswith("seconds") else "B"
                found.append(figure(name=f"{case}/{way}/{name}", value=float(value), unit=unit))
        found += [figure(name=f"{case}/ratio/{name}", value=ratio, unit="times") for name, ratio in one.ratios.items()]
    return found


def _in_own_process(settings: EfficiencySettings, way: str, length: int, batch_size: int) -> Speed:
    with worker_pool(1) as pool:
        return pool.run(measure, settings, way, length, batch_size).result()


@torch.inference_mode()
def measure(settings: EfficiencySettings, way: str, length: int, batch_size: int) -> Speed:
    """Time one case in this process.

    Args:
        settings: the sizes.
        way: "memory" or "full".
        length: tokens of context.
        batch_size: texts in the batch.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    model = _untrained_model(settings)
    ids = torch.randint(2, _VOCABULARY, (batch_size, length + settings.prompt_tokens))
    before = _peak()
    if way == "full":
        return _speed(model.decoder, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, settings, 0.0, before)
    memories, encoding = _timed(lambda: model.encode(ids[:, :length]))
    prompt = model.prompt([[m, n.tolist()] for m, n in zip(memories, ids[:, length:], strict=True)])
    return _speed(model, prompt, settings, encoding, before)


def _untrained_model(settings: EfficiencySettings) -> MemoryModelForCausalLM:
    """Return a model with random weights, whose decoder has positions for the full context."""
    config = MemoryModelConfig(
        encoder={
            "model_type": "memlm_chunk_encoder",
            "vocab_size": _VOCABULARY,
            "chunk_length": settings.chunk_length,
            "hidden_size": settings.encoder_hidden_size,
            "num_encoder_layers": settings.encoder_num_layers,
            "bottleneck_size": settings.bottleneck_size,
        },
        decoder={
            "model_type": "llama",
            "vocab_size": _VOCABULARY + 1,
            "hidden_size": settings.hidden_size,
            "intermediate_size": 11 * settings.hidden_size // 4,
            "num_hidden_layers": settings.num_layers,
            "num_attention_heads": settings.num_heads,
            "num_key_value_heads": settings.num_heads,
            "max_position_embeddings": max(settings.lengths) + settings.prompt_tokens + settings.new_tokens + 1,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
        chunk_length=settings.chunk_length,
        slots_per_chunk=settings.slots_per_chunk,
        num_chunks=2,
        memory_token_id=_VOCABULARY,
    )
    return MemoryModelForCausalLM(config).eval()


def _speed(model: Any, prompt: dict[str, Tensor], settings: EfficiencySettings, encoding: float, before: int) -> Speed:
    """Time generation; the cache is measured after the last token, so that generated tokens are included."""
    clock = _Clock()

    def generate() -> tuple[float, list[float], Any]:
        began = time.perf_counter()
        clock.times.clear()
        found = model.generate(
            **prompt,
            max_new_tokens=1 + settings.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[clock],
            return_dict_in_generate=True,
        )
        steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
        return clock.times[0] - began, steps, found[CACHE_NAME]

    runs = [generate()]
    while len(runs) < _TIMES and runs[0][0] < _SLOW:
        runs.append(generate())
    first = statistics.median(run[0] for run in runs)
    each = statistics.median(step for run in runs for step in run[1])
    cache = runs[-1][2]
    # the last generated token is not in the cache
    context = _cache_bytes(cache, but=settings.prompt_tokens + settings.new_tokens)
    return Speed(encoding, first, each, _cache_bytes(cache), context, _peak() - before)


class _Clock(StoppingCriteria):
    """A stopping criterion that records the time of each token and never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.times.append(time.perf_counter())
        return cast(torch.BoolTensor, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its median time in seconds."""
    seconds: list[float] = []
    result = None
    while len(seconds) < _TIMES and (not seconds or seconds[0] < _SLOW):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return result, statistics.median(seconds)


def _cache_bytes(cache: Any, *, but: int = 0) -> int:
    """Return the size of a cache without its newest `but` positions."""
    tensors = [t[..., : t.shape[-2] - but, :] for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _peak() -> int:
    """Return the peak memory in bytes; Linux counts in units of 1,024 bytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
