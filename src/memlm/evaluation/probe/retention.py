"""The retention meter: how much of a text one vector of an encoder keeps.

A decoder (the probe) is trained to predict the text from the frozen encoder's vector. Its accuracy on held-out
documents is a lower bound of what the vector contains. These controls are measured beside it:

    untrained        the same architecture with random weights
    blank_memory     the same vector for every text
    shuffled_memory  another text's vector
    unigram          no probe: token frequencies of the training passages
    autoencoder      an autoencoder of as many numbers, trained on the same training texts (the positive control)
    larger           the next larger probe on the same vectors, which shows whether a better decoder would find more

Linear readings in closed form (`linear.py`) stand beside the probe, and `verdict.py` says what all of them found.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.data import Document, load_tokenizer, split_documents, train_tokenizer
from memlm.data.corpus import UniqueIds
from memlm.data.entities import EntityKinds
from memlm.data.given import check_kind, list_of_texts, one_text
from memlm.encoders import Encoder
from memlm.evaluation.probe.audit import Audit, check_enough
from memlm.evaluation.probe.dataset import PARTS, dataset_of_documents, dataset_of_passages
from memlm.evaluation.probe.metrics import CapacityPoint, retrieval_measurements
from memlm.evaluation.probe.probes import LengthResult, PartVectors, Probes
from memlm.evaluation.probe.ready_made import ReadyMade, export
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.evaluation.probe.verdict import Reading, headline, percent, readings
from memlm.measurement import Measurement, Passage
from memlm.measurement.intervals import MIN_UNITS
from memlm.store import rounded

_GAIN = 0.01
"""Gain in accuracy below which a larger probe counts as no better."""


@dataclass
class Retention:
    """The result of a measurement of retention.

    Attributes:
        encoder: the name of the encoder.
        numbers: the number of components of a vector.
        num_passages: the number of training passages, at the longest length.
        measurements: every figure; `split` names the length.
        points: the capacity curve.
        by_position: accuracy at each position, at the longest length.
        passages: held-out passages beside the predicted ones, at the longest length.
        notes: (name, value) of facts that qualify the figures.
        audits: entities that were recovered, of each length and rounding.
    """

    encoder: str
    numbers: int
    num_passages: int = 0
    measurements: list[Measurement] = field(default_factory=list[Measurement])
    points: list[CapacityPoint] = field(default_factory=list[CapacityPoint])
    by_position: list[float] = field(default_factory=list[float])
    passages: list[Passage] = field(default_factory=list[Passage])
    notes: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    audits: list[Audit] = field(default_factory=list[Audit])

    @classmethod
    def measure(
        cls,
        encoder: Encoder,
        texts: Sequence[str | Document],
        *,
        out: str | Path,
        settings: ProbeSettings | None = None,
        cache: Path | None = None,
        progress: bool = False,
        export_to: Path | None = None,
    ) -> Retention:
        """Probe an encoder on documents.

        Args:
            encoder: an object with `encode(texts) -> (texts, numbers)`, `name`, `width` and `fingerprint`.
            texts: at least three documents, since whole documents are held out.
            out: the folder of the probes; an interrupted measurement continues there.
            settings: lengths, sizes, controls.
            cache: the folder of cached vectors and probes; `default_cache()` by default.
            progress: show progress on stderr.
            export_to: also write vectors, texts and tokenizer there, as `measure_vectors` reads them.

        Raises:
            DataError: too few or too short texts.
            RunFolderError: the folder belongs to another measurement.
        """
        check_kind(encoder, cast(Any, Encoder), name="encoder", instead="open_encoder(...) or a FunctionEncoder")
        chosen = settings or ProbeSettings()
        ids = UniqueIds()
        entries: Sequence[object] = texts if isinstance(texts, list | tuple) else list_of_texts(texts)
        named = (
            t if isinstance(t, Document) else Document(str(i), one_text(t, name=f"texts[{i}]"))
            for i, t in enumerate(entries)
        )
        documents = [Document(ids.of(document.id), document.text) for document in named]
        split = split_documents(documents, held_out=chosen.held_out, validation=chosen.held_out, seed=chosen.seed)
        if chosen.audit:
            _check_audit(chosen, len(split.held_out), given=len(documents))
        tokenizer = _vocabulary_of(encoder, chosen, [d.text for d in split.train])
        counts = (chosen.passages, -(-chosen.held_out_passages // 2), chosen.held_out_passages)
        limits: dict[str, int] = dict(zip(PARTS, counts, strict=True))
        probes = Probes(Path(out), chosen, encoder=encoder.fingerprint, cache=cache, progress=progress)
        result = cls(encoder.name, encoder.width)
        for length in chosen.lengths:
            dataset = dataset_of_documents(
                split,
                tokenizer,
                length=length,
                limits=limits,
                seed=chosen.seed,
                ends=chosen.audit,
                table=_table_of(encoder, tokenizer),
            )
            probes.say_estimate(dataset, encoder, encoder.width)
            encode = partial(probes.vectors, dataset)
            vectors = encode(encoder)
            if export_to is not None:
                export(dataset, vectors, export_to / str(length) if len(chosen.lengths) > 1 else export_to)
            result.add(probes.measure(dataset, vectors, _untrained(encoder, chosen, encode)))
            if chosen.retrieval:
                held_out = dataset.passages["held_out"]
                result.measurements += retrieval_measurements(
                    encoder, held_out, vectors["held_out"], f"{length} tokens"
                )
        return result

    @classmethod
    def measure_vectors(
        cls,
        ready: ReadyMade,
        *,
        out: str | Path,
        name: str,
        tokenizer: str | None = None,
        settings: ProbeSettings | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> Retention:
        """Probe vectors that exist already.

        Args:
            ready: texts and vectors, as `read_ready_made` gives them.
            out: the folder of the probes.
            name: the name of the encoder.
            tokenizer: folder or Hub id of the tokenizer; a BPE of the training texts by default.
            settings: `lengths` are the numbers of leading tokens of each text that the probe predicts.
            cache: the folder of cached probes; `default_cache()` by default.
            progress: show progress on stderr.

        Raises:
            RunFolderError: the folder belongs to another measurement.
        """
        chosen = settings or ProbeSettings()
        if chosen.audit:
            counts = {part: len(set(ready.passages[part].document_index.tolist())) for part in PARTS}
            _check_audit(chosen, counts["held_out"], given=sum(counts.values()))
        texts = ready.passages["train"].texts
        tokens = load_tokenizer(tokenizer) if tokenizer else train_tokenizer(texts, vocab_size=1024)
        probes = Probes(Path(out), chosen, encoder=_vectors_digest(ready), cache=cache, progress=progress)
        result = cls(name, ready.vectors["train"].shape[1])
        for length in chosen.lengths:
            dataset = dataset_of_passages(ready.passages, tokens, length=length)
            probes.say_estimate(dataset, None, result.numbers)
            vectors = {part: rounded(v, chosen.bits) for part, v in ready.vectors.items()}
            result.add(probes.measure(dataset, vectors, None))
        return result

    def add(self, found: LengthResult) -> None:
        """Add the results of one length; passages and accuracy by position are replaced."""
        self.measurements += found.measurements
        self.points.append(found.point)
        self.num_passages = found.num_passages
        self.by_position, self.passages = found.by_position, found.passages
        self.notes += found.notes
        self.audits += found.audits

    def readings(self) -> list[Reading]:
        """Return what each kind of reading found at the longest length, the clearest first."""
        return readings(self.measurements, f"{self.points[-1].length} tokens", self.num_passages)

    def sentence(self) -> str:
        """Return the verdict on the longest length in one sentence."""
        length = self.points[-1].length
        sizes = {"numbers": self.numbers, "length": length, "passages": self.num_passages}
        return headline(self.readings(), encoder=self.encoder, **sizes)

    def verdict(self) -> dict[str, Any]:
        """Return the verdict on the longest length as values of JSON: of the readings, and of the audits."""
        found = [
            {"reading": r.kind.name, "status": r.status, "reason": r.reason, "value": r.value, "control": r.control}
            for r in self.readings()
        ]
        return {
            "name": "verdict",
            "split": f"{self.points[-1].length} tokens",
            "status": found[0]["status"],
            "headline": self.sentence(),
            "readings": found,
            "audit": {audit.split: audit.as_json() for audit in self.audits},
        }

    def would_gain(self) -> str:
        """Return in one sentence whether a larger probe finds more tokens, given all at once, in the same vectors."""
        last = self.points[-1]
        if "larger" not in last.controls:
            return "No larger probe was trained, so a better decoder may still find more."
        larger, gain = percent(last.controls["larger"]), last.controls["larger"] - last.token_accuracy
        measured = f"All tokens at once: the next larger probe gets {larger} ({100 * gain:+.1f} points)"
        [status] = {reading.status for reading in self.readings() if reading.kind.name == "token_accuracy"}
        if gain > _GAIN:
            return f"{measured}, so this is a lower bound with room above."
        if status != "found":
            return f"{measured}; neither of them learnt to read these vectors, so this says nothing of the bound."
        return f"{measured}, so a larger probe would hardly gain from these passages (more passages might)."


def _vocabulary_of(encoder: Encoder, settings: ProbeSettings, texts: list[str]) -> PreTrainedTokenizerBase:
    own = getattr(encoder, "tokenizer", None)
    if settings.vocabulary == "encoder" and isinstance(own, PreTrainedTokenizerBase):
        return own
    return train_tokenizer(texts, vocab_size=1024)


def _table_of(encoder: Encoder, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Return the encoder's own vector of each token, None where the passages have other tokens or there is none."""
    model = getattr(encoder, "model", None)
    if tokenizer is not getattr(encoder, "tokenizer", None) or not isinstance(model, PreTrainedModel):
        return None
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return weight.detach().cpu() if isinstance(weight, Tensor) else None


def _untrained(
    encoder: Encoder, settings: ProbeSettings, encode: Callable[[Encoder], PartVectors]
) -> Callable[[], PartVectors] | None:
    """Return a function that gives the vectors of the untrained architecture, None where it is unknown."""
    make = getattr(encoder, "untrained", None)
    return None if make is None else lambda: encode(make(settings.seed))


def _check_audit(settings: ProbeSettings, documents: int, *, given: int) -> None:
    EntityKinds.of(settings.audit_pattern)
    share = settings.held_out
    check_enough(
        documents,
        given=given,
        needed=math.ceil(MIN_UNITS / share),
        remedy=f", or hold out a larger share (--held-out {share:g})",
    )


def _vectors_digest(ready: ReadyMade) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(ready.vectors[part].contiguous().numpy().tobytes())
        digest.update("\0".join(ready.passages[part].texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
