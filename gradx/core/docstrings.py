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
    parameters = dict(signature.parameters)
    for name, parameter in parameters.items():
        plain, number, _ = str(parameter.annotation).partition(", Number(")
        if number:
            parameters[name] = parameter.replace(annotation=plain.removeprefix("Annotated["))
    return signature.replace(parameters=list(parameters.values()))


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
    # `textwrap` takes ten times as long, and this is a part of importing gradx.
    lines, line = [], f"{margin} "
    for word in text.split(" "):
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = f"{margin}   "
        line = f"{line} {word}"
    return "\n".join([*lines, line]) + "\n"
