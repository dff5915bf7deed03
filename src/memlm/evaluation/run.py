"""A run folder through every measurement, on the documents it held out or on another text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from memlm.data import Document, Split, fingerprint, load_documents, pack
from memlm.errors import DataError
from memlm.evaluation.reconstruction import Progress
from memlm.evaluation.runner import Evaluation, evaluate_reconstruction
from memlm.inference import load
from memlm.training import RunConfig, RunFolder, read_split


def evaluate_run(
    path: str | Path, *, text: str | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluate a run folder on the documents it held out, or on another text.

    Args:
        path: the folder that training wrote.
        text: a source as for `load_documents`; its figures carry the split "given_text". None: the run's own.
        progress: called with rows done and rows in all.

    Raises:
        RunFolderError: not a run folder.
        CheckpointError: no model in it, or a damaged one.
        DataError: the run's text is gone or has changed, or the given one cannot be read.
    """
    folder = RunFolder.open(path)
    folder.require_model()
    config = folder.config()
    memory = load(folder.path)
    counts = torch.tensor(folder.data()["unigram_counts"])
    length = memory.model.config.chunk_length
    if text is not None:
        rows = pack(load_documents(text), memory.tokenizer, row_length=length, across_documents=False)
        train, name = None, "given_text"
    else:
        split = _same_split(folder, config)
        sample = _sample(split.train, len(split.held_out), config.training.seed)
        rows = pack(split.held_out, memory.tokenizer, row_length=length, across_documents=False)
        train, name = pack(sample, memory.tokenizer, row_length=length, across_documents=False), "held_out"
    return evaluate_reconstruction(
        memory.model,
        memory.tokenizer,
        held_out=rows,
        unigram_counts=counts,
        train=train,
        seed=config.training.seed,
        split=name,
        progress=progress,
    )


def _same_split(folder: RunFolder, config: RunConfig) -> Split:
    """The run's split, refused where the text is no longer what was trained on."""
    split = read_split(config.data, config.training.seed)
    for side, documents in (("train", split.train), ("held_out", split.held_out)):
        kept, found = folder.data()[f"fingerprint_{side}"], fingerprint(documents)
        if kept != found:
            raise DataError(
                f"'{config.data.text}' has changed since training ({side} {found[:12]}, was {kept[:12]}); "
                "bring the old text back, or name another with --text."
            )
    return split


def _sample(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    """As many training documents as there are held-out ones, so that both sides weigh alike."""
    return random.Random(seed).sample(documents, min(count, len(documents)))  # noqa: S311 (a sample, not a secret)
