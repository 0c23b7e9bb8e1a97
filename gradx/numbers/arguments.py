"""The arguments of a call of any factory: which are numbers, which schedules, which neither."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from gradx.contract import StatefulSchedule
from gradx.core.annotations import is_bool, members, metadata
from gradx.core.meaning import Number
from gradx.core.show import is_dtype
from gradx.numbers.sources import Source


@dataclass(frozen=True)
class Argument:
    """A value, and what its annotation and its default say about it."""

    value: Any
    default: Any
    kinds: tuple[Any, ...]  # the members of the annotation; () if there is none
    fixed: bool  # whether it decides shapes
    typed: bool  # whether every number of its factory is annotated as `Hyper`

    @property
    def role(self) -> Literal["number", "schedule", "option"]:
        value = self.value
        if isinstance(value, bool | Source) or is_dtype(value) or self.fixed:
            return "option"
        if is_bool(value):
            return "option"
        if isinstance(value, StatefulSchedule):
            return "schedule"
        if callable(value):
            return "schedule" if self._takes_schedule else "option"
        if _is_whole(value) and int in self.kinds and float not in self.kinds:
            return "option"  # a size, an axis, a number of turns
        numeric = int | float | np.number | np.ndarray | jax.Array
        return "number" if isinstance(value, numeric) else "option"

    @property
    def _takes_schedule(self) -> bool:
        """A function counts as a schedule unless the annotation says otherwise, as for a mask."""
        if self.typed:
            return self.takes_source
        function = collections.abc.Callable
        others = [k for k in self.kinds if function in (k, typing.get_origin(k))]
        return not others or any(k in (float, int, jax.Array) for k in self.kinds)

    @property
    def is_float(self) -> bool:
        """Whether it stands for a float, also where an int is given."""
        says_so = float in self.kinds and int not in self.kinds
        return says_so or isinstance(self.default, float) or isinstance(self.value, float)

    @property
    def takes_source(self) -> bool:
        return Source in self.kinds


def _is_whole(value: Any) -> bool:
    """Whether it is an integer that is known now: of Python or NumPy, and no JAX array."""
    of_numpy = isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0
    return isinstance(value, int) or (of_numpy and np.issubdtype(value.dtype, np.integer))


def by_name(bound: inspect.BoundArguments, typed: bool) -> dict[str, Argument]:
    """The arguments of a call, those in ``**kwargs`` too, but not those in ``*args``."""
    found: dict[str, Argument] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        said = metadata(parameter.annotation)
        fixed = any(isinstance(m, Number) and m.fixed for m in said)
        about = parameter.default, members(parameter.annotation), fixed, typed
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= {n: Argument(v, *about) for n, v in value.items()}
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = Argument(value, *about)
    return found


def call(
    factory: Callable[..., Any], bound: inspect.BoundArguments, values: Mapping[str, Any]
) -> Any:
    """`factory` with the arguments of a call, some of them replaced."""
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_KEYWORD:
                arguments[name] = {n: values.get(n, v) for n, v in value.items()}
            case inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
            case _:
                arguments[name] = values.get(name, value)
    again = inspect.BoundArguments(bound.signature, arguments)
    return factory(*again.args, **again.kwargs)
