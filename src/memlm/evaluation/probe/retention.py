"""The retention meter: how much of a text does one vector of an encoder keep?

A decoder (the probe) is trained to give the text back from the frozen encoder's vector; what it gets right on held-out
documents is a lower bound of what the vector holds (paper 1.2). Beside it stand controls that hold nothing, or all:

    untrained        the same architecture with fresh weights
    blank_memory     every vector the same
    shuffled_memory  another text's vector
    unigram          no probe at all: training frequencies
    autoencoder      our own encoder of as many numbers, trained on the same training texts (the positive control)
    larger           the next larger probe on the same vectors: would a better decoder still gain?
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import Document, decode_piece, load_tokenizer, train_tokenizer
from memlm.encoders import Encoder, open_encoder
from memlm.encoders.vector_cache import default_cache, embed
from memlm.errors import RunFolderError
from memlm.evaluation.passages import Passage, passages_of
from memlm.evaluation.probe.dataset import (
    PARTS,
    ProbeDataset,
    dataset_of_documents,
    dataset_of_passages,
    split_train_val_test,
)
from memlm.evaluation.probe.folders import ProbeCache, fingerprint
from memlm.evaluation.probe.metrics import ROUNDINGS as AUDITED
from memlm.evaluation.probe.metrics import CapacityFigures, CapacityPoint, recovered_spans
from memlm.evaluation.probe.ready_made import ReadyMade, export
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.evaluation.probe.training import SIZES, Size, train_probe
from memlm.evaluation.reconstruction import ReconstructionScores, score_decoder
from memlm.files import read_json, write_file_atomic
from memlm.measurement import Measurement
from memlm.store import rounded
from memlm.training import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig, train_run
from memlm.training.loop.callbacks import ProgressView

PartVectors = dict[str, Float[Tensor, "_ numbers"]]
_GAIN = 0.01
"""Points of accuracy below which a larger probe counts as no better."""
_CONTROL_NUMBERS = 4
"""Numbers per token of the positive control, where the encoder's vector has as many."""


@dataclass
class Retention:
    """The result of a measurement.

    Attributes:
        encoder: its name.
        numbers: in one vector.
        measurements: every figure; `split` names the length.
        points: the capacity curve.
        by_position: accuracy at each position, at the longest length.
        passages: held-out passages beside what came back, at the longest length.
        notes: facts a reader needs, name and value.
    """

    encoder: str
    numbers: int
    measurements: list[Measurement] = field(default_factory=list[Measurement])
    points: list[CapacityPoint] = field(default_factory=list[CapacityPoint])
    by_position: list[float] = field(default_factory=list[float])
    passages: list[Passage] = field(default_factory=list[Passage])
    notes: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

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
            encoder: anything with `encode(texts) -> (texts, numbers)`, `name`, `width` and `fingerprint`.
            texts: documents; whole ones are held out, so give at least three.
            out: folder of the probes; what was stopped there goes on.
            settings: lengths, sizes, controls.
            cache: where vectors and finished probes are kept; `default_cache()` by default.
            progress: show progress on stderr.
            export_to: also write vectors, texts and tokenizer there, as `measure_vectors` reads them.

        Raises:
            DataError: too few or too short texts.
            RunFolderError: the folder belongs to another measurement.
        """
        chosen = settings or ProbeSettings()
        documents = [t if isinstance(t, Document) else Document(str(i), t) for i, t in enumerate(texts)]
        sides = split_train_val_test(documents, held_out=chosen.held_out, seed=chosen.seed)
        tokenizer = _vocabulary_of(encoder, chosen, [d.text for d in sides.train])
        limits: dict[str, int] = dict(
            zip(PARTS, (chosen.passages, -(-chosen.held_out_passages // 2), chosen.held_out_passages), strict=True)
        )
        probing = _Probing(
            Path(out), chosen, encoder.name, encoder.fingerprint, cache=cache or default_cache(), progress=progress
        )
        result = cls(encoder.name, encoder.width)
        for length in chosen.lengths:
            dataset = dataset_of_documents(sides, tokenizer, length=length, limits=limits, seed=chosen.seed)
            write = partial(probing.vectors, dataset)
            vectors = write(encoder)
            if export_to is not None:
                export(dataset, vectors, export_to / str(length) if len(chosen.lengths) > 1 else export_to)
            probing.point(result, dataset, vectors, _untrained(encoder, chosen, write))
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
        """Probe vectors that are there already.

        Args:
            ready: texts and vectors, as `read_ready_made` gives them.
            out: folder of the probes.
            name: what to call the encoder.
            tokenizer: folder or Hub id of the tokens to ask for; a BPE of the training texts by default.
            settings: lengths are the first tokens of each text that are asked for.
            cache: where finished probes are kept; `default_cache()` by default.
            progress: show progress on stderr.
        """
        chosen = settings or ProbeSettings()
        texts = ready.passages["train"].texts
        tokens = load_tokenizer(tokenizer) if tokenizer else train_tokenizer(texts, vocab_size=1024)
        width = ready.vectors["train"].shape[1]
        digest = _vectors_digest(ready)
        probing = _Probing(Path(out), chosen, name, digest, cache=cache or default_cache(), progress=progress)
        result = cls(name, width)
        for length in chosen.lengths:
            dataset = dataset_of_passages(ready.passages, tokens, length=length)
            vectors = {part: rounded(v, chosen.bits) for part, v in ready.vectors.items()}
            probing.point(result, dataset, vectors, None)
        return result

    def sentence(self) -> str:
        """The main result in one sentence."""
        last = self.points[-1]
        blank = last.controls.get("blank_memory", last.controls["unigram"])
        empty = "a blank vector" if "blank_memory" in last.controls else "guessing the commonest token"
        return (
            f"One {self.numbers}-number vector of {self.encoder} keeps {_percent(last.token_accuracy)} of the tokens "
            f"of a {last.length}-token passage; {empty} gets {_percent(blank)}."
        )

    def audit_sentences(self) -> list[str]:
        """What an attacker with the vectors can read, a sentence for each rounding and length that was audited."""
        found: list[str] = []
        for kind in AUDITED:
            of_kind = {(m.split, m.name.split("/")[0]): m for m in self.measurements if m.name.endswith(f"/{kind}")}
            for split in dict.fromkeys(split for split, _ in of_kind):
                spans = [
                    f"{_percent(m.value)} of the {what} ({m.count} in all)"
                    for what in ("names", "numbers")
                    if (m := of_kind.get((split, f"{what}_recovered"))) is not None
                ]
                read = ", ".join([f"{_percent(of_kind[split, 'token_accuracy'].value)} of the tokens", *spans])
                found.append(f"Who holds {kind} vectors of {split} can read at least {read}.")
        return found

    def would_gain(self) -> str:
        """Whether a larger probe finds more in the same vectors, in one sentence."""
        last = self.points[-1]
        if "larger" not in last.controls:
            return "No larger probe was trained, so a better decoder may still find more."
        gain = last.controls["larger"] - last.token_accuracy
        verdict = (
            "so this is a lower bound with room above"
            if gain > _GAIN
            else "so a larger probe would hardly gain from these passages (more passages might)"
        )
        return f"The next larger probe gets {_percent(last.controls['larger'])} ({100 * gain:+.1f} points), {verdict}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _vocabulary_of(encoder: Encoder, settings: ProbeSettings, texts: list[str]) -> PreTrainedTokenizerBase:
    own = getattr(encoder, "tokenizer", None)
    if settings.vocabulary == "encoder" and isinstance(own, PreTrainedTokenizerBase):
        return own
    return train_tokenizer(texts, vocab_size=1024)


def _untrained(
    encoder: Encoder, settings: ProbeSettings, write: Callable[[Encoder], PartVectors]
) -> Callable[[], PartVectors] | None:
    """Vectors of the same architecture with fresh weights, where the encoder knows its architecture."""
    make = getattr(encoder, "untrained", None)
    return None if make is None else lambda: write(make(settings.seed))


def _vectors_digest(ready: ReadyMade) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(ready.vectors[part].contiguous().numpy().tobytes())
        digest.update("\0".join(ready.passages[part].texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class _Probing:
    """The probes of one measurement, each in a folder of its own below `out`; finished ones are kept in the cache."""

    def __init__(
        self, out: Path, settings: ProbeSettings, name: str, encoder: str, *, cache: Path, progress: bool
    ) -> None:
        self.out = out
        self.settings = settings
        self.progress = progress
        self.name = name
        claim_folder(out, {"settings": settings.model_dump(mode="json"), "encoder": encoder})
        self.kept_vectors = cache / "vectors"
        self.shelf = ProbeCache(cache / "probes")

    def say(self, what: str) -> None:
        """One line on stderr."""
        if self.progress:
            _to_stderr(what)

    def vectors(self, dataset: ProbeDataset, encoder: Encoder) -> PartVectors:
        """Vectors of all passages, rounded as asked."""
        found: PartVectors = {}
        for part in PARTS:
            texts = dataset.passages[part].texts
            show = _Speed(f"{encoder.name}, {part} passages of {dataset.length}", shown=self.progress)
            found[part] = rounded(embed(encoder, texts, cache=self.kept_vectors, progress=show), self.settings.bits)
        return found

    def point(
        self,
        result: Retention,
        dataset: ProbeDataset,
        vectors: PartVectors,
        untrained: Callable[[], PartVectors] | None,
    ) -> None:
        """Everything at one length, added to the result."""
        settings = self.settings
        runs = [self.run(dataset, vectors, "encoder", seed=settings.seed + i) for i in range(settings.seeds)]
        controls: dict[str, ReconstructionScores] = {}
        if settings.controls:
            controls = self.controls(dataset, vectors, untrained)
        figures = CapacityFigures(dataset, split=f"{dataset.length} tokens")
        result.measurements += figures.all_of(runs, controls, numbers=vectors["train"].shape[1])
        if settings.audit:
            result.measurements += self.audit(dataset, vectors, figures)
        best = runs[0]
        result.by_position = best.accuracy_by_position()
        decode = partial(decode_piece, dataset.tokenizer)
        returned = dataset.vocabulary.token_ids(best.predictions.clamp(min=1))
        result.passages = passages_of(decode, dataset.rows["held_out"], returned)
        result.points.append(figures.point(runs, controls))
        result.notes += self.notes(dataset, untrained is not None)

    def audit(self, dataset: ProbeDataset, vectors: PartVectors, figures: CapacityFigures) -> list[Measurement]:
        """What comes back from the vectors as fp16, int8 and binary: tokens, names, numbers."""
        found: list[Measurement] = []
        for kind in AUDITED:
            kept = {part: rounded(v, kind) for part, v in vectors.items()}
            scores = self.run(dataset, kept, kind, seed=self.settings.seed)
            found += figures.audited(kind, scores, recovered_spans(dataset, scores.predictions))
        return found

    def controls(
        self, dataset: ProbeDataset, vectors: PartVectors, untrained: Callable[[], PartVectors] | None
    ) -> dict[str, ReconstructionScores]:
        """Scores of each control, by name."""
        seed = self.settings.seed
        blank = {part: torch.zeros_like(v) for part, v in vectors.items()}
        found = {
            "blank_memory": self.run(dataset, blank, "blank_memory", seed=seed),
            "shuffled_memory": self.run(dataset, _shuffled(vectors, seed), "shuffled_memory", seed=seed),
        }
        if untrained is not None:
            found["untrained"] = self.run(dataset, untrained(), "untrained", seed=seed)
        sizes: list[Size] = list(SIZES)
        place = sizes.index(self.settings.probe.size)
        if place + 1 < len(sizes):
            found["larger"] = self.run(dataset, vectors, "larger", seed=seed, size=sizes[place + 1])
        found["autoencoder"] = self.positive_control(dataset, width=vectors["train"].shape[1])
        return found

    def run(
        self, dataset: ProbeDataset, vectors: PartVectors, name: str, *, seed: int, size: Size | None = None
    ) -> ReconstructionScores:
        """Train one probe (or find it finished) and score it on held-out passages."""
        training = self.settings.probe
        training = training.model_copy(update={"size": size}) if size else training
        self.say(f"probe '{name}', {dataset.length} tokens, seed {seed}")
        folder = self.out / "probes" / f"{dataset.length}-{name}-seed{seed}"
        data = dataset.probe_data(vectors)
        key = fingerprint(**vars(data), training=training.model_dump(mode="json"), seed=seed)
        self.shelf.fill(folder, key, finished="done")
        probe = train_probe(data, training, folder, seed=seed, progress=self.progress)
        self.shelf.keep(folder, key)
        return score_decoder(probe, dataset.classes("held_out"), vectors["held_out"])

    def positive_control(self, dataset: ProbeDataset, *, width: int) -> ReconstructionScores:
        """Our autoencoder, trained on the probe's training texts alone, probed like the encoder."""
        length = dataset.length
        folder = self.out / "autoencoder" / str(length)
        recipe = _control_config(length, width, self.settings)
        key = fingerprint(recipe=recipe.model_dump(mode="json"), texts=dataset.passages["train"].texts)
        if not self.shelf.fill(folder, key, finished="model.safetensors"):
            self.say(f"training the positive control, an autoencoder of {length} tokens")
            texts = self.out / "autoencoder" / f"texts-{length}.jsonl"
            texts.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps({"text": text}) + "\n" for text in dataset.passages["train"].texts)
            write_file_atomic(texts, "".join(lines))
            resume = (folder / "run.json").is_file()
            data = recipe.data.model_copy(update={"text": str(texts)})
            train_run(recipe.model_copy(update={"data": data}), folder, resume=resume, progress=self.progress)
            self.shelf.keep(folder, key)
        encoder = open_encoder(str(folder))
        asked = dataset_of_passages(dataset.passages, encoder.tokenizer, length=length)
        vectors = {part: encoder.encode(asked.passages[part].texts) for part in PARTS}
        return self.run(asked, vectors, "autoencoder", seed=self.settings.seed)

    def notes(self, dataset: ProbeDataset, untrained_known: bool) -> list[tuple[str, str]]:
        """Facts about one length."""
        counts = ", ".join(f"{len(dataset.passages[part])} {part.replace('_', '-')}" for part in PARTS)
        documents = len(set(dataset.passages["held_out"].document_index.tolist()))
        held = len(dataset.passages["held_out"])
        facts = [
            (f"{dataset.length} tokens: passages", f"{counts} (from {documents} documents never seen before)"),
            (
                f"{dataset.length} tokens: classes",
                f"{len(dataset.vocabulary)}, {_percent(dataset.unseen_share())} of held-out tokens in none of them",
            ),
            (f"{dataset.length} tokens: near-duplicates", f"{dataset.duplicates()} of {held} held-out passages"),
        ]
        if self.settings.controls and not untrained_known:
            facts.append(
                (f"{dataset.length} tokens: untrained", "not available: the encoder's architecture is unknown")
            )
        return facts


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """The folder goes on only with the measurement it began with."""
    path = out / "probe.json"
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"'{out}' is a file, not a folder; choose another --out.")
    if path.is_file():
        before = read_json(path)
        changed = sorted(k for k in record if before.get(k) != record[k])
        if changed:
            raise RunFolderError(
                f"'{out}' holds the probe of another {changed[0]}; choose another --out, or remove that folder."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"'{out}' is not empty and holds no probe; choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file_atomic(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"cannot write to '{out}': {error.strerror or error}; choose another --out.") from error


def _shuffled(vectors: PartVectors, seed: int) -> PartVectors:
    """Each text gets another text's vector."""
    generator = torch.Generator().manual_seed(seed)
    return {part: v[torch.randperm(len(v), generator=generator)] for part, v in vectors.items()}


def _control_config(length: int, width: int, settings: ProbeSettings) -> RunConfig:
    """Like `autoencoder-tiny`, with as many numbers as the encoder's vector, at most four per token."""
    numbers = min(width, _CONTROL_NUMBERS * length)
    numbers = numbers // length * length or numbers
    return RunConfig(
        recipe="probe-positive-control",
        data=DataConfig(),
        model=ModelConfig(chunk_length=length, bottleneck_size=numbers, noise_bits=4, memory_activation="rms_norm"),
        training=TrainingConfig(
            steps=settings.control_steps,
            seed=settings.seed,
            optimizer=OptimizerConfig(learning_rate=4e-3, adamw_learning_rate=4e-3),
        ),
    )


class _Speed:
    """Texts per second and time left, on stderr."""

    def __init__(self, what: str, *, shown: bool) -> None:
        self.what = what
        self.shown = shown
        self.began = time.monotonic()
        self.view: ProgressView | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.view is None:
            self.view = ProgressView(total, shown=self.shown, noun="text")
            self.view.start(0)
        rate = done / max(time.monotonic() - self.began, 1e-9)
        self.view.update(done, f"{self.what}  {rate:,.0f} texts/s")
        if done >= total:
            self.view.stop()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
