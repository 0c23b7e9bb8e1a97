"""Writes the API reference from docstrings at each build: a page for each public name and room.

A room is a folder of gradx, as in docs/design.md; the docstring of its `__init__` says what belongs
there. `write` makes reStructuredText files in docs/api, which git ignores. Sphinx reads the
docstrings themselves (autodoc), and `rest` translates their notation for it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

import gradx

ROOMS = [  # in the order in which somebody who trains a model meets them
    *["optimizers.first_order", "optimizers.sign", "optimizers.layerwise", "optimizers.averaging"],
    *["optimizers.tuning_free", "optimizers.matrix", "optimizers.second_order"],
    *["pieces", "combinators", "schedules", "numbers", "line_search", "inspection"],
    *["running", "lift", "core"],
    *["contract", "experimental"],
]


@dataclass(frozen=True)
class Symbol:
    """A public name: where it is defined, and what it is."""

    name: str
    module: str  # without `gradx.`
    value: Any

    @property
    def room(self) -> str:
        return self.module if self.module in ROOMS else self.module.rpartition(".")[0]

    @property
    def path(self) -> str:
        """How a user writes it."""
        return f"gradx.{'experimental.aggregating.' * (self.room == 'experimental')}{self.name}"

    @property
    def doc(self) -> str:
        if callable(self.value):
            return inspect.getdoc(self.value) or ""
        attributes = ModuleAnalyzer.for_module(f"gradx.{self.module}").find_attr_docs()
        return "\n".join(attributes["", self.name])

    @property
    def summary(self) -> str:
        return " ".join(rest(self.doc.split("\n\n")[0]).split())

    @property
    def is_state(self) -> bool:
        return self.name.endswith(("State", "Info"))


def symbols() -> list[Symbol]:
    """Every public name that gradx defines. What is Optax's own object is not among them."""
    found = []
    for module in pkgutil.walk_packages(gradx.__path__, "gradx."):
        short = module.name.removeprefix("gradx.")
        mirrors = module.ispkg or "." not in short or short == "experimental.aggregating"
        if mirrors and short != "contract":
            continue  # it lists what stands elsewhere
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", []):
            value = getattr(loaded, name)
            if short != "contract" or inspect.isfunction(value):  # its types are Optax's
                found.append(Symbol(name, short, value))
    return found


def write(folder: Path) -> None:
    """Writes the pages, and the index of the rooms. An unchanged page is not touched."""
    found = symbols()
    assert {symbol.room for symbol in found} == set(ROOMS), "give the new room its place in ROOMS"
    pages = {"index": index()}
    pages |= {f"rooms/{r}": room_page(r, [s for s in found if s.room == r]) for r in ROOMS}
    pages |= {symbol.name: symbol_page(symbol) for symbol in found}
    (folder / "rooms").mkdir(parents=True, exist_ok=True)
    for old in {*folder.rglob("*.rst")} - {folder / f"{page}.rst" for page in pages}:
        old.unlink()
    for page, text in pages.items():
        file = folder / f"{page}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def index() -> str:
    entries = "\n".join(f"   rooms/{room}" for room in ROOMS)
    about = ((r, rest(room_doc(r).split("\n\n")[0])) for r in ROOMS)
    rows = "".join(f"   * - :doc:`rooms/{r}`\n     - {' '.join(a.split())}\n" for r, a in about)
    return (
        f"{title('API reference')}Every public name is flat: ``from gradx import adam``. They are "
        "sorted here by room, the folder in which a name is defined. Optax's losses and other "
        "functions are found under the same names, and documented there.\n\n"
        f".. list-table::\n   :widths: 35 65\n\n{rows}\n"
        f".. toctree::\n   :hidden:\n\n{entries}\n"
    )


def room_page(room: str, found: list[Symbol]) -> str:
    text = title(room.replace(".", ": ").replace("_", " ").capitalize())
    text += f".. py:currentmodule:: gradx\n\n{rest(room_doc(room))}\n\n"
    states = [symbol for symbol in found if symbol.is_state]
    text += table([symbol for symbol in found if not symbol.is_state])
    if states:
        text += f"States\n------\n\n{table(states)}"
    return text


def room_doc(room: str) -> str:
    return inspect.getdoc(importlib.import_module(f"gradx.{room}")) or ""


def symbol_page(symbol: Symbol) -> str:
    head = f":orphan:\n\n{title(symbol.name)}.. py:currentmodule:: gradx\n\n"
    file = f"*Defined in* ``gradx/{symbol.module.replace('.', '/')}.py``\n"
    if not callable(symbol.value):
        body = "".join(f"   {line}\n" for line in rest(symbol.doc).splitlines())
        return f"{head}.. py:data:: {symbol.name}\n\n{body}\n{file}"
    if not inspect.isclass(symbol.value):
        return f"{head}.. autofunction:: {symbol.path}\n\n{file}"
    members = [
        name
        for name, value in vars(symbol.value).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    ]
    listed = f"   :members: {', '.join(members)}\n" if members else ""
    return f"{head}.. autoclass:: {symbol.path}\n{listed}\n{file}"


def title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def table(found: list[Symbol]) -> str:
    rows = "".join(f"   * - :py:obj:`{s.name} <{s.path}>`\n     - {s.summary}\n" for s in found)
    return f".. list-table::\n   :widths: 35 65\n\n{rows}\n" if found else ""


# ---------------------------------------------------------------- the notation of the docstrings

TOKENS = re.compile(
    r"(?P<code>``(?:(?!\n\n).)+?``|`[^`]+`)"
    r"|\\\((?P<math>(?:(?!\n\n).)+?)\\\)"
    r"|(?<![\w*])\*(?=[^\s*])(?P<emphasis>(?:(?!\n\n)[^*])+?)(?<=\S)\*(?![\w*])",
    re.DOTALL,
)


def rest(doc: str) -> str:
    r"""A docstring with ``\(…\)`` as a role, and the source under a heading of its own.

    Single backticks stay: the default role in conf.py makes links or code of them.
    """

    def token(match: re.Match[str]) -> str:
        if match["math"]:
            before, after = doc[: match.start()][-1:], doc[match.end() :][:1]
            role = f":math:`{' '.join(match['math'].split())}`"
            return "\\ " * before.isalnum() + role + "\\ " * after.isalnum()
        if match["emphasis"] and r"\(" in match["emphasis"]:  # roles do not nest
            parts = re.split(r"\\\((.+?)\\\)", match["emphasis"])
            roles = [f":math:`{p}`" if i % 2 else f"*{p.strip()}*" for i, p in enumerate(parts)]
            return " ".join(role for role in roles if role != "**")
        return match[0]

    return re.sub(r"^Reference: ", ".. rubric:: Reference\n\n", TOKENS.sub(token, doc), flags=re.M)


class _Shown:
    """A default value as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature(value: Any) -> tuple[str, str]:
    """The arguments and the result, with annotations as they are written."""
    called = inspect.signature(value)
    parameters = []
    for parameter in called.parameters.values():
        if parameter.name == "self":
            continue
        if callable(parameter.default) and parameter.default is not parameter.empty:
            parameter = parameter.replace(default=_Shown(parameter.default.__name__))
        elif type(parameter.default) is object:
            parameter = parameter.replace(default=_Shown("…"))
        written = getattr(parameter.annotation, "__forward_arg__", parameter.annotation)
        parameters.append(parameter.replace(annotation=written))
    text = stringify_signature(called.replace(parameters=parameters))
    arguments, _, result = text.rpartition(" -> ")
    if inspect.isclass(value) or not arguments:
        return arguments or result, ""
    return arguments, result
