"""RULER's tasks (arXiv 2404.06654), made by the harness's own generators for contexts of chosen lengths.

The generators count tokens by a tokenizer that the harness would load with `trust_remote_code`. They get ours instead.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler import common_utils
from transformers import PreTrainedTokenizerBase

from memlm.errors import ConfigError

TASKS = ("niah_single_1", "niah_multikey_2", "ruler_vt")
"""Tasks whose texts are made up, so that they need no download."""


_SHORTEST = 1024
"""Shorter contexts have no room for an example, and the generators look for it for ever."""
_FOLDER = str(Path(common_utils.__file__).parent)
_TOKENIZER: ContextVar[PreTrainedTokenizerBase] = ContextVar("tokenizer")
_OWN = common_utils.get_tokenizer


def _tokenizer(*args: Any, **kwargs: Any) -> Any:
    return _TOKENIZER.get(None) or _OWN(*args, **kwargs)


# modules of tasks bind this function when they are loaded; the mark keeps the harness from loading its module again
cast(Any, common_utils).get_tokenizer = _tokenizer
cast(Any, common_utils).__mtime__ = Path(common_utils.__file__).stat().st_mtime_ns


@contextmanager
def _without_downloads() -> Generator[None]:
    """Keep nltk from fetching a list of sentence ends, which the generators want at once and these tasks never use."""
    try:
        import nltk
    except ImportError:  # the generators say so themselves
        yield
        return
    own, nltk.download = nltk.download, lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = own


def ruler_task(name: str, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]) -> Any:
    """Return a task with contexts of some lengths in tokens; its metrics are named after them.

    Raises:
        ConfigError: contexts that are too short, or what the generator needs is not installed.
    """
    if not lengths or min(lengths) < _SHORTEST:
        raise ConfigError(f"RULER's contexts ({list(lengths)}) need at least {_SHORTEST} tokens each.")
    metadata: dict[str, Any] = {"tokenizer": "given", "max_seq_lengths": list(lengths)}
    token = _TOKENIZER.set(tokenizer)
    try:
        with _without_downloads():
            # only the folder of these tasks is searched, which saves reading ten thousand others
            tasks = TaskManager(metadata=metadata, include_path=_FOLDER, include_defaults=False).load([name])
    except (ImportError, LookupError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"the generator of '{name}' lacks something ({reason}); pip install 'memlm[harness]'."
        ) from error
    finally:
        _TOKENIZER.reset(token)
    task = tasks["tasks"][name]
    # the harness lists some lengths only
    aggregations, higher = cast("dict[str, Any]", task.aggregation()), cast("dict[str, bool]", task.higher_is_better())
    known = next(iter(aggregations.values()))
    for length in map(str, lengths):
        aggregations.setdefault(length, known)
        higher.setdefault(length, True)
    return task
