"""transformers draws a progress bar for every file it writes or reads, even of a second's size."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_shard_bars() -> Generator[None]:
    """Within it those bars are off; whatever the setting was comes back."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
