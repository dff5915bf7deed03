"""Memory models in lm-evaluation-harness (EleutherAI): as its model class, with tasks of our own, side by side."""
