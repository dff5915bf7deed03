"""What can go wrong, as a tree.

    MemlmError
    └── UserError (also a ValueError)     the caller can mend it; the command line prints one line and exits with 2
        ├── ConfigError                   a recipe, a setting, a flag
        ├── DataError                     a text source, a corpus too small to split
        ├── TokenizerError                a tokenizer that is missing or does not fit
        ├── EncoderError                  an encoder that cannot be loaded, or has not what is asked of it
        ├── CheckpointError               a model or training checkpoint that cannot be read
        ├── RunFolderError                a run folder that exists, is missing or cannot be written
        ├── StoreError                    a store of memories that is missing, taken, full, or of another model
        │   └── DamagedStoreError         a store whose bytes are not those that were written
        └── MemoryShapeError              memories of another width, of no finite value, of the wrong rank

Anything else that is raised is a defect of memlm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemlmError(Exception):
    """Root of every error that memlm raises on purpose."""


class UserError(MemlmError, ValueError):
    """The caller can mend it; the message is one line that names both values and the way out."""


class ConfigError(UserError):
    """A recipe, a setting or a flag is wrong."""


class DataError(UserError):
    """A text source cannot be read, or holds too little."""


class TokenizerError(UserError):
    """A tokenizer is missing, or does not fit the model."""


class EncoderError(UserError):
    """An encoder cannot be loaded, or has not what is asked of it."""


class CheckpointError(UserError):
    """A model or a training checkpoint cannot be read."""


class RunFolderError(UserError):
    """A run folder exists already, is missing, or cannot be written."""


class StoreError(UserError):
    """A store of memories is missing, in use, cannot be written, or belongs to another model."""


class DamagedStoreError(StoreError):
    """A store's bytes are not those that were written."""


class MemoryShapeError(UserError):
    """Memories have another shape than the model's, or values that are not finite."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that points to the nearest choice, or lists them all where none is near.

    >>> did_you_mean("autoencoder-tinny", ["autoencoder-tiny", "autoencoder-small"])
    "Did you mean 'autoencoder-tiny'?"
    """
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Choose from: {', '.join(known)}."
