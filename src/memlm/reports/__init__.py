"""Reports: tables, figures, one page, a model card. Depends on measurements only."""

from memlm.reports.page import PageContent, write_card, write_page

__all__ = ["PageContent", "write_card", "write_page"]
