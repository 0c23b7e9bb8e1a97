"""The name that was meant: errors about an unknown name tell the nearest one that there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one, if any is: misspelt, or in another case."""
    names = list(known)
    found = difflib.get_close_matches(str(name), names, n=1, cutoff=cutoff)
    if not found:
        lower = {n.lower(): n for n in names}
        found = [
            lower[n]
            for n in difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=cutoff)
        ]
    return found[0] if found else None


def hint(name: object, known: Iterable[str]) -> str:
    """`nearest` as the end of a message: a question, or nothing."""
    meant = nearest(name, known)
    return "" if meant is None else f" Did you mean {meant!r}?"
