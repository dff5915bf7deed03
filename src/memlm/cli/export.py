"""`memlm export`: a decoder, and prompts of memories, for programs without memlm."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from memlm.cli.arguments import Share, TextOptions, parse
from memlm.cli.generate import Generate, memory_session
from memlm.errors import ConfigError


@dataclass(frozen=True)
class Export(TextOptions):
    """Write a memory model's decoder as a plain Hugging Face model, and memories as embeddings of a prompt.

    `memlm export RUN OUT` writes the decoder and its tokenizer. With --prompt-embeds the folder also holds the
    embeddings of a prompt behind documents of a store (or files), for `model.generate(inputs_embeds=...)` or a serving
    engine that takes prompt embeddings.
    """

    run: Positional[str]
    """Folder of a memory model's run."""
    out: Positional[str]
    """Folder to create; it must not exist."""
    prompt_embeds: str | None = None
    """A prompt that is read after the documents of --read; its embeddings go to OUT/prompt_embeds.safetensors."""
    merged: bool = False
    """Add the weights of the adapters, as for text behind memories; with --prompt-embeds they are always added."""
    store: str | None = None
    """Folder of a store whose documents --read names."""
    read: tuple[str, ...] = ()
    """Ids of documents of the store, or without --store files, folders or globs."""
    fidelity: Share = 0.98
    """Chunks whose memories give back a smaller share of their tokens are read as tokens."""


def run(arguments: list[str]) -> None:
    """Write the folder and print its contents."""
    options = parse(Export, arguments, command="export")
    if options.prompt_embeds is None and (options.store or options.read):
        raise ConfigError("--store and --read are for a prompt; give --prompt-embeds TEXT too.")
    from memlm.models import MemoryModelForCausalLM
    from memlm.models.loading import load_model
    from memlm.session.export import PROMPT_FILE, export_decoder, export_prompt

    if options.prompt_embeds is None:
        export_decoder(*load_model(options.run, MemoryModelForCausalLM), options.out, merged=options.merged)
        print(f"decoder and tokenizer: {options.out}")
        return
    reading = Generate(
        options.prompt_embeds,
        options.run,
        store=options.store,
        read=options.read,
        fidelity=options.fidelity,
        text_field=options.text_field,
        strict=options.strict,
    )
    session = memory_session(reading)
    session.read(options.prompt_embeds)
    session.model.prompt_embeddings([[[0]]])  # raises if the decoder alone cannot read them
    export_decoder(session.model, session.tokenizer, options.out, merged=True)
    positions = export_prompt(session, options.out)
    print(f"decoder and tokenizer: {options.out}; {positions} positions of a prompt: {options.out}/{PROMPT_FILE}")
