"""Seconds of memories beside what they stand for, measured in turn: training, encoding, and the first token.

OMP_NUM_THREADS=1 python -m benchmarks.slot_seconds --decoder PATH_OR_HUB_ID

Both sides of a pair run alternately in one process, so that other load affects both alike; the ratio is the median of
the pairs' ratios, beside the smallest and the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
import tyro
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.source import Decoder
from memlm.data import encode_texts, load_documents, pack, split_documents
from memlm.evaluation.memory.reading_seconds import paired_seconds, prefill
from memlm.models import SlotWriter, SlotWriterConfig
from memlm.models.memory.adapter import LoraSettings, adapters_active
from memlm.models.runtime import load_decoder
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.training.memory.distillation import DistillationBatches

Run = Callable[[], object]


@dataclass(frozen=True)
class Options(Decoder):
    """A decoder and sizes."""

    text: str = "sotu"
    """Text source."""
    tokens: int = 8000
    """Tokens of the text that is encoded."""
    prompt: int = 32
    """Tokens that are read behind memories, up to the first new token."""
    tokens_per_memory: int = 8
    """Tokens for each memory."""
    batch_size: int = 2
    """Rows of a training step."""
    chunk_length: int = 256
    """Tokens of a chunk."""
    num_chunks: int = 3
    """Chunks of a training row."""
    new_tokens: int = 16
    """Tokens that are generated."""
    repeats: int = 3
    """Pairs that are measured, behind one that is not counted."""


def paired(name: str, one: Run, other: Run, repeats: int) -> str:
    """Return a row of the table: median seconds of both, and their ratio."""
    found = paired_seconds(one, other, repeats)
    ratios = f"{found.ratio:.3f} | {found.low:.3f} to {found.high:.3f}"
    return f"| {name} | {found.first:.3f} | {found.second:.3f} | {ratios} |"


def steps(options: Options) -> tuple[Run, Run]:
    """Return a training step of the writer, and one of the same adapters on the next token, of equally many tokens."""
    model = options.load()
    length = options.chunk_length
    config = SlotWriterConfig(
        chunk_length=length,
        num_chunks=options.num_chunks,
        scored_tokens=min(96, length),
        lora=asdict(LoraSettings(rank=32)),
        first_token_id=model.reader.first_token_id,
    )
    writer = SlotWriter(
        config, load_decoder(options.decoder, dtype=options.dtype, device_map=model.decoder.device.type)
    )
    documents = split_documents(load_documents(options.text)).train
    rows = pack(documents, model.tokenizer, row_length=length * options.num_chunks, across_documents=True)
    made = DistillationBatches(rows, config, options.batch_size, 0)(torch.arange(options.batch_size), 0)
    device = model.decoder.device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in made.items()}
    weights = [weight for weight in writer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)

    def step(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        with adapters_active(writer.decoder, True):
            step(next_token_loss(writer.decoder, batch))

    return lambda: step(writer(**batch).loss), plain


def next_token_loss(decoder: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Return the loss of a decoder that reads rows as tokens."""
    return decoder(input_ids=batch["input_ids"], labels=batch["input_ids"], use_cache=False).loss


def new_tokens(model: MemoryDecoder, prompt: list[int], memories: SlotMemories, count: int) -> Tensor:
    """Return tokens that a decoder generates, as many as are asked for."""
    options: dict[str, Any] = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
    return cast(Any, model.decoder).generate(**model.inputs([prompt], memories), **options)


@torch.no_grad()
def main(options: Options) -> None:
    """Measure and print."""
    print(f"{options.tokens} tokens, {options.tokens_per_memory} for each memory, {torch.get_num_threads()} threads")
    print("| | seconds | beside | ratio | smallest to largest |\n|---|---|---|---|---|", flush=True)
    with torch.enable_grad():
        writer, plain = steps(options)
        tokens = options.batch_size * options.chunk_length * options.num_chunks
        print(paired(f"training step of {tokens} tokens / plain LoRA step", writer, plain, options.repeats), flush=True)
    del writer, plain
    model = options.load()
    model.settings = replace(model.settings, chunk_length=options.chunk_length, block_length=2 * options.chunk_length)
    [ids] = encode_texts(
        model.tokenizer, ["\n\n".join(document.text for document in load_documents(options.text)[:20])]
    )
    text, prompt = ids[: options.tokens], ids[options.tokens : options.tokens + options.prompt]
    ratio = options.tokens_per_memory

    for mode in ("chunks", "joint"):
        encode = lambda mode=mode: model.memories([text], tokens_per_memory=ratio, mode=mode)  # noqa: E731
        print(paired(f"encode, {mode} / prefill", encode, lambda: prefill(model, text), options.repeats), flush=True)
    encode_chunks = lambda: model.memories([text], tokens_per_memory=ratio, mode="chunks")  # noqa: E731
    memories = encode_chunks()
    behind = lambda: model.decoder(**model.inputs([prompt], memories), logits_to_keep=1)  # noqa: E731
    print(
        paired("first token behind memories / all", behind, lambda: prefill(model, [*text, *prompt]), options.repeats)
    )
    both = lambda: model.decoder(**model.inputs([prompt], encode_chunks()), logits_to_keep=1)  # noqa: E731
    name = "encode, chunks, and first token / prefill of all"
    print(paired(name, both, lambda: prefill(model, [*text, *prompt]), options.repeats), flush=True)
    whole = model.memories([text], tokens_per_memory=1, mode="chunks")
    write = lambda kept: lambda: new_tokens(model, prompt, kept, options.new_tokens)  # noqa: E731
    name = f"{options.new_tokens} new tokens behind memories / all"
    print(paired(name, write(memories), write(whole), options.repeats), flush=True)
    few, many = (model.read(x).slot_bytes for x in (memories, whole))
    print(f"cache: {few:,} bytes behind memories, {many:,} behind all tokens")


if __name__ == "__main__":
    main(tyro.cli(Options))
