"""A call of a factory: its arguments are checked and copied.

Options (bools, enumerations, functions) are checked here for every factory, by its annotations. All
arguments are copied, so that the caller may change, donate or delete the originals later.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gradx.core.annotations import check_known, evaluated, known_before, options
from gradx.core.binding import fit
from gradx.core.kept import kept
from gradx.core.show import show
from gradx.core.vocabulary import checked_numbers, numbers_of

P = ParamSpec("P")
T = TypeVar("T")


# ---------------------------------------------------------------- who is being called

_building: ContextVar[tuple[tuple[str, Any], ...]] = ContextVar("_building", default=())


def where() -> str:
    """The factories being run at the moment, for error messages: ``adamw > scale_by_adam``."""
    return " > ".join(name for name, _ in _building.get()) or "gradx"


def ranges_of_factory() -> dict[str, str]:
    """The range of each number that the factory being run takes, by name."""
    *_, (_, factory) = ("", None), *_building.get()
    if factory is None:
        return {}
    numbers = numbers_of(factory).items()
    return {name: taken.number.interval for name, taken in numbers if not taken.each}


@contextlib.contextmanager
def inside(name: str, factory: Callable[..., Any] | None = None) -> Iterator[None]:
    """Lets `where` name a factory while it runs."""
    token = _building.set((*_building.get(), (name, factory)))
    try:
        yield
    finally:
        _building.reset(token)


_PACKAGE = str(Path(__file__).parents[1])


def warn(told: str, category: type[Warning] = UserWarning) -> None:
    """Warns, with the line outside gradx that led here."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(told, category, stacklevel=level)


# ---------------------------------------------------------------- arguments that had other names


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a recorded factory take arguments by the names that Optax had for them before.

    Write it below `recorded`; `names` maps old names to new ones.
    """

    def mark(factory: Callable[P, T]) -> Callable[P, T]:
        factory.__dict__["renamed"] = names
        return factory

    return mark


def by_new_names(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their present names; an old name gives a DeprecationWarning.

    An argument that is `None` by its old name was not given, since that was its default.

    Raises:
      ValueError: an argument is given by both of its names.
    """
    by_name = dict(arguments)
    for old, new in getattr(factory, "renamed", {}).items():
        value = by_name.pop(old, None)
        if value is None:
            continue
        who = factory.__name__
        warn(f"{who}: the argument {old} is called {new} now.", DeprecationWarning)
        if by_name.get(new) is not None:
            raise ValueError(f"{who}: {new} and {old}, its old name, are one argument; give {new}.")
        by_name[new] = value
    return by_name


# ---------------------------------------------------------------- checks and copies


def take(factory: Callable[..., Any], bound: inspect.BoundArguments) -> inspect.BoundArguments:
    """Checks the options and numbers of a call, and copies all of its arguments.

    Returns:
      The arguments to call the factory with; live values among them remember their range.

    Raises:
      ValueError: an option that its annotation does not allow, or a number out of range.
    """
    own = {k: kept(v) for k, v in check(factory, bound.arguments, where()).items()}
    bound.arguments = own
    numbers = checked_numbers(factory, own, where())
    return inspect.BoundArguments(bound.signature, {**own, **numbers})


def check(
    factory: Callable[..., Any], arguments: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
    """The arguments of a call, with checked options: a bool becomes Python's.

    Raises:
      ValueError: an option that its annotation does not allow.
    """
    allowed = options(factory)
    for name in known_before(factory):
        check_known(name, arguments.get(name), where)
    changed = {}
    for name, option in allowed.items():
        if name not in arguments:
            continue
        fits, value = option.taken(arguments[name])
        if not fits:
            raise ValueError(f"{where}: {name} must be {option}, got {show(value)}.")
        if value is not arguments[name]:
            changed[name] = value
    return {**arguments, **changed} if changed else arguments


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`check` and `binding.fit` for a public function that is not `recorded`."""
    plain = evaluated(function)
    by_place = [n for n, p in plain.parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = {**dict(zip(by_place, args, strict=False)), **kwargs}
        who = where() if _building.get() else function.__name__
        taken = check(function, arguments, who)
        if taken is arguments:
            try:
                return function(*args, **kwargs)
            except TypeError:
                fit(plain, function.__name__, args, kwargs)  # a better error, if the call is wrong
                raise
        bound = fit(plain, function.__name__, args, kwargs)
        bound.arguments |= {name: taken[name] for name in bound.arguments if name in taken}
        return function(*bound.args, **bound.kwargs)

    return call
