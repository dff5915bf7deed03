"""Sessions: texts of any length are read as memories, and generation goes on behind them at bounded memory.

Full chunks become memories, the newest tokens stay tokens (memlm.session.history). When generation fills a chunk, it
becomes a memory too, so that the decoder never holds more than its window of slots and one chunk of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from memlm.data import decode_ids, encode_texts, eos_id, pad_id
from memlm.data.corpus import parts_of
from memlm.encoders.base import model_fingerprint
from memlm.errors import UserError
from memlm.models import MemoryModelForCausalLM
from memlm.models.loading import load_model
from memlm.models.memory.prompt import span_of
from memlm.session.history import History, load_session, save_session
from memlm.store.codec import ROWS
from memlm.store.quantize import dequantize
from memlm.store.text_store import TextStore

FIDELITY = 0.98
"""Share of a chunk's tokens that its memory must give back; below it the chunk is read as tokens."""
_REFUSED = ("input_ids", "attention_mask", "memories", "max_length", "num_return_sequences", "return_dict_in_generate")


@dataclass(frozen=True)
class SessionStats:
    """What a session's decoder reads of one text.

    Attributes:
        memories: chunks read as memories.
        as_tokens: chunks read as tokens, as their memories are not faithful enough.
        forgotten: chunks that did not fit any more.
        newest: tokens behind them.
        positions: decoder positions that all of it takes.
    """

    memories: int
    as_tokens: int
    forgotten: int
    newest: int
    positions: int


class MemorySession:
    """One text, or several side by side, read and continued.

    Example:
        >>> session = MemorySession("runs/memory")
        >>> session.read(open("book.txt"))
        >>> session.generate("The moral of this is", max_new_tokens=50)
    """

    def __init__(
        self,
        model: str | Path | tuple[MemoryModelForCausalLM, PreTrainedTokenizerBase],
        *,
        rows: int = 1,
        fidelity: float = FIDELITY,
        max_positions: int | None = None,
    ) -> None:
        """Begin with nothing read.

        Args:
            model: a memory model's run folder, or the model and its tokenizer.
            rows: texts read side by side.
            fidelity: chunks whose memory gives back a smaller share of their tokens are read as tokens; 0 trusts every
                memory, and saves the reading back.
            max_positions: decoder positions for memories and older chunks at most; by default all that it has.

        Raises:
            CheckpointError: no memory model there.
            UserError: a model whose layout has no prompts, or settings that cannot be.
        """
        loaded = load_model(model, MemoryModelForCausalLM) if isinstance(model, str | Path) else model
        self.model, self.tokenizer = loaded[0].eval(), loaded[1]
        if not 0 <= fidelity <= 1:
            raise UserError(f"fidelity ({fidelity}) must lie between 0 and 1.")
        if rows < 1:
            raise UserError(f"rows ({rows}) must be at least 1.")
        self.fidelity = fidelity
        self.window = _window(self.model, max_positions)
        self.histories = [History() for _ in range(rows)]
        self.model.prompt([[[0]]])  # says now if this model has no prompts

    def read(self, text: str | Iterable[str] | Sequence[str | Iterable[str]]) -> None:
        """Read on, in a stream.

        Args:
            text: for one row, a string or pieces of it (an open file); for several, one such each.

        Raises:
            UserError: another number of texts than rows.
        """
        texts = [text] if len(self.histories) == 1 else list(text)
        if len(texts) != len(self.histories) or (isinstance(text, str) and len(self.histories) > 1):
            raise UserError(f"{len(texts)} texts do not fit {len(self.histories)} rows; give one text for each.")
        for history, stream in zip(self.histories, texts, strict=True):
            for part in parts_of([stream] if isinstance(stream, str) else stream):  # type: ignore[list-item]
                self._take(history, encode_texts(self.tokenizer, [part])[0])

    def read_tokens(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read on, a list of tokens for each row.

        Raises:
            UserError: another number of lists than rows.
        """
        if len(tokens) != len(self.histories):
            raise UserError(f"{len(tokens)} lists of tokens do not fit {len(self.histories)} rows; give one for each.")
        for history, ids in zip(self.histories, tokens, strict=True):
            self._take(history, list(ids))

    def read_stored(self, store: TextStore, name: str, *, row: int = 0) -> None:
        """Read a document of a store: its memories as they are kept, its tokens where they are not faithful enough.

        Raises:
            StoreError: it is not there.
            DamagedStoreError: its data is not what was written.
        """
        history = self.histories[row]
        length = self.model.config.chunk_length
        for part in store.parts(name):
            if not len(part.tokens):
                continue
            self._close(history)
            poor = (part.tokens < length) | (part.fidelity < self.fidelity)
            poor[-1] = True  # what the next token is predicted from
            tokens = store.tokens(part, poor.nonzero()[:, 0].tolist())
            memories = dequantize(part.memories).to(self.model.device, self.model.dtype)
            chunks = [tokens[i] if as_tokens else memories[i] for i, as_tokens in enumerate(poor.tolist())]
            history.chunks += chunks[:-1]
            history.newest = tokens[len(poor) - 1]
            self._forget(history)

    @overload
    def generate(self, prompt: str | None = None, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        max_new_tokens: int = 128,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Continue what was read, after `prompt`; what is written is read too.

        Where a chunk fills, it becomes a memory and generation goes on behind it; beams are chosen there.

        Args:
            prompt: read first; one for each row where there are several.
            max_new_tokens: tokens written for each row, at most; the end of a text ends a row.
            streamer: of transformers; one row only.
            options: for `generate()`: do_sample, temperature, num_beams, use_cache, cache_implementation and so on.

        Returns:
            The text of each row, a string where there is one row and `prompt` is no list.

        Raises:
            UserError: nothing was read, or an option that sessions set themselves.
        """
        if prompt is not None:
            self.read(prompt)
        written = self.generate_tokens(max_new_tokens=max_new_tokens, streamer=streamer, **options)
        texts = [decode_ids(self.tokenizer, ids) for ids in written]
        return texts if len(texts) > 1 or not (prompt is None or isinstance(prompt, str)) else texts[0]

    def generate_tokens(
        self, *, max_new_tokens: int = 128, streamer: BaseStreamer | None = None, **options: Any
    ) -> list[list[int]]:
        """As `generate`, tokens for each row, without the end of text."""
        self._refuse(options, streamer, max_new_tokens)
        left = [max_new_tokens] * len(self.histories)
        written: list[list[int]] = [[] for _ in self.histories]
        stream = None if streamer is None else _PieceStreamer(streamer)
        if streamer is not None:
            # what a streamer is given first is its prompt
            streamer.put(torch.tensor(self.histories[0].newest))
        while rows := [row for row, count in enumerate(left) if count]:
            for row in rows:
                self._settle(self.histories[row])
            room = min(min(left[row], self._room(self.histories[row])) for row in rows)
            for row, ids in zip(rows, self._piece(rows, room, stream, options), strict=True):
                self.histories[row].newest += ids
                written[row] += ids
                left[row] = left[row] - len(ids) if len(ids) == room else 0
        for history in self.histories:
            self._settle(history)
        if streamer is not None:
            streamer.end()
        return written

    def save(self, folder: str | Path) -> None:
        """Write what was read to a folder; one that is there is replaced."""
        save_session(
            Path(folder),
            self.histories,
            model=model_fingerprint(self.model, self.tokenizer),
            fidelity=self.fidelity,
            max_positions=self.window,
        )

    @classmethod
    def load(
        cls, folder: str | Path, model: str | Path | tuple[MemoryModelForCausalLM, PreTrainedTokenizerBase]
    ) -> MemorySession:
        """A saved session, with the model that it was saved with.

        Raises:
            CheckpointError: missing, damaged, of a newer format or of another model.
        """
        session = cls(model)
        writer = session.model.encoder.config
        file, session.histories = load_session(
            Path(folder),
            model=model_fingerprint(session.model, session.tokenizer),
            shape=(writer.memories_per_chunk, writer.bottleneck_size),
            words=writer.vocab_size,
        )
        session.fidelity, session.window = file.fidelity, _window(session.model, file.max_positions)
        return session

    def fork(self) -> MemorySession:
        """Another session that has read the same; the model is shared."""
        other = copy.copy(self)
        other.histories = [history.copy() for history in self.histories]
        return other

    def prompt(self) -> dict[str, Tensor]:
        """What the model reads next, for `model.generate(**prompt)`."""
        return self.model.prompt([history.pieces() for history in self.histories])

    def stats(self, row: int = 0) -> SessionStats:
        """What the decoder reads of one row."""
        history = self.histories[row]
        return SessionStats(
            memories=len(history.chunks) - history.as_tokens,
            as_tokens=history.as_tokens,
            forgotten=history.forgotten,
            newest=len(history.newest),
            positions=span_of(self.model.config, history.pieces()),
        )

    def _room(self, history: History) -> int:
        """Tokens that can be written before a chunk becomes a memory: the first of the next chunk still sees it."""
        return self.model.config.chunk_length - len(history.newest) + 1

    def _take(self, history: History, tokens: list[int]) -> None:
        """Read tokens behind the newest ones; all full chunks become memories but one that nothing follows."""
        history.newest += tokens
        self._settle(history)

    def _settle(self, history: History) -> None:
        length = self.model.config.chunk_length
        full = max(0, len(history.newest) - 1) // length
        if not full:
            return
        ids, history.newest = history.newest[: full * length], history.newest[full * length :]
        chunks = [ids[i : i + length] for i in range(0, len(ids), length)]
        for first in range(0, full, ROWS):
            history.chunks += self._chunks(chunks[first : first + ROWS])
            self._forget(history)

    def _close(self, history: History) -> None:
        """The newest tokens as a chunk of their own, as another text follows: a memory if they fill one."""
        if history.newest:
            full = [history.newest] if len(history.newest) == self.model.config.chunk_length else []
            history.chunks += self._chunks(full) or [history.newest]
            history.newest = []

    @torch.inference_mode()
    def _chunks(self, chunks: list[list[int]]) -> list[Tensor | list[int]]:
        """Memories of full chunks, or their tokens where a memory does not give enough of them back."""
        if not chunks:
            return []
        ids = torch.tensor(chunks, device=self.model.device)
        memories = self.model.encode_chunks(ids[None], torch.ones_like(ids)[None])[0]
        if not self.fidelity:
            return list(memories)
        right = (self.model.decode(memories).argmax(-1) == ids).float().mean(-1) >= self.fidelity
        return [m if good else c for m, c, good in zip(memories, chunks, right.tolist(), strict=True)]

    def _forget(self, history: History) -> None:
        history.keep_within(self.model.config, self.window)

    def _refuse(self, options: dict[str, Any], streamer: BaseStreamer | None, max_new_tokens: int) -> None:
        wrong = next((name for name in _REFUSED if name in options), None)
        if wrong is not None:
            raise UserError(f"'{wrong}' is the session's own; leave it out (fork() gives several continuations).")
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens ({max_new_tokens}) must not be negative.")
        if streamer is not None and len(self.histories) > 1:
            raise UserError(f"a streamer shows one row and the session has {len(self.histories)}; leave it out.")
        empty = next((row for row, history in enumerate(self.histories) if not history.newest), None)
        if empty is not None and max_new_tokens:
            raise UserError(f"row {empty} has read nothing; give a prompt of at least one token.")

    @torch.inference_mode()
    def _piece(
        self, rows: list[int], tokens: int, streamer: BaseStreamer | None, options: dict[str, Any]
    ) -> list[list[int]]:
        """Up to so many tokens for each of the rows, without the end of text; fewer where the text ends."""
        prompt = self.model.prompt([self.histories[row].pieces() for row in rows])
        pad = pad_id(self.tokenizer)
        ends = {"eos_token_id": eos_id(self.tokenizer), "pad_token_id": pad, **options}
        # what stands for a slot is no token, and padding would be a blank
        never = [self.model.config.memory_token_id, pad]
        ends["suppress_tokens"] = sorted({*never, *(options.get("suppress_tokens") or ())})
        if streamer is not None:
            ends["streamer"] = streamer
        found = cast(Any, self.model).generate(**prompt, max_new_tokens=tokens, **ends)
        end = ends["eos_token_id"]
        ends_at = [end] if isinstance(end, int) else list(end or ())
        return [_before(row.tolist(), ends_at) for row in found[:, prompt["input_ids"].shape[1] :]]


def _before(ids: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def _window(model: MemoryModelForCausalLM, asked: int | None) -> int:
    """Positions for older chunks: what the decoder has behind a full chunk and the token that follows it."""
    config = model.config
    newest = config.chunk_length + 1 + config.has_first_token
    rotary = getattr(config.decoder_config, "rope_parameters", None) is not None
    trained = (config.num_chunks - 1) * config.slots_per_chunk
    there = config.decoder_config.max_position_embeddings - newest if rotary else trained
    if asked is None:
        return there
    if not 0 <= asked <= there:
        raise UserError(f"max_positions ({asked}) must lie between 0 and {there}, which this decoder has.")
    return asked


class _PieceStreamer(BaseStreamer):
    """One stream out of pieces: prompts are not shown again, and the end comes once."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        """Tokens; the first of each piece are its prompt."""
        if not self.is_prompt:
            self.streamer.put(value)
        self.is_prompt = False

    def end(self) -> None:
        """Of a piece."""
        self.is_prompt = True
