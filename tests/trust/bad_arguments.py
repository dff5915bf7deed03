"""Hostile arguments of the Python interface, as a table: each raises a MemlmError with one sentence.

It runs in a process of its own, where no type checker stands before the functions as it does in tests.

A bare string is one text everywhere; lists, tuples, arrays and columns of tables are texts in their order.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import memlm
from memlm.errors import MemlmError
from memlm.models.slots.fit import FitSettings
from tests.conftest import speech


class Column:
    """A column of a table whose rows have numbers of their own, as those of pandas have."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def tolist(self) -> list[str]:
        return self.texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        return {7 + i: text for i, text in enumerate(self.texts)}[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


TWO = ["the people", "of this great nation"]
GOOD: dict[str, Any] = {
    "list": TWO,
    "tuple": tuple(TWO),
    "array": np.array(TWO),
    "array of objects": np.array(TWO, dtype=object),
    "column": Column(TWO),
}
STRANGE: dict[str, Any] = {
    "None": None,
    "nan": float("nan"),
    "-3": -3,
    "complex": 1j,
    "2**70": 2**70,
    "10**5000": 10**5000,
    "bytes": b"ab",
    "list of None": [None],
    "list of bytes": [b"a"],
    "nested": [["a"]],
    "nan in a list": ["a", float("nan")],
    "dict": {"a": 1},
    "set": {"a"},
    "object": object(),
    "class": str,
    "function": len,
    "surrogate": ["\ud800"],
    "array of bytes": np.array([b"a"]),
    "array of nan": np.array([[1.0, float("nan")]]),
    "matrix of texts": np.array([["a", "b"]]),
    "tensor of inf": torch.full((2, 2), float("inf")),
    "complex tensor": torch.ones(2, 2, dtype=torch.complex64),
}


class Things:
    """Models and stores of the smallest size, and functions that take one argument from outside."""

    def __init__(self, folder: Path, run: Path, memory: Path, llama: Path) -> None:
        self.texts, self.session = memlm.TextMemory.from_pretrained(run), memlm.MemorySession(memory)
        self.model = memlm.MemoryDecoder.from_pretrained(str(llama))
        self.slots, self.documents = memlm.SlotSession(self.model), memlm.DocumentSession(self.model)
        self.documents.read("The people of this great nation.")
        self.function = memlm.FunctionEncoder(lambda t: [[float(len(x)), 1.0] for x in t], name="f", fingerprint="f")
        self.encoder = memlm.open_encoder(str(run))
        self.store = memlm.TextStore.open(folder / "s", memory, write=True)
        list(self.store.add([("a", speech(1, 20))]))
        self.folder, self.memory = folder, memory

    @property
    def of_texts(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "TextMemory.encode": self.texts.encode,
            "TextMemory.fidelity": self.texts.fidelity,
            "FunctionEncoder.encode": self.function.encode,
            "MemoryEncoder.encode": self.encoder.encode,
            "MemoryDecoder.memories": lambda x: self.model.memories(x, slots=1).lengths,
            "DocumentSession.nats": lambda x: self.documents.fork().nats("what", x),
        }

    @property
    def of_anything(self) -> dict[str, Callable[[Any], Any]]:
        model, store, session = self.model, self.store, self.session
        pair = (session.model, session.tokenizer)
        return self.of_texts | {
            "load": memlm.load,
            "open_encoder": memlm.open_encoder,
            "get_recipe": memlm.get_recipe,
            "evaluate_run": lambda x: memlm.evaluate_run(x),
            "train_run": lambda x: memlm.train_run(x, self.folder / "new"),
            "RunFolder.open": memlm.RunFolder.open,
            "MemoryStore.open": memlm.MemoryStore.open,
            "TextStore.open": lambda x: memlm.TextStore.open(x, self.memory),
            "TextStore.open, model": lambda x: memlm.TextStore.open(self.folder / "s", x),
            "TextStore.add": lambda x: list(store.add(x)),
            "TextStore.add, id": lambda x: list(store.add([(x, "text")])),
            "TextStore.add, text": lambda x: list(store.add([("new", x)])),
            "TextStore.recall": store.recall,
            "TextStore.search": store.search,
            "TextStore.search, k": lambda x: store.search("people", x),
            "TextStore.delete": store.delete,
            "MemorySession": memlm.MemorySession,
            "MemorySession, fidelity": lambda x: memlm.MemorySession(pair, fidelity=x),
            "MemorySession, rows": lambda x: memlm.MemorySession(pair, rows=x),
            "MemorySession.load": lambda x: memlm.MemorySession.load(x, self.memory),
            "MemorySession.read": lambda x: session.fork().read(x),
            "MemorySession.read_tokens": lambda x: session.fork().read_tokens([x]),
            "MemorySession.generate": lambda x: session.fork().generate("a", max_new_tokens=x),
            "SlotSession": memlm.SlotSession,
            "SlotSession, tokens_per_memory": lambda x: memlm.SlotSession(model, tokens_per_memory=x),
            "SlotSession.load": lambda x: memlm.SlotSession.load(x, model),
            "SlotSession.read": lambda x: self.slots.fork().read(x),
            "SlotSession.read_tokens": lambda x: self.slots.fork().read_tokens(x),
            "SlotSession.generate": lambda x: self.slots.fork().generate("a", max_new_tokens=x),
            "DocumentSession": memlm.DocumentSession,
            "DocumentSession.read": lambda x: self.documents.fork().read(x),
            "DocumentSession.ask": lambda x: self.documents.fork().ask(x),
            "MemoryDecoder.from_pretrained": memlm.MemoryDecoder.from_pretrained,
            "MemoryDecoder.memories, slots": lambda x: model.memories("a b", slots=x, tokens_per_memory=None),
            "MemoryDecoder.read": model.read,
            "regenerate": lambda x: self.texts.regenerate([x]),
            "quantize": lambda x: memlm.quantize(x, 8),
            "quantize, bits": lambda x: memlm.quantize(torch.ones(2, 2), x),
            "dequantize": memlm.dequantize,
            "FunctionEncoder, result": lambda x: memlm.FunctionEncoder(lambda _: x, name="f", fingerprint="f"),
            "Retention.measure": lambda x: memlm.Retention.measure(self.function, x, out=self.folder / "p"),
            "Retention.measure, encoder": lambda x: memlm.Retention.measure(x, TWO, out=self.folder / "p"),
            "EncodingSettings": lambda x: memlm.EncodingSettings(chunk_length=x),
            "FitSettings": lambda x: FitSettings(refinements=x),
            "AskSettings": lambda x: memlm.AskSettings(passages=x),
            "LinearSchedule": lambda x: memlm.LinearSchedule(start=x, end=1.0, steps=2),
            "TrainingConfig": lambda x: memlm.TrainingConfig(steps=x),
            "ProbeSettings": lambda x: memlm.ProbeSettings(lengths=x),
            "TextAutoencoderConfig": lambda x: memlm.TextAutoencoderConfig(hidden_size=x),
        }


def refusals(things: Things) -> list[str]:
    """Return what is wrong with the answers to strange values."""
    wrong: list[str] = []
    for name, function in things.of_anything.items():
        for kind, value in STRANGE.items():
            try:
                function(value)
            except MemlmError as error:
                text = str(error)
                if "\n" in text or len(text) > 600 or not text.endswith((".", "?")):
                    wrong.append(f"{name} of {kind}: {text[:200]}")
            except Exception as error:
                wrong.append(f"{name} of {kind}: {type(error).__name__}: {error}"[:200])
            else:
                wrong.append(f"{name} of {kind} is taken")
    return wrong


def differences(things: Things) -> list[str]:
    """Return where lists of texts of another kind, or one bare text, give something else than a list."""
    wrong: list[str] = []
    for name, function in things.of_texts.items():
        expected = function(TWO)
        for kind, texts in GOOD.items():
            pairs = zip(expected, function(texts), strict=True)
            if not all(torch.equal(torch.as_tensor(one), torch.as_tensor(other)) for one, other in pairs):
                wrong.append(f"{name} of {kind}")
        if len(function("the people of this nation")) != 1:
            wrong.append(f"{name} of a bare string")
    hits = things.store.search("people", 1, documents="a")
    return wrong + (["search"] if [hit.id for hit in hits] != ["a"] else [])


def main(folder: str, run: str, memory: str, llama: str) -> None:
    """Print the number of rows, and what is wrong, as JSON."""
    shutil.copytree(memory, Path(folder) / "memory")
    things = Things(Path(folder), Path(run), Path(folder) / "memory", Path(llama))
    rows = len(things.of_anything) * len(STRANGE)
    print(json.dumps({"rows": rows, "wrong": refusals(things), "different": differences(things)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
