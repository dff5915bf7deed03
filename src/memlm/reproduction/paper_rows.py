"""The encoders of the table of arXiv 2602.13466: one width, trained for different objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, eos_id, pad_id
from memlm.errors import ConfigError
from memlm.evaluation.probe.settings import ProbeTraining
from memlm.files import read_tensors, write_tensors_atomic
from memlm.models import PassageEncoder, PassageEncoderConfig, TextAutoencoder, TextAutoencoderConfig
from memlm.models.runtime import no_shard_bars
from memlm.objectives import next_token
from memlm.training.config import OptimizerConfig, TrainingConfig
from memlm.training.loop.trainer import Batch, BatchFn, fit, reconstruction_batches
from memlm.training.schema import Count, Settings

_QUERY = 7
"""Tokens of a retrieval query; arXiv 2602.13466 uses 7-grams."""


class TableSettings(Settings):
    """The settings of all rows."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    text_field: str = "text"
    """Field of a record that holds the text; a dotted name reaches into records within it."""
    strict: bool = False
    """Stop at the first item of the text that cannot be read, instead of leaving it out and counting it."""
    length: Annotated[int, Field(ge=8, le=1024)] = 16
    """Tokens per passage."""
    vocab_size: Annotated[int, Field(ge=258, le=2**20)] = 1024
    """Vocabulary size of the BPE, which is trained on the training documents."""
    hidden_size: Annotated[int, Field(ge=16, le=2**14)] = 128
    """Width of every encoder, and the number of components of its vector."""
    num_layers: Count = 2
    """Layers of every encoder."""
    num_heads: Count = 16
    """Heads of every layer."""
    steps: Count = 1000
    """Updates of each training; rows for retrieval are trained twice."""
    batch_size: Count = 32
    """Passages in each update."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 4e-3
    """Peak learning rate of Muon and of AdamW."""
    passages: Annotated[int, Field(ge=8)] = 16384
    """Training passages of each probe."""
    held_out_passages: Count = 2048
    """Maximum number of held-out passages."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, and again for early stopping."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Encoders and probes of each row, whose figures are averaged; all share one split."""
    probe: ProbeTraining = ProbeTraining(steps=240, patience=3)
    """Settings of the probe decoder, the same for all rows."""

    @model_validator(mode="after")
    def _check(self) -> TableSettings:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads}).")
        return self


@dataclass(frozen=True)
class TableRow:
    """One encoder.

    Attributes:
        backbone: "mixer" or "llama".
        trained: the first objective.
        retrieval: whether training for retrieval follows.
        paper: cross-entropy, retention and token accuracy in arXiv 2602.13466; None where it has no such row.
    """

    backbone: str
    trained: Literal["untrained", "next_token", "autoencoder"]
    retrieval: bool
    paper: tuple[float, float, float] | None

    @property
    def name(self) -> str:
        """The label of the row."""
        kind = {"untrained": "untrained", "next_token": "causal", "autoencoder": "autoencoder"}[self.trained]
        backbone = "transformer" if self.backbone == "llama" else self.backbone
        return f"{backbone} {kind}" + (" -> retrieval" if self.retrieval else "")

    def folder_name(self, seed: int) -> str:
        """Return the name of the row's folder at one seed."""
        return f"{self.name.replace(' -> ', '-').replace(' ', '-')}-seed{seed}"


ROWS = (
    TableRow("mixer", "autoencoder", False, (1.528, 0.831, 0.553)),
    TableRow("mixer", "autoencoder", True, (5.767, 0.361, 0.045)),
    TableRow("mixer", "next_token", False, (5.815, 0.356, 0.048)),
    TableRow("mixer", "next_token", True, (5.594, 0.381, 0.048)),
    TableRow("mixer", "untrained", False, (5.937, 0.343, 0.041)),
    TableRow("llama", "autoencoder", False, (2.935, 0.675, 0.391)),
    TableRow("llama", "autoencoder", True, None),
    TableRow("llama", "next_token", False, (6.214, 0.311, 0.046)),
    TableRow("llama", "next_token", True, (6.380, 0.293, 0.044)),
    TableRow("llama", "untrained", False, (6.643, 0.264, 0.041)),
)


def train_encoder(
    row: TableRow,
    rows: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
    settings: TableSettings,
    folder: Path,
    *,
    seed: int,
    progress: bool,
) -> PassageEncoder:
    """Train a row's encoder, or read it where it is finished.

    Training for retrieval starts from the causal encoder or the autoencoder, which is trained first if missing. All
    encoders have folders in `folder`; `seed` decides weights and batches.
    """
    model = _new_encoder(row, tokenizer, settings, seed)
    if row.retrieval:
        start = replace(row, retrieval=False)
        first = train_encoder(start, rows, tokenizer, settings, folder, seed=seed, progress=progress)
        model.load_state_dict(first.state_dict())
    finished = folder / row.folder_name(seed) / "encoder.safetensors"
    if finished.is_file():
        model.load_state_dict(read_tensors(finished))
        return model.eval()
    finished.parent.mkdir(parents=True, exist_ok=True)
    autoencoder = row.trained == "autoencoder" and not row.retrieval
    trained = _new_autoencoder(row, tokenizer, settings, seed) if autoencoder else model
    if row.retrieval or row.trained != "untrained":
        size: dict[str, Any] = {"rows": len(rows), "tokens_per_row": settings.length, "progress": progress}
        with no_shard_bars():
            fit(trained, _batches(row, rows), _training(settings, seed), finished.parent, **size)
    if autoencoder:
        encoder = {k: v for k, v in trained.state_dict().items() if k.startswith(("embed_tokens.", "encoder."))}
        model.load_state_dict({**model.state_dict(), **encoder})
    write_tensors_atomic(finished, {k: v.contiguous() for k, v in model.state_dict().items()})
    return model.eval()


@torch.inference_mode()
def encode_passages(model: PassageEncoder, rows: PackedRows) -> Tensor:
    """Return the vectors (passages, width) of rows of tokens."""
    return torch.cat([model.encode(b.input_ids, b.attention_mask).float() for b in rows.batches(512)])


def _sizes(row: TableRow, tokenizer: PreTrainedTokenizerBase, settings: TableSettings) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": pad_id(tokenizer),
        "chunk_length": settings.length,
        "hidden_size": settings.hidden_size,
        "num_heads": settings.num_heads,
        "backbone": row.backbone,
        # without them the autoencoder of a transformer needs many times as many steps (LOG.md)
        "learned_positions": row.backbone == "llama",
    }


def _new_encoder(
    row: TableRow, tokenizer: PreTrainedTokenizerBase, settings: TableSettings, seed: int
) -> PassageEncoder:
    """Return an encoder pooled as in arXiv 2602.13466: causal encoders at the token before the last."""
    torch.manual_seed(seed)
    pooling = "last_token" if row.trained == "autoencoder" else "penultimate"
    objective = "retrieval" if row.retrieval else "next_token"
    sizes = _sizes(row, tokenizer, settings)
    return PassageEncoder(
        PassageEncoderConfig(**sizes, num_layers=settings.num_layers, pooling=pooling, objective=objective)
    )


def _new_autoencoder(
    row: TableRow, tokenizer: PreTrainedTokenizerBase, settings: TableSettings, seed: int
) -> TextAutoencoder:
    """Return an autoencoder with one hidden state for all tokens, as in arXiv 2602.13466.

    Each position has a map of its own from that state, with which training takes fewer steps.
    """
    torch.manual_seed(seed)
    return TextAutoencoder(
        TextAutoencoderConfig(
            **_sizes(row, tokenizer, settings),
            eos_token_id=eos_id(tokenizer),
            bottleneck_size=settings.hidden_size,
            num_encoder_layers=settings.num_layers,
            num_decoder_layers=settings.num_layers,
            bottleneck="last_token",
            readout="positionwise",
        )
    )


def _training(settings: TableSettings, seed: int) -> TrainingConfig:
    rate = settings.learning_rate
    return TrainingConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        evaluate_every=settings.steps,
        checkpoint_every=max(1, settings.steps // 4),
        log_every=max(1, settings.steps // 10),
        optimizer=OptimizerConfig(learning_rate=rate, adamw_learning_rate=rate),
    )


def _batches(row: TableRow, rows: PackedRows) -> BatchFn:
    if row.retrieval:
        return partial(_retrieval_batch, rows)
    return reconstruction_batches(rows) if row.trained == "autoencoder" else partial(_next_token_batch, rows)


def _next_token_batch(rows: PackedRows, chosen: Tensor, _: int) -> Batch:
    batch = rows.select(chosen)
    labels = next_token(batch.input_ids, batch.attention_mask).labels
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def _retrieval_batch(rows: PackedRows, chosen: Tensor, _: int) -> Batch:
    """Pair each passage with a query cut from it; positions depend on the batch alone, since loaders read ahead."""
    batch, length = rows.select(chosen), rows.input_ids.shape[1]
    width = min(_QUERY, length)
    generator = torch.Generator().manual_seed(int((chosen * torch.arange(1, len(chosen) + 1)).sum()))
    positions = torch.randint(length - width + 1, (len(batch), 1), generator=generator) + torch.arange(width)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "query_ids": batch.input_ids.gather(1, positions),
        "query_mask": batch.attention_mask.gather(1, positions),
    }
