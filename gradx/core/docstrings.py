"""Writes the ``Args:`` of a docstring: an entry for each argument, in the signature's order.

An entry that the docstring has already is kept. If it begins with a capital letter, it is added to
the sentence of the argument's meaning; any other entry replaces that sentence:

    Args:
      eps: With 0 an element without a gradient gives NaN.
      learning_rate: relative to the size of each parameter.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradx.core.vocabulary import meanings

WIDTH = 100
_SECTION = re.compile(r"^( *)(Returns|Raises|Example|Reference|References):", re.MULTILINE)
_ARGS = re.compile(r"^( *)Args:\n", re.MULTILINE)


@dataclass(frozen=True)
class _Section:
    """The place of ``Args:`` in a docstring, and the entries that are written there."""

    start: int
    end: int
    margin: str  # of the title
    indent: str  # of an entry
    entries: Mapping[str, str]  # names as written, "b1" or "b1, b2", to text


def with_arguments(factory: Callable[..., Any], signature: inspect.Signature) -> str | None:
    """The docstring of a factory with an entry for each argument that has a meaning.

    A docstring without sections, or with entries in another form, stays as it is.
    """
    doc, parameters = factory.__doc__, signature.parameters
    known = meanings(factory, parameters)
    section = _section(doc) if doc and known else None
    if doc is None or section is None:
        return doc
    entry_of = {name: names for names in section.entries for name in re.findall(r"\w+", names)}
    written: dict[str, str] = {}
    for name, parameter in parameters.items():
        names = entry_of.get(name, name)
        text = section.entries.get(names)
        if name in known and names == name:
            words = known[name].told(_unwrapped(text), parameter.default)
            written[name] = _filled(f"{name}: {words}", section.indent)
        elif text is not None:
            written[names] = text
    written |= {names: text for names, text in section.entries.items() if names not in written}
    blank = "" if section.entries else "\n"
    args = f"{section.margin}Args:\n{''.join(written.values())}{blank}"
    return f"{doc[: section.start]}{args}{doc[section.end :]}"


def _section(doc: str) -> _Section | None:
    """Where the entries are, or where they would be: before the next section."""
    args = _ARGS.search(doc)
    if args is None:
        following = _SECTION.search(doc)
        if following is None:
            return None
        place, margin = following.start(), following[1]
        return _Section(place, place, margin, f"{margin}  ", {})
    indent = " " * (len(doc[args.end() :]) - len(doc[args.end() :].lstrip(" ")))
    entries: dict[str, str] = {}
    end = args.end()
    for line in doc[end:].splitlines(keepends=True):
        if not line.strip() or not line.startswith(indent) or len(indent) <= len(args[1]):
            break
        if begun := re.match(rf"{indent}([\w*][^:]*):\s", line):
            entries[begun[1]] = line
        elif entries:
            entries[next(reversed(entries))] += line
        else:
            return None
        end += len(line)
    return _Section(args.start(), end, args[1], indent, entries) if entries else None


def shown_signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature without ``Number(…)``, since the docstring says that in words."""
    signature = inspect.signature(factory)
    parameters = dict(signature.parameters)
    for name, parameter in parameters.items():
        kind = parameter.annotation
        if isinstance(kind, str) and "Annotated[" in kind:
            parameters[name] = parameter.replace(annotation=_without_annotated(kind))
        elif typing.get_origin(kind) is typing.Annotated:
            parameters[name] = parameter.replace(annotation=typing.get_args(kind)[0])
    return signature.replace(parameters=list(parameters.values()))


def _without_annotated(text: str) -> str:
    """``Annotated[Hyper, Number("[0, 1)")] | None`` as ``Hyper | None``."""
    tree = ast.parse(text, mode="eval")

    class Inner(ast.NodeTransformer):
        def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
            is_annotated = isinstance(node.value, ast.Name) and node.value.id == "Annotated"
            if is_annotated and isinstance(node.slice, ast.Tuple):
                return self.visit(node.slice.elts[0])
            return self.generic_visit(node)

    return ast.unparse(Inner().visit(tree))


def _unwrapped(entry: str | None) -> str:
    return "" if entry is None else " ".join(entry.partition(":")[2].split())


def _filled(text: str, indent: str) -> str:
    # `textwrap` takes ten times as long, and this is a part of importing gradx.
    lines, line = [], indent.removesuffix(" ")
    for word in text.split(" "):
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = f"{indent} "
        line = f"{line} {word}"
    return "\n".join([*lines, line]) + "\n"
