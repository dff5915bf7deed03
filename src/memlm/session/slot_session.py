"""Sessions of a pretrained decoder that read text of any length as memories, at bounded memory, and continue it.

    read so far    block 0      block 1      block 2       newest tokens
    held           slots        slots        slots         tokens

A block becomes slots when the tokens behind it fill the window. Where the decoder's positions are used up, the oldest
blocks are forgotten, or they all stand at the first positions, side by side; the keys of the rest are moved back when
the decoder reads them. Slots are fitted for readers that stand close behind them, so blocks may share positions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from memlm.checksums import check_format
from memlm.data import decode_ids, encode_texts, eos_id
from memlm.data.corpus import parts_of
from memlm.data.given import folder_of, list_of_tokens, text_pieces
from memlm.durable import read_folder
from memlm.errors import CheckpointError, StoreError, UserError, Within
from memlm.files import read_json, read_tensors, write_file_atomic, write_folder_atomic, write_tensors_atomic
from memlm.models.runtime import sampling_options
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.models.slots.memories import FlatSlots
from memlm.session.blocks import Block, side_by_side
from memlm.store.slot_codec import SlotCodec
from memlm.store.text_store import TextStore

_JSON, _TENSORS = "slot_session.json", "slots.safetensors"
_NAMES = ("keys", "values", "bias", "positions", "lengths", "counts")
FORMAT = 2
"""The newest format of a saved session."""
_MOST = 2**20
_BEYOND = ("forget", "overlap")
_CHUNKS = 8
"""Chunks of a store that are held, and forgotten, together."""


class SlotStats(NamedTuple):
    """Numbers of what a session holds.

    Attributes:
        slots: slots of all blocks, that of the token before the text included.
        newest: tokens behind the blocks.
        forgotten: tokens that were dropped because the decoder has no more positions.
    """

    slots: int
    newest: int
    forgotten: int

    def __str__(self) -> str:
        return f"{self.slots} memories, {self.forgotten} tokens dropped, {self.newest} newest tokens"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1, 2] = FORMAT
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tokens_per_memory: Annotated[int | float, Field(ge=1, le=_MOST)]
    window: Annotated[int, Field(ge=1, le=_MOST)]
    max_positions: Annotated[int, Field(ge=1, lt=2**31)]
    beyond: Annotated[str, Field(max_length=64)] = "forget"
    starts: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=_MOST)]
    newest: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=_MOST)]
    forgotten: Annotated[int, Field(ge=0, lt=2**62)]


class SlotSession:
    """A pretrained decoder that reads one text as memories and continues it.

    Args:
        model: the decoder, or its folder or Hub id.
        tokens_per_memory: tokens for each slot.
        window: newest tokens that stay tokens at least.
        max_positions: greatest number of positions; by default all that the decoder has.
        beyond: when positions are used up, `forget` the oldest blocks, or let them `overlap` at the first positions.
            Nothing is forgotten then, and the slots grow with the text.

    Example:
        >>> session = SlotSession("runs/writer", tokens_per_memory=8)
        >>> session.read(open("book.txt"))
        >>> session.generate("The moral of this is", max_new_tokens=50)

    Raises:
        UserError: settings out of range.
    """

    def __init__(
        self,
        model: MemoryDecoder | str | Path,
        *,
        tokens_per_memory: int | float = 8,
        window: int = 64,
        max_positions: int | None = None,
        beyond: str = "forget",
    ) -> None:
        named = not isinstance(model, MemoryDecoder)
        self.model = MemoryDecoder.from_pretrained(str(folder_of(model, name="model"))) if named else model
        own = int(self.model.decoder.config.max_position_embeddings)
        self.tokens_per_memory, self.window = tokens_per_memory, window
        self.max_positions = own if max_positions is None else max_positions
        Within(1, _MOST).check("tokens_per_memory", tokens_per_memory)
        Within(1, _MOST).check("window", window, whole=True)
        Within(1, 2**31 - 1).check("max_positions", self.max_positions, whole=True)
        if not self.block_length + window < self.max_positions <= own:
            raise UserError(
                f"max_positions ({self.max_positions}) must lie above a block and the window ({self.block_length} + "
                f"{window}) and not above the decoder's {own}."
            )
        self.beyond = beyond
        if beyond not in _BEYOND:
            raise UserError(f"beyond ('{beyond}') must be one of: {', '.join(_BEYOND)}.")
        if beyond == "overlap" and not self.model.reader.rotary.moves:
            raise UserError("learned positions cannot be shared by blocks; leave beyond out.")
        self.blocks: list[Block] = []
        self.newest: list[int] = []
        self.forgotten = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the decoder."""
        return self.model.tokenizer

    @property
    def block_length(self) -> int:
        """The tokens of a block."""
        return self.model.settings.block_length

    def read(self, text: str | Iterable[str]) -> None:
        """Read text behind what was read before: a string, or an iterable of strings such as an open file."""
        for part in parts_of(text_pieces(text)):
            self.read_tokens(encode_texts(self.model.tokenizer, [part])[0])

    def read_tokens(self, tokens: list[int]) -> None:
        """Read token ids behind what was read before.

        Raises:
            UserError: the positions are used up, and learned, so that what is left cannot be moved.
            DataError: they are no token ids.
        """
        self.newest += list_of_tokens(tokens, words=len(self.model.tokenizer))
        while len(self.newest) >= self.block_length + self.window:
            self._encode_newest(self.block_length)

    def read_stored(self, store: TextStore, name: str) -> None:
        """Read a document's memories from a store that this decoder wrote, behind what was read before.

        Where the session has more tokens for each memory than the store, keys and values are made fewer. Tokens that
        stand before the document become memories, however few they are.

        Raises:
            StoreError: there is no such document, or the store holds memories of another kind.
            DamagedStoreError: its data is not what was written.
            UserError: the positions are used up, and learned, so that what is left cannot be moved.
            DataError: they are no token ids.
        """
        codec = store.codec
        if not isinstance(codec, SlotCodec):
            raise StoreError(f"'{store.store.folder}' holds no memories of a decoder; make one with memlm remember.")
        if self.newest:
            self._encode_newest(len(self.newest))
        for part in store.parts(name):
            for chunks in torch.arange(len(part.tokens)).split(_CHUNKS):
                found = codec.memories(part, chunks=chunks.tolist())
                start = int(part.tokens[: chunks[0]].sum()) if self.model.injection.takes_start else 0
                block = Block(found, start)
                if codec.slots.tokens_per_memory < self.tokens_per_memory and self.model.injection.takes_start:
                    slots = math.ceil(block.tokens / self.tokens_per_memory)
                    block = block._replace(memories=self.model.fewer(found, slots=slots))
                self.blocks.append(block)
                self._keep_within(self.max_positions - self.window)

    def _encode_newest(self, length: int) -> None:
        block, self.newest = self.newest[:length], self.newest[length:]
        self._keep_within(self.max_positions - length)
        held = sum(block.tokens for block in self.blocks) if self.model.injection.takes_start else 0
        # text beyond the positions is read at the last ones
        start = min(held, self.max_positions - len(block) - 2)
        found = self.model.memories([block], tokens_per_memory=self.tokens_per_memory, start=start, mode="chunks")
        self.blocks.append(Block(found, start))

    def _keep_within(self, positions: int) -> None:
        newest = min(len(self.newest), self.block_length + self.window)
        held = sum(block.tokens for block in self.blocks)
        while self.beyond == "forget" and self.blocks and 1 + held + newest > positions:
            if not self.model.reader.rotary.moves:
                raise UserError(
                    f"the {self.max_positions} positions are used up, and learned ones cannot be moved; begin anew."
                )
            dropped = self.blocks.pop(0).tokens
            held, self.forgotten = held - dropped, self.forgotten + dropped

    def memories(self, *, behind: int | None = None) -> SlotMemories | None:
        """Return the memories of all blocks at their positions, or None if there are none yet.

        Args:
            behind: positions that are needed behind blocks that may overlap; by default, of a block and the window.
        """
        if not self.blocks:
            return None
        needed = self.block_length + self.window if behind is None else behind
        positions = self.max_positions - needed if self.beyond == "overlap" else None
        return side_by_side(self.blocks, self.model.reader.rotary, positions=positions)

    def generate(
        self,
        prompt: str | None = None,
        *,
        max_new_tokens: int = 128,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> str:
        """Read `prompt` and continue; the session also reads the text that is generated.

        Args:
            prompt: a text that is read first.
            max_new_tokens: the greatest number of tokens; an end-of-text token ends earlier.
            streamer: a streamer of transformers.
            options: options of `generate()` such as do_sample, temperature and num_beams.

        Raises:
            UserError: nothing was read, or the new tokens do not fit the decoder's positions.
        """
        if prompt is not None:
            self.read(prompt)
        if not self.newest:
            raise UserError("nothing was read; read a text, or give a prompt.")
        room = self.max_positions - 1 - len(self.newest)
        Within(1, 2**31 - 1).check("max_new_tokens", max_new_tokens, whole=True)
        if max_new_tokens > room:
            raise UserError(f"max_new_tokens ({max_new_tokens}) must lie between 1 and {room}, what positions allow.")
        self._keep_within(self.max_positions - max_new_tokens)
        new = self._generated(max_new_tokens, streamer, options)
        end = eos_id(self.model.tokenizer)
        new = new[: new.index(end)] if end in new else new
        self.read_tokens(new)
        return decode_ids(self.model.tokenizer, new)

    @torch.no_grad()
    def _generated(self, max_new_tokens: int, streamer: BaseStreamer | None, options: dict[str, Any]) -> list[int]:
        memories = self.memories(behind=len(self.newest) + max_new_tokens)
        first = [self.model.reader.first_token_id] if memories is None else []
        inputs = self.model.inputs([[*first, *self.newest]], memories)
        options = {"pad_token_id": eos_id(self.model.tokenizer), "do_sample": False, **sampling_options(options)}
        found = cast(Any, self.model.decoder).generate(
            **inputs, max_new_tokens=max_new_tokens, streamer=streamer, **options
        )
        return found[0, inputs["input_ids"].shape[1] :].tolist()

    def stats(self) -> SlotStats:
        """Return the numbers of slots and tokens that the session holds."""
        slots = sum(int(block.memories.counts) - 1 for block in self.blocks)
        return SlotStats(slots + bool(self.blocks), len(self.newest), self.forgotten)

    def fork(self) -> SlotSession:
        """Return an independent session that has read the same; memories are shared, since they never change."""
        other = copy.copy(self)
        other.blocks, other.newest = list(self.blocks), list(self.newest)
        return other

    def save(self, folder: str | Path) -> None:
        """Write the session to a folder; an older session there is replaced, anything else is not.

        Raises:
            UserError: the folder holds something else.
        """
        file = _File(
            model=self.model.fingerprint(),
            tokens_per_memory=self.tokens_per_memory,
            window=self.window,
            max_positions=self.max_positions,
            beyond=self.beyond,
            starts=[block.start for block in self.blocks],
            newest=self.newest,
            forgotten=self.forgotten,
        )
        tensors = {
            f"{i}.{name}": x for i, block in enumerate(self.blocks) for name, x in _tensors(block.memories).items()
        }

        def fill(draft: Path) -> None:
            write_file_atomic(draft / _JSON, file.model_dump_json(indent=1) + "\n")
            write_tensors_atomic(draft / _TENSORS, tensors)

        write_folder_atomic(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path, model: MemoryDecoder | str | Path) -> SlotSession:
        """Read what `save` wrote; the model must be the one that wrote it.

        Raises:
            CheckpointError: the folder holds no session, a damaged one, or one of another model.
        """
        file, tensors = read_folder(folder_of(folder, name="session"), _read_files)
        settings = {name: getattr(file, name) for name in ("tokens_per_memory", "window", "max_positions", "beyond")}
        session = cls(model, **settings)
        found = session.model.fingerprint()
        if found != file.model:
            raise CheckpointError(
                f"'{folder}' is of another decoder or adapter ({file.model[:12]}) than this one ({found[:12]})."
            )
        words = int(session.model.decoder.config.vocab_size)
        if max(file.newest, default=0) >= words:
            raise CheckpointError(
                f"'{folder}' has token {max(file.newest)}, the decoder {words} tokens; save it again."
            )
        try:
            session.blocks = [Block(session._slots(tensors, i, x), x) for i, x in enumerate(file.starts)]
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the slots in '{folder}' are damaged ({error}); save it again.") from error
        session.newest, session.forgotten = file.newest, file.forgotten
        return session

    def _slots(self, tensors: dict[str, Tensor], number: int, start: int) -> SlotMemories:
        """Return a block from its tensors.

        Raises:
            KeyError, ValueError: a tensor is missing, does not fit the decoder or the others, or is not finite.
        """
        keys, values, bias, positions, lengths, counts = (tensors[f"{number}.{name}"] for name in _NAMES)
        layers, heads, size = self.model.slot_sizes
        if keys.ndim == 5:  # the first format: equally many slots of each head
            held = torch.full((layers, heads), keys.shape[3])
            keys, values, bias, positions = (x.flatten(0, 3) for x in (keys, values, bias, positions))
        else:
            held = tensors[f"{number}.held"]
        flat = FlatSlots(keys, values, bias, positions, held)
        _check_flat(flat, (layers, heads, size))
        longest = max(self.block_length + self.window, _CHUNKS * self.model.settings.chunk_length)
        whole = lengths.dtype == counts.dtype == torch.long and lengths.shape == counts.shape == (1,)
        unused = int(counts.sum()) * held.numel() - int(held.sum())
        # budgets of heads may leave less unused than one of them could take
        most = 1 if bool((held == held[0, 0]).all()) else int(lengths.sum())
        if not whole or not 1 <= int(lengths) - 1 - start <= longest or not 0 <= unused < most:
            raise ValueError(f"lengths {lengths.tolist()} and counts {counts.tolist()} do not fit a block")
        return SlotMemories(flat.layers(), lengths, counts)


def _check_flat(flat: FlatSlots, sizes: tuple[int, int, int]) -> None:
    """Raise ValueError where tensors do not fit a decoder of so many layers, heads and numbers, or each other."""
    layers, heads, size = sizes
    whole = all(x.dtype == torch.long for x in (flat.positions, flat.held))
    if not whole or not all(x.is_floating_point() and x.isfinite().all() for x in flat[:3]):
        raise ValueError("numbers of another type, or not finite")
    slots = len(flat.bias)
    fits = flat.keys.shape == flat.values.shape == (slots, size) and flat.bias.shape == flat.positions.shape == (slots,)
    if not fits or flat.held.shape != (layers, heads) or int(flat.held.min()) < 1 or int(flat.held.sum()) != slots:
        shapes = ", ".join(str(tuple(x.shape)) for x in flat)
        raise ValueError(f"shapes {shapes} do not fit a decoder of {layers} layers of {heads} heads of {size} numbers")


def _read_files(folder: Path) -> tuple[_File, dict[str, Tensor]]:
    values = read_json(folder / _JSON)
    check_format(folder, values.get("format"), FORMAT)
    try:
        file = _File.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"'{folder}' is no session: {error.errors()[0]['msg']}; save it again.") from error
    return file, read_tensors(folder / _TENSORS)


def _tensors(block: SlotMemories) -> dict[str, Tensor]:
    """Return the tensors of a block."""
    flat = FlatSlots.of(block)._asdict()
    return {
        name: x.contiguous().cpu() for name, x in (flat | {"lengths": block.lengths, "counts": block.counts}).items()
    }
