"""A call of a factory: what its annotations say of the arguments, and what becomes of these.

Options (bools, enumerations, functions) are checked here for every factory, by its annotations. All
arguments are made the factory's own: what the caller changes, donates or deletes later is a copy.
"""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import functools
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradx.core.binding import fit
from gradx.core.show import show

P = ParamSpec("P")
T = TypeVar("T")


# ---------------------------------------------------------------- who is being called

_building: ContextVar[tuple[str, ...]] = ContextVar("_building", default=())


def where() -> str:
    """The factories being run at the moment, for error messages: ``adamw > scale_by_adam``."""
    return " > ".join(_building.get()) or "gradx"


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Names a factory to `where` while it runs."""
    token = _building.set((*_building.get(), name))
    try:
        yield
    finally:
        _building.reset(token)


_PACKAGE = str(Path(__file__).parents[1])


def warn(told: str, category: type[Warning] = UserWarning) -> None:
    """Warns of the line outside gradx that led here."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(told, category, stacklevel=level)


# ---------------------------------------------------------------- arguments that had other names


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a recorded factory take arguments by the names that Optax had for them before.

    Stands below `recorded`; `names` are old name to new name.
    """

    def mark(factory: Callable[P, T]) -> Callable[P, T]:
        factory.__dict__["renamed"] = names
        return factory

    return mark


def by_new_names(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names of today, with a DeprecationWarning for each other.

    One that is `None` by its old name was not given: both names had that default.

    Raises:
      ValueError: an argument is given by both of its names.
    """
    made = dict(arguments)
    for old, new in getattr(factory, "renamed", {}).items():
        value = made.pop(old, None)
        if value is None:
            continue
        who = factory.__name__
        warn(f"{who}: the argument {old} is called {new} now.", DeprecationWarning)
        if made.get(new) is not None:
            raise ValueError(f"{who}: {new} and {old}, its old name, are one argument; give {new}.")
        made[new] = value
    return made


# ---------------------------------------------------------------- what annotations say


def signature(factory: Callable[..., Any]) -> inspect.Signature:
    """With every annotation evaluated that can be."""
    try:
        return _signature(factory)
    except TypeError:  # a callable without a hash
        return _signature.__wrapped__(factory)


@functools.lru_cache(maxsize=1024)
def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    plain = inspect.signature(factory)
    module = sys.modules.get(getattr(factory, "__module__", ""))
    names = getattr(inspect.unwrap(factory), "__globals__", vars(module) if module else {})

    def evaluated(parameter: inspect.Parameter) -> inspect.Parameter:
        text = parameter.annotation
        text = getattr(text, "__forward_arg__", text)  # that of a named tuple
        # One by one: a name that is there for type checkers alone hides only its own.
        with contextlib.suppress(NameError, AttributeError, TypeError, SyntaxError):
            return parameter.replace(
                annotation=eval(text, names) if isinstance(text, str) else text
            )
        return parameter

    return plain.replace(parameters=[evaluated(p) for p in plain.parameters.values()])


def members(annotation: Any) -> tuple[Any, ...]:
    """What an annotation allows: the members of a union, or itself; () where it says nothing."""
    annotation = getattr(annotation, "__value__", annotation)  # that of `type Rate = …`
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return ()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(annotation) for m in members(arg))
    if origin is Annotated:
        return annotation, *members(typing.get_args(annotation)[0])
    return (annotation,)


# ---------------------------------------------------------------- options


@dataclass(frozen=True)
class _Option:
    """An argument that takes a bool, a word of several or a function, and no number."""

    kinds: tuple[Any, ...]

    def taken(self, value: Any) -> tuple[bool, Any]:
        """Whether the value is one of these, and what to hand on."""
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
    """Raises ValueError for a traced value where only the value itself can decide."""
    if any(isinstance(x, jax.core.Tracer) for x in _inside(value)):
        raise ValueError(
            f"{where}: {name} must be known before the run, since it decides which program is "
            f"compiled, got {show(value)}. Make it outside the function under jax.jit, vmap or "
            f"scan, or let {name} be a static argument of it "
            f"(static_argnames={name!r})."
        )


def _inside(value: Any) -> Iterable[Any]:
    return value if type(value) in (list, tuple) else (value,)


def is_bool(value: Any) -> bool:
    """A bool that is known now; other values would be true or false by accident, as ``"no"`` is."""
    if isinstance(value, bool | np.bool_):
        return True
    array = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    return array and value.shape == () and value.dtype == np.bool_


@functools.lru_cache(maxsize=1024)
def _options(factory: Callable[..., Any]) -> dict[str, _Option]:
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
            found[name] = _Option(kinds)
    return found


@functools.lru_cache(maxsize=1024)
def _known_before(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments that no array can be: options, whole numbers, and tuples of these."""
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
    """Not Any, and no number: the rule that takes a number checks it."""
    origin = typing.get_origin(kind)
    is_class = isinstance(origin or kind, type) and kind is not Any
    return origin is Literal or (is_class and kind not in (int, float, complex, jax.Array))


# ---------------------------------------------------------------- what becomes of the arguments


def take(factory: Callable[..., Any], bound: inspect.BoundArguments) -> bool:
    """Checks the options of a call, and makes all of its arguments the factory's own.

    Returns:
      Whether that has changed any of them.

    Raises:
      ValueError: an option that is none of what its annotation says.
    """
    given = bound.arguments
    bound.arguments = {k: kept(v) for k, v in check(factory, given, where()).items()}
    return any(value is not given[name] for name, value in bound.arguments.items())


def check(
    factory: Callable[..., Any], arguments: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
    """The arguments of a call, with plain bools where these are asked for.

    Raises:
      ValueError: an option that is none of what its annotation says.
    """
    options = _options(factory)
    for name in _known_before(factory):
        check_known(name, arguments.get(name), where)
    changed = {}
    for name, option in options.items():
        if name not in arguments:
            continue
        fits, value = option.taken(arguments[name])
        if not fits:
            raise ValueError(f"{where}: {name} must be {option}, got {show(value)}.")
        if value is not arguments[name]:
            changed[name] = value
    return {**arguments, **changed} if changed else arguments


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`check` and `binding.fit` for a public function that leaves no description."""
    plain = inspect.signature(function)
    by_place = [n for n, p in plain.parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = {**dict(zip(by_place, args, strict=False)), **kwargs}
        who = where() if _building.get() else function.__name__
        taken = check(function, given, who)
        if taken is given:
            try:
                return function(*args, **kwargs)
            except TypeError:
                fit(plain, function.__name__, args, kwargs)  # says it better, if it is the call
                raise
        bound = fit(plain, function.__name__, args, kwargs)
        bound.arguments |= {name: taken[name] for name in bound.arguments if name in taken}
        return function(*bound.args, **bound.kwargs)

    return call


_UNCHANGING = (type(None), bool, int, float, complex, str, bytes, type, types.FunctionType)


def kept(value: Any) -> Any:
    """The same, in objects that nobody else has: it cannot be changed, donated or deleted later.

    Functions, and objects that are no trees to JAX, are not copied.
    """
    if isinstance(value, (*_UNCHANGING, jax.core.Tracer)):
        return value
    if isinstance(value, optax.GradientTransformation) or hasattr(value, "spec"):
        return value
    if isinstance(value, jax.Array):
        with jax.ensure_compile_time_eval():  # inside jit, too, it stays an array with a value
            return jnp.array(value, copy=True)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):  # JAX would sort it
        made = copy.copy(value)
        made.update({k: kept(v) for k, v in value.items()})
        return made
    if type(value) is set:
        return set(value)
    if type(value) is tuple or hasattr(value, "_fields"):
        parts = [kept(v) for v in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else tuple.__new__(type(value), parts)
    if isinstance(value, types.GeneratorType | map | filter | zip):
        return [kept(v) for v in value]  # it can be read only once
    if isinstance(value, functools.partial):
        return value
    if jax.tree_util.all_leaves([value]):  # a mapping that JAX does not know is a plain one
        return {k: kept(v) for k, v in value.items()} if isinstance(value, Mapping) else value
    structure: Any
    parts, structure = jax.tree.flatten(value, is_leaf=lambda x: x is not value)
    return structure.unflatten([kept(part) for part in parts])
