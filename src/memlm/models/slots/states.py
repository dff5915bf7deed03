"""States of a decoder's layers that read texts, in blocks whose slots are fitted together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.data.given import check_kind
from memlm.errors import UserError, Within, check_numbers
from memlm.models.slots.attention import AttentionRecord, ScoreRule
from memlm.models.slots.codes import rounded
from memlm.models.slots.fit import FitSettings, FittedSlots, fit_slots
from memlm.models.slots.head_budgets import HeadErrors
from memlm.models.slots.memories import LayerSlots
from memlm.models.slots.rotary import Rotary


def _scores_at_once(device: torch.device) -> int:
    """Return how many scores are held at once; on a CPU they should fit into its cache."""
    return 1 << 28 if device.type == "cuda" else 1 << 20


Tokens = Annotated[int, Within(1, 2**31 - 1)]
"""A number of tokens."""


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """Settings of the encoding of texts and of the fit of their slots.

    Raises:
        UserError: a value out of its range.
    """

    mode: str = "joint"
    """`joint` reads the whole text at once; `chunks` reads each chunk by itself, in parallel."""
    chunk_length: Tokens = 256
    """Tokens of a chunk that is read by itself."""
    block_length: Tokens = 512
    """Tokens whose slots are fitted together: a part of a text, or several chunks."""
    query_stride: Tokens = 1
    """Every `query_stride`-th token of a block gives reference queries."""
    query_distance: Tokens = 1024
    """The reference queries are the text's own, moved to positions 0 to `query_distance` - 1 behind the text."""
    near_distance: Tokens = 16
    """Positions up to this one are drawn about equally often. Beyond it, a position is drawn the less often the further
    it lies behind the text, because most reading happens soon behind a text."""
    fit: FitSettings = field(default_factory=FitSettings)
    """Settings of the fit."""
    heads: HeadErrors | None = None
    """The loss of each head by fewer slots, so that slots go to those that need them; None for equally many."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> EncodingSettings:
        """Return the settings in a mapping, such as `dataclasses.asdict` makes.

        Raises:
            UserError: unknown names, or a value out of its range.
        """
        try:
            more: dict[str, Any] = {
                "fit": FitSettings(**values.get("fit", {})),
                "heads": HeadErrors.of(values.get("heads")),
            }
            return cls(**{**values, **more})
        except TypeError as error:
            raise UserError(f"the settings of the encoding do not fit: {error}.") from None

    def __post_init__(self) -> None:
        if str(self.mode) not in ("joint", "chunks"):
            raise UserError(f"mode ('{self.mode}') must be 'joint' or 'chunks'.")
        check_numbers(self)
        check_kind(self.fit, FitSettings, name="fit", instead="FitSettings(...)")
        if self.heads is not None:
            check_kind(self.heads, HeadErrors, name="heads", instead="measured_heads(model)")
        if self.mode == "chunks" and self.block_length % self.chunk_length:
            raise UserError(
                f"block_length ({self.block_length}) must be a multiple of chunk_length ({self.chunk_length})."
            )

    def head_slots(self, layer: int, heads: int, tokens: int, mean: int) -> list[int]:
        """Return the slots of each of a layer's heads for a block of tokens.

        Args:
            layer: index of the layer.
            heads: heads of keys and values.
            tokens: tokens of the block.
            mean: slots for each head of the decoder in the mean.

        Raises:
            UserError: the errors are those of a decoder with other heads.
        """
        if self.heads is None:
            return [mean] * heads
        layers, own = self.heads.sizes
        if own != heads or layer >= layers:
            raise UserError(f"the head errors are of {layers} layers of {own} heads; measure those of this decoder.")
        return self.heads.slots(tokens, mean)[layer].tolist()


class Blocks(NamedTuple):
    """Sizes of the blocks that texts are cut into.

    Attributes:
        tokens: (batch, blocks), the number of tokens in each block.
        lengths: (batch,), the position behind each text.
        length: tokens of a full block.
        first: position at which each text begins.
    """

    tokens: Int[Tensor, "batch blocks"]
    lengths: Int[Tensor, " batch"]
    length: int
    first: int


@dataclass(frozen=True, eq=False)
class LayerStates:
    """Queries, keys and values of one layer.

    Attributes:
        layer: index of the layer.
        first_key: (batch, key heads, 1, numbers), of the token before the text, which is kept as it is.
        first_value: (batch, key heads, 1, numbers).
        queries: (batch, blocks, key heads, group, length, numbers), rotated to their tokens' positions.
        keys: (batch, blocks, key heads, length, numbers), rotated.
        values: (batch, blocks, key heads, length, numbers).
        rule: how the layer scores keys.
    """

    layer: int
    first_key: Float[Tensor, "batch heads 1 numbers"]
    first_value: Float[Tensor, "batch heads 1 numbers"]
    queries: Float[Tensor, "batch blocks heads group length numbers"]
    keys: Float[Tensor, "batch blocks heads length numbers"]
    values: Float[Tensor, "batch blocks heads length numbers"]
    rule: ScoreRule

    @classmethod
    def of(cls, record: AttentionRecord, batch: int, length: int) -> LayerStates:
        """Return the states of a layer that read one row for each text, or for each chunk, behind a first token.

        Args:
            record: what the layer's attention read.
            batch: number of texts.
            length: tokens of a block.
        """

        def blocks(x: Tensor) -> Tensor:
            texts = x[:, :, 1:].unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
            return texts.unflatten(2, (-1, length)).transpose(1, 2)

        key, value = (x.unflatten(0, (batch, -1))[:, 0, :, :1] for x in (record.key, record.value))
        queries = blocks(record.query).unflatten(2, (key.shape[1], -1))
        keys, values = blocks(record.key), blocks(record.value)
        return cls(record.layer, key, value, queries, keys, values, record.rule)

    def behind_first(self, keys: Tensor, values: Tensor, bias: Tensor, positions: Tensor) -> LayerSlots:
        """Return slots (batch, key heads, slots, numbers) behind that of the token before the text."""
        zero = torch.zeros_like(bias[..., :1])
        return LayerSlots(
            torch.cat([self.first_key, keys], dim=2),
            torch.cat([self.first_value, values], dim=2),
            torch.cat([zero, bias], dim=2),
            torch.cat([zero.long(), positions], dim=2),
        )

    def fitted(
        self, blocks: Blocks, counts: Int[Tensor, "batch blocks"], rotary: Rotary, settings: EncodingSettings
    ) -> LayerSlots:
        """Return the slots that act on the text's own queries, moved behind the text, as all keys and values do.

        Args:
            blocks: sizes of the blocks.
            counts: (batch, blocks), slots of each block.
            rotary: moves the queries.
            settings: of the encoding.
        """
        batch, num_blocks, heads, _, numbers = self.keys.shape
        fits = list(self._fits(blocks, counts, settings))
        most = max((fit.slots for fit in fits), default=0)
        keys, values = (self.keys.new_zeros(batch, num_blocks, heads, most, numbers) for _ in range(2))
        bias = self.keys.new_full((batch, num_blocks, heads, most), -torch.inf, dtype=torch.float)
        positions = torch.zeros_like(bias, dtype=torch.long)
        for fit in fits:
            found, place = self._fit(fit, blocks, rotary, settings), (*fit.at, slice(fit.slots))
            picked = _picked(self.keys[fit.at][..., : fit.tokens, :], found.indices)
            keys[place] = rounded(picked, settings.fit.bits)
            values[place] = rounded(found.values, settings.fit.bits).to(keys)
            bias[place] = found.bias
            positions[place] = blocks.first + fit.block[:, None, None] * blocks.length + found.indices
        return self.behind_first(*(x.transpose(1, 2).flatten(2, 3) for x in (keys, values, bias, positions)))

    def _fits(self, blocks: Blocks, counts: Int[Tensor, "batch blocks"], settings: EncodingSettings) -> Iterator[_Fit]:
        """Yield the fits of heads with equally many tokens and slots."""
        for row, block, tokens, mean in self._groups(blocks.tokens, counts, settings):
            slots = torch.tensor(settings.head_slots(self.layer, self.keys.shape[2], tokens, mean))
            for count in slots.unique().tolist():
                heads = torch.nonzero(slots == count)[:, 0].to(row.device)
                yield _Fit(row, block, heads, tokens, count)

    def _groups(
        self, tokens: Tensor, counts: Tensor, settings: EncodingSettings
    ) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """Yield rows and blocks with equally many tokens and slots, as many as may be fitted at once."""
        for size, slots in torch.stack([tokens, counts], -1).flatten(0, 1).unique(dim=0).tolist():
            if slots:
                one = self.queries[0, 0, ..., 0].numel() * size // settings.query_stride
                at_once = max(1, _scores_at_once(tokens.device) // one)
                row, block = torch.nonzero((tokens == size) & (counts == slots), as_tuple=True)
                for part in torch.arange(len(row), device=row.device).split(at_once):
                    yield row[part], block[part], size, slots

    def _fit(self, fit: _Fit, blocks: Blocks, rotary: Rotary, settings: EncodingSettings) -> FittedSlots:
        tokens, device = fit.tokens, fit.row.device
        if fit.slots == tokens:  # every key and value as it is
            values = self.values[fit.at][..., :tokens, :]
            every = torch.arange(tokens, device=device).expand(values.shape[:3])
            return FittedSlots(every, torch.zeros_like(every, dtype=torch.float), values)
        queries, visible = self._references(fit, blocks, rotary, settings)
        keys, values = (x[fit.at][..., :tokens, :].float().flatten(0, 1) for x in (self.keys, self.values))
        at_once = max(1, _scores_at_once(device) // (queries.shape[1] * tokens))
        found = [
            self._fit_heads(*heads, slots=fit.slots, settings=settings.fit)
            for heads in zip(*(_split(x, len(keys), at_once) for x in (queries, keys, values, visible)), strict=True)
        ]
        return FittedSlots(*(torch.cat(parts).unflatten(0, (len(fit.row), -1)) for parts in zip(*found, strict=True)))

    def _fit_heads(
        self,
        queries: Float[Tensor, "heads queries numbers"],
        keys: Float[Tensor, "heads tokens numbers"],
        values: Float[Tensor, "heads tokens numbers"],
        visible: Bool[Tensor, "heads queries tokens"] | None,
        *,
        slots: int,
        settings: FitSettings,
    ) -> FittedSlots:
        def rescored(indices: Tensor) -> Tensor:
            return self.rule.scores(queries, rounded(_picked(keys, indices), settings.bits))

        return fit_slots(
            self.rule.scores(queries, keys),
            values,
            slots,
            settings,
            visible=visible,
            rescored=None if settings.bits is None else rescored,
        )

    def _references(
        self, fit: _Fit, blocks: Blocks, rotary: Rotary, settings: EncodingSettings
    ) -> tuple[Float[Tensor, "heads queries numbers"], Bool[Tensor, "heads queries tokens"] | None]:
        """Return the blocks' own queries, moved behind the text, and the tokens that each sees; None for all."""
        heads, group, tokens, device = len(fit.heads), self.queries.shape[3], fit.tokens, fit.row.device
        chosen = torch.arange(0, tokens, settings.query_stride, device=device)
        own = (blocks.first + fit.block * blocks.length)[:, None] + torch.arange(tokens, device=device)
        reader = blocks.lengths[fit.row][:, None] + reader_distances(self.layer, settings)[:tokens].to(device)[chosen]
        queries = self.queries[fit.at][..., chosen, :].flatten(1, 2)
        queries = rotary.move(queries, (reader - own[:, chosen])[:, None], layer=self.layer)
        queries = queries.unflatten(1, (heads, group)).flatten(2, 3).flatten(0, 1)
        if self.rule.window is None:
            return queries, None
        visible = reader[:, :, None] - own[:, None] < self.rule.window
        return queries, visible[:, None].repeat(1, heads, group, 1).flatten(0, 1)


class _Fit(NamedTuple):
    """Heads of blocks that have equally many tokens and slots.

    Attributes:
        row: (fits,), index of the text.
        block: (fits,), index of the block in its text.
        heads: (heads,), heads of keys and values.
        tokens: of each block.
        slots: of each head.
    """

    row: Int[Tensor, " fits"]
    block: Int[Tensor, " fits"]
    heads: Int[Tensor, " heads"]
    tokens: int
    slots: int

    @property
    def at(self) -> tuple[Tensor, Tensor, Tensor]:
        """The index of (fits, heads) in tensors whose first sizes are (batch, blocks, heads)."""
        return self.row[:, None], self.block[:, None], self.heads[None]


def _split(x: Tensor | None, heads: int, at_once: int) -> list[Any]:
    """Return parts of at most `at_once` heads, or as many times None."""
    return [None] * -(-heads // at_once) if x is None else list(x.split(at_once))


def _picked(keys: Float[Tensor, "*heads keys numbers"], indices: Int[Tensor, "*heads slots"]) -> Tensor:
    """Return the keys (..., slots, numbers) at some places."""
    return keys.gather(-2, indices[..., None].expand(*indices.shape, keys.shape[-1]))


def reader_distances(layer: int, settings: EncodingSettings) -> Int[Tensor, " length"]:
    """Return the distances of reference queries; the logarithm of distance and `near_distance` is uniform."""
    # the same draw for every block, so that a text has the same memories in every batch
    drawn = torch.rand(settings.block_length, generator=torch.Generator().manual_seed(layer), dtype=torch.double)
    near, most = settings.near_distance, settings.query_distance
    return (near * ((1 + most / near) ** drawn - 1)).long().clamp(max=most - 1)
