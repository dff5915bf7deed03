"""Reports: tables, figures, pages, a model card. Depends on measurements only."""

from memlm.reports.page import PageContent, write_card, write_page, write_reading

__all__ = ["PageContent", "write_card", "write_page", "write_reading"]
