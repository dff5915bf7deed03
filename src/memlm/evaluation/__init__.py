"""Evaluation: runs models over text and turns their output into measurements."""

from memlm.evaluation.reconstruction import ReconstructionScores, reconstruct
from memlm.evaluation.result import Evaluation, chunkwise_costs, compressor_costs, memory_costs
from memlm.evaluation.runner import evaluate_run, probe_autoencoder, time_writer

__all__ = [
    "Evaluation",
    "ReconstructionScores",
    "chunkwise_costs",
    "compressor_costs",
    "evaluate_run",
    "memory_costs",
    "probe_autoencoder",
    "reconstruct",
    "time_writer",
]
