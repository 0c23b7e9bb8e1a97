"""Reads the annotations of a function: what each argument may be.

Options (bools, enumerations, functions) are checked against them; `meaning` reads the numbers.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np

from gradx.core.show import show


def signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature, with every annotation evaluated that can be."""
    try:
        return _signature(factory)
    except TypeError:  # a callable without a hash
        return evaluated(factory)


@functools.lru_cache(maxsize=1024)
def _compiled(annotation: str) -> types.CodeType:
    return compile(annotation, "<annotation>", "eval")


def evaluated(factory: Callable[..., Any]) -> inspect.Signature:
    """`signature` without its cache: while a module is imported, some names are missing."""
    factory = getattr(factory, "__recorded__", factory)  # what it shows lacks ``Number(…)``
    plain = inspect.signature(factory)
    module = sys.modules.get(getattr(factory, "__module__", ""))
    names = getattr(inspect.unwrap(factory), "__globals__", vars(module) if module else {})

    def resolved(annotation: Any) -> Any:
        text = getattr(annotation, "__forward_arg__", annotation)  # of a named tuple
        # One by one: a name that only type checkers know spoils only its own annotation.
        with contextlib.suppress(NameError, AttributeError, TypeError, SyntaxError):
            return eval(_compiled(text), names) if isinstance(text, str) else text
        return annotation

    typed = [p.replace(annotation=resolved(p.annotation)) for p in plain.parameters.values()]
    return plain.replace(parameters=typed, return_annotation=resolved(plain.return_annotation))


_signature = functools.lru_cache(maxsize=1024)(evaluated)


def _remembered(ask: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
    """The answers for each annotation are kept, since a few of them stand nearly everywhere."""
    remembered = functools.lru_cache(maxsize=1024)(ask)

    @functools.wraps(ask)
    def answer(annotation: Any) -> tuple[Any, ...]:
        try:
            return remembered(annotation)
        except TypeError:  # it has no hash
            return ask(annotation)

    return answer


@_remembered
def members(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows: those of a union, or itself; () for none."""
    annotation = getattr(annotation, "__value__", annotation)  # of an alias, `type Rate = …`
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return ()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(annotation) for m in members(arg))
    if origin is Annotated:
        return members(typing.get_args(annotation)[0])
    return (annotation,)


@_remembered
def metadata(annotation: Any) -> tuple[Any, ...]:
    """What `Annotated` adds to an annotation and to the members of its union; the last counts."""
    annotation = getattr(annotation, "__value__", annotation)
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return *metadata(inner[0]), *annotation.__metadata__
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(m for member in inner for m in metadata(member))
    return ()


# ---------------------------------------------------------------- options


@dataclass(frozen=True)
class Option:
    """An argument that takes a bool, one of several words or a function, but no number."""

    kinds: tuple[Any, ...]

    def taken(self, value: Any) -> tuple[bool, Any]:
        """Whether the value is allowed, and the value to use."""
        for kind in self.kinds:
            origin = typing.get_origin(kind)
            if kind is bool:
                if is_bool(value):
                    return True, bool(value)
            elif origin is Literal:
                if any(isinstance(value, type(x)) and value == x for x in typing.get_args(kind)):
                    return True, value
            elif collections.abc.Callable in (kind, origin):
                if callable(value):
                    return True, value
            elif isinstance(value, origin or kind):
                return True, value
        return False, value

    def __str__(self) -> str:
        words: list[str] = []
        for kind in self.kinds:
            origin = typing.get_origin(kind)
            if kind is bool:
                words += ["True", "False"]
            elif origin is Literal:
                allowed = typing.get_args(kind)
                words.append(f"one of {list(allowed)}" if len(allowed) > 1 else repr(*allowed))
            elif collections.abc.Callable in (kind, origin):
                words.append("a function")
            else:
                words.append("None" if kind is types.NoneType else f"a {(origin or kind).__name__}")
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def check_known(name: str, value: Any, where: str) -> None:
    """Raises ValueError for a traced value where the program depends on the value."""
    for x in value if type(value) in (list, tuple) else (value,):
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                f"{where}: {name} must be known before the run, since it decides which program is "
                f"compiled, got {show(value)}. Make it outside the function under jax.jit, vmap or "
                f"scan, or let {name} be a static argument of it (static_argnames={name!r})."
            )


def is_bool(value: Any) -> bool:
    """Whether it is a bool known now. Other values are truthy by accident, as ``"no"`` is."""
    if isinstance(value, bool | np.bool_):
        return True
    array = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    return array and value.shape == () and value.dtype == np.bool_


@functools.lru_cache(maxsize=1024)
def options(factory: Callable[..., Any]) -> dict[str, Option]:
    found = {}
    for name, parameter in signature(factory).parameters.items():
        kinds = members(parameter.annotation)
        is_option = any(
            kind is bool
            or typing.get_origin(kind) in (Literal, collections.abc.Callable)
            or kind is collections.abc.Callable
            for kind in kinds
        )
        if is_option and all(map(_can_be_checked, kinds)):
            found[name] = Option(kinds)
    return found


@functools.lru_cache(maxsize=1024)
def known_before(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments that cannot be arrays: options, whole numbers, and tuples of these."""
    parameters = signature(factory).parameters.items()
    return tuple(name for name, p in parameters if _is_known(members(p.annotation)))


def _is_known(kinds: tuple[Any, ...]) -> bool:
    plain = (bool, int, str, types.NoneType, collections.abc.Callable, Ellipsis)
    return bool(kinds) and all(
        kind in plain
        or typing.get_origin(kind) in (Literal, collections.abc.Callable)
        or (
            typing.get_origin(kind) in (tuple, list, collections.abc.Sequence)
            and all(_is_known(members(part)) for part in typing.get_args(kind))
        )
        for kind in kinds
    )


def _can_be_checked(kind: Any) -> bool:
    """Not Any, and not a number, which is checked by the rule that takes it."""
    origin = typing.get_origin(kind)
    is_class = isinstance(origin or kind, type) and kind is not Any
    return origin is Literal or (is_class and kind not in (int, float, complex, jax.Array))
