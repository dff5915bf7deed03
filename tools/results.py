"""Write the tables of docs/results.md and docs/results/ from the journals of measurements.

    python tools/results.py            # rewrite the tables of the pages
    python tools/results.py --check    # fail where a page differs from its journals

Each line of docs/results/journals/NAME.jsonl is one row of measurements: its table, its labels, its values with unit
and interval, and what they rest on: n, baseline, command, machine, the commit that recorded it, date, edition, rerun.
A page marks where a table belongs:

    <!-- table NAME/TABLE -->
    <!-- end -->

docs/results/summary.yml lists the rows of docs/results.md. "{NAME/TABLE/ROW/COLUMN}" there stands for a value of a
journal, so that no figure is written twice.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- (table|summary|editions)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)
REFERENCE = re.compile(r"\{([^{}]+)\}")
SHOWN = {"n": "Measured on", "baseline": "Baseline", "command": "Command", "machine": "Machine"}
IN_CELLS = ("%", "M", "min", "ms", "s", "MB", "GB")
MAX_SUMMARY = 15


@dataclass(frozen=True)
class Row:
    """One line of a journal."""

    labels: dict[str, str]
    values: dict[str, dict[str, Any]]
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the labels as references write them."""
        return ", ".join(self.labels.values()).replace("`", "")

    @property
    def rerun(self) -> str:
        """Return the edition that measured the row, and whether it was measured again."""
        again = "rerun" if self.about["rerun"] else "not rerun"
        return f"edition {self.about['edition']}, {again}"


def read_journals(folder: Path = DOCS / "results" / "journals") -> dict[str, list[Row]]:
    """Return the rows of each table, by "NAME/TABLE"."""
    tables: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            row = Row(entry.pop("row"), entry.pop("values"), entry)
            tables.setdefault(f"{path.stem}/{entry['table']}", []).append(row)
    return tables


def number(value: float, digits: int, *, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''},.{digits}f}"


def interval(cell: dict[str, Any]) -> str:
    """Return the interval as it stands behind its value, or nothing."""
    if "interval" not in cell:
        return ""
    digits = cell.get("interval_digits", cell["digits"])
    each = digits if isinstance(digits, list) else [digits] * len(cell["interval"])
    ends = [number(end, d, sign=cell.get("sign", False)) for end, d in zip(cell["interval"], each, strict=True)]
    kind = cell.get("kind")
    if kind == "±":
        return f" ± {ends[0]}"
    return f" ({ends[0]} to {ends[1]})" if kind == "range" else f" [{ends[0]}, {ends[1]}]"


def text(cell: dict[str, Any], column: str = "") -> str:
    """Return a value with its short unit and interval; the unit is left out where the column's name says it."""
    value = cell["value"]
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " / ".join(number(v, cell["digits"]) for v in value)
    unit = f" {cell['unit']}" if cell["unit"] in IN_CELLS and cell["unit"] not in column else ""
    return f"{number(value, cell['digits'], sign=cell.get('sign', False))}{unit}{interval(cell)}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: list[Row]) -> str:
    """Return the table of the rows, and below it what they rest on."""
    labels, columns = list(rows[0].labels), list(dict.fromkeys(c for row in rows for c in row.values))
    cells = [
        [*row.labels.values(), *(text(row.values[c], c) if c in row.values else "" for c in columns)] for row in rows
    ]
    return f"{markdown([*labels, *columns], cells)}\n{caption(rows)}\n"


def caption(rows: list[Row]) -> str:
    """Return command, machine, baseline and count where all rows share them, and the edition with its dates."""
    parts = [f"Unit: {unit}." for unit in long_units(rows)]
    for key, word in SHOWN.items():
        shared = dict.fromkeys(row.about[key] for row in rows)
        quoted = [f"`{value}`" if key == "command" else value for value in shared]
        parts.append(f"{word}: {' or '.join(quoted)}.")
    dates = sorted({row.about["date"] for row in rows})
    editions = " and ".join(dict.fromkeys(row.rerun for row in rows))
    return f"<small>{' '.join(parts)} Recorded {' to '.join(dates[:: len(dates) - 1 or 1])}; {editions}.</small>"


def long_units(rows: list[Row]) -> list[str]:
    """Return the units that neither a cell nor its column shows."""
    cells = [(cell["unit"], column) for row in rows for column, cell in row.values.items()]
    return list(dict.fromkeys(u for u, column in cells if u and u not in IN_CELLS and u not in column))


def find(tables: dict[str, list[Row]], reference: str) -> tuple[Row, str]:
    """Return the row and the column that a reference NAME/TABLE/ROW/COLUMN names.

    Raises:
        KeyError: No journal has such a table, row or column, or several rows begin alike.
    """
    name, wanted, row, column = reference.split("/", 3)
    found = [r for r in tables.get(f"{name}/{wanted}", []) if r.name.startswith(row) and column in r.values]
    exact = [r for r in found if r.name == row]
    if len(exact or found) != 1:
        raise KeyError(f"'{reference}' names {len(found)} rows of the journals; write NAME/TABLE/ROW/COLUMN of one")
    return (exact or found)[0], column


def summary(tables: dict[str, list[Row]]) -> str:
    """Return the table of docs/results.md.

    Raises:
        ValueError: There are more rows than a reader takes in.
    """
    entries = yaml.safe_load((DOCS / "results" / "summary.yml").read_text(encoding="utf-8"))
    if len(entries) > MAX_SUMMARY:
        raise ValueError(f"summary.yml has {len(entries)} rows; at most {MAX_SUMMARY} are allowed: drop one")
    rows = [summary_row(tables, entry) for entry in entries]
    return markdown(["question", "result", "baseline", "command", "machine"], rows)


def summary_row(tables: dict[str, list[Row]], entry: dict[str, str]) -> list[str]:
    def shown(match: re.Match[str]) -> str:
        row, column = find(tables, match[1])
        return text(row.values[column])

    row, _ = find(tables, next(REFERENCE.finditer(entry["result"]))[1])
    result, baseline = (REFERENCE.sub(shown, entry[key]) for key in ("result", "baseline"))
    mark = "" if row.about["rerun"] else " ¹"
    question = f"[{entry['question']}](results/{entry['page']})"
    command = f"`{entry.get('command', row.about['command'])}`"
    return [question, result + mark, baseline, command, entry.get("machine", row.about["machine"])]


def editions(tables: dict[str, list[Row]]) -> str:
    """Return the sentence that says which tables were not measured again."""
    old = [name for name, rows in tables.items() if not all(row.about["rerun"] for row in rows)]
    names = "" if len(old) == len(tables) else ": " + ", ".join(f"`{name}`" for name in old)
    return (
        "¹ Measured for the edition that its table names, and not rerun since. "
        f"This is true of {len(old)} of the {len(tables)} tables on these pages{names}.\n"
    )


def filled(page: str, tables: dict[str, list[Row]]) -> str:
    """Return a page with each marked table written anew."""

    def block(match: re.Match[str]) -> str:
        kind, name = match[2], match[3]
        body = table(tables[name]) if kind == "table" else {"summary": summary, "editions": editions}[kind](tables)
        return f"{match[1]}\n{body}\n{match[4]}"

    return BLOCK.sub(block, page)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables of docs/results from the journals.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    check = parser.parse_args().check
    tables, differ = read_journals(), []
    for path in [DOCS / "results.md", *sorted((DOCS / "results").glob("*.md"))]:
        page = path.read_text(encoding="utf-8")
        new = filled(page, tables)
        if new != page:
            differ.append(path.name)
        if new != page and not check:
            path.write_text(new, encoding="utf-8")
    if differ:
        print(f"{'differ from the journals' if check else 'written'}: {', '.join(differ)}")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
