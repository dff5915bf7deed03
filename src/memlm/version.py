"""The version, apart from everything, so that any room may record it."""

__version__ = "0.1.0"
