"""The probes of one measurement: of the encoder's vectors, of rounded vectors, and of the controls."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.data import decode_piece, near_duplicates
from memlm.data.entities import EntityKinds
from memlm.encoders import Encoder, open_encoder
from memlm.encoders.vector_cache import default_cache, embed
from memlm.evaluation.probe.audit import Audit, TextsRead
from memlm.evaluation.probe.content_words import ContentWords
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset, dataset_of_passages
from memlm.evaluation.probe.duration import Estimate
from memlm.evaluation.probe.folders import claim_folder, fingerprint, restore, save
from memlm.evaluation.probe.metrics import CapacityPoint, capacity_measurements, linear_measurements
from memlm.evaluation.probe.settings import SIZES, ProbeSettings, ProbeTraining, Size
from memlm.evaluation.probe.training import ProbeData, train_probe
from memlm.evaluation.probe.verdict import readings
from memlm.evaluation.probe.writing import Writing, information_measurements, score_writer, text_measurements, written
from memlm.evaluation.reconstruction import ReconstructionScores, per_document, score_decoder
from memlm.evaluation.result import passages_of
from memlm.files import write_file_atomic
from memlm.measurement import Measurement, Passage, unigram_log_probabilities, unigram_nats
from memlm.models import ProbeDecoder, TextAutoencoderConfig
from memlm.models.runtime import weights_fingerprint
from memlm.store import rounded
from memlm.training import OptimizerConfig, RunConfig, TrainingConfig, train_run
from memlm.training.loop.callbacks import ProgressView

PartVectors = dict[str, Float[Tensor, "_ numbers"]]
"""Vectors of the training, validation and held-out passages, by part."""
OtherVectors = dict[str, tuple[ProbeDataset, dict[str, Float[Tensor, "_ _"]]]]
"""Passages with vectors of other encoders, by name and part."""
_ROWS = 64
"""Vectors that are read at once."""
_CONTROL_NUMBERS = 4
"""Numbers per token of the positive control, where the encoder's vector has as many."""


@dataclass(frozen=True)
class LengthResult:
    """The results at one length; fields as those of `Retention`."""

    measurements: list[Measurement]
    point: CapacityPoint
    by_position: list[float]
    passages: list[Passage]
    notes: list[tuple[str, str]]
    num_passages: int
    audits: list[Audit]


class Probes:
    """The probes of one measurement, each in a folder of its own; finished ones are cached.

    Args:
        out: the folder of the measurement.
        settings: lengths, sizes, controls.
        encoder: the fingerprint of the encoder or of its vectors.
        cache: the folder of cached vectors and probes; `default_cache()` where None.
        progress: show progress on stderr.

    Raises:
        RunFolderError: `out` belongs to another measurement.
    """

    def __init__(self, out: Path, settings: ProbeSettings, *, encoder: str, cache: Path | None, progress: bool) -> None:
        cache = cache or default_cache()
        self.out = out
        self.settings = settings
        self.progress = progress
        claim_folder(out, {"settings": settings.model_dump(mode="json"), "encoder": encoder})
        self.vector_cache = cache / "vectors"
        self.cache = cache / "probes"

    def say_estimate(self, dataset: ProbeDataset, encoder: Encoder | None, numbers: int) -> None:
        """Say how long the measurement of one length will take, where progress is shown."""
        if self.progress:
            self._say(f"{dataset.length} tokens: {Estimate.of(dataset, encoder, self.settings, numbers)}")

    def vectors(self, dataset: ProbeDataset, encoder: Encoder) -> PartVectors:
        """Encode all passages, rounded as the settings say."""
        found: PartVectors = {}
        for part in PARTS:
            texts = dataset.passages[part].texts
            show = _Speed(f"{encoder.name}, {part} passages of {dataset.length}", shown=self.progress)
            found[part] = rounded(embed(encoder, texts, cache=self.vector_cache, progress=show), self.settings.bits)
        return found

    def measure(
        self, dataset: ProbeDataset, vectors: PartVectors, untrained: Callable[[], PartVectors] | None
    ) -> LengthResult:
        """Train and score all probes of one length.

        Args:
            dataset: passages of the length.
            vectors: their vectors.
            untrained: gives the vectors of the untrained encoder; None where its architecture is unknown.
        """
        settings = self.settings
        runs = [self.run(dataset, vectors, "encoder", seed=settings.seed + i) for i in range(settings.seeds)]
        split, numbers = f"{dataset.length} tokens", vectors["train"].shape[1]
        others = self._other_vectors(dataset, untrained, numbers) if settings.controls else {}
        controls = self._controls(dataset, vectors, others) if settings.controls and settings.one_pass_controls else {}
        found = capacity_measurements(dataset, runs, controls, numbers=numbers, split=split)
        found += linear_measurements(dataset, vectors, others, settings, split=split)
        found += self._writing(dataset, vectors, others, split) if settings.writer_steps else []
        shares = {m.name: m.value for m in found}
        point = CapacityPoint(
            dataset.length,
            shares["token_accuracy"],
            shares["exact_match"],
            shares["retention/unigram"],
            {name: shares[f"token_accuracy/{name}"] for name in ("unigram", *controls)},
        )
        audits = self._audits(dataset, vectors, found, split) if settings.audit else []
        found += [m for audit in audits for m in audit.measurements()]
        returned = dataset.vocabulary.token_ids(runs[0].predictions.clamp(min=1))
        return LengthResult(
            found,
            point,
            runs[0].accuracy_by_position(),
            passages_of(partial(decode_piece, dataset.tokenizer), dataset.rows["held_out"], returned),
            self._notes(dataset, untrained is not None),
            len(dataset.passages["train"]),
            audits,
        )

    def run(
        self, dataset: ProbeDataset, vectors: PartVectors, name: str, *, seed: int, size: Size | None = None
    ) -> ReconstructionScores:
        """Train one probe, or read the finished one, and score it on held-out passages."""
        training = self.settings.probe
        training = training.model_copy(update={"size": size}) if size else training
        probe = self._trained(dataset.probe_data(vectors), name, training, seed=seed)
        return score_decoder(probe, dataset.classes("held_out"), vectors["held_out"])

    def _trained(
        self, data: ProbeData, name: str, training: ProbeTraining, *, seed: int, language: ProbeDecoder | None = None
    ) -> ProbeDecoder:
        length = data.train_labels.shape[1]
        self._say(f"probe '{name}', {length} tokens, seed {seed}")
        folder = self.out / "probes" / f"{length}-{name}-seed{seed}"
        start = "" if language is None else weights_fingerprint(language)
        deciding = {"training": training.model_dump(mode="json"), "seed": seed, "language": start}
        cached = self.cache / fingerprint(**vars(data), **deciding)
        restore(folder, cached, finished="done")
        probe = train_probe(data, training, folder, seed=seed, language=language, progress=self.progress)
        save(folder, cached)
        return probe

    def _writing(
        self, dataset: ProbeDataset, vectors: PartVectors, others: OtherVectors, split: str
    ) -> list[Measurement]:
        """Measure usable information and written texts: of the encoder's vectors, and of controls.

        One decoder learns to write from all training text, without vectors. From there all others start, the decoder of
        blank vectors too, which the others are compared with: it has the same size and training.
        """
        words, seed = ContentWords.of(dataset.passages["train"].texts), self.settings.seed
        width = vectors["train"].shape[1]
        twin = self.settings.one_pass_controls and "untrained" in others
        known = {"untrained": others["untrained"][1]} if twin else {}
        sums = words.sums(dataset.passages, width=width, seed=seed)
        sums = {part: rounded(own, self.settings.bits) for part, own in sums.items()}
        sources = {"": vectors, **({**known, "word_sums": sums} if self.settings.controls else {})}
        rows, counts = dataset.classes("held_out"), dataset.unigram_counts()
        unigram = per_document(rows, unigram_nats(unigram_log_probabilities(counts), rows.input_ids))
        blank = {part: torch.zeros_like(own) for part, own in vectors.items()}
        wrote = partial(self._written, dataset, self._language(dataset, width))
        without = wrote(blank, "blank_memory", beams=0).nats
        found: list[Measurement] = []
        for name, given in sources.items():
            beams = self.settings.beams if name in ("", "word_sums") else 0
            writing = wrote(given, name or "encoder", beams=beams)
            found += information_measurements(name, writing, without, unigram, split)
            found += text_measurements(name, rows, writing.texts, split, beams=beams) if beams else []
        return found

    def _language(self, dataset: ProbeDataset, width: int) -> ProbeDecoder:
        """Return the decoder that learnt to write without vectors, from which all that write start."""
        data = dataset.language_data(width)
        return self._trained(data, "writer_language", self.settings.language, seed=self.settings.seed)

    def _writer(self, dataset: ProbeDataset, language: ProbeDecoder, vectors: PartVectors, name: str) -> ProbeDecoder:
        data, seed = dataset.probe_data(vectors), self.settings.seed
        return self._trained(data, f"writer_{name}", self.settings.writer, seed=seed, language=language)

    def _written(
        self, dataset: ProbeDataset, language: ProbeDecoder, vectors: PartVectors, name: str, *, beams: int
    ) -> Writing:
        model = self._writer(dataset, language, vectors, name)
        return score_writer(model, dataset.classes("held_out"), vectors["held_out"], beams=beams)

    def _say(self, line: str) -> None:
        if self.progress:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _audits(self, dataset: ProbeDataset, vectors: PartVectors, found: list[Measurement], split: str) -> list[Audit]:
        """Audit what is read from the vectors, and from the vectors as databases round them."""
        kinds, train = EntityKinds.of(self.settings.audit_pattern), dataset.passages["train"]
        known = {reading.kind.name: reading for reading in readings(found, split, len(train))}
        # a decoder that writes has seen the texts that it learnt the language from, too
        seen = dataset.more if dataset.more is not None and self.settings.writer_steps else train
        language = self._language(dataset, vectors["train"].shape[1]) if self.settings.writer_steps else None
        read_by = partial(self._read, dataset, language)
        by = known["usable_share" if self.settings.writer_steps else "token_accuracy"]
        unsure = by.reason if by.status == "inconclusive" else ""
        held_out = dataset.readable("held_out")
        # all blank vectors are the same
        empty = {part: torch.zeros_like(v) for part, v in vectors.items()}
        blank = read_by(empty, "blank_memory", empty["held_out"][:1]).expand(len(held_out), -1)
        audits: list[Audit] = []
        for rounding in ("", *self.settings.roundings):
            self._say(f"audit of the vectors{rounding and ' as ' + rounding}")
            stored = {part: rounded(v, rounding) for part, v in vectors.items()} if rounding else vectors
            # a decoder of unrounded vectors reads rounded ones badly: its whitening widens directions without spread
            read = read_by(stored, rounding or "encoder", stored["held_out"])
            texts = TextsRead(held_out, *(dataset.decoded(classes, "held_out") for classes in (read, blank)))
            name = f"{split}, {rounding}" if rounding else split
            audits.append(Audit.of(texts, kinds, split=name, training=seen.texts, unsure=unsure))
        return audits

    def _read(
        self,
        dataset: ProbeDataset,
        language: ProbeDecoder | None,
        vectors: PartVectors,
        name: str,
        given: Float[Tensor, "passages numbers"],
    ) -> Int[Tensor, "passages tokens"]:
        """Return the classes that are read from each vector, by a decoder that writes where there is a language for it.

        Args:
            dataset: the passages.
            language: the decoder from which one that writes starts.
            vectors: that the decoder is trained on.
            name: of the decoder.
            given: the vectors that are read.
        """
        if language is not None:
            return written(self._writer(dataset, language, vectors, name), given, beams=self.settings.beams)
        data = dataset.probe_data(vectors)
        model = self._trained(data, name, self.settings.probe, seed=self.settings.seed)
        with torch.inference_mode():
            return torch.cat([model.decode(part).argmax(-1) for part in given.split(_ROWS)])

    def _other_vectors(
        self, dataset: ProbeDataset, untrained: Callable[[], PartVectors] | None, numbers: int
    ) -> OtherVectors:
        """Return vectors of the same passages by an untrained encoder, if known, and by the positive control."""
        found: OtherVectors = {} if untrained is None else {"untrained": (dataset, untrained())}
        if not self.settings.one_pass_controls:
            return found
        return {**found, "autoencoder": self._positive_control(dataset, width=numbers)}

    def _controls(
        self, dataset: ProbeDataset, vectors: PartVectors, others: OtherVectors
    ) -> dict[str, ReconstructionScores]:
        seed = self.settings.seed
        blank = {part: torch.zeros_like(v) for part, v in vectors.items()}
        found = {
            "blank_memory": self.run(dataset, blank, "blank_memory", seed=seed),
            "shuffled_memory": self.run(dataset, _shuffled(vectors, seed), "shuffled_memory", seed=seed),
        }
        sizes: list[Size] = list(SIZES)
        place = sizes.index(self.settings.probe.size)
        if place + 1 < len(sizes):
            found["larger"] = self.run(dataset, vectors, "larger", seed=seed, size=sizes[place + 1])
        return found | {name: self.run(*of, name, seed=seed) for name, of in others.items()}

    def _positive_control(self, dataset: ProbeDataset, *, width: int) -> tuple[ProbeDataset, dict[str, Tensor]]:
        """Train an autoencoder on the probe's training texts alone, and return its passages and vectors."""
        length = dataset.length
        folder = self.out / "autoencoder" / str(length)
        recipe = _control_config(length, width, self.settings)
        training_texts = dataset.passages["train"].texts
        cached = self.cache / fingerprint(recipe=recipe.model_dump(mode="json"), texts=training_texts)
        if not restore(folder, cached, finished="model.safetensors"):
            self._say(f"training the positive control, an autoencoder of {length} tokens")
            texts = self.out / "autoencoder" / f"texts-{length}.jsonl"
            texts.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps({"text": text}) + "\n" for text in training_texts)
            write_file_atomic(texts, "".join(lines))
            resume = (folder / "run.json").is_file()
            data = recipe.data.model_copy(update={"text": str(texts)})
            train_run(recipe.model_copy(update={"data": data}), folder, resume=resume, progress=self.progress)
            save(folder, cached)
        encoder = open_encoder(str(folder))
        own = dataset_of_passages(dataset.passages, encoder.tokenizer, length=length)
        return own, {part: encoder.encode(own.passages[part].texts) for part in PARTS}

    def _notes(self, dataset: ProbeDataset, untrained_known: bool) -> list[tuple[str, str]]:
        length, held_out = f"{dataset.length} tokens", dataset.passages["held_out"]
        counts = ", ".join(f"{len(dataset.passages[part])} {part.replace('_', '-')}" for part in PARTS)
        documents = len(set(held_out.document_index.tolist()))
        unseen = f"{100 * dataset.unseen_share():.1f} %"
        repeated = near_duplicates(dataset.rows["train"], dataset.rows["held_out"])
        notes = [
            (f"{length}: passages", f"{counts} (from {documents} documents never seen before)"),
            (f"{length}: classes", f"{len(dataset.vocabulary)}, {unseen} of held-out tokens in none of them"),
            (f"{length}: near-duplicates", f"{repeated} of {len(held_out)} held-out passages"),
        ]
        if self.settings.controls and not untrained_known:
            notes.append((f"{length}: untrained", "not available: the encoder's architecture is unknown"))
        return notes


def _shuffled(vectors: PartVectors, seed: int) -> PartVectors:
    """Give each text another text's vector."""
    generator = torch.Generator().manual_seed(seed)
    return {part: v[torch.randperm(len(v), generator=generator)] for part, v in vectors.items()}


def _control_config(length: int, width: int, settings: ProbeSettings) -> RunConfig:
    """Return `autoencoder-tiny` with as many numbers as the encoder's vector, at most four per token."""
    numbers = min(width, _CONTROL_NUMBERS * length)
    numbers = numbers // length * length or numbers
    return RunConfig(
        recipe="probe-positive-control",
        model=TextAutoencoderConfig(
            chunk_length=length, bottleneck_size=numbers, noise_bits=4, memory_activation="rms_norm"
        ),
        training=TrainingConfig(
            steps=settings.control_steps,
            seed=settings.seed,
            optimizer=OptimizerConfig(learning_rate=4e-3, adamw_learning_rate=4e-3),
        ),
    )


class _Speed:
    """Shows texts per second and the time left on stderr."""

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
