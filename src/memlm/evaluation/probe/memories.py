"""The probe of one chunk's memories: those of a run's encoder beside those of the same encoder untrained."""

from __future__ import annotations

from pathlib import Path

from memlm.data import Document
from memlm.encoders import MemoryEncoder
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings, ProbeTraining
from memlm.measurement import Measurement
from memlm.models.memory.encoder import encoder_of
from memlm.session import TextMemory
from memlm.training import RunConfig, RunFolder
from memlm.training.prepare import read_documents

FEWEST_DOCUMENTS = 3
"""Documents that a probe needs at least: one each to train on, to stop by and to score."""
_REPORTED = ("token_accuracy", "retention/unigram", "token_accuracy/unigram")


def probe_autoencoder(path: str) -> list[Measurement]:
    """Probe the memories of an autoencoder's run, as `evaluate_run` does for a memory run.

    Args:
        path: the run folder.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or holds fewer than three documents.
    """
    memory = TextMemory.from_pretrained(path)
    folder = RunFolder.open(path)
    config = folder.config()
    encoder = MemoryEncoder(encoder_of(memory.model), memory.tokenizer, name=config.recipe)
    return probe_memories(encoder, read_documents(config.data), config, folder.path)


def probe_memories(
    encoder: MemoryEncoder, documents: list[Document], config: RunConfig, folder: Path
) -> list[Measurement]:
    """Measure token accuracy and retention of one chunk's memories with a small probe, trained and untrained.

    The documents are split as the run split them, so that its held-out documents are held out here too.

    Args:
        encoder: the encoder of the run.
        documents: all documents of the run.
        config: the settings of the run.
        folder: the run folder; probes are saved below it.
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
    for prefix, probed in (("", encoder), ("untrained/", encoder.untrained(config.training.seed))):
        out = folder / "probe" / (prefix.strip("/") or "encoder")
        result = Retention.measure(probed, documents, out=out, settings=settings)
        found += [
            m.model_copy(update={"name": f"memories/{prefix}{m.name}", "split": "held_out"})
            for m in result.measurements
            if m.name in _REPORTED
        ]
    return found
