"""Evaluation: runs models over text and turns their output into measurements."""

from memlm.evaluation.probe.memories import probe_autoencoder
from memlm.evaluation.reconstruction import ReconstructionScores, reconstruct
from memlm.evaluation.result import Evaluation, chunkwise_costs, compressor_costs, memory_costs
from memlm.evaluation.runner import EvalContext, evaluate_run, measure_rows

__all__ = [
    "EvalContext",
    "Evaluation",
    "ReconstructionScores",
    "chunkwise_costs",
    "compressor_costs",
    "evaluate_run",
    "measure_rows",
    "memory_costs",
    "probe_autoencoder",
    "reconstruct",
]
