"""Optax's way to live values: all numbers of any factory become leaves of the state.

`tunable` makes single numbers of gradx's factories live. `inject_hyperparams` does so for all the
numbers of one factory, whoever wrote it: in each step it calls the factory again, with the numbers
that the state has then.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.contract import GradientTransformation, Schedule, StatefulSchedule
from gradx.core import Count, Params, Part, State, Transform, Updates, ranges
from gradx.core import trees as gtree
from gradx.core.annotations import signature as signature_of
from gradx.core.binding import fit
from gradx.core.calls import by_new_names, checked, warn
from gradx.core.kept import kept
from gradx.core.suggestions import hint
from gradx.core.updates import safe_increment
from gradx.lift.averages import storage
from gradx.lift.states import check_keys, check_state, wrong_state
from gradx.numbers import arguments, live
from gradx.numbers.live import InjectStatefulHyperparamsState
from gradx.numbers.sources import Array

__all__ = [
    "WrappedSchedule",
    "WrappedScheduleState",
    "inject_hyperparams",
    "inject_stateful_hyperparams",
]


# ---------------------------------------------------------------- schedules with a state


class WrappedScheduleState(NamedTuple):
    """The state of a `WrappedSchedule`.

    Attributes:
      count: the updates done so far, int32 ().
    """

    count: Count


@dataclass(frozen=True)
class WrappedSchedule:
    """Makes a `StatefulSchedule` of a schedule: it keeps the count itself.

    Args:
      schedule_fn: count to number; it sees 0 first.

    Example:
      >>> schedule = WrappedSchedule(lambda count: 0.1 * 0.5**count)
      >>> state = schedule.update(schedule.init())
      >>> print(schedule(state))
      0.05
    """

    schedule_fn: Schedule

    def __post_init__(self) -> None:
        if not callable(self.schedule_fn):
            raise ValueError(
                f"WrappedSchedule: schedule_fn must be a function of the count, got "
                f"{core.show(self.schedule_fn)}."
            )

    def init(self) -> WrappedScheduleState:
        return WrappedScheduleState(jnp.zeros((), jnp.int32))

    def update(self, state: WrappedScheduleState, **extra_args: Any) -> WrappedScheduleState:
        return WrappedScheduleState(safe_increment(state.count))

    def __call__(self, state: WrappedScheduleState, **extra_args: Any) -> Any:
        return self.schedule_fn(state.count)


# ---------------------------------------------------------------- the transformation


@dataclass(frozen=True, eq=False)
class _Injection:
    """A transformation that is made again in each step, with the numbers of that step."""

    make: Callable[[Mapping[str, Any]], Any]  # with these values in place of the arguments
    given: Mapping[str, arguments.Argument]
    numbers: Sequence[str]
    schedules: Mapping[str, StatefulSchedule]
    dtype: Any

    def init(self, params: Params) -> State:
        wide = self._wide(params)
        states = {name: schedule.init() for name, schedule in self.schedules.items()}
        values = {n: jnp.array(self.given[n].value, self._own_dtype(n, wide)) for n in self.numbers}
        values |= self._scheduled(states, {}, wide)
        inner = self._inner(values, wide, {})
        # The inner transformation may keep a number in its own state: no buffer is kept twice.
        copied = {name: jnp.array(value) for name, value in values.items()}
        zero = jnp.zeros((), jnp.int32)
        return InjectStatefulHyperparamsState(zero, copied, states, inner.init(params))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        self._check(state)
        wide = self._wide(updates if params is None else params)
        values = {n: self._from_state(n, state.hyperparams[n], wide) for n in self.numbers}
        values |= self._scheduled(state.hyperparams_states, extra, wide)
        states = {
            name: schedule.update(state.hyperparams_states[name], **extra)
            for name, schedule in self.schedules.items()
        }
        inner = core.with_extra_args(self._inner(values, wide, extra))
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        inner_state = _in_the_dtypes_of(state.inner_state, inner_state)
        return updates, type(state)(safe_increment(state.count), values, states, inner_state)

    def _inner(self, values: Mapping[str, Any], wide: Any, extra: Mapping[str, Any]) -> Any:
        """Makes it. Checks the numbers that somebody may have set, and not those of schedules."""
        if self.schedules and not all(isinstance(x, jax.core.Tracer) for x in values.values()):
            begin = {name: schedule.init() for name, schedule in self.schedules.items()}
            self.make({**values, **self._scheduled(begin, extra, wide)})
        with ranges.of_the_run() if self.schedules else contextlib.nullcontext():
            return self.make(values)

    def _scheduled(
        self, states: Mapping[str, Any], extra: Mapping[str, Any], wide: Any
    ) -> dict[str, Array]:
        values = {}
        for name, schedule in self.schedules.items():
            value = schedule(states[name], **extra)
            is_float = self.given[name].is_float or _floating(value)
            values[name] = jnp.asarray(value, wide if is_float else jnp.result_type(value))
        return values

    def _from_state(self, name: str, value: Any, wide: Any) -> Array:
        """A number of the state, in the dtype that it has there; somebody may have set it."""
        dtype = self._own_dtype(name, wide)
        if _floating(value) and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"inject_hyperparams: {name} is a whole number; the state has {core.show(value)}."
            )
        keeps = _is_strong(value, jax.Array | np.ndarray) and _floating(value)
        return jnp.asarray(value, None if keeps else dtype)

    def _own_dtype(self, name: str, wide: Any) -> Any:
        """The dtype of a JAX array stays; any other number is as wide as the parameters."""
        value, is_float = self.given[name].value, self.given[name].is_float
        if _is_strong(value, jax.Array) and (_floating(value) or not is_float):
            return value.dtype
        return wide if is_float or _floating(value) else jnp.result_type(value)

    def _wide(self, tree: Any) -> Any:
        """The dtype of numbers: as wide as the widest array that they are for."""
        if self.dtype is not None:
            return self.dtype
        inexact = filter(gtree.is_inexact, jax.tree.leaves(tree))
        return jnp.finfo(gtree.wide(*map(jnp.result_type, inexact))).dtype

    def _check(self, state: State) -> None:
        names = list(self.given)
        check_state(state, InjectStatefulHyperparamsState, "inject_hyperparams")
        for name in state.hyperparams:
            if name not in names:
                raise ValueError(
                    f"inject_hyperparams: the state has a number {name!r}, which is none of "
                    f"{names}.{hint(name, names)} Was it made by another "
                    f"chain's init?"
                )
        missing = [name for name in names if name not in state.hyperparams]
        if missing:
            raise wrong_state("inject_hyperparams", f"without the numbers {missing}")
        check_keys(state.hyperparams_states, self.schedules, "inject_hyperparams: its schedules")


def _in_the_dtypes_of(old: State, new: State) -> State:
    """The new state in the old dtypes: numbers wider than the inner state must not widen it."""
    structure: Any = jax.tree.structure(old)
    if jax.tree.structure(new) != structure:
        return new

    def same(n: Any, o: Any) -> Any:
        return jnp.asarray(n, jnp.result_type(o)) if _floating(n) and _floating(o) else n

    return jax.tree.map(same, new, old)


def _floating(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _is_strong(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not getattr(value, "weak_type", False)


# ---------------------------------------------------------------- the factory


class Injected(core.Described):
    """The inner factory as `inject_hyperparams` returns it, with its name and its signature."""

    def __init__(
        self, inner: Callable[..., Any], static: frozenset[str], dtype: Any, spec: Any = None
    ):
        self.__wrapped__, self._static, self._dtype, self.spec = inner, static, dtype, spec
        self.__signature__ = signature_of(inner)
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    def with_spec(self, spec: core.Spec) -> Injected:
        return Injected(self.__wrapped__, self._static, self._dtype, spec)

    def __reduce__(self) -> Any:
        # Used as a decorator it has replaced the inner factory, which pickle cannot find then.
        module = sys.modules.get(getattr(self, "__module__", ""))
        name: str = getattr(self, "__qualname__", "")
        return name if getattr(module, name, None) is self else super().__reduce__()

    def __call__(self, *args: Any, **kwargs: Any) -> Transform:
        inner, signature = self.__wrapped__, self.__signature__
        kwargs = by_new_names(inner, kwargs)
        bound = fit(signature, f"inject_hyperparams({core.show(inner)})", args, kwargs)
        bound.arguments = {n: kept(v) for n, v in bound.arguments.items()}
        spec = core.Spec(self, core.given(bound))
        bound.apply_defaults()
        ours = core.REGISTRY.get(getattr(inner, "__name__", "")) is inner
        given = arguments.by_name(bound, typed=ours)
        role = {n: "option" if n in self._static else a.role for n, a in given.items()}
        numbers = {n: a for n, a in given.items() if role[n] == "number"}
        schedules = {n: a for n, a in given.items() if role[n] == "schedule"}

        def make(values: Mapping[str, Any]) -> GradientTransformation:
            with core.inside("inject_hyperparams"):
                tx: GradientTransformation = arguments.call(inner, bound, values)
                if not core.is_transform(tx):
                    raise ValueError(
                        f"{core.where()}: {core.show(inner)} must return a transformation, got "
                        f"{core.show(tx)}."
                    )
            return tx

        stateful = {n: _stateful(a.value) for n, a in schedules.items()}
        injection = _Injection(make, {**numbers, **schedules}, list(numbers), stateful, self._dtype)
        # The arguments are checked here, since a jitted `init` sees numbers without values. Only
        # factories of gradx take schedules as they are, and only those of the count.
        plain = {n: _at_first(f) for n, f in stateful.items() if f is schedules[n].value}
        if ours or not schedules:
            make(plain)

        def described(params: Params, state: State) -> list[Part]:
            as_sources = {n: live.tunable(a.value) for n, a in numbers.items() if a.takes_source}
            inner = [make({**plain, **as_sources})] if ours else []
            return [Part("", tx, params, state.inner_state) for tx in inner]

        def remake(values: Mapping[str, Any]) -> GradientTransformation:
            return make({n: f(f.init()) for n, f in stateful.items()} | dict(values))

        return Transform(
            injection.init,
            injection.update,
            spec=spec,
            parts=described,
            remake=remake,
        )


def _stateful(schedule: Any) -> StatefulSchedule:
    return schedule if isinstance(schedule, StatefulSchedule) else WrappedSchedule(schedule)


def _at_first(schedule: StatefulSchedule) -> Schedule:
    return lambda count: schedule(schedule.init())


@core.recorded
def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
) -> Injected:
    """Puts every number of a factory into the state, where it can be read and set.

    Args:
      inner_factory: a function that returns a transformation: gradx's, Optax's or yours.
      static_args: the names of arguments to leave as they are: numbers that the factory must know
        before the run, and functions that are not schedules. Arguments that the factory annotates
        so need not be named (see below).
      hyperparam_dtype: the floating-point dtype of the numbers; by default that of the widest
        parameter, but no narrower than float32. A number that is given as a JAX array keeps its
        own.

    Returns:
      A factory that takes the same arguments. A number becomes a leaf of
      `state.hyperparams`, which may be set there or by `set_hyperparams`. In place of a number it
      takes a schedule, which sees the count 0 in the first update, or a `StatefulSchedule`, which
      also sees the extra arguments of `update`. The value of the last step is in
      `state.hyperparams`; setting it has no effect. All other arguments are passed on as they
      are: bools, strings, `None`, dtypes, `tunable(…)` and other sources; a function for an
      argument whose annotation has no number (a mask); a whole number for one annotated as `int`.

    Raises:
      ValueError: `inner_factory` is not a function, or `static_args` names what it does not take;
        when the factory is called, whatever the inner one raises; in `update`, the state has a
        number of an unknown name, such as a misspelt one.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.inject_hyperparams(gradx.sgd)(learning_rate=0.1)
      >>> tx
      inject_hyperparams(sgd)(0.1)
      >>> params = jnp.ones(1)
      >>> state = tx.init(params)
      >>> state.hyperparams["learning_rate"] = 0.5
      >>> tx.update(params, state, params)[0]
      Array([-0.5], dtype=float32)

    Reference: the state has the structure of Optax's, `InjectStatefulHyperparamsState`.
    """
    where = core.where()
    static = frozenset([static_args] if isinstance(static_args, str) else static_args)
    parameters = signature_of(inner_factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = sorted(static - set(parameters))
    if unknown and not open_ended:
        raise ValueError(
            f"{where}: static_args names {unknown}; {core.show(inner_factory)} takes "
            f"{list(parameters)}."
        )
    return Injected(inner_factory, static, storage("hyperparam_dtype", hyperparam_dtype))


@checked
def inject_stateful_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
) -> Injected:
    """`inject_hyperparams` under an older name, with a `DeprecationWarning`.

    Args:
      inner_factory: see `inject_hyperparams`.
      static_args: see `inject_hyperparams`.
      hyperparam_dtype: see `inject_hyperparams`.

    Example:
      >>> import gradx
      >>> import warnings
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore", DeprecationWarning)
      ...     gradx.inject_stateful_hyperparams(gradx.sgd)(0.1)
      inject_hyperparams(sgd)(0.1)
    """
    warn("inject_stateful_hyperparams is deprecated, use inject_hyperparams.", DeprecationWarning)
    return inject_hyperparams(inner_factory, static_args, hyperparam_dtype)
