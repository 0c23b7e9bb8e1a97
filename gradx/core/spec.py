"""A `Spec`: how an object was made, for its repr, `==`, hash and pickle.

A transformation may have others among its arguments, and one that grew in a loop,
`tx = chain(tx, …)`, has them as deep as the loop was long, beyond Python's limit of recursion. So
nothing here calls itself for the parts of a part: `inside_out` gives each after its parts.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gradx.core.show import is_dtype, show

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Spec:
    """The public factory that made an object, and the arguments that differ from its defaults."""

    factory: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        # A factory may have been made by another one: inject_hyperparams(adam).
        return repr(self.factory) if isinstance(self.factory, Described) else self.factory.__name__

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.factory)

    def call(self, arguments: Mapping[str, Any] | None = None) -> Any:
        """Makes the object again, from these arguments or (by default) from its own."""
        given = dict(self.arguments if arguments is None else arguments)
        bound = inspect.BoundArguments(self.signature, given)
        bound.apply_defaults()  # else arguments before `*args` could only be given by name
        return self.factory(*bound.args, **bound.kwargs)

    def __repr__(self) -> str:
        texts: dict[int, _Text] = {}
        for spec in _parts_first(self):
            texts[id(spec)] = _Text(_text(spec, _with(texts, spec.arguments)))
        return texts[id(self)].text

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        """Every distinct spec in this one, once; parts are referred to by their place."""
        places: dict[Any, int] = {}
        place_of: dict[int, _Place] = {}
        for spec in _parts_first(self):
            key: Any = (spec.factory, _hashable(_with(place_of, spec.arguments)))
            try:
                hash(key)
            except TypeError:  # mostly of arrays: it equals only itself
                key = id(spec)
            place_of[id(spec)] = _Place(places.setdefault(key, len(places)))
        return tuple(places)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash


def _text(spec: Spec, arguments: Iterable[tuple[str, Any]]) -> str:
    shown = []
    for name, value in arguments:
        parameter = spec.signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown += [show(v) for v in value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            shown += [f"{k}={show(v)}" for k, v in value.items()]
        else:
            keyword = parameter.default is not parameter.empty
            keyword = keyword or parameter.kind is parameter.KEYWORD_ONLY
            shown.append(f"{name}={show(value)}" if keyword else show(value))
    return f"{spec.name}({', '.join(shown)})"


def _hashable(value: Any) -> Any:
    if is_dtype(value):
        return jnp.dtype(value)
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(value.dtype), np.asarray(jax.random.key_data(value)).tobytes(), value.shape
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.ndim == 0:
        return _hashable(value.item())
    if isinstance(value, bool) or (isinstance(value, float) and value == 0):
        return type(value), str(value)  # True equals 1 and -0.0 equals 0.0, but not in a program
    if isinstance(value, Mapping):
        return type(value), tuple((k, _hashable(v)) for k, v in value.items())
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, list | tuple) and not isinstance(value, Described):
        return type(value).__name__, tuple(_hashable(v) for v in value)
    return value


class Described:
    """What every recorded factory returns: repr, `==`, hash and pickle go by its spec."""

    spec: Spec | None

    def with_spec(self, spec: Spec) -> Self:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)" if self.spec is None else repr(self.spec)

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self) and self.spec is not None:
            return self.spec == other.spec
        return self is other

    def __ne__(self, other: object) -> bool:
        return not self == other  # else a transform would inherit that of tuple

    def __hash__(self) -> int:
        return id(self) if self.spec is None else hash(self.spec)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        # Closures cannot be pickled; the specs say how to make them again.
        if self.spec is None:
            raise TypeError(f"{self!r} cannot be pickled: it was not made by a recorded factory.")
        calls: list[tuple[Callable[..., Any], Any]] = []
        place_of: dict[int, _Place] = {}
        for spec in _parts_first(self.spec):
            place_of[id(spec)] = _Place(len(calls))
            calls.append((spec.factory, _with(place_of, spec.arguments)))
        return _remake, (calls,)


def _remake(calls: Iterable[tuple[Callable[..., Any], tuple[tuple[str, Any], ...]]]) -> Any:
    objects: list[Any] = []
    for factory, arguments in calls:
        own = _mapped(lambda x: objects[x.at] if isinstance(x, _Place) else x, arguments)
        objects.append(Spec(factory, own).call())
    return objects[-1]


# ---------------------------------------------------------------- parts in parts in parts


@dataclass(frozen=True)
class _Place:
    """Stands for a part: its place among all parts."""

    at: int


@dataclass(frozen=True, repr=False)
class _Text:
    """Stands for a part: its repr."""

    text: str

    def __repr__(self) -> str:
        return self.text


def inside_out(whole: T, parts: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """All parts of parts, each once and after its own parts; the whole comes last."""
    waiting, opened, done = [whole], set[int](), set[int]()
    while waiting:
        last = waiting[-1]
        if id(last) not in opened:
            opened.add(id(last))
            waiting += reversed([part for part in parts(last) if id(part) not in opened])
            continue
        waiting.pop()
        if id(last) not in done:
            done.add(id(last))
            yield last


def _parts_first(spec: Spec) -> Iterator[Spec]:
    return inside_out(spec, lambda spec: (part.spec for part in made_in(spec.arguments)))


def made_in(value: Any) -> Iterator[Any]:
    """The value, or the values in it if it is a container, as far as they have a spec."""
    if _is_made(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from made_in(part)


def _with(place_of: Mapping[int, Any], arguments: Any) -> Any:
    """The arguments with something else in place of each part that has a spec."""
    return _mapped(lambda x: place_of[id(x.spec)] if _is_made(x) else x, arguments)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of the value, or of all values in it if it is a container, which keeps its type."""
    if _is_made(value) or not isinstance(value, dict | list | tuple):
        return change(value)
    if isinstance(value, dict):
        new = copy.copy(value)
        new.update({k: _mapped(change, v) for k, v in value.items()})
        return new
    parts = [_mapped(change, v) for v in value]
    if all(new is old for new, old in zip(parts, value, strict=True)):
        return value
    return parts if isinstance(value, list) else tuple.__new__(type(value), parts)


def _is_made(value: Any) -> bool:
    # Not an object that pickles in its own way, such as a factory that replaced another one.
    return (
        isinstance(value, Described)
        and value.spec is not None
        and type(value).__reduce__ is Described.__reduce__
    )
