"""The claims and the table of arXiv 2602.13466, tested at a small size."""

from memlm.reproduction.runs import EXPERIMENTS, ClaimSettings, Figure, Figures, Spent, measure_experiments, spent_on
from memlm.reproduction.statements import CLAIMS, Claim, Verdict

__all__ = [
    "CLAIMS",
    "EXPERIMENTS",
    "Claim",
    "ClaimSettings",
    "Figure",
    "Figures",
    "Spent",
    "Verdict",
    "measure_experiments",
    "spent_on",
]
