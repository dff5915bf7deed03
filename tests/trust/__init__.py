"""What memlm promises of files that are killed, damaged, shared or hostile (docs/reliability.md).

Counts are small here. The full ones: MEMLM_KILLS=100 MEMLM_DAMAGES=250 scripts/test -m "" tests/trust
"""

from __future__ import annotations

import os

KILLS = int(os.environ.get("MEMLM_KILLS", "6"))
"""Kills of each kind of work."""
DAMAGES = int(os.environ.get("MEMLM_DAMAGES", "25"))
"""Flips and truncations of each kind of folder."""
