"""The memory model and its encoder."""
