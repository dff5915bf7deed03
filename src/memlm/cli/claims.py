"""`memlm claims`: test the claims of arXiv 2602.13466 at a small size."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memlm.cli.arguments import Workers, options_of, parse
from memlm.files import write_file_atomic
from memlm.measurement import to_json_lines
from memlm.reports import PageContent, figure, write_page
from memlm.reproduction import (
    CLAIMS,
    EXPERIMENTS,
    Claim,
    ClaimSettings,
    Figures,
    Spent,
    Verdict,
    measure_experiments,
    spent_on,
)
from memlm.training import Interrupted
from memlm.training.run_folder import command_line, describe_versions
from memlm.training.schema import checked

Row = tuple[Claim, Verdict, Spent]
"""A claim, what came of its test, and what its trainings cost."""
QUICK = {"share": 0.1, "seeds": 1}
_QUICK_DOCUMENTS = 60
"""A quarter of the bundled text; with --quick, most of the time is spent on evaluation."""
_MOST_WORKERS = 8
"""Upper limit of the default; each worker takes about a gigabyte."""


@dataclass(frozen=True)
class Claims:
    """Test the claims of arXiv 2602.13466 at a small size: eleven trainings for each seed, one table, one page.

    With --decoder PATH_OR_HUB_ID a pretrained decoder is taught, too: 100 steps for each seed, and their evaluation.
    Finished trainings are saved; the same command continues where it was interrupted.
    """

    out: str = "runs/claims"
    """Folder of runs, measurements and page."""
    quick: bool = False
    """One seed, a tenth of the steps, 60 documents: a test that the command works, too short for verdicts."""
    workers: Workers | None = None
    """Trainings at the same time, each with a share of the cores; by default one for each core, at most 8."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = vars(parse(options_of(ClaimSettings, Claims), arguments, command="claims"))
    settings, workers, out = _settings(options), _workers(options["workers"]), Path(options["out"])
    say = partial(print, file=sys.stderr, flush=True)
    try:
        figures, measurements = measure_experiments(settings, out, say=say, workers=workers, progress=True)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("stopped, nothing is lost: the same command goes on.") from None
    rows = [(claim, claim.judge(figures), spent_on(claim.rests_on, settings, out)) for claim in CLAIMS]
    write_file_atomic(out / "measurements.jsonl", to_json_lines(measurements))
    picture = _picture(figures)
    write_file_atomic(out / "claims.svg", figure.standalone(picture))
    _write_page(out, settings, rows, picture)
    print(markdown(rows) + "\n" + summary(rows))
    if options["quick"]:
        say("quick: too short for verdicts; omit --quick for those.")
    say(f"page: {out / 'claims.html'}")


def _settings(options: dict[str, Any]) -> ClaimSettings:
    values = {name: options[name] for name in ClaimSettings.model_fields}
    if options["quick"]:
        values |= QUICK | {"max_documents": options["max_documents"] or _QUICK_DOCUMENTS}
    return checked(ClaimSettings, values)


def _workers(given: int | None) -> int:
    return min(os.cpu_count() or 1, _MOST_WORKERS) if given is None else given


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with a row for each claim."""
    lines = ["| claim | test | here | the paper | verdict | trained, all seeds |", "|" + " --- |" * 6]
    for claim, verdict, cost in rows:
        cells = (claim.text, claim.test, verdict.ours, claim.paper, verdict.outcome, _spent(cost))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spent(cost: Spent) -> str:
    return f"{cost.tokens / 1e6:.1f} M tokens, {cost.seconds / 60:.0f} min" if cost.tokens else "nothing"


def summary(rows: Sequence[Row]) -> str:
    """Return the number of claims that hold, in one sentence."""
    counts = Counter(verdict.outcome for _, verdict, _ in rows)
    return (
        f"Of {len(rows)} tests of the paper's claims {counts['holds']} hold here, {counts['does not hold here']} do "
        f"not, and {counts['not testable here']} cannot be made at this size."
    )


def _picture(figures: Figures) -> str:
    measures = {
        "blank copy": "token_accuracy/blank_copy",
        "probe accuracy": "memories/token_accuracy",
        "untrained": "memories/untrained/token_accuracy",
    }
    shown = [name for name in EXPERIMENTS if any((name, measure) in figures for measure in measures.values())]

    def intervals(measure: str) -> list[figure.Interval | None]:
        found = [figures.get((name, measure)) for name in shown]
        return [None if f is None else (f.value, f.low, f.high) for f in found]

    return figure.shares_with_intervals(shown, {title: intervals(measure) for title, measure in measures.items()})


def _write_page(out: Path, settings: ClaimSettings, rows: Sequence[Row], picture: str) -> None:
    facts = [
        (f"{claim.text}: {verdict.outcome}", f"{verdict.ours} (paper: {claim.paper}; trained: {_spent(cost)})")
        for claim, verdict, cost in rows
    ]
    shared = [(name, str(value)) for name, value in settings.model_dump().items()]
    versions = [(k, str(v)) for k, v in describe_versions().items() if v is not None]
    content = PageContent(
        title="memlm claims",
        headline=summary(rows),
        command=command_line(),
        figures=[("Tokens recovered from memory", picture)],
        measurements=[],
        by_position=[],
        passages=[],
        facts=[*facts, *shared, *versions],
    )
    write_page(out / "claims.html", content)
