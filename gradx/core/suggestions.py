"""Suggestions for misspelt names, and errors of the classes that callers of Optax catch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one, whatever its case; None if none is close."""
    lower, asked = {n.lower(): n for n in known}, str(name).lower()
    found = difflib.get_close_matches(asked, lower, n=10, cutoff=cutoff)
    # Swapped letters are a more likely mistake than a missing one.
    found.sort(key=lambda n: sorted(n) != sorted(asked))
    return lower[found[0]] if found else None


def hint(name: object, known: Iterable[str]) -> str:
    """`nearest` as the end of a message: a question, or nothing."""
    meant = nearest(name, known)
    return "" if meant is None else f" Did you mean {meant!r}?"


class MissingArgument(ValueError, TypeError):
    """`update` was not given what it needs. To Python, and so to Optax, this is a `TypeError`."""


class FoundSeveral(ValueError, KeyError):
    """A name fits several places in a state. To Optax this is a `KeyError`."""

    __str__ = Exception.__str__  # a KeyError would put quotes around its message
