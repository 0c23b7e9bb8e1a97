"""A table as text that fits the terminal: a cell that is too long continues below."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Sequence

GAP = "  "
NARROWEST = 10  # of a column that has to be cut anywhere


def table(rows: Sequence[Sequence[str]], leads: Sequence[tuple[str, str]]) -> str:
    """The rows as text; the first one is the head.

    Args:
      rows: the cells of each row; they are broken at spaces first, but not at no-break spaces. The
        first cell of a row also takes the room of the second, if that is empty.
      leads: what stands before the first cell of each row, and before this cell where it continues.
    """
    widths = _widths(rows, [len(first) for first, _ in leads])
    lines = [_row(cells, lead, widths) for cells, lead in zip(rows, leads, strict=True)]
    lines.insert(1, [GAP.join("─" * width for width in widths)])
    return "\n".join(line.rstrip().replace("\xa0", " ") for row in lines for line in row)


def _widths(rows: Sequence[Sequence[str]], indents: Sequence[int]) -> list[int]:
    """As wide as the longest cells. In a terminal that is too narrow the widest columns shrink:
    first to their longest words, then to the parts of these, then to almost nothing."""
    columns = list(zip(*rows, strict=True))
    room = max(shutil.get_terminal_size().columns, 80) - len(GAP) * (len(columns) - 1)

    def longest(parts: Callable[[str], Iterable[str]]) -> list[int]:
        sizes = [[max(map(len, parts(x)), default=0) for x in column] for column in columns]
        sizes[0] = [size + indent for size, indent in zip(sizes[0], indents, strict=True)]
        return list(map(max, sizes))

    widths = longest(lambda x: [x])
    names = [x if second else max(_words(x), key=len) for x, second, *_ in rows]
    widths[0] = max(map(len, map(str.__add__, (" " * n for n in indents), names)))
    for least in (longest(_words), longest(_parts), longest(lambda x: [" " * NARROWEST])):
        while sum(widths) > room and any(w > n for w, n in zip(widths, least, strict=True)):
            widths[max((w, i) for i, w in enumerate(widths) if w > least[i])[1]] -= 1
    return widths


def _row(cells: Sequence[str], lead: tuple[str, str], widths: Sequence[int]) -> list[str]:
    if not cells[1]:
        cells, widths = (cells[0], *cells[2:]), (sum(widths[:2]) + len(GAP), *widths[2:])
    rooms = [widths[0] - len(lead[0]), *widths[1:]]
    texts = itertools.zip_longest(*map(_wrapped, cells, rooms), fillvalue="")
    leads = itertools.chain([lead[0]], itertools.repeat(lead[1]))
    return [
        GAP.join(map(str.ljust, (before + text[0], *text[1:]), widths))
        for before, text in zip(leads, texts, strict=False)
    ]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a width, broken at spaces; too long words are broken after `_=/(,`, or anywhere."""
    lines = [""]

    def add(part: str, gap: str, otherwise: Callable[[str], None]) -> None:
        gap = gap if lines[-1] else ""
        if len(lines[-1]) + len(gap) + len(part) <= width:
            lines[-1] += gap + part
        elif len(part) <= width:
            lines.append(part)
        else:
            otherwise(part)

    def add_word(word: str) -> None:
        add(word, " ", add_parts)

    def add_parts(word: str) -> None:
        lines.append("")
        for part in _parts(word):
            add(part, "", add_letters)

    def add_letters(part: str) -> None:
        lines.extend(part[i : i + width] for i in range(0, len(part), width))

    for word in _words(text):
        add_word(word)
    return [line for line in lines if line] or [""]


def _words(text: str) -> list[str]:
    return text.split(" ")


def _parts(text: str) -> list[str]:
    return re.findall(r"[^ _=/(,]*[ _=/(,]?", text)
