"""Documents to batches of several objectives: each objective has every row of the batch, one below the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.errors import ConfigError
from memlm.objectives import Task, blank_copy, copy, next_token, reconstruction, token_dropout
from memlm.shapes import IGNORE_INDEX
from memlm.training.kept_memories import KeptMemories
from memlm.training.memory_config import Stage
from memlm.training.trainer import Batch


class MemoryBatches:
    """Takes rows of a stage; a pure function of the rows and of their place in training.

    Args:
        rows: of one length, whole chunks.
        stage: what is asked for.
        rows_per_step: over all processes.
        chunk_length: tokens.
        blank_id: token of blanks.
        delimiter_id: of the stage's copies that have one.
        seed: of what is drawn.
        kept: memories of the rows' chunks.
        ordinary: what random tokens are drawn from: not the text's own tokens alone, or others would never be learnt.

    Raises:
        ConfigError: kept memories beside an objective whose chunks are not those that were kept.
    """

    def __init__(
        self,
        rows: PackedRows,
        stage: Stage,
        *,
        rows_per_step: int,
        chunk_length: int,
        blank_id: int,
        delimiter_id: int,
        seed: int,
        kept: KeptMemories | None = None,
        ordinary: Sequence[int] = (),
    ) -> None:
        self.rows = rows
        self.stage = stage
        self.mixture = stage.mixture
        # over all processes: a weight that moves is the same in each of them
        self.rows_per_step = rows_per_step
        self.chunk_length = chunk_length
        chunks = rows.input_ids.shape[1] // chunk_length
        self.distances = torch.arange(1, chunks) if stage.distances == "every" else torch.tensor([chunks // 2])
        self.blank_id = blank_id
        self.ordinary = torch.tensor(ordinary)
        self.delimiter_id = delimiter_id if stage.delimiter else None
        self.seed = seed
        self.kept = kept
        if kept is not None and stage.changes_chunks:
            raise ConfigError(
                f"stage '{stage.name}' cannot read kept memories: {stage.changes_chunks} changes the chunks it reads; "
                "set training.keep_memories to false."
            )

    def __call__(self, chosen: Int[Tensor, " chosen"], place: int) -> Batch:
        """All objectives' rows of one step."""
        batch = self.rows.select(chosen)
        asked = [name for name in self.mixture.names if name != "reconstruction"]
        tasks = {name: self._task(name, batch, place) for name in asked}
        if not tasks:
            tasks = {"reconstruction": Task(batch.input_ids, torch.full_like(batch.input_ids, IGNORE_INDEX))}
        ones = torch.ones_like(batch.attention_mask)
        masks = [batch.attention_mask if name in ("next_token", "reconstruction") else ones for name in tasks]
        out = {
            "input_ids": torch.cat([task.input_ids for task in tasks.values()]),
            "attention_mask": torch.cat(masks),
            "labels": torch.cat([task.labels for task in tasks.values()]),
            "objective": torch.arange(len(tasks)).repeat_interleave(len(batch)),
            "loss_weights": self.mixture.at(place // self.rows_per_step),
        }
        if "reconstruction" in self.mixture.names:
            out["reconstruction_labels"] = self._reconstruction(batch, list(tasks))
        if self.kept is not None:
            out["memories"] = torch.cat(
                [self.kept.of(name, chosen, self._distances(len(chosen), place)) for name in tasks]
            )
        return out

    def _task(self, name: str, batch: PackedRows, place: int) -> Task:
        ids, mask = batch.input_ids, batch.attention_mask
        if name == "next_token":
            return next_token(ids, mask)
        if name == "blank_copy":
            start = self.chunk_length * self._distances(len(batch), place)
            ids = self._some_random(ids, place) if self.stage.draws_random else ids
            return blank_copy(ids, mask, blank_id=self.blank_id, start=start)
        repeated = copy(ids, mask, delimiter_id=self.delimiter_id)
        if name == "copy":
            return repeated
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        return token_dropout(repeated, blank_id=self.blank_id, share=self.stage.dropout_share, generator=draw)

    def _some_random(self, ids: Int[Tensor, "rows tokens"], place: int) -> Int[Tensor, "rows tokens"]:
        """Some tokens of each row drawn anew, by its place in training: alike however rows are shared out."""
        found, share = ids.clone(), self.stage.random_share_at(place // self.rows_per_step)
        for i, row in enumerate(found):
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place + i)
            changed = torch.rand(len(row), generator=draw) < share
            others = self.ordinary[torch.randint(len(self.ordinary), (len(row),), generator=draw)]
            found[i] = torch.where(changed, others, row)
        return found

    def _distances(self, rows: int, place: int) -> Int[Tensor, " rows"]:
        """Each row's, by its place in training."""
        return self.distances[(place + torch.arange(rows)) % len(self.distances)]

    def _reconstruction(self, batch: PackedRows, names: list[str]) -> Int[Tensor, "rows tokens"]:
        """Asked of the rows that hold the text itself; only the first of them where no objective reads it whole."""
        own = reconstruction(batch.input_ids, batch.attention_mask).labels
        nothing = torch.full_like(own, IGNORE_INDEX)
        if "next_token" in names or "reconstruction" in names:
            return torch.cat([own, *[nothing] * (len(names) - 1)])
        # copies hold the first half of the text
        half = own.shape[1] // 2
        own = torch.cat([own[:, :half], nothing[:, half:]], dim=1)
        return torch.cat([own, *[nothing] * (len(names) - 1)])
