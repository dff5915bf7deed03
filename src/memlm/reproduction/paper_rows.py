"""The encoders of the table of arXiv 2602.13466: one width, trained for different objectives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, eos_id, pad_id
from memlm.models import PassageEncoder, PassageEncoderConfig, TextAutoencoder, TextAutoencoderConfig
from memlm.models.runtime import no_shard_bars
from memlm.objectives import next_token
from memlm.training.config import TrainingConfig
from memlm.training.loop.trainer import Batch, BatchFn, fit, reconstruction_batches

Trained = Literal["untrained", "next_token", "autoencoder"]
_QUERY = 7
"""Tokens of a retrieval query; arXiv 2602.13466 uses 7-grams."""


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
    trained: Trained
    retrieval: bool
    paper: tuple[float, float, float] | None

    @property
    def name(self) -> str:
        """The label of the row."""
        kind = {"untrained": "untrained", "next_token": "causal", "autoencoder": "autoencoder"}[self.trained]
        backbone = "transformer" if self.backbone == "llama" else self.backbone
        return f"{backbone} {kind}" + (" -> retrieval" if self.retrieval else "")

    @property
    def learned_positions(self) -> bool:
        """True for transformers, whose autoencoder needs many times as many steps without them (LOG.md)."""
        return self.backbone == "llama"

    @property
    def pooling(self) -> str:
        """The pooling of arXiv 2602.13466: the token before the last for causal encoders, the last for autoencoders."""
        return "last_token" if self.trained == "autoencoder" else "penultimate"


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


@dataclass(frozen=True)
class EncoderSizes:
    """The sizes of all encoders.

    Attributes:
        hidden_size: the width, and the number of components of the vector.
        num_layers: the layers of the encoder, and of the autoencoder's decoder.
        num_heads: the heads of every layer.
    """

    hidden_size: int
    num_layers: int
    num_heads: int


def train_encoder(
    row: TableRow,
    rows: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
    sizes: EncoderSizes,
    training: TrainingConfig,
    folder: Path,
    *,
    progress: bool,
) -> PassageEncoder:
    """Train a row's encoder, or read it where it is finished.

    Training for retrieval starts from the causal encoder or the autoencoder, which is trained first if missing.

    Args:
        row: the encoder to train.
        rows: training passages.
        tokenizer: the tokenizer of the passages.
        sizes: the sizes of all encoders.
        training: steps, batch size, seed, learning rate.
        folder: the parent of the encoders' folders.
        progress: show progress on stderr.
    """
    length = rows.input_ids.shape[1]
    model = _new(
        row, tokenizer, sizes, length, objective="retrieval" if row.retrieval else "next_token", training=training
    )
    if row.retrieval:
        start = TableRow(row.backbone, row.trained, False, None)
        first = train_encoder(start, rows, tokenizer, sizes, training, folder, progress=progress)
        model.load_state_dict(first.state_dict())
    place = folder / f"{row.name.replace(' -> ', '-').replace(' ', '-')}-seed{training.seed}"
    if (place / "encoder.safetensors").is_file():
        model.load_state_dict(load_file(place / "encoder.safetensors"))
        return model.eval()
    with no_shard_bars():
        _train(row, model, rows, tokenizer, sizes, training, place, progress=progress)
    draft = place / ".encoder.draft"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, draft)
    draft.replace(place / "encoder.safetensors")
    return model.eval()


@torch.inference_mode()
def encode_passages(model: PassageEncoder, rows: PackedRows) -> Tensor:
    """Return the vectors (passages, width) of rows of tokens."""
    return torch.cat([model.encode(b.input_ids, b.attention_mask).float() for b in rows.batches(512)])


def _new(
    row: TableRow,
    tokenizer: PreTrainedTokenizerBase,
    sizes: EncoderSizes,
    length: int,
    *,
    objective: str,
    training: TrainingConfig,
) -> PassageEncoder:
    torch.manual_seed(training.seed)
    return PassageEncoder(
        PassageEncoderConfig(
            vocab_size=len(tokenizer),
            pad_token_id=pad_id(tokenizer),
            chunk_length=length,
            hidden_size=sizes.hidden_size,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            backbone=row.backbone,
            learned_positions=row.learned_positions,
            pooling=row.pooling,
            objective=objective,
        )
    )


def _train(
    row: TableRow,
    model: PassageEncoder,
    rows: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
    sizes: EncoderSizes,
    training: TrainingConfig,
    folder: Path,
    *,
    progress: bool,
) -> None:
    length = rows.input_ids.shape[1]
    common: dict[str, Any] = {"rows": len(rows), "tokens_per_row": length, "progress": progress}
    if row.retrieval:
        fit(model, _retrieval_batches(rows), training, folder, **common)
    elif row.trained == "next_token":
        fit(model, _next_token_batches(rows), training, folder, **common)
    elif row.trained == "autoencoder":
        autoencoder = _autoencoder(row, tokenizer, sizes, length, training)
        fit(autoencoder, reconstruction_batches(rows), training, folder, **common)
        encoder = {k: v for k, v in autoencoder.state_dict().items() if k.startswith(("embed_tokens.", "encoder."))}
        model.load_state_dict({**model.state_dict(), **encoder})
    else:
        folder.mkdir(parents=True, exist_ok=True)


def _autoencoder(
    row: TableRow, tokenizer: PreTrainedTokenizerBase, sizes: EncoderSizes, length: int, training: TrainingConfig
) -> TextAutoencoder:
    """Return an autoencoder with one hidden state for all tokens, as in arXiv 2602.13466.

    Each position has a map of its own from that state, with which training takes fewer steps.
    """
    torch.manual_seed(training.seed)
    return TextAutoencoder(
        TextAutoencoderConfig(
            vocab_size=len(tokenizer),
            pad_token_id=pad_id(tokenizer),
            eos_token_id=eos_id(tokenizer),
            chunk_length=length,
            hidden_size=sizes.hidden_size,
            bottleneck_size=sizes.hidden_size,
            num_encoder_layers=sizes.num_layers,
            num_decoder_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            backbone=row.backbone,
            learned_positions=row.learned_positions,
            bottleneck="last_token",
            readout="positionwise",
        )
    )


def _next_token_batches(rows: PackedRows) -> BatchFn:
    def batch_fn(chosen: Tensor, _: int) -> Batch:
        batch = rows.select(chosen)
        labels = next_token(batch.input_ids, batch.attention_mask).labels
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}

    return batch_fn


def _retrieval_batches(rows: PackedRows) -> BatchFn:
    """Pair each passage with a query cut from it; positions depend on the batch alone, since loaders read ahead."""
    width = min(_QUERY, rows.input_ids.shape[1])

    def batch_fn(chosen: Tensor, _: int) -> Batch:
        batch = rows.select(chosen)
        generator = torch.Generator().manual_seed(int((chosen * torch.arange(1, len(chosen) + 1)).sum()))
        starts = torch.randint(rows.input_ids.shape[1] - width + 1, (len(batch), 1), generator=generator)
        places = starts + torch.arange(width)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "query_ids": batch.input_ids.gather(1, places),
            "query_mask": batch.attention_mask.gather(1, places),
        }

    return batch_fn


def paper_figures(row: TableRow) -> tuple[str, str, str]:
    """Return the cells of arXiv 2602.13466: cross-entropy, retention, token accuracy."""
    if row.paper is None:
        return "", "", ""
    nats, retention, accuracy = row.paper
    return f"{nats:.3f}", f"{100 * retention:.1f} %", f"{100 * accuracy:.1f} %"
