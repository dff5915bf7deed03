"""The history of a session: memories of full chunks, tokens of chunks with poor memories, and the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from memlm.checksums import check_format
from memlm.durable import read_folder
from memlm.errors import CheckpointError
from memlm.files import read_json, read_tensors, write_file_atomic, write_folder_atomic, write_tensors_atomic
from memlm.models import MemoryModelConfig
from memlm.models.memory.prompt import Piece

ChunkMemory = Float[Tensor, "memories numbers"]


@dataclass
class History:
    """The memories and tokens that were read of one text, oldest first.

    Attributes:
        chunks: a memory (memories, numbers) or a list of token ids for each older chunk.
        newest: the last 0 to `chunk_length` token ids. A full chunk stays here until a token follows it, because that
            token is predicted from the chunk's tokens, as in training.
        forgotten: the number of chunks that were dropped because they did not fit.
    """

    chunks: list[ChunkMemory | list[int]] = field(default_factory=list)
    newest: list[int] = field(default_factory=list)
    forgotten: int = 0

    @property
    def as_tokens(self) -> int:
        """The number of chunks that are read as tokens."""
        return sum(not isinstance(chunk, Tensor) for chunk in self.chunks)

    def copy(self) -> History:
        """Return an independent copy; memories are shared, since they never change."""
        return History(list(self.chunks), list(self.newest), self.forgotten)

    def pieces(self) -> list[Piece]:
        """Return the pieces of a prompt; consecutive memories are stacked into one piece."""
        found: list[Piece] = []
        for is_memory, run in groupby(self.chunks, lambda chunk: isinstance(chunk, Tensor)):
            chunks = list(run)
            found += [torch.stack(cast("list[Tensor]", chunks))] if is_memory else chunks
        return [*found, self.newest] if self.newest else found

    def keep_within(self, config: MemoryModelConfig, positions: int) -> None:
        """Drop the oldest chunks until the others take at most `positions` decoder positions."""
        slots = config.slots_per_chunk  # read once, because attributes of configurations are slow
        sizes = [slots if isinstance(c, Tensor) else len(c) for c in self.chunks]
        over, dropped = sum(sizes) - positions, 0
        while over > 0:
            over -= sizes[dropped]
            dropped += 1
        del self.chunks[:dropped]
        self.forgotten += dropped


FORMAT = 1
_JSON, _TENSORS = "session.json", "session.safetensors"
_MOST = 2**20
Token = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    chunks: Annotated[list[list[Token] | None], Field(max_length=_MOST)]
    """Token ids of each chunk, or None for a memory."""
    newest: Annotated[list[Token], Field(max_length=_MOST)]
    forgotten: Count


class SessionFile(BaseModel):
    """The contents of a saved session's JSON file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Fingerprint of the model and its tokenizer."""
    fidelity: Annotated[float, Field(ge=0, le=1)]
    max_positions: Count
    rows: Annotated[list[_Row], Field(min_length=1, max_length=_MOST)]


def save_session(folder: Path, histories: list[History], *, model: str, fidelity: float, max_positions: int) -> None:
    """Write a session to a folder; an older session there is replaced.

    Raises:
        UserError: the folder holds something else, which is left as it is.
    """
    rows: list[_Row] = []
    memories: list[Tensor] = []
    for history in histories:
        chunks = [None if isinstance(c, Tensor) else c for c in history.chunks]
        rows.append(_Row(chunks=chunks, newest=history.newest, forgotten=history.forgotten))
        memories += [c.float().cpu() for c in history.chunks if isinstance(c, Tensor)]
    file = SessionFile(model=model, fidelity=fidelity, max_positions=max_positions, rows=rows)
    stacked = torch.stack(memories) if memories else torch.zeros(0, 1, 1)

    def fill(draft: Path) -> None:
        write_file_atomic(draft / _JSON, file.model_dump_json(indent=1) + "\n")
        write_tensors_atomic(draft / _TENSORS, {"memories": stacked})

    write_folder_atomic(folder, fill)


def load_session(
    folder: Path, *, model: str, shape: tuple[int, int], vocab_size: int
) -> tuple[SessionFile, list[History]]:
    """Read what `save_session` wrote.

    The fingerprint, the memories and numbers of a chunk, and the vocabulary are those of the model that continues.

    Raises:
        CheckpointError: the session is missing or damaged, has a newer format, or belongs to another model.
    """
    file, memories = read_folder(folder, _read_files)
    if file.model != model:
        models = f"({file.model[:12]}) than this one ({model[:12]})"
        raise CheckpointError(f"'{folder}' was saved with another model {models}; give that one.")
    expected = sum(chunk is None for row in file.rows for chunk in row.chunks)
    if memories is None or len(memories) != expected or (expected and tuple(memories.shape[1:]) != shape):
        raise CheckpointError(f"'{folder / _TENSORS}' does not hold the session's {expected} memories; save it again.")
    if not bool(torch.isfinite(memories).all()):
        raise CheckpointError(f"'{folder / _TENSORS}' holds memories that are not finite; save it again.")
    top = max((t for row in file.rows for ids in (*row.chunks, row.newest) for t in ids or ()), default=0)
    if top >= vocab_size:
        raise CheckpointError(f"'{folder / _JSON}' names token {top} and the model has {vocab_size}; save it again.")
    remaining = iter(memories)
    return file, [
        History([next(remaining) if c is None else c for c in row.chunks], row.newest, row.forgotten)
        for row in file.rows
    ]


def _read_files(folder: Path) -> tuple[SessionFile, Tensor | None]:
    values = read_json(folder / _JSON)
    check_format(folder, values.get("format"), FORMAT)
    try:
        file = SessionFile.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CheckpointError(f"'{folder / _JSON}' is not a saved session ({reason}); save it again.") from error
    return file, read_tensors(folder / _TENSORS).get("memories")
