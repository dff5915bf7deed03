"""Evaluation of memory models: perplexity, copies, recall, and the oracle."""
