"""`memlm measure-heads`: which heads of a decoder need more slots."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from tyro.conf import Positional

from memlm.cli.arguments import Positive, TextOptions, parse, text_field_of
from memlm.errors import CheckpointError, DataError
from memlm.models.runtime import Device, device_of


@dataclass(frozen=True)
class MeasureHeads(TextOptions):
    """Measure which heads of a decoder need more memories of a text, and write a folder that other commands read.

    memlm measure-heads PATH_OR_HUB_ID --out my-decoder

    A few heads look up single tokens, and most average over many. Where the former get more of an equal number of
    memories in all, a decoder recalls far more, and predicts better where memories are sparse. The folder is what
    --model of other commands takes; it names the decoder and holds no copy of it. Training a writer (memlm train
    memory-pretrained) measures heads itself.
    """

    decoder: Positional[str]
    """Folder or Hub id of a decoder, or folder of a run that trained one to write memories."""
    out: str
    """Folder to write."""
    text: str = "sotu"
    """Text to measure on: bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    rows: Positive = 8
    """Texts of 576 tokens, each of another document where there are so many."""
    device: Device = "auto"
    """Device of the decoder; a GPU where there is one by default."""


def run(arguments: list[str]) -> None:
    """Measure and write."""
    options = parse(MeasureHeads, arguments, command="measure-heads")
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from memlm.data import encode_texts, load_documents, split_documents
    from memlm.models.slots import MemoryDecoder
    from memlm.models.slots.head_errors import CONTEXT, FOLLOWING, measured_heads

    if Path(options.out).exists():
        raise CheckpointError(f"'{options.out}' exists; give a folder that does not.")
    documents = load_documents(options.text, text_field=text_field_of(options, options.decoder), strict=options.strict)
    # bundled documents that training holds out stay unseen here, too
    documents = split_documents(documents).train if options.text == "sotu" else documents
    model = MemoryDecoder.from_pretrained(options.decoder, device_map=device_of(options.device))
    most = CONTEXT + FOLLOWING
    texts = encode_texts(model.tokenizer, [document.text[: 16 * most] for document in documents[: 4 * options.rows]])
    longer = sorted((ids[:most] for ids in texts if len(ids) > 2 * FOLLOWING), key=len, reverse=True)
    if not longer:
        raise DataError(f"no document of '{options.text}' has more than {2 * FOLLOWING} tokens; give longer ones.")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring heads", total=min(options.rows, len(longer)))
        heads = measured_heads(
            model, longer[: options.rows], on_row=lambda done, of: bar.update(task, completed=done, total=of)
        )
    model.settings = replace(model.settings, heads=heads)
    model.save_pretrained(options.out)
    print(f"wrote {options.out}; read it with --model {options.out}", file=sys.stderr)
