"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.clock import Spread

NOTHING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(x: float | None, digits: int = 1) -> str:
    """The number, never as minus zero; a dash if it was not measured."""
    return NOTHING if x is None else f"{round(x, digits) + 0.0:.{digits}f}"


def milliseconds(of: dict[str, Any] | None) -> str:
    return NOTHING if of is None else number(of["ms"]["median"], 2)


def ratio(x: Spread | None) -> str:
    """The median and, in brackets, the quartiles."""
    return NOTHING if x is None else f"{x['median']:.2f} ({x['low']:.2f}–{x['high']:.2f})"


def pair(ours: float | None, theirs: float | None, digits: int = 1) -> str:
    return f"{number(ours, digits)} / {number(theirs, digits)}"
