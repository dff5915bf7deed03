"""`memlm generate`: text behind memories."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import ConfigError

if TYPE_CHECKING:
    from memlm.session import MemorySession


@dataclass(frozen=True)
class Generate:
    """Continue a text behind what was read: documents of a store, files, a saved session."""

    prompt: Positional[str]
    """Read last; what is written follows it."""
    model: str | None = None
    """Folder of a memory model's run; by default the store's."""
    store: str | None = None
    """Folder of a store."""
    read: tuple[str, ...] = ()
    """Ids of documents of the store, or files where there is no store, read before the prompt."""
    session: str | None = None
    """Go on with the session in this folder where there is one, and save it there."""
    max_new_tokens: int = 128
    """Tokens written, at most."""
    sample: bool = False
    """Draw each token; by default the likeliest is taken."""
    temperature: float = 1.0
    """Of drawing."""
    seed: int = 0
    """Of drawing."""
    fidelity: float = 0.98
    """Chunks whose memories give back a smaller share of their tokens are read as tokens."""


def run(arguments: list[str]) -> None:
    """Parse, read, write as it is generated."""
    options = parse(Generate, arguments, command="generate")
    import torch
    from transformers import TextStreamer

    session = open_session(options)
    session.read(options.prompt)
    stats = session.stats()
    print(
        f"{stats.memories} chunks read as memories, {stats.as_tokens} as tokens (below {session.fidelity}), "
        f"{stats.forgotten} forgotten, {stats.newest} newest tokens",
        file=sys.stderr,
    )
    torch.manual_seed(options.seed)
    sampling: dict[str, Any] = {"do_sample": options.sample}
    sampling |= {"temperature": options.temperature} if options.sample else {}
    streamer = TextStreamer(session.tokenizer, skip_prompt=True, skip_special_tokens=True)
    session.generate(max_new_tokens=options.max_new_tokens, streamer=streamer, **sampling)
    if options.session is not None:
        session.save(options.session)


def open_session(options: Generate) -> MemorySession:
    """What was read before the prompt.

    Raises:
        ConfigError: no model.
    """
    from memlm.cli.store import model_of, open_texts
    from memlm.data.corpus import stream_file
    from memlm.session import MemorySession

    model = options.model or (model_of(options.store) if options.store else None)
    if model is None:
        raise ConfigError("no model; give --model RUN, the folder of a memory model, or --store.")
    if options.session is not None and Path(options.session).exists():
        session = MemorySession.load(options.session, model)
    else:
        session = MemorySession(model, fidelity=options.fidelity)
    if options.store is None:
        for name in options.read:
            session.read(stream_file(Path(name)))
        return session
    with open_texts(options.store, model) as store:
        for name in options.read:
            session.read_stored(store, name)
    return session
