"""Trained models through their measurements."""

from memlm.evaluation.figures import PROTOCOL
from memlm.evaluation.memory_cost import MemoryCost, memory_costs
from memlm.evaluation.passages import Passage, Piece
from memlm.evaluation.reconstruction import ReconstructionScores, blank_memory_nats, reconstruct
from memlm.evaluation.run import evaluate_run
from memlm.evaluation.runner import Evaluation, evaluate_reconstruction, python_topics

__all__ = [
    "PROTOCOL",
    "Evaluation",
    "MemoryCost",
    "Passage",
    "Piece",
    "ReconstructionScores",
    "blank_memory_nats",
    "evaluate_reconstruction",
    "evaluate_run",
    "memory_costs",
    "python_topics",
    "reconstruct",
]
