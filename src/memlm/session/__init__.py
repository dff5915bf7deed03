"""Trained models in use: texts to memories and back, sessions that read and continue texts, and exports."""

from memlm.session.document_session import Answer, DocumentSession
from memlm.session.export import export_decoder, export_prompt
from memlm.session.reading_plan import AskSettings
from memlm.session.session import MemorySession, SessionStats
from memlm.session.slot_session import SlotSession
from memlm.session.text_memory import DocumentModel, TextMemory, load

__all__ = [
    "Answer",
    "AskSettings",
    "DocumentModel",
    "DocumentSession",
    "MemorySession",
    "SessionStats",
    "SlotSession",
    "TextMemory",
    "export_decoder",
    "export_prompt",
    "load",
]
