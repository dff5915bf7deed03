"""Passages next to what came back: wrong pieces coloured, and marked for eyes and terminals without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text


@dataclass(frozen=True)
class PassageView:
    """A chunk piece by piece.

    Attributes:
        name: the document it comes from.
        pieces: (original, returned, right).
    """

    name: str
    pieces: Sequence[tuple[str, str, bool]]

    @property
    def wrong(self) -> int:
        """Pieces that did not come back."""
        return sum(not right for _, _, right in self.pieces)

    @property
    def verdict(self) -> str:
        """What came back, in words."""
        return "every token came back" if not self.wrong else f"{self.wrong} of {len(self.pieces)} pieces wrong"


def visible(text: str) -> str:
    """The text with its line ends shown, since a line end can be wrong too."""
    return text.replace("\r", "␍").replace("\n", "⏎ ").replace("\t", "⇥ ") or "∅"


def terminal(passages: Sequence[PassageView]) -> RenderableType:
    """Original above, returned below, wrong pieces red and in brackets."""
    parts: list[RenderableType] = []
    for passage in passages:
        original, returned = Text(), Text()
        for before, after, right in passage.pieces:
            original.append(visible(before) if before or not right else "", style="" if right else "bold")
            returned.append(visible(after) if right else f"[{visible(after)}]", style="" if right else "bold red")
        heading = Text.assemble((passage.name, "bold"), f"  {passage.verdict}")
        rows = [Text("text    ", style="dim"), original, Text("memory  ", style="dim"), returned]
        parts += [heading, *(Padding(row, (0, 0, 0, 2)) for row in rows), Text()]
    return Group(*parts)
