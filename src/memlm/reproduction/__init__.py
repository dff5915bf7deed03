"""The paper's claims put to the test: runs that test them, and what each says."""

from memlm.reproduction.runs import EXPERIMENTS, ClaimSettings, Figure, Figures, Spent, measure_experiments, spent_on
from memlm.reproduction.statements import CLAIMS, Claim, Verdict, judge_all

__all__ = [
    "CLAIMS",
    "EXPERIMENTS",
    "Claim",
    "ClaimSettings",
    "Figure",
    "Figures",
    "Spent",
    "Verdict",
    "judge_all",
    "measure_experiments",
    "spent_on",
]
