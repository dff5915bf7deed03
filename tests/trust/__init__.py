"""What memlm promises of files that are killed, damaged, shared or hostile (docs/reliability.md).

Counts are small here. The full ones: MEMLM_KILLS=100 MEMLM_DAMAGES=250 scripts/test -m "" tests/trust
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch

Say = Callable[[str], object]
KILLS = int(os.environ.get("MEMLM_KILLS", "6"))
"""Kills of each kind of work."""
DAMAGES = int(os.environ.get("MEMLM_DAMAGES", "25"))
"""Flips and truncations of each kind of folder."""


def killed(work: Callable[[Say], None], after: float) -> list[str]:
    """Run work in a child process, kill it after so many seconds, and return the lines that it said."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        try:
            torch.set_num_threads(1)
            work(lambda line: os.write(into, f"{line}\n".encode()))
        finally:
            os._exit(1)
    os.close(into)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(out) as pipe:
        return pipe.read().splitlines()
