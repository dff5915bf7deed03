"""Several processes of a launcher (torchrun) that train one model: the first one writes, all read the same text.

Alone, everything here does nothing. What goes between processes is numbers, never pickled objects.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from memlm.errors import ConfigError, DataError, MemlmError
from memlm.processes import processes_of_launcher
from memlm.training.config import TrainingConfig

_PATIENCE = timedelta(minutes=30)
"""In which all processes must come to where they meet: the first may keep memories or look at text meanwhile."""
T = TypeVar("T")


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Return whether this process writes files."""
    return rank() == 0


def launched() -> bool:
    """Return whether a launcher started this process beside others."""
    return processes_of_launcher() > 1


@contextmanager
def joined() -> Generator[None]:
    """Let the launcher's processes meet within it."""
    if not launched() or _together():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def meet() -> None:
    """Wait until all processes are here."""
    if _together():
        dist.all_reduce(torch.zeros(1))


def first_does(work: Callable[[], T]) -> T | None:
    """Let the first process work while the others wait; what goes wrong there ends all, and is said once."""
    if not _together():
        return work()
    result, failed = None, None
    if is_first():
        try:
            result = work()
        except (MemlmError, OSError) as error:
            failed = error
    flag = torch.tensor([int(failed is not None)])
    dist.broadcast(flag, 0)
    if failed is not None:
        raise failed
    if int(flag):
        sys.exit(2)
    return result


def is_loss_of_another(error: BaseException) -> bool:
    """Return whether an error was raised because another process has ended."""
    said = str(error).lower()
    return launched() and any(word in said for word in ("by peer", "gloo", "nccl", "timed out", "store"))


def summed(numbers: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if _together():
        dist.all_reduce(numbers)
    return numbers


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes in their order; each may have another number of them."""
    if not _together():
        return rows
    sizes = _of_all(torch.tensor([len(rows)]), [1] * count())
    return torch.cat(_of_all(rows, list(map(int, sizes))))


def _of_all(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Rows of each process, which has so many."""
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])]).contiguous()
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return [part[:size] for part, size in zip(found, sizes, strict=True)]


def shared_out(stacks: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return the result of work on each row alone, of which every process does its part.

    Args:
        stacks: rows first, any shape behind; the same ones in all processes.
        work: rows to as many rows of the same shape, of one type whatever it is given.
    """
    if not _together() or not stacks:
        return [work(stack) for stack in stacks]
    own = torch.cat([work(part).flatten() for part in _shares(stacks, rank())])
    sizes = [[part.numel() for part in _shares(stacks, number)] for number in range(count())]
    found = [torch.empty_like(stack, dtype=own.dtype) for stack in stacks]
    for number, flat in enumerate(_of_all(own, list(map(sum, sizes)))):
        for part, piece in zip(_shares(found, number), flat.split(sizes[number]), strict=True):
            part.copy_(piece.view_as(part))
    return found


def _shares(stacks: Sequence[Tensor], number: int) -> list[Tensor]:
    """A process's rows of each; a stack goes on where the one before ends, so that none has the larger part of all."""
    firsts = [sum(map(len, stacks[:place])) for place in range(len(stacks))]
    return [stack[(number - first) % count() :: count()] for stack, first in zip(stacks, firsts, strict=True)]


def share_of(rows: int) -> int:
    """Return how many of the rows of a step each process has.

    Raises:
        ConfigError: they cannot be shared out evenly.
    """
    if rows % count():
        raise ConfigError(
            f"training.batch_size ({rows}) must be divisible by the {count()} processes that share it; change either."
        )
    return rows // count()


def require_same(what: str, text: str) -> None:
    """Check that all processes have read the same text.

    Raises:
        DataError: one has read another.
    """
    digests = gathered(torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)[None])
    others = (digests != digests[0]).any(1).nonzero()[:, 0].tolist()
    if others:
        raise DataError(f"process {others[0]} has other {what} than process 0; give all the same files and versions.")


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def shards(config: TrainingConfig) -> bool:
    """Return whether weights are spread over the processes that are running."""
    return config.sharding != "none" and count() > 1


def shard(model: PreTrainedModel) -> None:
    """Spread a model in place; every process must call this. Layers are those of transformers' `_no_split_modules`."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (count(),))
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; where it is sharded, every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state, gathered; every process must call this."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, sharded as another one is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)
