"""Journals, tables, passages, figures and cards."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from rich.console import Console

from memlm.errors import DataError
from memlm.measurement import Baseline, Cost, Measurement, Passage, append_journal, read_journal
from memlm.reports import PageContent, tables, write_card, write_page
from memlm.reports.figure import (
    accuracy_by_position,
    capacity_curve,
    learning_curve,
    memory_cost,
    shares_with_intervals,
    standalone,
)


def measured(name: str = "token_accuracy", value: float = 0.99949, **changes: object) -> Measurement:
    fields: dict[str, object] = {
        "unit": "fraction",
        "low": value - 0.001,
        "high": min(1.0, value + 0.001),
        "count": 12345,
        "split": "held_out",
        "protocol": "one_pass",
    }
    return Measurement.model_validate({"name": name, "value": value, **fields, **changes})


MEASUREMENTS = [
    measured(),
    measured("cross_entropy", 0.01234, unit="nats/token"),
    measured("retention/unigram", 0.98, baseline=Baseline(name="unigram", value=6.0, unit="nats/token")),
    measured(split="random_tokens", value=0.5),
]
PASSAGES = [
    Passage("speech <b>one</b>", [("the ", "the ", True), ("people\n", "peopel", False), ("", "ghost", False)]),
    Passage("speech two", [("all right", "all right", True)]),
]


def content(title: str = "a run & its page") -> PageContent:
    log = [
        {"step": 1, "tokens": 100, "loss": 5.0, "validation_token_accuracy": 0.1},
        {"step": 2, "tokens": 200, "loss": 2.0},
        {"step": 3, "tokens": 300, "loss": 0.1, "validation_token_accuracy": 0.999},
    ]
    costs = [Cost("memory fp16", 22.0), Cost("gzip -9, whole text", 2.7)]
    return PageContent(
        title=title,
        headline="One memory of 256 numbers gives back 99.9 % of the tokens.",
        command="memlm demo --out runs/demo",
        log=log,
        measurements=MEASUREMENTS,
        by_position=[0.99, 1.0, 0.98] * 20,
        passages=PASSAGES,
        costs=costs,
        facts=[("seed", "0"), ("text", "x" * 200)],
        config="recipe: x\n",
    )


def test_a_journal_survives_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    append_journal(path, MEASUREMENTS[:2])
    with path.open("a") as file:
        file.write('{"name": "cut')
    with path.open("ab") as file:
        file.write("é".encode()[:1])
    append_journal(path, MEASUREMENTS[2:])
    assert read_journal(path) == MEASUREMENTS
    with pytest.raises(DataError, match="no measurements at"):
        read_journal(tmp_path / "none")


def test_tables_fit_a_terminal_and_say_percent() -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(
            tables.terminal([*MEASUREMENTS, measured("bits_per_byte/another_memory/of_a_long/name_of_chunk_1")])
        )
    printed = capture.get()
    assert "99.949 %" in printed
    assert "98.00 %" in printed
    assert "0.01234 nats/token" in printed
    assert "…" not in printed
    assert [tables.percent(x) for x in (0.999996, 0.99995, 0.9994, 1.0, 0.5)] == [
        "99.999",
        "99.995",
        "99.940",
        "100.00",
        "50.00",
    ]
    assert max(map(len, printed.splitlines())) <= 80
    lines = tables.markdown(MEASUREMENTS).splitlines()
    assert len(lines) == 2 + len(MEASUREMENTS)
    assert len({line.count("|") for line in lines}) == 1


def test_no_name_of_a_run_is_folded_in_a_terminal() -> None:
    console = Console(width=80, no_color=True)
    shares = [
        *("memories/untrained/token_accuracy/unigram", "memories/untrained/retention/unigram"),
        *("recall_whole/sentence/3_chunks", "token_accuracy/blank_copy", "exact_match/next_token"),
    ]
    exact = {"exact_low": 0.9, "exact_high": 0.95, "interval_note": "bootstrap over 12 documents"}
    figures = [measured(name, 0.925, **exact) for name in shares]
    figures.append(measured("normalised_cross_entropy/int8", 1.894, unit="nats/token", high=1.899))
    figures.append(measured("bits_saved_over/other_memory", 1.894, unit="bits/byte", high=1.899))
    with console.capture() as capture:
        console.print(tables.terminal(figures))
    printed = capture.get()
    lines = [line.split() for line in printed.splitlines()]
    # title, headings, one line for each figure, the note on intervals, an empty line
    assert [line[0] for line in lines[2:-2]] == [m.name for m in figures]
    assert all(line[-1] == "12,345" for line in lines[2:-2])
    assert "bootstrap over 12 documents" in printed
    assert "exact binomial" not in printed
    assert "exact binomial" in tables.markdown(figures)


def test_wrong_pieces_are_marked_without_colour_too() -> None:
    console = Console(width=60, no_color=True)
    with console.capture() as capture:
        console.print(tables.passages(PASSAGES))
    printed = capture.get()
    assert "[peopel]" in printed
    assert "2 of 3 pieces wrong" in printed
    assert "every token came back" in printed


def test_figures_are_deterministic_and_follow_the_page() -> None:
    for draw in (
        lambda: learning_curve([1e5, 2e5], [0.5, 0.9], [3.0, 1.0]),
        lambda: accuracy_by_position([0.5, 0.9]),
        lambda: memory_cost(["memory fp16", "gzip"], [22.0, 2.0]),
    ):
        svg = draw()
        assert svg == draw()
        assert svg.startswith("<svg")
        assert "var(--first)" in svg
        assert "http" not in svg
        assert "<title" in svg


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, content("<script>alert(1)</script>"))
    page = path.read_text()
    assert "<script>" not in page
    assert "speech &lt;b&gt;one" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_card_carries_its_figures(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", name="tiny", headline="It keeps.", data="sotu", measurements=MEASUREMENTS)
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    metrics = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    assert {"type": "token_accuracy", "name": "token_accuracy", "value": 0.99949} in metrics
    assert len(metrics) == 3
    assert "| held_out |" in body


def test_shares_are_drawn_where_they_are_and_a_file_stands_alone() -> None:
    series = {"blank copy": [(0.5, 0.4, 0.6), None], "probe accuracy": [(0.9, 0.9, 0.9), (0.1, 0.0, 0.2)]}
    svg = shares_with_intervals(["mixture", "next_token"], {**series, "untrained": [None, (0.2, 0.1, 0.3)]})
    assert all(word in svg for word in ("mixture", "next token", "blank copy", "untrained", "var(--first)"))
    # many rows stay apart
    tall = shares_with_intervals(list("abcdefghijkl"), {"blank copy": [(0.5, 0.4, 0.6)] * 12})
    heights = [float(found.split('viewBox="0 0 ')[1].split('"')[0].split()[1]) for found in (svg, tall)]
    assert heights[1] > 1.4 * heights[0]
    alone = ElementTree.fromstring(standalone(svg))
    assert alone.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--first:" in (alone[0].text or "")


def test_the_capacity_curve_names_figures_and_controls() -> None:
    shares = {name: [0.9, 0.5] for name in ("token accuracy", "exact match", "retention over unigram")}
    svg = capacity_curve([16, 64], shares, {"blank_memory": [0.05, 0.04], "untrained": [0.06, 0.05]})
    for word in ("token accuracy", "blank memory", "untrained", "tokens in the passage"):
        assert word in svg
