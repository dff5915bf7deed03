"""Scores of probes become measurements and points of the capacity curve."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memlm.evaluation.figures import constant, per_document, ratio_of, retained, scaled
from memlm.evaluation.probe.dataset import ProbeDataset
from memlm.evaluation.reconstruction import ReconstructionScores
from memlm.measurement import (
    DocumentTally,
    Measurement,
    paper_nats,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
)


@dataclass(frozen=True)
class CapacityPoint:
    """What came out at one length, for figures."""

    length: int
    token_accuracy: float
    exact_match: float
    retention: float
    controls: dict[str, float]


class CapacityFigures:
    """Measurements of one length."""

    def __init__(self, dataset: ProbeDataset, *, split: str) -> None:
        self.dataset = dataset
        self.split = split
        self.rows = dataset.classes("held_out")
        logs = unigram_log_probabilities(dataset.unigram_counts())
        self.floor = per_document(self.rows, unigram_nats(logs, self.rows.input_ids))
        commonest = int(dataset.unigram_counts().argmax())
        self.commonest = per_document(self.rows, (self.rows.input_ids == commonest).double())

    def all_of(
        self, runs: list[ReconstructionScores], controls: dict[str, ReconstructionScores], *, numbers: int
    ) -> list[Measurement]:
        """The encoder's figures, then each control's."""
        tokens, chunks, nats = (_mean(runs, name) for name in ("tokens", "chunks", "nats"))
        count, split = int(tokens.count), self.split
        size = np.array(chunks.counts) * float(numbers)
        found = [
            ratio_of("token_accuracy", "fraction", tokens, count, split),
            ratio_of("exact_match", "fraction", chunks, int(chunks.count), split),
            ratio_of("cross_entropy", "nats/token", nats, count, split),
            scaled("bits_per_dim", "bits/number", self.floor.sums - nats.sums, size, count, split),
        ]
        found += [retained(name, nats, tally, count, split) for name, tally in self.baselines(controls).items()]
        found.append(ratio_of("token_accuracy/unigram", "fraction", self.commonest, count, split))
        for name, scores in controls.items():
            asked = int(scores.tokens.count)
            found.append(ratio_of(f"token_accuracy/{name}", "fraction", scores.tokens, asked, split))
            found.append(ratio_of(f"cross_entropy/{name}", "nats/token", scores.nats, asked, split))
        if len(runs) > 1:
            found += [
                ratio_of(f"token_accuracy/seed_{i}", "fraction", run.tokens, count, split) for i, run in enumerate(runs)
            ]
        return found

    def audited(self, kind: str, scores: ReconstructionScores, spans: dict[str, DocumentTally]) -> list[Measurement]:
        """Tokens and spans that came back from vectors rounded so; a kind of span that does not occur is left out."""
        found = [ratio_of(f"token_accuracy/{kind}", "fraction", scores.tokens, int(scores.tokens.count), self.split)]
        return found + [
            ratio_of(f"{what}_recovered/{kind}", "fraction", tally, int(tally.count), self.split)
            for what, tally in spans.items()
            if tally.count
        ]

    def baselines(self, controls: dict[str, ReconstructionScores]) -> dict[str, DocumentTally]:
        """What retention is measured against."""
        classes = len(self.dataset.vocabulary)
        found = {
            "uniform": constant(self.floor, uniform_nats(classes)),
            "paper": constant(self.floor, paper_nats(classes)),
            "unigram": self.floor,
        }
        known = [name for name in ("blank_memory", "shuffled_memory", "untrained") if name in controls]
        return found | {name: controls[name].nats for name in known}

    def point(self, runs: list[ReconstructionScores], controls: dict[str, ReconstructionScores]) -> CapacityPoint:
        """The same as one point of the curve."""
        nats = _mean(runs, "nats").ratio()
        return CapacityPoint(
            length=self.dataset.length,
            token_accuracy=_mean(runs, "tokens").ratio(),
            exact_match=_mean(runs, "chunks").ratio(),
            retention=1 - nats / self.floor.ratio(),
            controls={
                "unigram": self.commonest.ratio(),
                **{name: scores.tokens.ratio() for name, scores in controls.items()},
            },
        )


def _mean(runs: list[ReconstructionScores], name: str) -> DocumentTally:
    """The mean over seeds of each document's sum; the counts are the same for all."""
    tallies = [cast(DocumentTally, getattr(run, name)) for run in runs]
    mean = DocumentTally(len(tallies[0].counts))
    mean.counts = tallies[0].counts
    mean.sums = np.mean([t.sums for t in tallies], axis=0)
    return mean


ROUNDINGS = ("fp16", "int8", "binary")
_SPANS = {
    "names": re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*"),
    "numbers": re.compile(r"\d[\d,.]*"),
}


def recovered_spans(dataset: ProbeDataset, predictions: Int[Tensor, "passages tokens"]) -> dict[str, DocumentTally]:
    """Spans that came back over spans, by kind and document.

    Args:
        dataset: what the probe was asked.
        predictions: classes for each held-out passage.
    """
    passages, rows = dataset.passages["held_out"], dataset.classes("held_out")
    right = (predictions == rows.input_ids) & rows.attention_mask.bool()
    tallies = {kind: DocumentTally(len(passages.document_ids)) for kind in _SPANS}
    for row, text in enumerate(passages.texts):
        places = _token_spans(dataset, text)
        for kind, rule in _SPANS.items():
            whole = [_whole(right[row], places, match.span()) for match in rule.finditer(text)]
            asked = [w for w in whole if w is not None]
            counts = torch.tensor([float(sum(asked))]), torch.tensor([float(len(asked))])
            tallies[kind].add(passages.document_index[row : row + 1], *counts)
    return tallies


def _token_spans(dataset: ProbeDataset, text: str) -> list[tuple[int, int]]:
    encoded = dataset.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    return cast("list[tuple[int, int]]", encoded["offset_mapping"])[: dataset.length]


def _whole(right: Bool[Tensor, " tokens"], places: list[tuple[int, int]], span: tuple[int, int]) -> bool | None:
    """Whether the span's tokens are all right; None where the passage's tokens do not reach to its end."""
    touching = [i for i, (start, end) in enumerate(places) if start < span[1] and end > span[0]]
    if not touching or places[-1][1] < span[1]:
        return None
    return bool(right[touching].all())
