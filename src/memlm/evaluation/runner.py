"""Everything that is measured of a trained run, with intervals, and what a report shows beside the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import (
    Document,
    PackedRows,
    decode_ids,
    fingerprint,
    load_documents,
    pack,
    pad_id,
    random_rows,
    token_byte_lengths,
)
from memlm.encoders import MemoryEncoder
from memlm.errors import CheckpointError, DataError
from memlm.evaluation.memory.context_gain import ContextGainSettings, context_gain, gain_rows, token_nats_behind
from memlm.evaluation.memory.contexts import nothing
from memlm.evaluation.memory.perplexity import oracle_measurements, original_measurements, perplexity_measurements
from memlm.evaluation.memory.reading_seconds import reading_seconds
from memlm.evaluation.memory.recall import copy_measurements, recall_measurements
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings, ProbeTraining
from memlm.evaluation.reconstruction import (
    ReconstructionScores,
    blank_memory_nats,
    encode_rows,
    per_document,
    reconstruct,
    reconstruction_measurements,
)
from memlm.evaluation.result import (
    Evaluation,
    Report,
    chunkwise_costs,
    compressor_costs,
    memory_costs,
    passages_of,
    saved_passage,
)
from memlm.measurement import (
    Cost,
    DocumentTally,
    Measurement,
    SavedPassage,
    measure_ratio,
    unigram_log_probabilities,
    unigram_nats,
)
from memlm.models import (
    ChunkReader,
    MemoryModelForCausalLM,
    RecurrentMemoryForCausalLM,
    SlotWriterConfig,
    TextAutoencoder,
    encoder_of,
)
from memlm.models.loading import load_model
from memlm.models.memory.slots import reads_own_chunk
from memlm.models.runtime import load_decoder
from memlm.models.slots import MemoryDecoder
from memlm.session import TextMemory
from memlm.store import Bits
from memlm.training import RunConfig, RunFolder, prepare_data
from memlm.training.prepare import PreparedData, read_documents, read_split

_RANDOM_ROWS = 512
_SAMPLED_ROWS = 1024
_CHUNKS_COMPRESSED = 2000
_WIDTHS: tuple[tuple[str, Bits], ...] = (("int8", 8), ("int4", 4))
_WRITER_ROWS = 48
_PASSAGES = 3
_PROBED = ("token_accuracy", "retention/unigram", "token_accuracy/unigram")
"""Figures of the probe that a run reports."""


def evaluate_run(
    path: str,
    *,
    text: str | None = None,
    text_field: str | None = None,
    strict: bool = False,
    report: Report | None = None,
    probe: bool = True,
    rows: int | None = None,
) -> Evaluation:
    """Measure a trained run on its held-out documents, or on another text.

    An autoencoder is also measured on training, foreign and random text. A decoder that writes memories is measured by
    its share of the full-context gain (`memlm.evaluation.memory.context_gain`). A memory model is also compared with
    the pretrained decoder that it began from, and a probe reads its memories; finished probes are cached
    (`default_cache()`), so that runs with one frozen encoder share them.

    Args:
        path: a finished run folder.
        text: another source to measure instead of the run's held-out documents (its name becomes the split).
        text_field: the field of that source's records that holds the text; by default the run's own.
        strict: raise at the first item of that source which cannot be read.
        report: called with the name of each part of the evaluation.
        probe: train a probe on the memories of a memory run, which takes most of the time.
        rows: of a memory run, so many rows of the text, drawn at random; all by default.

    Raises:
        RunFolderError, CheckpointError, TokenizerError: not a finished run.
        DataError: the text cannot be read, or the run's text has changed since.
    """
    folder = RunFolder.open(path)
    folder.require_model()
    say = report or (lambda _: None)
    config = folder.config()
    given: Sequence[Document] | None = None
    if text is not None:
        given = load_documents(text, text_field=text_field or config.data.text_field, strict=strict)
    # the name, not the path: measurements may be published
    name = "held_out" if text is None else Path(text).name
    if isinstance(config.model, SlotWriterConfig):
        return _evaluate_writer(folder, given, name, say, rows)
    if config.is_autoencoder:
        memory = TextMemory.from_pretrained(path)
        counts = torch.tensor(folder.data()["unigram_counts"])
        kind = _AutoencoderEvaluation(memory.model, memory.tokenizer, counts, say)
    else:
        model, tokenizer = load_model(folder.path, MemoryModelForCausalLM, RecurrentMemoryForCausalLM)
        kind = _ReaderEvaluation(model, tokenizer, folder, say, probe, rows)
    if given is not None:
        return kind.measure(given, name)
    say("reading the text")
    data = prepare_data(config.data, chunk_length=kind.row_length, seed=config.training.seed, tokenizer=kind.tokenizer)
    before = folder.data()
    if any(data.record[f"fingerprint_{part}"] != before[f"fingerprint_{part}"] for part in ("held_out", "train")):
        raise DataError(f"'{config.data.text}' has changed since the run was trained; measure it by name with --text.")
    found = kind.measure(data.held_out, "held_out")
    return replace(found, measurements=[*found.measurements, *kind.measure_more(data)])


@dataclass(frozen=True)
class _AutoencoderEvaluation:
    """Reconstruction of chunks, and what their memories cost beside general compressors."""

    model: TextAutoencoder
    tokenizer: PreTrainedTokenizerBase
    unigram_counts: Int[Tensor, " vocabulary"]
    say: Report

    @property
    def row_length(self) -> int:
        return self.model.config.chunk_length

    def measure(self, documents: Sequence[Document], split: str) -> Evaluation:
        self.say(f"measuring {len(documents)} documents of {split}")
        rows = pack(documents, self.tokenizer, row_length=self.row_length, across_documents=False)
        memories = encode_rows(self.model, rows)
        scores = reconstruct(self.model, rows, memories=memories)
        found = self._figures(rows, scores, split)
        for name, bits in _WIDTHS:
            tokens = reconstruct(self.model, rows, memories=memories, bits=bits).tokens
            found.append(measure_ratio(f"token_accuracy/{name}", "fraction", tokens, split))
        passages = passages_of(partial(decode_ids, self.tokenizer), rows, scores.predictions)
        return Evaluation(found, scores.accuracy_by_position(), passages, self._costs(rows, documents))

    def measure_more(self, data: PreparedData) -> list[Measurement]:
        """Measure training text, foreign text and random tokens."""
        special = self.tokenizer.all_special_ids
        others = {
            "train": data.train_rows.sample(_SAMPLED_ROWS, seed=0),
            "out_of_distribution": self._foreign_rows(),
            "random_tokens": random_rows(_RANDOM_ROWS, self.row_length, len(self.tokenizer), seed=0, exclude=special),
        }
        found: list[Measurement] = []
        for split, rows in others.items():
            self.say(f"measuring {split}")
            measured = self._figures(rows, reconstruct(self.model, rows), split)
            # random tokens are no text, so bytes of it mean nothing
            found += [m for m in measured if split != "random_tokens" or m.name != "bits_per_byte"]
        return found

    def _foreign_rows(self) -> PackedRows:
        """Return rows of Python's own reference topics: technical English that ships with the interpreter."""
        from pydoc_data.topics import topics

        documents = [Document(name, text) for name, text in sorted(topics.items()) if text.strip()]
        rows = pack(documents, self.tokenizer, row_length=self.row_length, across_documents=False)
        return rows.sample(_SAMPLED_ROWS, seed=0)

    def _figures(self, rows: PackedRows, scores: ReconstructionScores, split: str) -> list[Measurement]:
        sizes = token_byte_lengths(self.tokenizer)[rows.input_ids].double()
        numbers = DocumentTally(len(rows.document_ids))
        # padding is included: a short chunk's memory costs as much as a full one's
        each = torch.full_like(sizes, self.model.config.memory_size / rows.input_ids.shape[1])
        numbers.add(rows.document_index, each.sum(1), torch.ones(len(rows)))
        logs = unigram_log_probabilities(self.unigram_counts)
        return reconstruction_measurements(
            *(scores.tokens, scores.chunks, scores.nats, split),
            numbers=numbers,
            unigram=per_document(rows, unigram_nats(logs, rows.input_ids)),
            vocabulary=self.model.config.vocab_size,
            baselines={"blank_memory": blank_memory_nats(self.model, rows)},
            text_bytes=per_document(rows, sizes),
        )

    def _costs(self, rows: PackedRows, documents: Sequence[Document]) -> list[Cost]:
        config, contents = self.model.config, [d.text.encode() for d in documents]
        pairs = zip(rows.input_ids[:_CHUNKS_COMPRESSED], rows.attention_mask[:_CHUNKS_COMPRESSED], strict=True)
        chunks = [decode_ids(self.tokenizer, ids[mask.bool()].tolist()) for ids, mask in pairs]
        memories = memory_costs(
            chunks=len(rows),
            memories_per_chunk=config.memories_per_chunk,
            numbers=config.bottleneck_size,
            text_bytes=sum(map(len, contents)),
        )
        return [*memories, *compressor_costs(contents), *chunkwise_costs(chunks)]


@dataclass(frozen=True)
class _ReaderEvaluation:
    """Reading with and without memories, copies, recalled facts, and what the memories keep."""

    model: ChunkReader
    tokenizer: PreTrainedTokenizerBase
    folder: RunFolder
    say: Report
    probe: bool
    most: int | None

    @property
    def row_length(self) -> int:
        return self.model.config.document_length

    def measure(self, documents: Sequence[Document], split: str) -> Evaluation:
        rows, model = self._rows(documents), self.model
        self.say(f"reading {len(rows)} rows of {split} with and without memory")
        found = perplexity_measurements(model, rows, token_byte_lengths(self.tokenizer), split=split)
        if isinstance(model, MemoryModelForCausalLM) and reads_own_chunk(model.config.layout):
            self.say(f"rounding the memories of {split}")
            return Evaluation([*found, *oracle_measurements(model, rows, split=split)], [], [], [])
        full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
        if model.config.num_chunks % 2 or not len(full):
            return Evaluation(found, [], [], [])
        self.say(f"copying {split}")
        blank_id, half = pad_id(self.tokenizer), full.input_ids.shape[1] // 2
        copied, scores = copy_measurements(model, full, blank_id=blank_id, split=split)
        halves = PackedRows(
            full.input_ids[:, :half], full.attention_mask[:, :half], full.document_index, full.document_ids
        )
        passages = passages_of(partial(decode_ids, self.tokenizer), halves, scores.predictions[:, half:])
        self.say(f"planting facts in {split}")
        recalled = recall_measurements(model, full, self.tokenizer, blank_id=blank_id, split=split)
        return Evaluation([*copied, *recalled, *found], [], passages, [])

    def measure_more(self, data: PreparedData) -> list[Measurement]:
        """Measure the decoder from before the training, and probe the memories; both need a memory model."""
        model, config = self.model, self.folder.config()
        if not isinstance(model, MemoryModelForCausalLM):
            return []
        found: list[Measurement] = []
        if config.decoder.path is not None:
            self.say("reading held_out by the decoder as it was")
            with contextlib.suppress(CheckpointError):  # moved or removed since: everything else is measured
                original = load_decoder(config.decoder.path, dtype=torch.float32)
                sizes = token_byte_lengths(self.tokenizer)
                found += original_measurements(model, original, self._rows(data.held_out), sizes, split="held_out")
        if self.probe:
            self.say("probing the memories")
            encoder = MemoryEncoder(model.encoder, self.tokenizer, name=config.recipe)
            found += _probe_memories(encoder, config, self.folder.path)
        return found

    def _rows(self, documents: Sequence[Document]) -> PackedRows:
        rows = pack(documents, self.tokenizer, row_length=self.row_length, across_documents=False)
        return rows if self.most is None else rows.sample(self.most, seed=0)


def _evaluate_writer(
    folder: RunFolder, given: Sequence[Document] | None, split: str, say: Report, rows: int | None
) -> Evaluation:
    """Measure the share of the full-context gain, on few rows by default, since each is read many times."""
    model = MemoryDecoder.from_pretrained(str(folder.path))
    documents = _held_out_documents(folder) if given is None else given
    settings = replace(_writer_settings(model), rows=rows or _WRITER_ROWS)
    say(f"reading {settings.rows} rows of {split}")
    found = context_gain(
        model,
        documents,
        settings,
        split=split,
        on_batch=lambda done: say(f"reading rows of {split}: {done} of {settings.rows}"),
    )
    say("colouring passages")
    return Evaluation(found, [], [], [], _saved_passages(model, documents, settings))


def _saved_passages(
    model: MemoryDecoder, documents: Sequence[Document], settings: ContextGainSettings
) -> list[SavedPassage]:
    """Return a few rows and what memories saved at each scored token, at the ratio of the headline."""
    settings = replace(settings, rows=_PASSAGES, scored=settings.window + settings.scored - 1, window=1)
    rows = gain_rows(documents, model.tokenizer, settings)
    old = rows.ids[:, : settings.context].tolist()
    kept = model.encode(old).at(tokens_per_memory=min(settings.ratios, key=lambda ratio: abs(ratio - 8)))
    none = nothing(model.encode(old, mode="joint"))
    alone, behind = (token_nats_behind(model, rows.ids, x, settings) for x in (none, kept))
    decode = partial(decode_ids, model.tokenizer)
    return [
        saved_passage(rows.names[int(i)], decode, ids[-settings.scored :].tolist(), nats.tolist())
        for i, ids, nats in zip(rows.document, rows.ids, alone - behind, strict=True)
    ]


def _writer_settings(model: MemoryDecoder) -> ContextGainSettings:
    """Return contexts of the length of training, and the ratios that leave some slots to each chunk."""
    length, written = model.config.chunk_length, model.config.num_chunks - 1
    context = length * written
    ratios = tuple(ratio for ratio in (2, 4, 8, 16, 32) if context // ratio > 4)
    return ContextGainSettings(context=context, window=min(32, length), scored=min(32, length), ratios=ratios)


def _held_out_documents(folder: RunFolder) -> Sequence[Document]:
    config = folder.config()
    documents = read_split(config.data, config.training.seed).held_out
    if fingerprint(documents) != folder.data()["fingerprint_held_out"]:
        raise DataError(f"'{config.data.text}' has changed since the run was trained; measure it by name with --text.")
    return documents


def time_writer(path: str) -> list[Measurement]:
    """Measure what memories cost beside a prefill, on the held-out text of a run that trained a decoder to write them.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or is too short.
    """
    return reading_seconds(MemoryDecoder.from_pretrained(path), _held_out_documents(RunFolder.open(path)))


def probe_autoencoder(path: str) -> list[Measurement]:
    """Probe the memories of an autoencoder's run, as `evaluate_run` does for a memory run.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or holds fewer than three documents.
    """
    memory, folder = TextMemory.from_pretrained(path), RunFolder.open(path)
    config = folder.config()
    encoder = MemoryEncoder(encoder_of(memory.model), memory.tokenizer, name=config.recipe)
    return _probe_memories(encoder, config, folder.path)


def _probe_memories(encoder: MemoryEncoder, config: RunConfig, folder: Path) -> list[Measurement]:
    """Measure what a small probe reads from one chunk's memories, trained and untrained, on the run's own split."""
    settings = ProbeSettings(
        lengths=(config.model.chunk_length,),
        passages=8192,
        held_out=config.data.held_out,
        seed=config.training.seed,
        controls=False,
        writer_steps=0,
        probe=ProbeTraining(size="small", steps=240),
    )
    documents = read_documents(config.data)
    found: list[Measurement] = []
    for prefix, probed in (("", encoder), ("untrained/", encoder.untrained(config.training.seed))):
        out = folder / "probe" / (prefix.strip("/") or "encoder")
        result = Retention.measure(probed, documents, out=out, settings=settings)
        found += [
            m.model_copy(update={"name": f"memories/{prefix}{m.name}", "split": "held_out"})
            for m in result.measurements
            if m.name in _PROBED
        ]
    return found
