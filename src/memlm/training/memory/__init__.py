"""Training of memory models: stages, batches, the memory cache, and pretrained decoders."""
