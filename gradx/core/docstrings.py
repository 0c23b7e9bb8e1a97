"""Writes the ``Args:`` of a docstring: an entry for each argument, in the signature's order.

An entry that the docstring has already is kept. If it begins with a capital letter, it is added to
the sentence of the argument's meaning; any other entry replaces that sentence:

    Args:
      eps: With 0 an element without a gradient gives NaN.
      learning_rate: relative to the size of each parameter.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from gradx.core.vocabulary import meanings

WIDTH = 100
_SECTION = re.compile(r"^( *)(Returns|Raises|Example|Reference|References):", re.MULTILINE)
_ARGS = re.compile(r"^( *)Args:\n", re.MULTILINE)


def with_arguments(factory: Callable[..., Any], signature: inspect.Signature) -> str | None:
    """The docstring of a factory with an entry for each argument that has a meaning."""
    doc = factory.__doc__
    if doc is None:
        return None
    parameters = signature.parameters
    own: dict[str, str]
    known = meanings(factory, parameters)
    here = _ARGS.search(doc)
    if here is None:
        before = _SECTION.search(doc)
        if not known or before is None:
            return doc
        start = end = before.start()
        margin, own = before[1], {}
    else:
        start, margin = here.start(), here[1]
        own, end = _entries(doc, here.end(), margin)
    written: dict[str, str] = {}  # by the names before the colon, which may be several
    whole = {name: names for names in own for name in re.findall(r"\w+", names)}
    for name in parameters:
        names = whole.get(name, name)
        text = own.get(names)
        if name in known and names == name:
            words = known[name].told(_unwrapped(text), parameters[name].default)
            written[name] = _filled(f"{name}: {words}", margin)
        elif text is not None:
            written[names] = text
    blank = "\n" if here is None else ""
    return f"{doc[:start]}{margin}Args:\n{''.join(written.values())}{blank}{doc[end:]}"


def shown_signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature without ``Number(…)``, since the docstring says that in words."""
    signature = inspect.signature(factory)

    def shown(parameter: inspect.Parameter) -> inspect.Parameter:
        plain, number, _ = str(parameter.annotation).partition(", Number(")
        plain = plain.removeprefix("Annotated[")
        return parameter.replace(annotation=plain) if number else parameter

    return signature.replace(parameters=[shown(p) for p in signature.parameters.values()])


def _entries(doc: str, start: int, margin: str) -> tuple[dict[str, str], int]:
    """The entries that begin at `start`, by their names, and where they end."""
    found: dict[str, str] = {}
    end = start
    for line in doc[start:].splitlines(keepends=True):
        if line.strip() and not line.startswith(f"{margin}  "):
            break
        if begun := re.match(rf"{margin}  ([\w*][^:]*): ", line):
            found[begun[1]] = line
        elif line.strip():
            last = next(reversed(found))
            found[last] += doc[end : end + len(line)]
        else:
            break
        end += len(line)
    return found, end


def _unwrapped(entry: str | None) -> str:
    return "" if entry is None else " ".join(entry.partition(": ")[2].split())


def _filled(text: str, margin: str) -> str:
    lead = f"{margin}  "
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=f"{lead}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines) + "\n"
