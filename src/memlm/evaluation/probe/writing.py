"""Readings by a decoder that writes from left to right: usable information, and the texts that it writes.

Usable information (V-information, Xu et al. 2020, arXiv 2002.10689) is what a decoder that is given the vector saves on
the text, teacher-forced, against a decoder of the same size and training that is given a blank vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.measurement import BEAM_SEARCH, GREEDY, TEACHER_FORCED, DocumentTally, Measurement, measure_ratio
from memlm.measurement.information import NATS_PER_BIT
from memlm.models import ProbeDecoder
from memlm.objectives import reconstruction, token_nats

_ROWS = 64
"""Passages that are read at once."""


@dataclass(frozen=True)
class Writing:
    """Scores and texts of a decoder on held-out passages.

    Attributes:
        nats: teacher-forced cross-entropy of each passage, with a count of 1.
        shuffled_nats: the same behind another text's vector.
        texts: (passages, tokens), written from the vectors; empty where none were asked for.
    """

    nats: DocumentTally
    shuffled_nats: DocumentTally
    texts: Int[Tensor, "passages tokens"]


@torch.inference_mode()
def score_writer(
    model: ProbeDecoder, rows: PackedRows, vectors: Float[Tensor, "passages numbers"], *, beams: int
) -> Writing:
    """Score a decoder that reads tokens on passages.

    Args:
        model: the decoder.
        rows: the passages' classes.
        vectors: the vector of each.
        beams: beginnings that are followed at once in writing; 0 writes nothing.
    """
    model.eval()
    other = vectors.roll(len(vectors) // 2, 0)
    own, shuffled = (_nats(model, rows, given) for given in (vectors, other))
    texts = written(model, vectors, beams=beams) if beams else torch.empty(0, rows.input_ids.shape[1]).long()
    return Writing(own, shuffled, texts)


def written(
    model: ProbeDecoder, vectors: Float[Tensor, "passages numbers"], *, beams: int
) -> Int[Tensor, "passages tokens"]:
    """Return the text that a decoder writes from each vector; arguments as for `score_writer`."""
    return torch.cat([model.write(part, beams=beams) for part in vectors.split(_ROWS)])


def _nats(model: ProbeDecoder, rows: PackedRows, vectors: Tensor) -> DocumentTally:
    labels = reconstruction(rows.input_ids, rows.attention_mask).labels
    pairs = zip(vectors.split(_ROWS), labels.split(_ROWS), strict=True)
    found = torch.cat([token_nats(model.teacher_forced(*pair), pair[1]) for pair in pairs])
    return _by_passage(rows, found.double().sum(1))


def _by_passage(rows: PackedRows, sums: Tensor, counts: Tensor | None = None) -> DocumentTally:
    tally = DocumentTally(len(rows.document_ids))
    tally.add(rows.document_index, sums, torch.ones(len(sums)) if counts is None else counts)
    return tally


def information_measurements(
    name: str, writing: Writing, without: DocumentTally, unigram: DocumentTally, split: str
) -> list[Measurement]:
    """Measure the bits that vectors save on each passage, and the share of its bits without them.

    Args:
        name: of the vectors; empty for the encoder's.
        writing: of the decoder that is given them.
        without: nats of each passage by the decoder that is given a blank vector.
        unigram: nats of each passage by the frequencies of its tokens.
        split: the name of the passages.
    """
    sources = {name: writing.nats} if name else {"": writing.nats, "shuffled_memory": writing.shuffled_nats}
    found: list[Measurement] = []
    for source, nats in sources.items():
        suffix, saved = source and f"/{source}", without.minus(nats)
        bits = saved.with_rows(saved.row_sums / NATS_PER_BIT)
        share = saved.with_rows(saved.row_sums, without.row_sums)
        found.append(measure_ratio(f"usable_bits{suffix}", "bits/passage", bits, split, protocol=TEACHER_FORCED))
        found.append(measure_ratio(f"usable_share{suffix}", "fraction", share, split, protocol=TEACHER_FORCED))
    if name:
        return found
    plain = without.with_rows(without.row_sums / NATS_PER_BIT)
    language = unigram.with_rows(unigram.row_sums - without.row_sums, unigram.row_sums)
    return [
        *found,
        measure_ratio("bits_without_vector", "bits/passage", plain, split, protocol=TEACHER_FORCED),
        measure_ratio("usable_share/language", "fraction", language, split, protocol=TEACHER_FORCED),
    ]


def text_measurements(
    name: str, rows: PackedRows, texts: Int[Tensor, "passages tokens"], split: str, *, beams: int
) -> list[Measurement]:
    """Compare written texts with the passages, and with other passages; texts are cut at their passages' lengths.

    Args:
        name: of the vectors; empty for the encoder's, which alone are compared with other passages.
        rows: the passages' classes.
        texts: written from the vector of each.
        split: the name of the passages.
        beams: beginnings that were followed at once in writing.
    """
    protocol = GREEDY if beams == 1 else f"{BEAM_SEARCH}_{beams}"
    found: list[Measurement] = []
    compared = {f"/{name}": texts} if name else {"": texts, "/shuffled_memory": texts.roll(len(texts) // 2, 0)}
    for suffix, written in compared.items():
        counts = 2 * rows.attention_mask.sum(1)
        cut = written.masked_fill(~rows.attention_mask.bool(), -1)
        true = rows.input_ids.masked_fill(~rows.attention_mask.bool(), -2)
        exact = ((cut == true) | ~rows.attention_mask.bool()).all(1)
        tallies = {
            "written_token_f1": _by_passage(rows, 2 * common_tokens(cut, true), counts),
            "written_rouge_l": _by_passage(rows, 2 * common_subsequence(cut, true), counts),
            "written_exact_match": _by_passage(rows, exact.long()),
        }
        found += [
            measure_ratio(f"{name}{suffix}", "fraction", t, split, protocol=protocol) for name, t in tallies.items()
        ]
    return found


def common_tokens(first: Int[Tensor, "rows tokens"], second: Int[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
    """Return how many tokens two texts share, in any order, each as often as in the text that has it less often."""

    def times(of: Tensor, inside: Tensor) -> Tensor:
        return (of[:, :, None] == inside[:, None]).sum(2)

    # a token that stands n times in one text is counted by each of its n occurrences, so each counts 1 / n
    own, other = times(first, first), times(first, second)
    return (torch.minimum(own, other) / own).sum(1).round().long()


def common_subsequence(first: Int[Tensor, "rows tokens"], second: Int[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
    """Return the length of the longest subsequence of tokens that two texts share."""
    best = torch.zeros(len(first), second.shape[1] + 1, dtype=torch.long)
    for token in first.T:
        extended = torch.maximum(best[:, 1:], best[:, :-1] + (second == token[:, None]))
        best = torch.nn.functional.pad(extended.cummax(1).values, (1, 0))
    return best[:, -1]
