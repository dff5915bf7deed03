"""`memlm ask`: answers about documents, which a pretrained decoder reads as memories."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from memlm.cli.arguments import NotNegative, Positive, TextOptions, parse, text_field_of
from memlm.cli.store import open_texts
from memlm.errors import ConfigError, one_line
from memlm.models.runtime import Device, device_of
from memlm.reports import write_reading
from memlm.session.reading_plan import AskSettings

if TYPE_CHECKING:
    from memlm.session import Answer, DocumentSession
    from memlm.store import TextStore


@dataclass(frozen=True, kw_only=True)
class Documents(AskSettings, TextOptions):
    """Documents, the decoder that reads them, and how it does."""

    model: str | None = None
    """Folder or Hub id of a decoder, or folder of a run that trained one to write memories; by default the model of
    the store."""
    text: tuple[str, ...] = ()
    """Files (text, JSONL, JSON, CSV, Parquet), folders or globs to read."""
    store: str | None = None
    """Folder of a store whose documents are read."""
    read: tuple[str, ...] = ()
    """Ids of the store's documents; all by default."""
    vectors: bool = True
    """Search by the vectors of the store's retrieval encoder, too, where it has one; otherwise by words only."""
    retrieval: str | None = None
    """Folder or id of that encoder, where it has moved since the store was made."""
    max_new_tokens: Positive = 64
    """Greatest number of tokens of an answer."""
    show: NotNegative = 3
    """Passages to cite."""
    device: Device = "auto"
    """Device of the decoder; a GPU where there is one by default."""

    def settings(self) -> AskSettings:
        """Return how documents are read."""
        return AskSettings(**{name.name: getattr(self, name.name) for name in fields(AskSettings)})


@dataclass(frozen=True, kw_only=True)
class Ask(Documents):
    """Answer a question about documents, which a decoder reads as memories.

    memlm ask "When was the charter received?" --model PATH_OR_HUB_ID --text notes/
    """

    question: Positional[str | None] = None
    """The question."""
    questions: str | None = None
    """File of records with a "question" each (JSONL, CSV, ...), instead; an "id" is passed on."""
    json: bool = False
    """Print one JSON object for each answer."""
    page: str | None = None
    """HTML file that shows, for one question, which parts of the documents were read as tokens and as memories."""


def run(arguments: list[str]) -> None:
    """Read the documents and print the answers."""
    options = parse(Ask, arguments, command="ask")
    questions = list(_questions(options))
    if options.page is not None and len(questions) > 1:
        raise ConfigError(f"--page shows one question, not {len(questions)}; ask them one by one.")
    with open_documents(options) as session:
        for more in questions:
            found = session.fork() if len(questions) > 1 else session
            answer = answered(found, str(more["question"]), options, stream=not options.json)
            if options.json:
                print(json.dumps({**more, **_without_parts(answer)}), flush=True)
            if options.page is not None:
                write_reading(options.page, answer.question, answer.text, answer.reading(), answer.parts)


def _without_parts(answer: Answer) -> dict[str, Any]:
    """Return what is said of an answer; its parts are all documents once more."""
    return {name: value for name, value in asdict(answer).items() if name != "parts"}


def _questions(options: Ask) -> Iterable[dict[str, Any]]:
    if (options.question is None) == (options.questions is None):
        raise ConfigError("give one question, or --questions FILE with many.")
    if options.questions is None:
        return [{"question": options.question}]
    from memlm.data import load_documents

    documents = load_documents(options.questions, text_field="question", strict=options.strict)
    return [{"id": document.id, "question": document.text} for document in documents]


@contextmanager
def open_documents(options: Documents) -> Generator[DocumentSession]:
    """Yield a session that has the documents.

    Raises:
        ConfigError: no documents, documents of two kinds, or no model.
    """
    if bool(options.text) == (options.store is not None):
        raise ConfigError("give documents: --text FILES, or --store DIR.")
    from memlm.models.slots import MemoryDecoder
    from memlm.session import DocumentSession

    if options.store is None:
        if options.model is None:
            raise ConfigError("no model; give --model PATH_OR_HUB_ID, a decoder.")
        from memlm.data import load_documents

        field, strict = text_field_of(options, options.model), options.strict
        documents = load_documents(options.text, text_field=field, strict=strict)
        decoder = MemoryDecoder.from_pretrained(options.model, device_map=device_of(options.device))
        session = DocumentSession(decoder, options.settings())
        for document in documents:
            session.read(document.text, name=document.id)
        yield session
        return
    with _decoders_store(options) as store:
        session = DocumentSession(store.codec.model, options.settings())  # pyright: ignore
        for name in options.read or [entry.id for entry in store.store.documents()]:
            session.read_stored(store, name)
        yield session


@contextmanager
def _decoders_store(options: Documents) -> Generator[TextStore]:
    from memlm.store import SlotCodec

    folder = options.store or ""
    with open_texts(folder, options.model, search=options.vectors, retrieval=options.retrieval) as store:
        if not isinstance(store.codec, SlotCodec):
            raise ConfigError(f"'{folder}' holds no memories of a decoder; make one with memlm remember.")
        yield store


def answered(session: DocumentSession, question: str, options: Documents, *, stream: bool) -> Answer:
    """Return the answer; show it while it is generated, and then what was read and the passages that it may rest on."""
    from rich.console import Console
    from rich.progress import Progress
    from transformers import TextStreamer

    streamer = TextStreamer(session.model.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading documents", total=None)

        def on_chunk(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)
            if done == of:
                progress.stop()

        answer = session.ask(question, max_new_tokens=options.max_new_tokens, streamer=streamer, on_chunk=on_chunk)
    if stream:
        missed = "" if answer.found else f", below {options.least_support:g}: not found in the documents"
        print(f"{answer.reading()}; support {answer.support:.2f} nats per token{missed}", file=sys.stderr)
        for passage in answer.passages[: options.show]:
            line = f"{one_line(passage.document)} {passage.start}-{passage.end}: {one_line(passage.text)}"
            width = get_terminal_size().columns
            print(fill(line, width, initial_indent="  ", subsequent_indent="    "), file=sys.stderr)
    return answer
