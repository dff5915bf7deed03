"""Evaluation: runs models over text and turns what comes back into measurements."""

from memlm.evaluation.cost import Cost, chunkwise_costs, compressor_costs, memory_costs
from memlm.evaluation.passages import Passage
from memlm.evaluation.probe.runs import probe_autoencoder
from memlm.evaluation.reconstruction import ReconstructionScores, reconstruct
from memlm.evaluation.runner import EvalContext, Evaluation, evaluate_run, measure_rows

__all__ = [
    "Cost",
    "EvalContext",
    "Evaluation",
    "Passage",
    "ReconstructionScores",
    "chunkwise_costs",
    "compressor_costs",
    "evaluate_run",
    "measure_rows",
    "memory_costs",
    "probe_autoencoder",
    "reconstruct",
]
