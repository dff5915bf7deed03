"""Memory models for language.

Nothing heavy happens on import: names are bound to their modules when they are first used.
"""

from __future__ import annotations

__version__ = "0.1.0"
