"""Optax's namespaces under gradx's name, so that `import gradx as optax` finds every name of Optax.

A mirror looks a name up in Optax if it does not have it itself. What it returns depends on the
object that it finds, not on the name, since `optax.tree.scale` is not `optax.scale`:

* what gradx has itself (a transformation, a schedule, a state class): gradx's;
* a namespace: gradx's mirror of it;
* anything else (a loss, a projection, a function of trees): Optax's own object.

Type checkers cannot follow this. The mirrors list their names for them under `TYPE_CHECKING`.
Sorting of imports is off there, since it would give each name a statement of its own.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import optax

from gradx.core.suggestions import hint

# Where Optax exports the names that gradx has at its root.
FLAT = [optax, optax.contrib, optax.schedules, optax.transforms]

Mirror = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def mirror(name: str, own: Iterable[str] = (), theirs: ModuleType | None = None) -> Mirror:
    """Makes a module of gradx mirror one of Optax's: its `__getattr__`, `__dir__` and `__all__`.

    Args:
      name: the module's name, such as ``gradx.losses``; it mirrors ``optax.losses``.
      own: the public names that the module has itself.
      theirs: the module that it mirrors, if that has another name.

    Raises:
      ImportError: the installed Optax has no such namespace.
    """
    module = _namespace(name) if theirs is None else theirs
    listed = sorted({*own, *public(module)})

    def __getattr__(asked: str) -> Any:
        found = None if asked.startswith("_") else getattr(module, asked, None)
        if isinstance(found, ModuleType):
            found = _mirrored(f"{name}.{asked}", found) if asked in public(module) else None
        if found is None:
            # With `obj`, Python does not add a suggestion of its own to the message.
            raise AttributeError(
                f"{name} has no {asked!r}, and Optax {optax.__version__} has none either."
                + ("" if asked.startswith("_") else hint(asked, listed)),  # tools ask for many
                obj=sys.modules.get(name),
            )
        return _ours().get(id(found), found)

    return __getattr__, lambda: list(listed), listed


def public(module: ModuleType) -> list[str]:
    """The public names of a module of Optax; not the modules that it imports for its own use."""
    listed = set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        if not (name.startswith("_") or (isinstance(value, ModuleType) and _is_private(value))):
            listed.add(name)
    return sorted(listed)


def _is_private(module: ModuleType) -> bool:
    first, *path = module.__name__.split(".")
    return first != "optax" or any(part.startswith("_") for part in path)


def _namespace(name: str) -> ModuleType:
    path = name.removeprefix("gradx").split(".")[1:]
    try:
        found: ModuleType = functools.reduce(getattr, path, optax)
    except AttributeError:
        raise ImportError(
            f"{name} mirrors a namespace of Optax, and the installed Optax {optax.__version__} has "
            "none of that name; another version may.",
            name=name,
        ) from None
    return found


def _mirrored(name: str, theirs: ModuleType) -> ModuleType:
    """gradx's module of that name, or a new one if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        made = ModuleType(name, theirs.__doc__)
        names = ("__getattr__", "__dir__", "__all__")
        vars(made).update(zip(names, mirror(name, (), theirs), strict=True))
        return sys.modules.setdefault(name, made)


@functools.cache
def _ours() -> dict[int, Any]:
    """What gradx has itself, by the identity of Optax's object of the same name."""
    gradx, ours = vars(sys.modules["gradx"]), dict[int, Any]()
    for module in FLAT:
        for name, theirs in vars(module).items():
            made = gradx.get(name)
            if not (name.startswith("_") or made is None or isinstance(made, ModuleType)):
                ours.setdefault(id(theirs), made)
    return ours
