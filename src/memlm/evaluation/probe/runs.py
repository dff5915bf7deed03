"""What a small probe reads of one chunk's memories, beside those of the same encoder with fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from memlm.data import Document
from memlm.encoders import MemoryEncoder
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.evaluation.probe.training import ProbeTraining
from memlm.measurement import Measurement
from memlm.models.memory.encoder import encoder_of
from memlm.session import TextMemory
from memlm.training import RunConfig, RunFolder
from memlm.training.kinds import AnyRunConfig
from memlm.training.prepare import read_documents

FEWEST_DOCUMENTS = 3
"""That the meter needs: to train on, to stop by, to score."""


def probe_autoencoder(path: str) -> list[Measurement]:
    """Of an autoencoder's run, what `memlm evaluate` measures of a memory run's encoder: `memories/...`.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or holds fewer than three documents.
    """
    memory = TextMemory.from_pretrained(path)
    folder = RunFolder.open(path)
    config = cast(RunConfig, folder.config())
    encoder = MemoryEncoder(encoder_of(memory.model), memory.tokenizer, name=config.recipe)
    return probed_memories(encoder, read_documents(config.data), config, folder.path)


def probed_memories(
    encoder: MemoryEncoder, documents: list[Document], config: AnyRunConfig, folder: Path
) -> list[Measurement]:
    """Token accuracy and retention of one chunk's memories by a small probe, and of fresh weights'.

    The meter splits the documents as the run did: what is held out there is held out here.
    """
    settings = ProbeSettings(
        lengths=(config.model.chunk_length,),
        passages=8192,
        held_out=config.data.held_out,
        seed=config.training.seed,
        controls=False,
        probe=ProbeTraining(size="small", steps=240),
    )
    found: list[Measurement] = []
    for name, probed in (("", encoder), ("untrained/", encoder.untrained(config.training.seed))):
        out = folder / "probe" / (name.strip("/") or "encoder")
        result = Retention.measure(probed, documents, out=out, settings=settings)
        found += [
            m.model_copy(update={"name": f"memories/{name}{m.name}", "split": "held_out"})
            for m in result.measurements
            if m.name in ("token_accuracy", "retention/unigram", "token_accuracy/unigram")
        ]
    return found
