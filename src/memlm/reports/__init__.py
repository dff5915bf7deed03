"""For people: journals, tables, figures, one page, a model card. Sees measurements only."""

from memlm.reports.card import write_card
from memlm.reports.page import CostView, PageContent, write_page
from memlm.reports.passage import PassageView

__all__ = ["CostView", "PageContent", "PassageView", "write_card", "write_page"]
