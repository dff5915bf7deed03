"""A run on disk: one folder with everything needed to read, repeat or resume it.

run.json           the checked settings          model.safetensors, config.json   the trained model
data.json          source, fingerprints, counts  tokenizer.json ...                its tokenizer
versions.json      what it ran with              measurements.jsonl                evaluations
status.json        how far it came               report.html, README.md            for people
log.jsonl          one line per log step         checkpoints/step-N/               to resume from
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from memlm.checksums import SUMS, check_format
from memlm.data.given import folder_of
from memlm.errors import CheckpointError, ConfigError, RunFolderError
from memlm.files import read_sealed_json, sealed_text, write_file_atomic
from memlm.training.config import RunConfig, make_run_config
from memlm.version import __version__

FORMAT = 1
"""The newest format of a run folder; runs without a number are older, and are read."""
_RUN_FILE = "run.json"
_DATA_KEYS = (
    *("source", "fingerprint_train", "fingerprint_validation", "fingerprint_held_out"),
    *("unigram_counts", "command"),
)
_OURS = (
    *("run.json", "data.json", "versions.json", "status.json", "log.jsonl", "measurements.jsonl", "report.html"),
    *("README.md", "config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "special_tokens_map*"),
    *("vocab.*", "merges.txt", "added_tokens.json", "chat_template*", "checkpoints", ".*.draft"),
    *("stages", "memories-*", "encoder.json", "probe", SUMS),
)
"""Files that a run writes into its folder, which are those that --overwrite may remove."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, *, overwrite: bool = False) -> RunFolder:
        """Create the folder of a run.

        Raises:
            RunFolderError: it exists and is not empty, is a file, or cannot be written.
        """
        with cls.claimed(path, config, overwrite=overwrite) as folder:
            return folder

    @classmethod
    @contextmanager
    def claimed(cls, path: str | Path, config: RunConfig, *, overwrite: bool = False) -> Generator[RunFolder]:
        """Create the folder of a run, and keep other processes out of it while the block runs; see `create`."""
        cls.require_room(path, overwrite=overwrite)
        folder = cls(Path(path))
        with ExitStack() as stack:
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder.locked())
                cls.require_room(path, overwrite=overwrite)  # another process may have been first
                # an older run, never anything else
                for old in (old for pattern in _OURS for old in folder.path.glob(pattern)):
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
                folder.write(_RUN_FILE, {"format": FORMAT, **config.model_dump(mode="json")})
            except OSError as error:
                reason = error.strerror or error
                raise RunFolderError(f"cannot write to '{path}': {reason}; choose another --out.") from error
            yield folder

    @classmethod
    def require_room(cls, path: str | Path, *, overwrite: bool = False) -> None:
        """Raise what `create` would raise, before time is spent on what goes into the folder."""
        folder = folder_of(path, name="out")
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"'{path}' is a file, not a folder; choose another --out.")
        if _occupied(folder) and not overwrite:
            raise RunFolderError(
                f"'{folder}' exists and is not empty; choose another --out, or give --resume or --overwrite."
            )
        if _occupied(folder) and not (folder / _RUN_FILE).is_file():
            raise RunFolderError(
                f"'{folder}' is not a run of memlm, so --overwrite leaves it alone; choose another --out."
            )

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return an existing run.

        Raises:
            RunFolderError: no such folder, or not a run.
        """
        folder = folder_of(path)
        if not folder.is_dir():
            raise RunFolderError(f"no run folder at '{path}'; train one with `memlm train RECIPE --out {path}`.")
        if not (folder / _RUN_FILE).is_file():
            raise RunFolderError(
                f"'{path}' holds no {_RUN_FILE}, so it is not a run of memlm; give the folder that --out named."
            )
        return cls(folder)

    def config(self) -> RunConfig:
        """Return the settings with which the run began.

        Raises:
            ConfigError: settings that this version does not know.
        """
        values = read_sealed_json(self.path / _RUN_FILE)
        check_format(self.path, values.pop("format", None), FORMAT)
        if "stages" not in values or "kind" in values:
            raise ConfigError(
                f"'{self.path / _RUN_FILE}' is of memlm's first edition, whose runs this version does not read; "
                "train again."
            )
        return make_run_config(values)

    def data(self) -> dict[str, Any]:
        """Return source, fingerprints and counts of the text."""
        record = read_sealed_json(self.path / "data.json")
        for name in _DATA_KEYS:
            if name not in record:
                raise CheckpointError(f"'{self.path / 'data.json'}' lacks '{name}'; restore it or train again.")
        return record

    def versions(self) -> dict[str, Any]:
        """Return the versions that the run was made with."""
        return read_sealed_json(self.path / "versions.json")

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Replace one of the folder's JSON files, which holds its own hash."""
        write_file_atomic(self.path / name, sealed_text(record, indent=2))

    @property
    def log_path(self) -> Path:
        """File of the training log, JSON lines."""
        return self.path / "log.jsonl"

    @property
    def measurements_path(self) -> Path:
        """File of the evaluations, JSON lines."""
        return self.path / "measurements.jsonl"

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the training log; one that a crash cut short is left out."""
        if not self.log_path.is_file():
            return []
        return [line for text in self.log_path.read_text(encoding="utf-8").splitlines() if (line := _parsed(text))]

    def finished(self) -> bool:
        """Return whether training came to its end."""
        path = self.path / "status.json"
        return path.is_file() and read_sealed_json(path).get("state") == "finished"

    def require_model(self) -> None:
        """Raise CheckpointError where there is no trained model yet."""
        if not (self.path / "model.safetensors").is_file():
            raise CheckpointError(
                f"'{self.path}' has no trained model yet; finish it with `memlm train --resume --out {self.path}`."
            )

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes from training in the folder.

        Raises:
            RunFolderError: another one trains there.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"another process is training in '{self.path}'; wait for it or choose another --out."
                ) from error
            yield


def _occupied(folder: Path) -> bool:
    """Return whether the folder holds more than the traces of a start that failed."""
    return folder.is_dir() and any(p.name != ".lock" and not fnmatch(p.name, ".*.draft") for p in folder.iterdir())


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def describe_versions() -> dict[str, Any]:
    """Return versions and machine facts that may change a figure; no names or paths."""
    import torch

    packages = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "datasets")
    return {
        "memlm": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: metadata.version(name) for name in packages},
    }


def command_line() -> str:
    """Return the command as typed, for the report."""
    return " ".join(["memlm", *sys.argv[1:]])
