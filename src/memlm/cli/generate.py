"""`memlm generate`: a continuation of texts that are read as memories."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from memlm.cli.arguments import NotNegative, Seed, Share, TextOptions, TokensPerMemory, parse, text_field_of
from memlm.durable import is_vacant, require_place
from memlm.errors import ConfigError, Within

if TYPE_CHECKING:
    from memlm.session import MemorySession, SlotSession


@dataclass(frozen=True)
class Generate(TextOptions):
    """Continue a text after documents of a store, files or a saved session, which are read as memories.

    memlm generate "The moral of this is" --model runs/memory --read book.txt
    """

    prompt: Positional[str]
    """The text to continue; it is read after everything else."""
    model: str | None = None
    """Folder of a memory model's run, or folder or Hub id of a decoder; by default the model of the store."""
    store: str | None = None
    """Folder of a store whose documents --read names."""
    read: tuple[str, ...] = ()
    """Ids of documents of the store, or without --store files, folders or globs; they are read before the prompt."""
    session: str | None = None
    """Folder of a session; it is continued if it exists, and saved in any case."""
    max_new_tokens: NotNegative = 128
    """Greatest number of tokens to generate."""
    sample: bool = False
    """Sample each token; by default the most likely token is taken."""
    temperature: Annotated[float, Within(0, 100)] = 1.0
    """Temperature of sampling; 0 takes the most likely token."""
    seed: Seed = 0
    """Seed of sampling."""
    fidelity: Share = 0.98
    """Chunks whose memories give back a smaller share of their tokens are read as tokens (memory models)."""
    tokens_per_memory: TokensPerMemory = None
    """Tokens for each memory (decoders); by default those of the store, or 8. A store's memories are made fewer where
    they are more than that."""
    beyond: Literal["forget", "overlap"] = "forget"
    """When a decoder's positions are used up: forget the oldest text, or let its memories overlap at the first ones."""


def run(arguments: list[str]) -> None:
    """Read the texts and print the continuation while it is generated."""
    options = parse(Generate, arguments, command="generate")
    import torch
    from transformers import TextStreamer

    if options.session is not None:
        require_place(Path(options.session))
    session = _open_session(options)
    session.read(options.prompt)
    print(session.stats(), file=sys.stderr)
    torch.manual_seed(options.seed)
    sampling: dict[str, Any] = {"do_sample": options.sample}
    sampling |= {"temperature": options.temperature} if options.sample else {}
    streamer = TextStreamer(session.tokenizer, skip_prompt=True, skip_special_tokens=True)
    session.generate(max_new_tokens=options.max_new_tokens, streamer=streamer, **sampling)
    if options.session is not None:
        session.save(options.session)


def _open_session(options: Generate) -> MemorySession | SlotSession:
    from memlm.models.loading import is_decoder

    model = _model(options)
    return _decoder_session(options, model) if is_decoder(model) else memory_session(options)


def _model(options: Generate) -> str:
    from memlm.cli.store import model_of

    model = options.model or (model_of(options.store) if options.store else None)
    if model is None:
        raise ConfigError("no model; give --model RUN, the folder of a memory model, or --store.")
    return model


def memory_session(options: Generate) -> MemorySession:
    """Return a session of a memory model that has read everything before the prompt.

    Raises:
        ConfigError: neither a model nor a store is given.
    """
    from memlm.cli.store import open_texts
    from memlm.session import MemorySession

    model = _model(options)
    if options.session is not None and not is_vacant(Path(options.session)):
        session = MemorySession.load(options.session, model)
    else:
        session = MemorySession(model, fidelity=options.fidelity)
    if options.store is None:
        _read_sources(session, options, model)
        return session
    with open_texts(options.store, model) as store:
        for name in options.read:
            session.read_stored(store, name)
    return session


def _read_sources(session: MemorySession | SlotSession, options: Generate, model: str) -> None:
    from memlm.data import stream_documents

    if options.read:
        field = text_field_of(options, model)
        for _, text in stream_documents(options.read, text_field=field, strict=options.strict):
            session.read(text)


def _decoder_session(options: Generate, model: str) -> SlotSession:
    from memlm.session import SlotSession
    from memlm.store import SlotCodec, TextStore, read_header

    slots = None if options.store is None else read_header(Path(options.store)).slots
    if options.session is not None and not is_vacant(Path(options.session)):
        session = SlotSession.load(options.session, model)
    else:
        ratio = options.tokens_per_memory or (8 if slots is None else slots.tokens_per_memory)
        session = SlotSession(model, tokens_per_memory=ratio, beyond=options.beyond)
    if options.store is None:
        _read_sources(session, options, model)
        return session
    if slots is None:
        raise ConfigError(f"'{options.store}' holds no memories of a decoder; leave --model {model} out.")
    with TextStore.open(options.store, SlotCodec.of(session.model, slots)) as store:
        for name in options.read:
            session.read_stored(store, name)
    return session
