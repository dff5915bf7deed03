"""A decoder that learns to write memories: its model, its batches and its validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, first_token_id
from memlm.models import SlotWriter, SlotWriterConfig
from memlm.models.memory.adapter import LoraSettings
from memlm.models.runtime import load_decoder
from memlm.models.slots import MemoryDecoder
from memlm.models.slots.head_errors import CONTEXT, FOLLOWING, measured_heads
from memlm.models.slots.saved import decoder_identity, load_adapters
from memlm.shapes import IGNORE_INDEX
from memlm.training.config import PretrainedDecoder, RunConfig
from memlm.training.loop.trainer import Batch, MemlmTrainer
from memlm.training.memory.fact_writer import FactWriter
from memlm.training.memory.questions import read_again, with_conversation, with_facts
from memlm.training.model_settings import settings_of

_OF_QUESTIONS = 500_000_003
"""Added to a row's seed, so that questions are not drawn as positions are."""


def build_writer(config: RunConfig, model: SlotWriterConfig, tokenizer: PreTrainedTokenizerBase) -> SlotWriter:
    """Return a pretrained decoder with new adapters.

    Raises:
        CheckpointError: the decoder or the adapters cannot be loaded, or do not belong together.
        ConfigError: the adapters do not fit the decoder.
    """
    path, gguf = str(config.decoder.path), config.decoder.gguf_file
    decoder = load_decoder(path, **decoder_options(config.decoder))
    own = SlotWriterConfig(
        **{name: value for name, value in settings_of(model).items() if name not in ("model_type", "lora")},
        lora=model.lora or asdict(LoraSettings(rank=32)),
        decoder_path=path,
        gguf_file=gguf,
        decoder_identity=decoder_identity(decoder),
        first_token_id=first_token_id(tokenizer, vocab_size=int(decoder.config.vocab_size)),
        vocab_size=int(decoder.config.vocab_size),
    )
    writer = SlotWriter(own, decoder)
    if config.decoder.adapter_folder is not None:
        load_adapters(writer, config.decoder.adapter_folder)
    return writer


def decoder_options(settings: PretrainedDecoder) -> dict[str, Any]:
    """Return the options with which a decoder is loaded."""
    options: dict[str, Any] = {} if settings.gguf_file is None else {"gguf_file": settings.gguf_file}
    if settings.dtype != "8bit":
        return {**options, "dtype": settings.dtype}
    from transformers import BitsAndBytesConfig

    return {**options, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}


@dataclass(frozen=True)
class DistillationBatches:
    """Batches of rows with the positions that are compared: a pure function of the rows and of their places.

    Attributes:
        rows: rows of one length, whole chunks.
        config: sizes of chunks, and ratios.
        rows_per_step: rows of a step over all processes, which share a ratio.
        seed: seed of positions and ratios.
        facts: draws the facts that are planted, where some are.
    """

    rows: PackedRows
    config: SlotWriterConfig
    rows_per_step: int
    seed: int
    facts: FactWriter | None = None

    def __call__(self, chosen: Int[Tensor, " chosen"], place: int) -> Batch:
        """Return the rows of one step, and how their memories are made."""
        batch = self.rows.select(chosen)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place // self.rows_per_step)
        ratios = self.config.drawn_ratios
        ratio = ratios[int(torch.randint(len(ratios), (1,), generator=draw))]
        pairs = zip(batch.input_ids, batch.attention_mask, strict=True)
        rows = [self._row(ids, mask, place + i) for i, (ids, mask) in enumerate(pairs)]
        labels = [self._labels(ids, asked, place + i) for i, (ids, asked) in enumerate(rows)]
        asked = torch.stack([asked for _, asked in rows])
        return {
            "input_ids": torch.stack([ids for ids, _ in rows]),
            "attention_mask": batch.attention_mask,
            "labels": torch.stack(labels).masked_fill(batch.attention_mask == 0, IGNORE_INDEX),
            **({"certain": asked} if self.facts is not None else {}),
            "ratio": torch.tensor(ratio),
            "fitted": torch.rand((), generator=draw) < self.config.fit_share,
        }

    def _row(
        self, ids: Int[Tensor, " tokens"], mask: Int[Tensor, " tokens"], place: int
    ) -> tuple[Int[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
        """Return a row that may ask for what stood earlier, and the positions in front of tokens of an answer."""
        none, config = torch.zeros_like(ids, dtype=torch.bool), self.config
        shares = (config.fact_share, config.chat_share, config.reconstruction_share)
        if not sum(shares) or not bool(mask.all()):
            return ids, none
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place + _OF_QUESTIONS)
        kind = float(torch.rand((), generator=draw))
        if self.facts is not None and kind < config.fact_share + config.chat_share:
            make = with_facts if kind < config.fact_share else with_conversation
            row, answer = make(ids, self.facts, config.facts_per_row, config.chunk_length, draw)
            return row, answer.roll(-1)  # a token is predicted at the position in front of it
        return (read_again(ids, config.chunk_length, draw) if kind < sum(shares) else ids), none

    def _labels(
        self, ids: Int[Tensor, " tokens"], asked: Bool[Tensor, " tokens"], place: int
    ) -> Int[Tensor, " tokens"]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        length = self.config.chunk_length
        order = torch.rand(len(ids) // length, length, generator=draw).argsort(1)
        hidden = (order >= self.config.scored_tokens).flatten()
        hidden[:length] = True  # nothing is written before the first chunk
        return ids.masked_fill(hidden & ~asked, IGNORE_INDEX)


def measure_heads(writer: SlotWriter, rows: PackedRows, tokenizer: PreTrainedTokenizerBase, *, progress: bool) -> None:
    """Measure on training rows which heads need more slots, and keep it in the writer's settings.

    Vectors, which all heads read, and rows that are too short for a measurement leave the settings as they are.
    """
    config = writer.config
    longer = rows.select((rows.attention_mask.sum(1) > 2 * FOLLOWING).nonzero()[:, 0])
    if config.injection != "kv" or not config.head_rows or not len(longer):
        return
    model = MemoryDecoder(writer.decoder, tokenizer, config=config, injection=writer.injection)
    chosen = longer.sample(config.head_rows, seed=0)
    texts = [
        ids[mask == 1].tolist()[: CONTEXT + FOLLOWING]
        for ids, mask in zip(chosen.input_ids, chosen.attention_mask, strict=True)
    ]
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("measuring heads", total=len(texts))
        heads = measured_heads(model, texts, on_row=lambda done, of: bar.update(task, completed=done))
    config.encoding = asdict(replace(model.settings, heads=heads))


def distillation_validation(trainer: MemlmTrainer, rows: PackedRows, batch_size: int) -> Callable[[], dict[str, float]]:
    """Return a function that measures the divergence from full context at each ratio, on all positions of rows.

    The accuracy is the share of positions at which memories and full context find the same token most probable. Rows
    that end within their first chunk, behind which nothing is read, are left out; without others there are no figures.
    """

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model, config = cast(Any, trainer.model_wrapped), cast(Any, trainer.model).config
        longer = rows.select((rows.attention_mask.sum(1) > config.chunk_length).nonzero()[:, 0])
        if not len(longer):
            return {}
        found: dict[str, float] = {}
        for ratio in config.drawn_ratios:
            sums = torch.zeros(3, dtype=torch.double)
            for batch in longer.batches(batch_size):
                ids, mask = (x.to(trainer.args.device) for x in (batch.input_ids, batch.attention_mask))
                with trainer.compute_loss_context_manager():
                    out = model(input_ids=ids, attention_mask=mask, ratio=ratio)
                sums += torch.cat([out.nats, out.num_correct, out.num_targets]).double().cpu()
            nats, hits, count = sums.tolist()
            found[f"validation_divergence/{ratio}"] = nats / max(count, 1)
            found[f"validation_agreement/{ratio}"] = hits / max(count, 1)
        return {"validation_token_accuracy": _mean(found, "agreement"), **found}

    return validate


def _mean(found: dict[str, float], name: str) -> float:
    values = [value for key, value in found.items() if f"_{name}/" in key]
    return sum(values) / len(values)
