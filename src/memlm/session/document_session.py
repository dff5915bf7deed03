"""Sessions that answer questions about documents, which a pretrained decoder reads as memories.

    documents      chunk 0    chunk 1    chunk 2    chunk 3      the question, behind passages and earlier turns
    read as        sparse     dense      left out   sparse       tokens

A search by words, and by vectors where a store has them, finds the chunks that share most with the question. These are
read densely, and their best passages stand in the prompt as tokens, too. The decoder itself, its chat template and its
`generate` are unchanged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from transformers.generation.streamers import BaseStreamer

from memlm.data import decode_ids, encode_texts, eos_id
from memlm.data.conversation import Turn, behind_passages, prompt_ids
from memlm.data.corpus import parts_of
from memlm.data.given import check_kind, list_of_texts, one_text, text_pieces
from memlm.encoders import Encoder
from memlm.errors import StoreError, UserError, Within
from memlm.measurement import PartRead
from memlm.models.runtime import sampling_options
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.models.slots.answers import score_answers
from memlm.session.blocks import Block, side_by_side
from memlm.session.document_chunks import ChunkSearch, DocumentChunk, Passage, cut_chunks, fused
from memlm.session.parts_read import parts_read
from memlm.session.reading_plan import AskSettings, ChunkReading, plan_reading, slots_of
from memlm.store.ingest import document_vectors
from memlm.store.slot_codec import SlotCodec
from memlm.store.text_store import TextStore

_CITED = 3
"""Passages that are looked for inside a chunk which was found by its vector alone."""
_HELD = 2**14
"""Slots of chunks that are kept for later questions."""

OnChunk = Callable[[int, int], None]
"""Function of the number of chunks that are read, and of all that will be."""


@dataclass(frozen=True)
class Answer:
    """An answer and what it was given from.

    Attributes:
        question: the question.
        text: the answer.
        passages: what shares most with the question, best first; those that stood in the prompt come first.
        tokens: tokens of the prompt: the question, earlier turns, passages and the template.
        memories: memories that were read, that of the token before the documents included.
        memory_tokens: tokens of documents that the memories stand for.
        left_out: tokens of documents that were not read, because the budget was used up.
        support: nats per token of the answer by which documents and passages make it likelier; near 0 for an answer
            that the decoder would have given without them.
        found: False where the support is below the least one that the settings ask for.
        parts: all parts of the documents, in their order, and how each was read.
    """

    question: str
    text: str
    passages: tuple[Passage, ...]
    tokens: int
    memories: int
    memory_tokens: int
    left_out: int
    support: float
    found: bool
    parts: tuple[PartRead, ...] = field(default=(), repr=False)

    def reading(self) -> str:
        """Return one line that says what was read, and how."""
        left_out = f"; {self.left_out} tokens were left out" if self.left_out else ""
        return f"read {self.tokens} tokens, and {self.memory_tokens} more as {self.memories} memories{left_out}"


class _Source(NamedTuple):
    """The place of a chunk's memories in a store."""

    store: TextStore
    part: str
    number: int


class _Found(NamedTuple):
    """Scores of all chunks, (chunks,), and the best passages, one for each chunk that is found."""

    scores: Float[ndarray, " chunks"]
    passages: list[Passage]


class _Reading(NamedTuple):
    memories: SlotMemories | None
    plan: list[ChunkReading]


@dataclass
class DocumentSession:
    """A pretrained decoder that answers questions about documents.

    Attributes:
        model: the decoder.
        settings: how documents are read.
        max_positions: greatest number of positions; by default all that the decoder has. Where chunks need more, the
            first of them share the first positions.

    Example:
        >>> session = DocumentSession(MemoryDecoder.from_pretrained("PATH_OR_HUB_ID"))
        >>> session.read("The charter of Arden was received in 1801.", name="charters")
        >>> print(session.ask("When was the charter of Arden received?").text)
    """

    model: MemoryDecoder
    settings: AskSettings = field(default_factory=AskSettings)
    max_positions: int | None = None

    def __post_init__(self) -> None:
        check_kind(self.model, MemoryDecoder, name="model", instead="MemoryDecoder.from_pretrained(...)")
        own = int(self.model.decoder.config.max_position_embeddings)
        self.positions = own if self.max_positions is None else self.max_positions
        if not self.chunk_length < self.positions <= own:
            raise UserError(
                f"max_positions ({self.positions}) must lie above a chunk ({self.chunk_length} tokens) and not above "
                f"the decoder's {own}."
            )
        self.chunks: list[DocumentChunk] = []
        self.turns: list[Turn] = []
        self._sources: list[_Source | None] = []
        self._held: OrderedDict[tuple[ChunkReading, int], Block] = OrderedDict()
        self._search: ChunkSearch | None = None

    @property
    def chunk_length(self) -> int:
        """The tokens of a full chunk."""
        return self.model.settings.chunk_length

    def read(self, text: str | Iterable[str], *, name: str = "text") -> None:
        """Add a document; it is encoded when a question needs it.

        Args:
            text: a string, or an iterable of strings such as an open file.
            name: the name by which passages are cited.
        """
        start, tokenizer = 0, self.model.tokenizer
        for part in parts_of(text_pieces(text)):
            self._add(cut_chunks(tokenizer, name, part, self.chunk_length, start=start))
            start += len(part)

    def read_stored(self, store: TextStore, name: str) -> None:
        """Add a document of a store that this decoder wrote; its memories are read from there.

        Raises:
            StoreError: there is no such document, or the store holds memories of another kind.
            DamagedStoreError: its data is not what was written.
        """
        if not isinstance(store.codec, SlotCodec) or store.codec.chunk_length != self.chunk_length:
            raise StoreError(
                f"'{store.store.folder}' holds no memories of this decoder in chunks of {self.chunk_length} tokens; "
                "make one with memlm remember."
            )
        start = 0
        for part, content in zip(store.parts(name), store.recall_parts(name), strict=True):
            text = content.decode()
            chunks = cut_chunks(self.model.tokenizer, name, text, self.chunk_length, start=start)
            self._add(chunks, [_Source(store, part.id, number) for number in range(len(chunks))])
            start += len(text)

    def _add(self, chunks: list[DocumentChunk], sources: list[_Source] | None = None) -> None:
        self.chunks += chunks
        self._sources += [None] * len(chunks) if sources is None else sources
        self._search = None

    def passages(self, question: str) -> list[Passage]:
        """Return the passages of documents that the search finds for a question, best first, one for each chunk."""
        return self._found(one_text(question, name="question")).passages

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        streamer: BaseStreamer | None = None,
        on_chunk: OnChunk = lambda done, of: None,
        **options: Any,
    ) -> Answer:
        """Answer a question; later questions can refer to it.

        Args:
            question: about the documents.
            max_new_tokens: the greatest number of tokens of the answer.
            streamer: a streamer of transformers.
            on_chunk: is told how many chunks are read.
            options: options of `generate()` such as do_sample, temperature and num_beams.

        Raises:
            UserError: an empty question, one that leaves no room for documents, or no token to generate.
        """
        if not one_text(question, name="question").strip():
            raise UserError("the question is empty; ask something.")
        Within(1, 2**31 - 1).check("max_new_tokens", max_new_tokens, whole=True)
        scores, found = self._found(question)
        prompt = self._prompt(question, found)
        reading = self._reading(scores, len(prompt) + max_new_tokens, on_chunk)
        ids = self._generated(prompt, reading.memories, max_new_tokens, streamer, options)
        text = decode_ids(self.model.tokenizer, ids).strip()
        support = self._support(question, prompt, text, reading.memories)
        self.turns.append(Turn(question, text))
        read = sum(len(self.chunks[one.chunk].tokens) for one in reading.plan)
        return Answer(
            question=question,
            text=text,
            passages=tuple(found),
            tokens=len(prompt),
            memories=0 if reading.memories is None else int(reading.memories.counts),
            memory_tokens=read,
            left_out=sum(len(chunk.tokens) for chunk in self.chunks) - read,
            support=support,
            found=self.settings.least_support is None or support >= self.settings.least_support,
            parts=tuple(parts_read(self.chunks, reading.plan, found[: self.settings.passages])),
        )

    def nats(self, question: str, answers: Sequence[str]) -> list[float]:
        """Return the nats of each of some answers, all tokens together, behind the documents as `ask` reads them."""
        answers = list_of_texts(answers, name="answers")
        if not answers:
            return []
        scores, found = self._found(one_text(question, name="question"))
        prompt = self._prompt(question, found)
        longest = max(map(len, encode_texts(self.model.tokenizer, answers)))
        reading = self._reading(scores, len(prompt) + longest, lambda done, of: None)
        return [sum(nats) for nats in self._nats(prompt, answers, reading.memories)]

    def _support(self, question: str, prompt: list[int], answer: str, memories: SlotMemories | None) -> float:
        """Return by how many nats per token documents and passages make an answer likelier."""
        if not answer:
            return 0.0
        [alone] = self._nats(prompt_ids(self.model.tokenizer, self.turns, question), [answer], None)
        [behind] = self._nats(prompt, [answer], memories)
        return (sum(alone) - sum(behind)) / len(alone)

    def fork(self, settings: AskSettings | None = None) -> DocumentSession:
        """Return an independent session with the same documents and turns, which may read them in another way."""
        other = replace(self, settings=settings or self.settings)
        other.chunks, other.turns, other._sources = list(self.chunks), list(self.turns), list(self._sources)
        other._search, other._held = self._search, self._held.copy()
        return other

    def _searched(self) -> ChunkSearch:
        if self._search is None:
            self._search = ChunkSearch(self.chunks, self.chunk_length)
        return self._search

    def _scores(self, question: str) -> Float[ndarray, " chunks"]:
        """Return how well the search ranks each chunk, by words and by the vectors of stores; 0 for not at all."""
        words, cosines = self._searched().scores(question), np.full(len(self.chunks), np.nan)
        for store in self._stores():
            places = [n for n, source in enumerate(self._sources) if source is not None and source.store is store]
            inner = [(source.part, source.number) for source in map(self._sources.__getitem__, places) if source]
            cosines[places] = store.cosines(question, inner, sorted({self.chunks[n].document for n in places}))
        return words if np.isnan(cosines).all() else fused(words, cosines)

    def _stores(self) -> list[TextStore]:
        """Return the stores of documents that are opened with their retrieval encoders."""
        every = {id(source.store): source.store for source in self._sources if source is not None}
        return [store for store in every.values() if store.retrieval is not None]

    def _found(self, question: str) -> _Found:
        """Search for a question; where a vector alone finds a chunk, its passage is found by vectors, too."""
        search, scores = self._searched(), self._scores(question)
        best = search.best_passages(question, scores)
        for chunk in list(best)[: max(self.settings.passages, _CITED)]:
            if not best[chunk].score:
                best[chunk] = self._nearest(question, chunk, search.passages_of(chunk))
        return _Found(scores, list(best.values()))

    def _nearest(self, question: str, chunk: int, passages: list[Passage]) -> Passage:
        """Return the passage whose vector is nearest to that of the question, by the encoder of the chunk's store."""
        store = cast(_Source, self._sources[chunk]).store
        vectors = document_vectors(cast(Encoder, store.retrieval), [passage.text for passage in passages])
        return passages[int(torch.cosine_similarity(vectors, store.query_vectors(question)[:1]).argmax())]

    def _prompt(self, question: str, found: list[Passage]) -> list[int]:
        shown = [passage.text.strip() for passage in found[: self.settings.passages]]
        return prompt_ids(self.model.tokenizer, self.turns, behind_passages(shown, question))

    def _reading(self, scores: Float[ndarray, " chunks"], behind: int, on_chunk: OnChunk) -> _Reading:
        """Return the memories of the chunks that are read, with `behind` positions behind them."""
        if behind + self.chunk_length >= self.positions:
            raise UserError(
                f"the question, its passages, earlier turns and the answer take {behind} of {self.positions} "
                "positions, which leaves no room for documents; shorten them, or begin a new session."
            )
        sizes = [len(chunk.tokens) for chunk in self.chunks]
        plan = plan_reading(sizes, scores.tolist(), self.settings)
        if not plan:
            return _Reading(None, plan)
        rotary, blocks = self.model.reader.rotary, list[Block]()
        read = sum(sizes[one.chunk] for one in plan)
        if not rotary.moves and 1 + read + behind > self.positions:
            raise UserError(
                f"{read} tokens of documents do not fit {self.positions - behind} positions, and learned positions "
                "cannot be shared; give fewer slots, so that less is read."
            )
        for one in plan:
            # learned positions cannot be moved later
            start = 0 if rotary.moves else sum(block.tokens for block in blocks)
            blocks.append(self._block(one, start))
            on_chunk(len(blocks), len(plan))
        return _Reading(side_by_side(blocks, rotary, positions=self.positions - behind), plan)

    def _block(self, reading: ChunkReading, start: int) -> Block:
        if (reading, start) in self._held:
            self._held.move_to_end((reading, start))
            return self._held[reading, start]
        source = self._sources[reading.chunk]
        stored = source if self._can_use(source, reading) else None
        found = self._encoded(reading, start) if stored is None else self._stored(stored, reading)
        self._held[reading, start] = found
        while len(self._held) > 1 and sum(int(block.memories.counts) for block in self._held.values()) > _HELD:
            self._held.popitem(last=False)
        return found

    def _can_use(self, source: _Source | None, reading: ChunkReading) -> bool:
        """Return whether a chunk's stored memories are, or can be made, as few as they should be."""
        if source is None or not self.model.reader.rotary.moves:
            return False
        ratio, fewer = _ratio(source.store), self.model.injection.takes_start
        return ratio == reading.tokens_per_memory or (fewer and ratio < reading.tokens_per_memory)

    def _stored(self, source: _Source, reading: ChunkReading) -> Block:
        part = source.store.store.read(source.part)
        start = int(part.tokens[: source.number].sum()) if self.model.injection.takes_start else 0
        found = cast(SlotCodec, source.store.codec).memories(part, chunks=[source.number])
        if _ratio(source.store) < reading.tokens_per_memory:
            slots = slots_of(len(self.chunks[reading.chunk].tokens), reading.tokens_per_memory)
            found = self.model.fewer(found, slots=slots)
        return Block(found, start)

    def _encoded(self, reading: ChunkReading, start: int) -> Block:
        tokens = self.chunks[reading.chunk].tokens
        found = self.model.memories(
            [tokens],
            slots=slots_of(len(tokens), reading.tokens_per_memory),
            start=start,
            mode="chunks",
            chunk_length=self.chunk_length,
            block_length=self.chunk_length,
        )
        return Block(found, start)

    @torch.no_grad()
    def _generated(
        self,
        prompt: list[int],
        memories: SlotMemories | None,
        max_new_tokens: int,
        streamer: BaseStreamer | None,
        options: dict[str, Any],
    ) -> list[int]:
        end = eos_id(self.model.tokenizer)
        inputs = self.model.inputs([self._behind_first(prompt, memories)], memories)
        options = {"pad_token_id": end, "do_sample": False, **sampling_options(options)}
        decoder = cast(Any, self.model.decoder)
        found = decoder.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **options)
        new = found[0, inputs["input_ids"].shape[1] :].tolist()
        return new[: new.index(end)] if end in new else new

    def _behind_first(self, prompt: list[int], memories: SlotMemories | None) -> list[int]:
        return prompt if memories is not None else [self.model.reader.first_token_id, *prompt]

    def _nats(self, prompt: list[int], answers: Sequence[str], memories: SlotMemories | None) -> list[list[float]]:
        """Return the nats of each token of answers behind a prompt."""
        ids = encode_texts(self.model.tokenizer, list(answers))
        found = score_answers(self.model, [self._behind_first(prompt, memories)], [ids], memories).nats[0].tolist()
        return [row[: len(answer)] for row, answer in zip(found, ids, strict=True)]


def _ratio(store: TextStore) -> float:
    """Return the tokens for each memory of a store."""
    return cast(SlotCodec, store.codec).slots.tokens_per_memory
