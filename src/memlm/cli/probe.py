"""`memlm probe`: a measurement of how much of a text the vector of an encoder retains."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from memlm.cli.arguments import NotNegative, Positive, TextOptions, options_of, parse, text_field_of
from memlm.cli.store import counted_by, open_texts, progress_view
from memlm.data import load_documents
from memlm.data.entities import EntityKinds
from memlm.encoders import Encoder, MemoryEncoder, open_encoder
from memlm.errors import ConfigError
from memlm.evaluation.probe.audit import Audit, check_enough
from memlm.evaluation.probe.folders import claim_folder
from memlm.evaluation.probe.ready_made import read_ready_made
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings, ProbeTraining, Size
from memlm.evaluation.probe.stored import first_words, read_store
from memlm.evaluation.probe.verdict import SERIES, Reading
from memlm.files import write_file_atomic
from memlm.measurement import Measurement, append_journal, to_json_lines
from memlm.measurement.intervals import MIN_UNITS
from memlm.reports import PageContent, figure, tables, write_page
from memlm.training.run_folder import command_line, describe_versions
from memlm.training.schema import Settings, checked

QUICK = {"passages": 4096, "held_out_passages": 512, "one_pass_controls": False, "word_passes": 2, "writer_steps": 240}
QUICK_PROBE = {"size": "small", "steps": 40}

_CAVEATS = (
    "Recovered means: at least this can be read. A low figure proves no safety: other readers may read more.",
    "audit.jsonl and the report hold the entities and their texts: both are as sensitive as the texts.",
)


@dataclass(frozen=True)
class Probe(TextOptions):
    """Train a decoder to reconstruct texts from a frozen encoder's vectors, and measure how much the vectors retain.

    Controls give the measurement its scale: an untrained encoder of the same architecture, and blank and shuffled
    vectors. The command writes report.html and measurements.jsonl, and continues where it was stopped.

      memlm probe --encoder runs/demo --quick
      memlm probe --encoder sentence-transformers/all-MiniLM-L6-v2 --lengths 16,32,64
      memlm probe --embeddings vectors.safetensors --texts texts.jsonl
      memlm probe --encoder PATH_OR_HUB_ID --text notes.jsonl --audit
      memlm probe --store notes.mem --audit
    """

    encoder: str | None = None
    """A run folder of memlm, a model folder, or the Hub id of any transformers model."""
    gguf_file: str | None = None
    """A GGUF file inside the encoder's folder."""
    pooling: str | None = None
    """Pooling of hidden states: last, penultimate, mean, cls, max, mean_sqrt_len_tokens or weightedmean; by default all
    that the model declares, or penultimate for causal models and mean for others."""
    layer: NotNegative | None = None
    """Layer whose hidden states are pooled, 0 for the embeddings; the last by default."""
    prompt: str | None = None
    """Name of a prompt that the encoder declares, such as query, or the text before every text; '' for none."""
    embeddings: str | None = None
    """File of existing vectors: .safetensors or .npy, one row per text."""
    texts: str | None = None
    """With --embeddings: their texts as records (JSONL, JSON, CSV, Parquet) with "text" and optionally "document",
    "split" and "id"."""
    tokenizer: str | None = None
    """With --embeddings: tokenizer of the texts; by default a BPE trained on the training texts."""
    text: str = "sotu"
    """With --encoder: the texts, a bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    lengths: str | None = None
    """Tokens per passage, one number or several as in 16,32,64; by default 32, or the chunk of an encoder of memlm."""
    size: Size = "medium"
    """Width and depth of the probe's decoder."""
    steps: Positive = 400
    """Greatest number of updates of a probe; early stopping usually ends training before."""
    store: str | None = None
    """With --audit: a store of memories, whose texts are read back from the memories alone."""
    model: str | None = None
    """With --store: the model that wrote it, if it has moved since."""
    cue: Positive = 8
    """With --store of a decoder: first tokens of each chunk that the decoder is given to go on from."""
    quick: bool = False
    """A first answer from few passages: words, positions and usable information, with controls. Other flags win where
    they differ from their defaults."""
    out: str | None = None
    """Folder of the probes and the report; by default runs/probe-NAME."""
    export: str | None = None
    """Folder to which vectors, texts and tokenizer are also written, in the format of --embeddings."""
    json: bool = False
    """Print only measurements as JSON lines on stdout, and the verdict as the last one."""


def run(arguments: list[str]) -> None:
    """Probe the vectors, write the report and the journal, and print the result."""
    options = _options(arguments)
    _check_options(options)
    source = Path(options.encoder or options.embeddings or options.store or "").stem or "encoder"
    out = Path(options.out or f"runs/probe-{source}")
    if options.store is not None:
        _audit_store(options, out)
        return
    result = _probed_vectors(options, out) if options.embeddings is not None else _probed_encoder(options, out)
    append_journal(out / "measurements.jsonl", result.measurements)
    write_file_atomic(out / "verdict.json", json.dumps(result.verdict(), indent=2) + "\n")
    if result.audits:
        write_file_atomic(out / "audit.jsonl", "".join(audit.to_json_lines() for audit in result.audits))
    path = _write_report(result, out)
    if options.json:
        print(to_json_lines(result.measurements) + json.dumps(result.verdict()))
    else:
        _show(result)
    print(f"report: {path}", file=sys.stderr)


def _options(arguments: list[str]) -> Probe:
    kind = options_of(ProbeSettings, Probe, leave_out=("lengths", "control_steps", "probe"))
    return parse(kind, arguments, command="probe")


def _check_options(options: Probe) -> None:
    audit = {name: getattr(options, name) for name in ("audit", "audit_pattern")}
    if audit["audit_pattern"] and not audit["audit"]:
        raise ConfigError("--audit-pattern needs --audit, which counts what it matches.")
    EntityKinds.of(audit["audit_pattern"])
    if options.store is not None:
        _check_store(options, audit=audit["audit"])
        return
    if options.model is not None:
        raise ConfigError("--model is for --store; name the model of vectors with --encoder.")
    if (options.encoder is None) == (options.embeddings is None):
        raise ConfigError("give either --encoder (a model) or --embeddings with --texts (vectors that exist already).")
    if (options.embeddings is None) != (options.texts is None):
        raise ConfigError("--embeddings and --texts go together: vectors and the texts they stand for.")
    if options.embeddings is None and options.tokenizer is not None:
        raise ConfigError(
            "--tokenizer is for --embeddings; an encoder uses its own tokens, or those of --vocabulary bpe."
        )
    if options.embeddings is not None and getattr(options, "retrieval", False):
        raise ConfigError("--retrieval needs --encoder, which encodes the sentences that are looked for.")
    model_only = [n for n in ("gguf_file", "pooling", "layer", "prompt", "export") if getattr(options, n) is not None]
    if options.embeddings is not None and model_only:
        raise ConfigError(f"--{model_only[0].replace('_', '-')} needs --encoder; vectors from a file are as they are.")


def _check_store(options: Probe, *, audit: bool) -> None:
    given = [name for name in ("encoder", "embeddings", "texts") if getattr(options, name) is not None]
    if given:
        raise ConfigError(f"--store and --{given[0]} exclude each other; audit one of them at a time.")
    if not audit:
        raise ConfigError("a store's memories are audited, not probed; give --store with --audit.")


def _audit_store(options: Probe, out: Path) -> None:
    """Audit the memories of a store, write the report, and print the result."""
    settings, folder, cue = settings_of(options, default=32), options.store or "", options.cue
    kinds = EntityKinds.of(settings.audit_pattern)
    with open_texts(folder, options.model) as store:
        documents = len(store.store)
        check_enough(documents, given=documents, needed=MIN_UNITS, remedy="")
        claim_folder(
            out, {"settings": settings.model_dump(mode="json"), "store": store.store.header.encoder, "cue": cue}
        )
        notice = first_words(store)
        print(notice, file=sys.stderr if options.json else sys.stdout, flush=True)
        with progress_view(0, "text") as view:
            texts = read_store(store, limit=settings.held_out_passages, cue=cue, progress=counted_by(view))
    audit = Audit.of(texts, kinds, split=Path(folder).name, training=None)
    _write_audit(audit, out, notice, cue)
    verdict = {"name": "verdict", "split": audit.split, "headline": notice, "audit": {audit.split: audit.as_json()}}
    write_file_atomic(out / "verdict.json", json.dumps(verdict, indent=2) + "\n")
    if options.json:
        print(to_json_lines(audit.measurements()) + json.dumps(verdict))
        return
    console = Console()
    console.print(tables.audits([audit]))
    for line in _CAVEATS:
        console.print(line, highlight=False)


def _write_audit(audit: Audit, out: Path, notice: str, cue: int) -> None:
    append_journal(out / "measurements.jsonl", audit.measurements())
    write_file_atomic(out / "audit.jsonl", audit.to_json_lines())
    versions = [(name, str(value)) for name, value in describe_versions().items() if value is not None]
    cued = [("cue", f"the decoder is given the first {cue} tokens of each chunk, which do not count")]
    content = PageContent(
        title=f"memlm probe --audit · {audit.split}",
        headline=notice,
        command=command_line(),
        measurements=audit.measurements(),
        by_position=(),
        passages=(),
        audits=[audit],
        facts=[("texts", f"{len(audit.texts.read)} texts"), *(cued if audit.texts.blank else []), *versions],
    )
    write_page(out / "report.html", content)
    print(f"report: {out / 'report.html'}", file=sys.stderr)


def _probed_vectors(options: Probe, out: Path) -> Retention:
    settings, path = settings_of(options, default=32), options.embeddings or ""
    field = options.text_field or "text"
    ready = read_ready_made(path, options.texts or "", held_out=settings.held_out, seed=settings.seed, text_field=field)
    return Retention.measure_vectors(
        ready, name=Path(path).stem, tokenizer=options.tokenizer, settings=settings, out=out, progress=True
    )


def _probed_encoder(options: Probe, out: Path) -> Retention:
    # wrong settings raise before a model is loaded
    settings_of(options, default=32)
    encoder = open_encoder(
        options.encoder or "",
        gguf_file=options.gguf_file,
        pooling=options.pooling,
        layer=options.layer,
        prompt=options.prompt,
    )
    settings = settings_of(options, default=_chunk_of(encoder) or 32)
    check_chunk(encoder, max(settings.lengths), flag="--lengths")
    field = text_field_of(options, options.encoder)
    documents = load_documents(options.text, text_field=field, strict=options.strict)
    export_to = None if options.export is None else Path(options.export)
    return Retention.measure(encoder, documents, out=out, settings=settings, progress=True, export_to=export_to)


def _chunk_of(encoder: Encoder) -> int | None:
    return encoder.model.config.chunk_length if isinstance(encoder, MemoryEncoder) else None


def check_chunk(encoder: Encoder, length: int, *, flag: str) -> None:
    """Check that an encoder of memlm reads passages of this length whole.

    Raises:
        ConfigError: it reads less into one chunk.
    """
    chunk = _chunk_of(encoder)
    if chunk is not None and length > chunk:
        raise ConfigError(
            f"{flag} ({length}) is more than {encoder.name} reads into one chunk ({chunk}); give {chunk} or less."
        )


def settings_of(options: Any, *, default: int) -> ProbeSettings:
    """Return the settings of a command that takes those of a measurement of retention.

    Args:
        options: its fields are those of ProbeSettings, and lengths, size, steps and quick.
        default: tokens per passage where none are given.

    Raises:
        ConfigError: lengths that are no numbers, or settings out of their ranges.
    """
    try:
        lengths = [int(part) for part in options.lengths.split(",")] if options.lengths is not None else [default]
    except ValueError as error:
        raise ConfigError(
            f"--lengths ({options.lengths!r}) must be whole numbers with commas, as in 16,32,64."
        ) from error
    given = {name: value for name, value in vars(options).items() if name in ProbeSettings.model_fields}
    probe = {"size": options.size, "steps": options.steps}
    if options.quick:
        given |= _unless_given(QUICK, given, ProbeSettings)
        probe |= _unless_given(QUICK_PROBE, probe, ProbeTraining)
    return checked(ProbeSettings, {**given, "lengths": lengths, "probe": probe})


def _unless_given(quick: dict[str, Any], given: dict[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """Return the settings of --quick, without those that were given another value than the default."""
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    return {name: value for name, value in quick.items() if given.get(name, defaults[name]) == defaults[name]}


def _write_report(result: Retention, out: Path) -> Path:
    versions = [(k, str(v)) for k, v in describe_versions().items() if v is not None]
    facts = [("reading", str(reading)) for reading in result.readings()]
    facts += [*(("audit", line) for audit in result.audits for line in audit.lines()), *result.notes, *versions]
    content = PageContent(
        title=f"memlm probe · {result.encoder}",
        headline=result.sentence(),
        command=command_line(),
        figures=[("What can be read from the vector", ladder(result.readings())), *_capacity(result)],
        measurements=result.measurements,
        by_position=result.by_position,
        passages=result.passages,
        facts=facts,
        audits=result.audits,
    )
    path = out / "report.html"
    write_page(path, content)
    return path


def ladder(readings: Sequence[Reading]) -> str:
    """Return a figure of all readings with their controls."""
    rows = [f"{r.kind.label}: {r.status}" for r in readings]
    series = {name: [interval(reading.series.get(name)) for reading in readings] for name in SERIES}
    title = "What can be read from the vector"
    return figure.shares_with_intervals(rows, series, what="% of what the text holds", title=title)


def interval(found: Measurement | None) -> figure.Interval | None:
    """Return a measurement as figures draw it; without an interval both ends are its value."""
    if found is None:
        return None
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return found.value, low, high


def _capacity(result: Retention) -> list[tuple[str, str]]:
    """Return the curve over several lengths, with its title."""
    points = result.points
    if len(points) < 2:
        return []
    shares = {
        "token accuracy": [p.token_accuracy for p in points],
        "exact match": [p.exact_match for p in points],
        "retention over unigram": [p.retention for p in points],
    }
    controls = {name: [p.controls[name] for p in points] for name in points[-1].controls}
    curve = figure.capacity_curve([p.length for p in points], shares, controls)
    return [("All tokens at once, by the length of the passage", curve)]


def _show(result: Retention) -> None:
    console = Console()
    console.print(tables.passages(result.passages[:3]))
    console.print(tables.terminal([m for m in result.measurements if "_recovered" not in m.name]))
    console.print(tables.audits(result.audits))
    for name, value in result.notes:
        console.print(f"{name}: {value}", highlight=False, style="dim")
    console.print()
    console.print(result.sentence(), style="bold", highlight=False)
    for line in [*map(str, result.readings()), result.would_gain(), *(_CAVEATS if result.audits else ())]:
        console.print(line, highlight=False)
