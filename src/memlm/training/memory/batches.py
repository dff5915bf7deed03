"""Documents to batches of several objectives: each objective has every row of the batch, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

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


@dataclass(frozen=True)
class MemoryBatches:
    """Batches of a stage: a pure function of the rows and of their positions in training.

    Attributes:
        rows: rows of one length, whole chunks.
        stage: objectives and their schedules.
        rows_per_step: rows of a step over all processes, so that schedules are the same in each of them.
        chunk_length: tokens of a chunk.
        blank_id: token of blanks.
        seed: seed of random tokens.
        kept: cached memories of the rows' chunks.
        ordinary: ids that random tokens are drawn from: not only the text's own, or others would never be learnt.

    Raises:
        ConfigError: cached memories beside an objective whose chunks differ from those that were encoded.
    """

    rows: PackedRows
    stage: Stage
    _: KW_ONLY
    rows_per_step: int
    chunk_length: int
    blank_id: int
    seed: int
    kept: MemoryCache | None = None
    ordinary: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.kept is not None and self.stage.changes_chunks:
            raise ConfigError(
                f"stage '{self.stage.name}' cannot read kept memories: {self.stage.changes_chunks} changes the chunks "
                "it reads; set training.memory_cache to false."
            )

    def __call__(self, chosen: Int[Tensor, " chosen"], place: int) -> Batch:
        """Return the rows of all objectives in one step."""
        places, mixture = place + torch.arange(len(chosen)), self.stage.mixture
        names = [name for name in mixture.names if name != "reconstruction"] or ["reconstruction"]
        own = {name: (places % self._interval(name, places) == 0).nonzero()[:, 0] for name in names}
        batches = {name: self.rows.select(chosen[rows]) for name, rows in own.items()}
        tasks = [self._task(name, batch, places[own[name]]) for name, batch in batches.items()]
        masks = [
            batch.attention_mask if name in ("next_token", "reconstruction") else torch.ones_like(batch.attention_mask)
            for name, batch in batches.items()
        ]
        counts = torch.tensor([len(batch) for batch in batches.values()])
        out = {
            "input_ids": torch.cat([task.input_ids for task in tasks]),
            "attention_mask": torch.cat(masks),
            "labels": torch.cat([task.labels for task in tasks]),
            "objective": torch.arange(len(tasks)).repeat_interleave(counts),
            "loss_weights": mixture.at(place // self.rows_per_step),
        }
        if "reconstruction" in mixture.names:
            out["reconstruction_labels"] = self._reconstruction(batches)
        if self.kept is not None:
            out["memories"] = torch.cat(
                [self.kept.of(name, chosen[rows], self._distances(places[rows])) for name, rows in own.items()]
            )
        return out

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
            return self._leading_targets(blank_copy(ids, mask, blank_id=self.blank_id, start=start), places)
        repeated = copy(ids, mask)
        if name == "copy":
            return repeated
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + int(places[:1].sum()))
        return token_dropout(repeated, blank_id=self.blank_id, share=self.stage.dropout_share, generator=draw)

    def _leading_targets(self, task: Task, places: Int[Tensor, " rows"]) -> Task:
        count = self.stage.max_targets_at(int(places[:1].sum()) // self.rows_per_step)
        if count is None:
            return task
        later = torch.arange(task.labels.shape[1]) % self.chunk_length >= count
        return Task(task.input_ids, task.labels.masked_fill(later, IGNORE_INDEX))

    @cached_property
    def _ordinary(self) -> Int[Tensor, " ids"]:
        return torch.tensor(self.ordinary)

    def _some_random(self, ids: Int[Tensor, "rows tokens"], places: Int[Tensor, " rows"]) -> Int[Tensor, "rows tokens"]:
        """Draw some tokens of each row anew, from its position in training: alike however rows are shared out."""
        found = ids.clone()
        for i, (row, place) in enumerate(zip(found, places.tolist(), strict=True)):
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
            changed = torch.rand(len(row), generator=draw) < self.stage.random_share_at(place // self.rows_per_step)
            others = self._ordinary[torch.randint(len(self.ordinary), (len(row),), generator=draw)]
            found[i] = torch.where(changed, others, row)
        return found

    def _distances(self, places: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Return the distance of each row; rows of an objective take distances in turn."""
        chunks = self.rows.input_ids.shape[1] // self.chunk_length
        every = self.stage.distances == "every"
        distances = torch.arange(1, chunks) if every else torch.tensor([chunks // 2])
        return distances[places // self._interval("blank_copy", places) % len(distances)]

    def _reconstruction(self, batches: dict[str, PackedRows]) -> Int[Tensor, "rows tokens"]:
        """Return targets of the rows that hold the text; only of its first half where no objective reads it whole."""
        first, *rest = batches.values()
        own = reconstruction(first.input_ids, first.attention_mask).labels
        if "next_token" not in batches and "reconstruction" not in batches:
            # copies hold the first half of the text
            own[:, own.shape[1] // 2 :] = IGNORE_INDEX
        return torch.cat([own, *[torch.full_like(batch.input_ids, IGNORE_INDEX) for batch in rest]])
