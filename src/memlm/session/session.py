"""Sessions read texts of any length as memories and generate behind them with bounded memory.

Full chunks become memories and the newest tokens stay tokens (`memlm.session.history`). A chunk that generation fills
becomes a memory too, so the decoder never holds more than its window of slots and one chunk of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from memlm.data import decode_ids, encode_texts, eos_id, pad_id
from memlm.data.corpus import parts_of
from memlm.data.given import folder_of, list_of_tokens, text_pieces
from memlm.encoders.interface import model_fingerprint
from memlm.errors import UserError, Within
from memlm.models import MemoryModelForCausalLM
from memlm.models.loading import load_model, summary_of
from memlm.models.memory.prompt import span_of
from memlm.models.runtime import sampling_options
from memlm.session.history import History, load_session, save_session
from memlm.store.codec import ROWS
from memlm.store.quantize import dequantize
from memlm.store.text_store import TextStore

FIDELITY = 0.98
"""The share of a chunk's tokens that its memory must give back; otherwise the chunk is read as tokens."""
_MOST = 2**31 - 1
_RESERVED = ("input_ids", "attention_mask", "memories", "max_length", "num_return_sequences", "return_dict_in_generate")


@dataclass(frozen=True)
class SessionStats:
    """Numbers of memories and tokens that the decoder of a session reads of one text.

    Attributes:
        memories: number of chunks that are read as memories.
        as_tokens: number of chunks that are read as tokens, because their memories are not faithful enough.
        forgotten: number of chunks that were dropped because they did not fit.
        newest: number of tokens behind the chunks.
        positions: number of decoder positions that all of these take.
    """

    memories: int
    as_tokens: int
    forgotten: int
    newest: int
    positions: int

    def __str__(self) -> str:
        return (
            f"{self.memories} chunks read as memories, {self.as_tokens} as tokens, {self.forgotten} dropped, "
            f"{self.newest} newest tokens"
        )


class MemorySession:
    """A memory model that reads one text, or several in parallel, and continues them.

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
        """Begin a session that has read nothing.

        Args:
            model: the run folder of a memory model, or the model and its tokenizer.
            rows: number of texts that are read in parallel.
            fidelity: chunks whose memory gives back a smaller share of their tokens are read as tokens. With 0 every
                memory is used and none is read back, which is faster.
            max_positions: the greatest number of decoder positions for older chunks; by default all that it has.

        Raises:
            CheckpointError: the folder holds no memory model.
            UserError: the model's layout has no prompts, or a setting is out of range.
        """
        given: Any = model
        pair = isinstance(given, tuple) and isinstance(given[0], MemoryModelForCausalLM)  # pyright: ignore
        loaded = given if pair else load_model(folder_of(given, name="model"), MemoryModelForCausalLM)
        self.model, self.tokenizer = loaded[0].eval(), loaded[1]
        Within(0, 1).check("fidelity", fidelity)
        Within(1, _MOST).check("rows", rows, whole=True)
        self.fidelity = fidelity
        self.window = _window(self.model, max_positions)
        self.histories = [History() for _ in range(rows)]
        self.model.prompt([[[0]]])  # raises if the model has no prompts

    def __repr__(self) -> str:
        rows = "1 row" if len(self.histories) == 1 else f"{len(self.histories)} rows"
        return f"MemorySession({summary_of(self.model, self.tokenizer)}, {rows})"

    def read(self, text: str | Iterable[str] | Sequence[str | Iterable[str]]) -> None:
        """Read text behind what was read before.

        Args:
            text: for one row, a string or an iterable of strings such as an open file; for several rows, one for each.

        Raises:
            UserError: the number of texts differs from the number of rows.
            DataError: one of them is no text.
        """
        given: Any = text
        several = len(self.histories) > 1
        if several and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise UserError(f"1 text does not fit {len(self.histories)} rows; give one text for each.")
        texts = list(cast("Iterable[Any]", given)) if several else [given]
        if len(texts) != len(self.histories):
            raise UserError(f"{len(texts)} texts do not fit {len(self.histories)} rows; give one text for each.")
        for history, stream in zip(self.histories, texts, strict=True):
            for part in parts_of(text_pieces(stream)):
                self._append(history, encode_texts(self.tokenizer, [part])[0])

    def read_tokens(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read token ids, one list for each row, behind what was read before.

        Raises:
            UserError: the number of lists differs from the number of rows.
        """
        if not isinstance(tokens, list | tuple | Tensor) or len(tokens) != len(self.histories):
            number = len(tokens) if isinstance(tokens, list | tuple | Tensor) else 0
            raise UserError(f"{number} lists of tokens do not fit {len(self.histories)} rows; give one for each.")
        for history, ids in zip(self.histories, tokens, strict=True):
            self._append(history, list_of_tokens(ids, words=int(self.model.encoder.config.vocab_size)))

    def read_stored(self, store: TextStore, name: str, *, row: int = 0) -> None:
        """Read a document of a store that this model wrote: its memories, and the tokens of chunks with poor memories.

        Raises:
            StoreError: there is no such document.
            DamagedStoreError: its data is not what was written.
        """
        history = self.histories[row]
        length = self.model.config.chunk_length
        for part in store.parts(name):
            if not len(part.tokens):
                continue
            self._close(history)
            poor = (part.tokens < length) | (part.fidelity < self.fidelity)
            poor[-1] = True  # the next token is predicted from its tokens
            tokens = store.tokens(part, poor.nonzero()[:, 0].tolist())
            memories = dequantize(part.memories).to(self.model.device, self.model.dtype)
            chunks = [tokens[i] if as_tokens else memories[i] for i, as_tokens in enumerate(poor.tolist())]
            history.chunks += chunks[:-1]
            history.newest = tokens[len(poor) - 1]
            history.keep_within(self.model.config, self.window)

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
        """Read `prompt` and continue it; the session also reads the text that is generated.

        When a chunk is full it becomes a memory and generation continues behind it; with beam search the best beam is
        chosen at that point.

        Args:
            prompt: a text that is read first, or one for each row.
            max_new_tokens: the greatest number of tokens for each row; an end-of-text token ends a row earlier.
            streamer: a streamer of transformers; only for a session of one row.
            options: options of `generate()` such as do_sample, temperature, num_beams and use_cache.

        Returns:
            The generated text of each row; a single string for one row if `prompt` is not a list.

        Raises:
            UserError: nothing was read, or an option is set by the session itself.
        """
        if prompt is not None:
            self.read(prompt)
        written = self.generate_tokens(max_new_tokens=max_new_tokens, streamer=streamer, **options)
        texts = [decode_ids(self.tokenizer, ids) for ids in written]
        return texts if len(texts) > 1 or not (prompt is None or isinstance(prompt, str)) else texts[0]

    def generate_tokens(
        self, *, max_new_tokens: int = 128, streamer: BaseStreamer | None = None, **options: Any
    ) -> list[list[int]]:
        """Continue what was read; return the token ids of each row without the end-of-text token.

        Arguments and errors are those of `generate`.
        """
        options = sampling_options(options)
        self._check_options(options, streamer, max_new_tokens)
        remaining = [max_new_tokens] * len(self.histories)
        written: list[list[int]] = [[] for _ in self.histories]
        stream = None if streamer is None else _PieceStreamer(streamer)
        if streamer is not None:
            # streamers take their first value for the prompt
            streamer.put(torch.tensor(self.histories[0].newest))
        while rows := [row for row, count in enumerate(remaining) if count]:
            # tokens until a chunk becomes a memory; the next chunk's first token still reads it
            free = self.model.config.chunk_length + 1 - max(len(self.histories[row].newest) for row in rows)
            room = min(free, *(remaining[row] for row in rows))
            for row, ids in zip(rows, self._piece(rows, room, stream, options), strict=True):
                self._append(self.histories[row], ids)
                written[row] += ids
                remaining[row] = remaining[row] - len(ids) if len(ids) == room else 0
        if streamer is not None:
            streamer.end()
        return written

    def save(self, folder: str | Path) -> None:
        """Save what was read to a folder; an older session there is replaced.

        Raises:
            UserError: the folder holds something else, which is left as it is.
        """
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
        """Load what `save` wrote, with the model that the session was saved with.

        Raises:
            CheckpointError: the session is missing or damaged, has a newer format, or belongs to another model.
        """
        session = cls(model)
        config = session.model.encoder.config
        file, session.histories = load_session(
            folder_of(folder, name="session"),
            model=model_fingerprint(session.model, session.tokenizer),
            shape=(config.memories_per_chunk, config.bottleneck_size),
            vocab_size=config.vocab_size,
        )
        session.fidelity, session.window = file.fidelity, _window(session.model, file.max_positions)
        for history in session.histories:
            session._append(history, [])
        return session

    def fork(self) -> MemorySession:
        """Return a second session that has read the same texts; both share the model."""
        other = copy.copy(self)
        other.histories = [history.copy() for history in self.histories]
        return other

    def prompt(self) -> dict[str, Tensor]:
        """Return the inputs of `model.generate()` that stand for everything that was read."""
        return self.model.prompt([history.pieces() for history in self.histories])

    def stats(self, row: int = 0) -> SessionStats:
        """Return what the decoder reads of one row."""
        history = self.histories[row]
        return SessionStats(
            memories=len(history.chunks) - history.as_tokens,
            as_tokens=history.as_tokens,
            forgotten=history.forgotten,
            newest=len(history.newest),
            positions=span_of(self.model.config, history.pieces()),
        )

    def _append(self, history: History, tokens: list[int]) -> None:
        """Append tokens; full chunks become memories, except one that no token follows."""
        history.newest += tokens
        length = self.model.config.chunk_length
        end = max(0, len(history.newest) - 1) // length * length
        chunks = [history.newest[i : i + length] for i in range(0, end, length)]
        history.newest = history.newest[end:]
        for first in range(0, len(chunks), ROWS):
            history.chunks += self._chunks(chunks[first : first + ROWS])
            history.keep_within(self.model.config, self.window)

    def _close(self, history: History) -> None:
        """Make the newest tokens a chunk of their own, since another text follows; a full one becomes a memory."""
        if history.newest:
            full = [history.newest] if len(history.newest) == self.model.config.chunk_length else []
            history.chunks += self._chunks(full) or [history.newest]
            history.newest = []

    @torch.inference_mode()
    def _chunks(self, chunks: list[list[int]]) -> list[Tensor | list[int]]:
        """Return the memories of full chunks, or the tokens of those whose memories give too few tokens back."""
        if not chunks:
            return []
        ids = torch.tensor(chunks, device=self.model.device)
        memories = self.model.encode_chunks(ids[None], torch.ones_like(ids)[None])[0]
        if not self.fidelity:
            return list(memories)
        faithful = (self.model.decode(memories).argmax(-1) == ids).float().mean(-1) >= self.fidelity
        return [m if good else c for m, c, good in zip(memories, chunks, faithful.tolist(), strict=True)]

    def _check_options(self, options: dict[str, Any], streamer: BaseStreamer | None, max_new_tokens: int) -> None:
        reserved = next((name for name in _RESERVED if name in options), None)
        if reserved is not None:
            raise UserError(f"'{reserved}' is set by the session; leave it out (fork() gives several continuations).")
        Within(0, _MOST).check("max_new_tokens", max_new_tokens, whole=True)
        if streamer is not None and len(self.histories) > 1:
            raise UserError(f"a streamer shows one row and the session has {len(self.histories)}; leave it out.")
        empty = next((row for row, history in enumerate(self.histories) if not history.newest), None)
        if empty is not None and max_new_tokens:
            raise UserError(f"row {empty} has read nothing; give a prompt of at least one token.")

    @torch.inference_mode()
    def _piece(
        self, rows: list[int], tokens: int, streamer: BaseStreamer | None, options: dict[str, Any]
    ) -> list[list[int]]:
        """Generate up to `tokens` token ids for some rows; a row that ends has fewer, without the end-of-text token."""
        prompt = self.model.prompt([self.histories[row].pieces() for row in rows])
        pad = pad_id(self.tokenizer)
        ends = {"eos_token_id": eos_id(self.tokenizer), "pad_token_id": pad, **options}
        # the placeholder of a slot and padding are not text
        suppressed = [self.model.config.memory_token_id, pad]
        ends["suppress_tokens"] = sorted({*suppressed, *(options.get("suppress_tokens") or ())})
        if streamer is not None:
            ends["streamer"] = streamer
        found = cast(Any, self.model).generate(**prompt, max_new_tokens=tokens, **ends)
        end = ends["eos_token_id"]
        ends_at = [end] if isinstance(end, int) else list(end or ())
        pieces: list[list[int]] = found[:, prompt["input_ids"].shape[1] :].tolist()
        return [list(takewhile(lambda token: token not in ends_at, ids)) for ids in pieces]


def _window(model: MemoryModelForCausalLM, positions: int | None) -> int:
    """Return the decoder positions for older chunks: all but those of a full chunk and the token that follows it."""
    config = model.config
    newest = config.chunk_length + 1 + (config.first_token_id is not None)
    rotary = getattr(config.decoder_config, "rope_parameters", None) is not None
    trained = (config.num_chunks - 1) * config.slots_per_chunk
    available = config.decoder_config.max_position_embeddings - newest if rotary else trained
    if positions is None:
        return available
    if not 0 <= positions <= available:
        raise UserError(f"max_positions ({positions}) must lie between 0 and {available}, which this decoder has.")
    return positions


class _PieceStreamer(BaseStreamer):
    """A streamer that joins pieces into one stream: prompts are left out, and the stream does not end between them."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        """Pass tokens on, except the first value of each piece, which is its prompt."""
        if not self.is_prompt:
            self.streamer.put(value)
        self.is_prompt = False

    def end(self) -> None:
        """End a piece."""
        self.is_prompt = True
