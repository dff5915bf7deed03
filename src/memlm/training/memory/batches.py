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
from memlm.training.config import Stage
from memlm.training.loop.trainer import Batch
from memlm.training.memory.cache import MemoryCache


class MemoryBatches:
    """Takes rows of a stage; a pure function of the rows and of their place in training.

    Args:
        rows: of one length, whole chunks.
        stage: what is asked for.
        rows_per_step: over all processes.
        chunk_length: tokens.
        blank_id: token of blanks.
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
        seed: int,
        kept: MemoryCache | None = None,
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
        self.seed = seed
        self.kept = kept
        if kept is not None and stage.changes_chunks:
            raise ConfigError(
                f"stage '{stage.name}' cannot read kept memories: {stage.changes_chunks} changes the chunks it reads; "
                "set training.memory_cache to false."
            )

    def __call__(self, chosen: Int[Tensor, " chosen"], place: int) -> Batch:
        """All objectives' rows of one step."""
        places = place + torch.arange(len(chosen))
        names = [name for name in self.mixture.names if name != "reconstruction"] or ["reconstruction"]
        own = {name: self._rows_of(name, places) for name in names}
        batches = {name: self.rows.select(chosen[rows]) for name, rows in own.items()}
        tasks = {name: self._task(name, batch, places[own[name]]) for name, batch in batches.items()}
        masks = [
            batch.attention_mask if name in ("next_token", "reconstruction") else torch.ones_like(batch.attention_mask)
            for name, batch in batches.items()
        ]
        counts = torch.tensor([len(batch) for batch in batches.values()])
        out = {
            "input_ids": torch.cat([task.input_ids for task in tasks.values()]),
            "attention_mask": torch.cat(masks),
            "labels": torch.cat([task.labels for task in tasks.values()]),
            "objective": torch.arange(len(tasks)).repeat_interleave(counts),
            "loss_weights": self.mixture.at(place // self.rows_per_step),
        }
        if "reconstruction" in self.mixture.names:
            out["reconstruction_labels"] = self._reconstruction(batches)
        if self.kept is not None:
            out["memories"] = torch.cat(
                [self.kept.of(name, chosen[rows], self._distances(places[rows])) for name, rows in own.items()]
            )
        return out

    def _rows_of(self, name: str, places: Int[Tensor, " rows"]) -> Int[Tensor, " chosen"]:
        """Which rows of a batch an objective has: all, or each n-th by its place in training."""
        return (places % self._interval(name, places) == 0).nonzero()[:, 0]

    def _interval(self, name: str, places: Int[Tensor, " rows"]) -> int:
        return self.stage.row_interval_at(name, int(places[:1].sum()) // self.rows_per_step)

    def _task(self, name: str, batch: PackedRows, places: Int[Tensor, " rows"]) -> Task:
        ids, mask = batch.input_ids, batch.attention_mask
        if name == "reconstruction":
            return Task(ids, torch.full_like(ids, IGNORE_INDEX))
        if name == "next_token":
            return next_token(ids, mask)
        if name == "blank_copy":
            start = self.chunk_length * self._distances(places)
            ids = self._some_random(ids, places) if self.stage.draws_random else ids
            return self._first_asked(blank_copy(ids, mask, blank_id=self.blank_id, start=start), places)
        repeated = copy(ids, mask)
        if name == "copy":
            return repeated
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + int(places[:1].sum()))
        return token_dropout(repeated, blank_id=self.blank_id, share=self.stage.dropout_share, generator=draw)

    def _first_asked(self, task: Task, places: Int[Tensor, " rows"]) -> Task:
        asked = self.stage.max_targets_at(int(places[:1].sum()) // self.rows_per_step)
        if asked is None:
            return task
        later = torch.arange(task.labels.shape[1]) % self.chunk_length >= asked
        return Task(task.input_ids, task.labels.masked_fill(later, IGNORE_INDEX))

    def _some_random(self, ids: Int[Tensor, "rows tokens"], places: Int[Tensor, " rows"]) -> Int[Tensor, "rows tokens"]:
        """Some tokens of each row drawn anew, by its place in training: alike however rows are shared out."""
        found = ids.clone()
        for i, (row, place) in enumerate(zip(found, places.tolist(), strict=True)):
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
            changed = torch.rand(len(row), generator=draw) < self.stage.random_share_at(place // self.rows_per_step)
            others = self.ordinary[torch.randint(len(self.ordinary), (len(row),), generator=draw)]
            found[i] = torch.where(changed, others, row)
        return found

    def _distances(self, places: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Each row's: those that an objective has are taken in turn."""
        return self.distances[places // self._interval("blank_copy", places) % len(self.distances)]

    def _reconstruction(self, batches: dict[str, PackedRows]) -> Int[Tensor, "rows tokens"]:
        """Asked of the rows that hold the text itself; only the first of them where no objective reads it whole."""
        first, *rest = batches.values()
        own = reconstruction(first.input_ids, first.attention_mask).labels
        if "next_token" not in batches and "reconstruction" not in batches:
            # copies hold the first half of the text
            own[:, own.shape[1] // 2 :] = IGNORE_INDEX
        return torch.cat([own, *[torch.full_like(batch.input_ids, IGNORE_INDEX) for batch in rest]])
