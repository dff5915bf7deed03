"""`memlm report`: write the report page and the model card of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from memlm.cli.arguments import parse

if TYPE_CHECKING:
    from memlm.evaluation import Evaluation
    from memlm.measurement import Measurement
    from memlm.training import RunFolder


@dataclass(frozen=True)
class Report:
    """Measure a trained run again and write its report.html and model card (README.md)."""

    directory: Positional[str]
    """Folder of a trained run."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(Report, arguments, command="report")
    from memlm.cli.evaluate import measured
    from memlm.training import RunFolder

    evaluation = measured(options.directory)
    print(write_report(RunFolder.open(options.directory), evaluation))


def write_report(folder: RunFolder, evaluation: Evaluation) -> Path:
    """Write `report.html` and `README.md` to the run folder, and return the path of the page."""
    import yaml

    from memlm.reports import PageContent, write_card, write_page

    config, data = folder.config(), folder.data()
    headline = headline_of(folder, evaluation)
    content = PageContent(
        title=f"memlm · {config.recipe} · {data['source']}",
        headline=headline,
        command=str(data["command"]),
        saved=evaluation.saved,
        figures=_figures(evaluation.measurements),
        log=folder.log(),
        measurements=evaluation.measurements,
        by_position=evaluation.accuracy_by_position,
        passages=evaluation.passages,
        costs=evaluation.costs,
        facts=[*_facts(folder), *((k, str(v)) for k, v in folder.versions().items() if v is not None)],
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )
    path = folder.path / "report.html"
    write_page(path, content)
    write_card(
        folder.path / "README.md",
        name=config.recipe,
        headline=headline,
        data=str(data["source"]),
        measurements=evaluation.measurements,
    )
    return path


def headline_of(folder: RunFolder, evaluation: Evaluation) -> str:
    """Return the main result in one sentence."""
    from memlm.models import SlotWriterConfig, TextAutoencoderConfig
    from memlm.reports.tables import percent, with_interval

    model = folder.config().model
    first = {m.name: m for m in reversed(evaluation.measurements)}
    if isinstance(model, SlotWriterConfig):
        return _writer_headline(first)
    if not isinstance(model, TextAutoencoderConfig):
        return _memory_headline(model.chunk_length, first)
    accuracy, exact = first["token_accuracy"], first["exact_match"]
    one = model.memories_per_chunk == 1
    subject = "One memory" if one else f"{model.memories_per_chunk} memories"
    return (
        f"{subject} of {model.bottleneck_size} numbers {'gives' if one else 'give'} back {with_interval(accuracy)} "
        f"of the tokens of a {model.chunk_length}-token passage ({accuracy.split}), "
        f"and {percent(exact.value)} % of the passages whole."
    )


def _memory_headline(chunk_length: int, first: dict[str, Measurement]) -> str:
    from memlm.reports.tables import percent

    bits, without = first["bits_per_byte"], first["bits_per_byte/no_memory"]
    read = f"{bits.value:.3f} bits per byte of {bits.split} text, {without.value:.3f} with its memories hidden"
    if "token_accuracy/blank_copy" not in first:
        return f"The decoder reads earlier chunks of {chunk_length} tokens as memories: {read}."
    copied = first["token_accuracy/blank_copy"]
    return (
        f"From memories of {chunk_length} tokens each the decoder gives back {percent(copied.value)} % of them "
        f"(blank copy, greedy), and reads on at {read}."
    )


def _writer_headline(first: dict[str, Measurement]) -> str:
    from memlm.reports.tables import with_interval

    ratios = [int(name.rsplit("/", 1)[1]) for name in first if name.startswith("context_gain/chunks/")]
    ratio = min(ratios, key=lambda x: abs(x - 8))
    share, truncation = (first[f"context_gain/{name}/{ratio}"] for name in ("chunks", "truncation"))
    return (
        f"With one memory for {ratio} tokens, the decoder keeps {with_interval(share)} of what it gains "
        f"from all tokens ({share.split}); the last tokens alone, equally many, keep {with_interval(truncation)}."
    )


def _figures(measurements: list[Measurement]) -> list[tuple[str, str]]:
    """Return the figure of shares of the full-context gain, where they were measured."""
    from memlm.reports.figure import share_over_ratio

    by_name = {m.name: m for m in measurements if m.name.startswith("context_gain/chunks")}
    by_name |= {m.name: m for m in measurements if m.name.startswith("context_gain/")}
    ratios = [int(name.rsplit("/", 1)[1]) for name in by_name if name.startswith("context_gain/chunks/")]
    if not ratios:
        return []
    names = dict.fromkeys(name.split("/")[1] for name in by_name if "another" not in name)
    found = {
        name: [
            (m.value, m.low or m.value, m.high or m.value)
            for m in (by_name[f"context_gain/{name}/{r}"] for r in ratios)
        ]
        for name in names
    }
    return [("Share of the full-context gain", share_over_ratio(ratios, found))]


def _facts(folder: RunFolder) -> list[tuple[str, str]]:
    data, config = folder.data(), folder.config()
    last = folder.log()[-1:]
    seconds = [("training time", f"{last[0]['seconds']:.0f} s, without evaluation and set-up")] if last else []
    return [
        ("text", str(data["source"])),
        (
            "documents",
            f"{data['train_documents']} for training, {data['validation_documents']} for validation, "
            f"{data['held_out_documents']} held out",
        ),
        ("tokens", f"{data['train_tokens']:,} for training, {data['held_out_tokens']:,} held out"),
        ("held-out text", str(data["fingerprint_held_out"])),
        ("training text", str(data["fingerprint_train"])),
        ("seed", str(config.training.seed)),
        *seconds,
    ]
