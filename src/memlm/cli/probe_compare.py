"""`memlm probe-compare`: what can be read from the vectors of several encoders, beside how well they find passages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from memlm.cli.arguments import Positive, TextOptions, options_of, parse
from memlm.cli.probe import check_chunk, interval, settings_of
from memlm.data import Document, load_documents
from memlm.encoders import open_encoder
from memlm.errors import ConfigError
from memlm.evaluation.probe.metrics import NDCG
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings, Size
from memlm.measurement import Measurement, append_journal, to_json_lines
from memlm.reports import PageContent, figure, write_page
from memlm.training.run_folder import command_line, describe_versions

_COLUMNS = {"usable_bits": "usable_share", "word_f1": "word_f1", "name_recall": "word_f1", NDCG: ""}
"""Measurements that are compared, each with the reading whose verdict it needs."""
_HEADINGS = ("encoder", "vectors", "usable bits", "words (F1)", "names", "nDCG@10")
_DRAWN = {"usable information": "usable_share", "words (F1)": "word_f1", "names": "name_recall", "nDCG@10": NDCG}
_LEAVE_OUT = ("lengths", "control_steps", "probe", "bits", "audit", "audit_pattern", "retrieval", "one_pass_controls")


@dataclass(frozen=True)
class ProbeCompare(TextOptions):
    """Compare encoders: how much of a text can be read from their vectors, and how well these find the text.

    A row for each encoder and rounding of its vectors shows
      usable bits  bits of a held-out passage that a decoder saves by the vector (a lower bound)
      words, names content words that a regression names, and the share of the words of names among them
      nDCG@10      how well a sentence finds its own passage among all held-out ones; queries are not rounded

    All encoders get the same passages in tokens of one BPE. Vectors and probes are kept, so that the same command
    continues where it was stopped.

      memlm probe-compare --encoders runs/demo sentence-transformers/all-MiniLM-L6-v2 --quick
      memlm probe-compare --encoders A B C --roundings none binary --text 'notes/*.md'
    """

    encoders: tuple[str, ...] = ()
    """Run folders of memlm, model folders, or Hub ids of transformers models."""
    roundings: tuple[Literal["none", "fp16", "int8", "int4", "binary"], ...] = ("none", "int8", "binary")
    """Roundings of the vectors, a row each."""
    vocabulary: Literal["encoder", "bpe"] = "bpe"
    """Tokens of the passages: a BPE of 1,024 that all encoders share, or each encoder's own, whose bits differ."""
    text: str = "sotu"
    """The texts, a bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    length: Positive = 64
    """Tokens per passage."""
    size: Size = "medium"
    """Width and depth of the decoders."""
    steps: Positive = 40
    """Greatest number of updates of the probe that gives all tokens at once."""
    quick: bool = False
    """A first answer from few passages. Other flags win where they differ from their defaults."""
    out: str = "runs/probe-compare"
    """Folder of the probes, the measurements and the page."""
    json: bool = False
    """Print only measurements as JSON lines on stdout."""

    @property
    def lengths(self) -> str:
        """The length, as `memlm probe` takes it."""
        return str(self.length)


@dataclass(frozen=True)
class ComparedRow:
    """The result of one encoder with one rounding of its vectors."""

    encoder: str
    rounding: str
    result: Retention

    def figure(self, name: str) -> Measurement | None:
        """Return a measurement by name, None where it was not made."""
        return next((m for m in self.result.measurements if m.name == name), None)

    def cells(self) -> tuple[str, ...]:
        """Return what a table shows: figures with intervals, and a verdict where a figure would mislead."""
        verdicts = {reading.kind.name: reading.status for reading in self.result.readings()}
        shown = (self._cell(name, verdicts.get(reading, "found")) for name, reading in _COLUMNS.items())
        return (self.encoder, "as they are" if self.rounding == "none" else self.rounding, *shown)

    def _cell(self, name: str, verdict: str) -> str:
        found = self.figure(name)
        if found is None:
            return "not measured"
        if verdict != "found":
            return verdict
        digits = 1 if name == "usable_bits" else 3
        ends = [] if found.low is None or found.high is None else [found.low, found.high]
        value, *rest = (f"{number:.{digits}f}" for number in (found.value, *ends))
        return f"{value} [{', '.join(rest)}]" if rest else value


def run(arguments: list[str]) -> None:
    """Run the command."""
    kind = options_of(ProbeSettings, ProbeCompare, leave_out=(*_LEAVE_OUT, "vocabulary"))
    options = parse(kind, arguments, command="probe-compare")
    if not options.encoders:
        raise ConfigError("--encoders is empty; give folders or Hub ids, as in --encoders A B C.")
    if len(set(options.roundings)) < max(1, len(options.roundings)):
        raise ConfigError("--roundings is empty or names one twice; give some of none, fp16, int8, int4 and binary.")
    settings = settings_of(options, default=options.length)
    documents = load_documents(options.text, text_field=options.text_field or "text", strict=options.strict)
    out = Path(options.out)
    rows = compare(options.encoders, options.roundings, documents, settings, out=out)
    measurements = [m.model_copy(update={"split": f"{row.encoder}, {row.rounding}"}) for row in rows for m in _of(row)]
    append_journal(out / "measurements.jsonl", measurements)
    _write_page(rows, measurements, out / "report.html")
    if options.json:
        print(to_json_lines(measurements), end="")
    else:
        _show(rows)
    print(f"report: {out / 'report.html'}", file=sys.stderr)


def compare(
    encoders: Sequence[str],
    roundings: Sequence[str],
    documents: Sequence[Document],
    settings: ProbeSettings,
    *,
    out: Path,
) -> list[ComparedRow]:
    """Measure every encoder with every rounding of its vectors.

    Args:
        encoders: folders or Hub ids.
        roundings: of the vectors.
        documents: the texts.
        settings: of every measurement.
        out: the folder of a folder for each row.

    Raises:
        EncoderError: an encoder cannot be opened.
        DataError: too few or too short texts.
        RunFolderError: the folder holds other measurements.
    """
    names = _names(encoders)
    rows: list[ComparedRow] = []
    for name, path in zip(names, encoders, strict=True):
        encoder = open_encoder(path)
        check_chunk(encoder, max(settings.lengths), flag="--length")
        for rounding in roundings:
            print(f"{name}, vectors: {rounding}", file=sys.stderr, flush=True)
            changes = {"bits": rounding, "retrieval": True, "one_pass_controls": False}
            chosen = settings.model_copy(update=changes)
            place = out / "rows" / f"{len(rows)}-{rounding}"
            result = Retention.measure(encoder, documents, out=place, settings=chosen, progress=True)
            rows.append(ComparedRow(name, rounding, result))
    return rows


def _names(encoders: Sequence[str]) -> list[str]:
    """Return the last parts of paths, with the parts before them where those are alike."""
    for parts in range(1, max(len(Path(path).parts) for path in encoders) + 1):
        names = ["/".join(Path(path).parts[-parts:]) for path in encoders]
        if len(set(names)) == len(encoders):
            return names
    raise ConfigError("--encoders names one encoder twice; give each once.")


def _of(row: ComparedRow) -> list[Measurement]:
    names = ("usable_share", *_COLUMNS)
    return [m for m in row.result.measurements if m.name.partition("/")[0] in names]


def sentence(rows: Sequence[ComparedRow]) -> str:
    """Return in words which vectors give most away, and which find best."""
    bits = [(found, row) for row in rows if "found" in _verdict(row) and (found := row.figure("usable_bits"))]
    finds = [(found, row) for row in rows if (found := row.figure(NDCG))]
    if bits:
        most, row = max(bits, key=lambda pair: pair[0].value)
        said = f"Most can be read from {_vectors(row)}: at least {most.value:.1f} bits of a passage"
    else:
        said = "Nothing could be read from any of these vectors, or the reading did not learn"
    if not finds:
        return f"{said}."
    best, row = max(finds, key=lambda pair: pair[0].value)
    return f"{said}. Passages are found best by {_vectors(row)}: nDCG@10 {best.value:.3f}."


def _verdict(row: ComparedRow) -> list[str]:
    return [reading.status for reading in row.result.readings() if reading.kind.name == "usable_share"]


def _vectors(row: ComparedRow) -> str:
    return f"the {'' if row.rounding == 'none' else row.rounding + ' '}vectors of {row.encoder}"


def _show(rows: Sequence[ComparedRow]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # an interval goes below its figure, so that a line fits a terminal
        table.add_row(*(cell.replace(" [", "\n[") for cell in row.cells()))
    console.print(table)
    console.print(sentence(rows), style="bold", highlight=False)


def _write_page(rows: Sequence[ComparedRow], measurements: Sequence[Measurement], path: Path) -> None:
    names = [f"{row.encoder}, {'as they are' if row.rounding == 'none' else row.rounding}" for row in rows]
    series = {name: [interval(row.figure(measured)) for row in rows] for name, measured in _DRAWN.items()}
    title = "Read from the vectors, and found by them"
    chart = figure.shares_with_intervals(names, series, what="% of bits, of words, of nDCG", title=title)
    facts: list[tuple[str, Any]] = [
        (f"{row.encoder}, {row.rounding}", str(reading)) for row in rows for reading in row.result.readings()
    ]
    versions = [(k, str(v)) for k, v in describe_versions().items() if v is not None]
    content = PageContent(
        title="memlm probe-compare",
        headline=sentence(rows),
        command=command_line(),
        measurements=measurements,
        by_position=[],
        passages=[],
        figures=[(title, chart)],
        facts=[*facts, *rows[0].result.notes, *versions],
        summary=[_HEADINGS, *(row.cells() for row in rows)],
    )
    write_page(path, content)
