"""Documents in chunks of tokens that know their characters, and a search for the chunks that a question is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import bm25s
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from memlm.data import encode_with_ends
from memlm.data.words import spaced

_LONGEST_WORD = 32
_WORD_START, _WORD_END = re.compile(r"\w+"), re.compile(r"\w+\Z")
_PASSAGES = 4
"""Passages of a chunk; half as far apart, so that a sentence is whole in one of them."""


class DocumentChunk(NamedTuple):
    """Consecutive tokens of a document.

    Attributes:
        document: id of the document.
        tokens: the token ids.
        ends: for each token, the number of characters of the document up to its end.
        start: the number of characters before the chunk.
        text: its characters.
    """

    document: str
    tokens: list[int]
    ends: list[int]
    start: int
    text: str


@dataclass(frozen=True)
class Passage:
    """A part of a document that a question is about.

    Attributes:
        document: id of the document.
        start: the number of characters of the document before the passage.
        end: the number of characters up to its end.
        text: its characters.
        score: its BM25 score; larger is better, 0 for no common word, where the vector of its chunk was near.
    """

    document: str
    start: int
    end: int
    text: str
    score: float


def cut_chunks(
    tokenizer: PreTrainedTokenizerBase, document: str, text: str, length: int, *, start: int = 0
) -> list[DocumentChunk]:
    """Return the chunks of a document, or of a part that begins at the character `start`."""
    ids, ends = encode_with_ends(tokenizer, text)
    found: list[DocumentChunk] = []
    for first in range(0, len(ids), length):
        of_chunk = [start + end for end in ends[first : first + length]]
        before = start + (ends[first - 1] if first else 0)
        chars = text[before - start : of_chunk[-1] - start]
        found.append(DocumentChunk(document, ids[first : first + length], of_chunk, before, chars))
    return found


class ChunkSearch:
    """Ranks chunks by the words that they share with a question (BM25); a chunk is as good as its best passage.

    Args:
        chunks: of any documents.
        length: tokens of a full chunk.
    """

    def __init__(self, chunks: Sequence[DocumentChunk], length: int) -> None:
        self.passages: list[Passage] = []
        self.owners: list[int] = []
        step = max(1, length // (2 * _PASSAGES))
        for number, chunk in enumerate(chunks):
            text, start = _with_neighbours(chunks, number)
            for first in range(0, max(1, len(chunk.tokens) - step), step):
                begin = chunk.ends[first - 1] if first else chunk.start
                end = chunk.ends[min(first + 2 * step, len(chunk.ends)) - 1]
                begin, end = _whole_words(text, begin - start, end - start)
                self.passages.append(Passage(chunk.document, start + begin, start + end, text[begin:end], 0.0))
                self.owners.append(number)
        self.count = len(chunks)
        words = _words([passage.text for passage in self.passages])
        # without any word there is nothing to search
        self._index = bm25s.BM25() if any(words) else None
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def passages_for(self, question: str) -> list[Passage]:
        """Return the best passage of each chunk that shares a word with the question, best first."""
        return list(self.best_passages(question, self.scores(question)).values())

    def best_passages(self, question: str, scores: Float[ndarray, " chunks"]) -> dict[int, Passage]:
        """Return the passage of each chunk that shares most words with the question, by chunk, best chunk first.

        Args:
            question: words to look for.
            scores: of the chunks; those above 0 are returned.
        """
        of_passages = self._scores(question)
        best: dict[int, Passage] = {}
        for place in np.argsort(-of_passages, kind="stable").tolist():
            best.setdefault(self.owners[place], replace(self.passages[place], score=float(of_passages[place])))
        return {chunk: best[chunk] for chunk in np.argsort(-scores, kind="stable").tolist() if scores[chunk] > 0}

    def passages_of(self, chunk: int) -> list[Passage]:
        """Return the passages of a chunk."""
        return [passage for passage, owner in zip(self.passages, self.owners, strict=True) if owner == chunk]

    def scores(self, question: str) -> Float[ndarray, " chunks"]:
        """Return the score of each chunk; 0 where no word is common."""
        found = np.zeros(self.count)
        np.maximum.at(found, self.owners, self._scores(question))
        return found

    def _scores(self, question: str) -> Float[ndarray, " passages"]:
        if self._index is None:
            return np.zeros(len(self.passages))
        [words] = _words([question])
        known = [word for word in words if word in self._index.vocab_dict]
        return np.asarray(self._index.get_scores(known), dtype=float) if known else np.zeros(len(self.passages))


_VECTORS = 0.5
"""Weight of cosines beside words; on validation text, ranks of both added up lost a third of what words alone found."""


def fused(words: Float[ndarray, " chunks"], cosines: Float[ndarray, " chunks"]) -> Float[ndarray, " chunks"]:
    """Return scores of chunks from words and vectors: the sum of both, where the best has 1 and 0.5.

    Args:
        words: BM25 scores, from 0.
        cosines: to the question; NaN for chunks without a vector, which count as the farthest ones.
    """
    lowest = np.nanmin(cosines)
    near = np.nan_to_num(cosines - lowest, nan=0.0)
    return words / (words.max() or 1.0) + _VECTORS * near / (near.max() or 1.0)


def _with_neighbours(chunks: Sequence[DocumentChunk], number: int) -> tuple[str, int]:
    """Return the text of a chunk with a word's length of text on both sides, and the characters before all that."""
    chunk = chunks[number]
    before = chunks[number - 1].text[-_LONGEST_WORD:] if number and _follows(chunks[number - 1], chunk) else ""
    last = number + 1 == len(chunks) or not _follows(chunk, chunks[number + 1])
    after = "" if last else chunks[number + 1].text[:_LONGEST_WORD]
    return before + chunk.text + after, chunk.start - len(before)


def _follows(one: DocumentChunk, other: DocumentChunk) -> bool:
    return one.document == other.document and one.ends[-1] == other.start


def _whole_words(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return a range of characters that cuts no word of up to 32 characters."""
    before, after = _WORD_END.search(text[:begin][-_LONGEST_WORD:]), _WORD_START.match(text[end : end + _LONGEST_WORD])
    starts_inside = _WORD_START.match(text[begin:]) is not None
    ends_inside = _WORD_END.search(text[:end][-1:]) is not None
    begin -= len(before[0]) if before and starts_inside else 0
    return begin, end + (len(after[0]) if after and ends_inside else 0)


def _words(texts: list[str]) -> list[list[str]]:
    """Return the words of each text, in lower case; in scripts without spaces, every two characters are a word."""
    return bm25s.tokenize([spaced(text) for text in texts], stopwords="en", return_ids=False, show_progress=False)  # pyright: ignore
