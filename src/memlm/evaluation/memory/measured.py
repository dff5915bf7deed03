"""Everything that is measured of a memory model: reading with and without memory, copies, what its memories keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from memlm.data import Document, PackedRows, decode_ids, load_documents, pack, pad_id, token_byte_lengths
from memlm.encoders import MemoryEncoder
from memlm.errors import CheckpointError
from memlm.evaluation.memory.copy import copy_measurements
from memlm.evaluation.memory.oracle import oracle_measurements
from memlm.evaluation.memory.perplexity import original_measurements, perplexity_measurements
from memlm.evaluation.memory.recall import recall_measurements
from memlm.evaluation.probe.memories import FEWEST_DOCUMENTS, probe_memories
from memlm.evaluation.result import Evaluation, Report, check_text_unchanged, passages_of
from memlm.measurement import Measurement, Passage
from memlm.models import ChunkReader, MemoryModelForCausalLM, RecurrentMemoryForCausalLM
from memlm.models.loading import load_model
from memlm.models.memory.slots import reads_own_chunk
from memlm.training import RunFolder, prepare_data
from memlm.training.memory.pretrained import load_decoder
from memlm.training.prepare import read_documents


def evaluate_memory_run(
    folder: RunFolder, *, text: str | None, say: Report, probe: bool = True, rows: int | None = None
) -> Evaluation:
    """Held-out documents of the run, or other text; retention of its encoder where its own text is measured.

    Finished probes are kept (`default_cache()`): runs that share a frozen encoder, or fresh weights, share them.

    Raises:
        CheckpointError, TokenizerError: not a finished run.
        DataError: the text cannot be read, or the run's text has changed since.
    """
    model, tokenizer = load_model(folder.path, MemoryModelForCausalLM, RecurrentMemoryForCausalLM)
    if text is not None:
        return _measured(model, tokenizer, load_documents(text), split=Path(text).name, say=say, most=rows)
    say("reading the text")
    config = folder.config()
    length, seed = model.config.document_length, config.training.seed
    data = prepare_data(config.data, chunk_length=length, seed=seed, tokenizer=tokenizer)
    check_text_unchanged(folder.data(), data.record, config.data.text)
    decoder = config.decoder.path
    found = _measured(model, tokenizer, data.held_out, split="held_out", say=say, most=rows, original=decoder)
    if not probe or not isinstance(model, MemoryModelForCausalLM):
        return found
    say("probing the memories")
    documents = read_documents(config.data)
    if len(documents) < FEWEST_DOCUMENTS:
        return found
    kept = probe_memories(MemoryEncoder(model.encoder, tokenizer, name=config.recipe), documents, config, folder.path)
    return Evaluation([*found.measurements, *kept], found.accuracy_by_position, found.passages, found.costs)


def _measured(
    model: ChunkReader,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    split: str,
    say: Report,
    most: int | None = None,
    original: str | None = None,
) -> Evaluation:
    rows = pack(documents, tokenizer, row_length=model.config.document_length, across_documents=False)
    rows = rows if most is None else rows.sample(most, seed=0)
    found = _behind_memories(model, tokenizer, rows, split, say)
    if original is None or not isinstance(model, MemoryModelForCausalLM):
        return found
    say(f"reading {split} by the decoder as it was")
    try:
        before = original_measurements(model, load_decoder(original), rows, token_byte_lengths(tokenizer), split=split)
    except CheckpointError:  # moved or removed since: everything else has been measured
        return found
    return replace(found, measurements=[*found.measurements, *before])


def _behind_memories(
    model: ChunkReader, tokenizer: PreTrainedTokenizerBase, rows: PackedRows, split: str, say: Report
) -> Evaluation:
    say(f"reading {len(rows)} rows of {split} with and without memory")
    found = perplexity_measurements(model, rows, token_byte_lengths(tokenizer), split=split)
    if isinstance(model, MemoryModelForCausalLM) and reads_own_chunk(model.config.layout):
        say(f"rounding the memories of {split}")
        return Evaluation([*found, *oracle_measurements(model, rows, split_name=split)], [], [], [])
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    if model.config.num_chunks % 2 or not len(full):
        return Evaluation(found, [], [], [])
    say(f"copying {split}")
    copied, passages = _copied(model, tokenizer, full, split)
    say(f"planting facts in {split}")
    recalled = recall_measurements(model, full, tokenizer, blank_id=pad_id(tokenizer), split=split)
    return Evaluation([*copied, *recalled, *found], [], passages, [])


def _copied(
    model: ChunkReader, tokenizer: PreTrainedTokenizerBase, rows: PackedRows, split: str
) -> tuple[list[Measurement], list[Passage]]:
    found, scores = copy_measurements(model, rows, blank_id=pad_id(tokenizer), split=split)
    half = rows.input_ids.shape[1] // 2
    halves = PackedRows(rows.input_ids[:, :half], rows.attention_mask[:, :half], rows.document_index, rows.document_ids)
    back = scores.predictions[:, half:]
    return found, passages_of(partial(decode_ids, tokenizer), halves, back)
