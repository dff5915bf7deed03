"""Training checkpoints: safetensors and JSON only, there whole or not at all.

A checkpoint is written into a hidden folder beside the others, flushed to the disk and renamed. Whatever is found
half-written later was never renamed and is swept away. Nothing is pickled: transformers would write the optimizer,
the random states and its arguments with pickle.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from memlm.errors import CheckpointError
from memlm.files import one_error, read_json, read_tensors
from memlm.training.loop.distributed import spread_like, whole


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; half-written ones are removed."""
    for leftover in (*folder.glob(".*.draft"), *folder.glob(".*.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    return max(_whole(folder), key=step_of, default=None)


def remove_old(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in sorted(_whole(folder), key=step_of)[:-keep]:
        shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    """Return the step at which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]


def full_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state that `save_optimizer` writes; where weights are sharded, every process must call this."""
    state = optimizer.state_dict()
    entries = {
        index: {name: whole(v) if isinstance(v, Tensor) else v for name, v in own.items()}
        for index, own in state["state"].items()
    }
    return {**state, "state": entries}


def save_optimizer(state: dict[str, Any], folder: Path) -> None:
    """Write tensors to `optimizer.safetensors`, everything else to `optimizer.json`."""
    entries = {f"{index}.{name}": value for index, own in state["state"].items() for name, value in own.items()}
    tensors = {name: value.contiguous() for name, value in entries.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in entries.items() if name not in tensors}
    save_file(tensors, folder / "optimizer.safetensors")
    _write_json(folder / "optimizer.json", {"param_groups": state["param_groups"], "plain": plain})


def load_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """Undo `save_optimizer`.

    Raises:
        CheckpointError: the file is missing, cut short, or of another model.
    """
    record = read_json(folder / "optimizer.json")
    tensors = read_tensors(folder / "optimizer.safetensors")
    try:
        state: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **record["plain"]}.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        for group in record["param_groups"]:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        optimizer.load_state_dict({"state": state, "param_groups": record["param_groups"]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{folder}' belongs to another model ({error}); resume with the settings it began with."
        ) from error
    for parameter, own in optimizer.state.items():
        own.update({n: spread_like(v, parameter) if isinstance(v, Tensor) else v for n, v in own.items()})


def save_random_state(folder: Path) -> None:
    """Write the states of Python's, NumPy's and torch's generators."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    save_file(states, folder / "random.safetensors")
    of_numpy = [str(name), int(position), int(has_gauss), float(cached)]
    _write_json(folder / "random.json", {"python": [version, list(words), gauss], "numpy": of_numpy})


def load_random_state(folder: Path) -> None:
    """Undo `save_random_state`.

    Raises:
        CheckpointError: the files are missing or cut short.
    """
    plain, states = read_json(folder / "random.json"), read_tensors(folder / "random.safetensors")
    with one_error(folder / "random.json", CheckpointError, "restore it, or remove its folder"):
        version, words, gauss = plain["python"]
        random.setstate((version, tuple(words), gauss))
        name, position, has_gauss, cached = plain["numpy"]
        keys = states["numpy"].numpy().astype(np.uint32)
        np.random.set_state((name, keys, position, has_gauss, cached))
        torch.set_rng_state(states["torch"])
    cuda = [states[key] for key in sorted(states) if key.startswith("cuda.")]
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
