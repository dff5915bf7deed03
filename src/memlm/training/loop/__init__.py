"""The training loop: trainer, optimizer, checkpoints, progress, and several processes."""
