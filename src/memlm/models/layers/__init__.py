"""Layers that memlm's models share: mixers, backbones, bottlenecks and readouts."""
