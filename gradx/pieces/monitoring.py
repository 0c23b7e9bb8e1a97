"""Measurements of the updates on their way through a chain, kept in the state.

A measurement reads the updates for itself (see `gradx.lowering.reading`). Otherwise the squares of
a norm, which Adam's second moment needs too, would be stored for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract, stateless
from gradx.contract import EmptyState
from gradx.core import Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS, Measured
from gradx.lift.states import check_state, wrong_state
from gradx.lowering.reading import reread
from gradx.numbers.sources import Hyper
from gradx.pieces.moments import ema
from gradx.pieces.norms import global_norm

__all__ = ["MonitorState", "SnapshotState", "measure_with_ema", "monitor", "snapshot"]


core.registered(global_norm)  # the most common measure


class SnapshotState(NamedTuple):
    """The state of `snapshot`.

    Attributes:
      measurement: name to what the function returned, a tree of arrays.
    """

    measurement: dict[str, Any]


class MonitorState(NamedTuple):
    """The state of `monitor`.

    Attributes:
      measurements: name to what was measured, a tree of arrays.
      measure_states: the states of the measuring transformations.
    """

    measurements: dict[str, Any]
    measure_states: tuple[State, ...]


METRICS.add(SnapshotState, lambda state: _told(state.measurement))
METRICS.add(MonitorState, lambda state: _told(state.measurements))


def _told(measurements: Mapping[str, Any]) -> dict[str, Measured]:
    return {name: Measured(tree) for name, tree in measurements.items()}


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{core.where()}: a measurement must have a name, got {name!r}.")


def _arrays(measured: Any) -> Any:
    """As arrays of a strong type, and in buffers of their own: the state may be donated."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), measured)


def _like(measured: Any, old: Any) -> Any:
    """In the dtypes of the last measurement, so that the state keeps its type."""
    arrays = _arrays(measured)
    structure: Any = jax.tree.structure(old)
    if jax.tree.structure(arrays) != structure:
        return arrays
    return jax.tree.map(lambda x, o: x.astype(o.dtype), arrays, old)


@core.recorded
def snapshot(measure_name: str, measure: Callable[[Updates], Any]) -> Transform:
    r"""Keeps a measurement of the updates in the state, such as their norm, and passes them on.

    .. math:: u = g, \qquad \text{state} = f(g)

    Args:
      measure_name: what the measurement is called in the state.
      measure: a function of the whole tree of updates that returns an array or a tree of them:
        `global_norm`, say. It is given the parameters in `init`.

    Returns:
      A transformation with a `SnapshotState`; `optax.tree.get(state, measure_name)` finds the
      measurement in the state of a whole chain.

    Raises:
      ValueError: the name is not a string, or `measure` not a function.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.snapshot("norm", gradx.global_norm), gradx.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> state[0].measurement
      {'norm': Array(5., dtype=float32)}
    """
    _check_name(measure_name)
    where = core.where()

    def init(params: Params) -> State:
        return SnapshotState({measure_name: _arrays(measure(params))})

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(state, SnapshotState, where, [measure_name])
        old = state.measurement[measure_name]
        return updates, type(state)({measure_name: _like(measure(reread(updates)), old)})

    return Transform(init, update)


@core.recorded
def measure_with_ema(
    measure: Callable[[Updates], Any],
    decay: Hyper,
    debias: bool = True,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""The exponential moving average of a measurement, for `monitor`.

    .. math::
        m &\leftarrow \beta m + (1 - \beta) f(g) \\
        u &= m / (1 - \beta^t) \quad\text{or, without debias,}\quad m

    Args:
      measure: a function of the whole tree of updates; it is given the parameters in `init`. Bools
        and whole numbers become float32, so that the average of `norm > 1` is a rate.
      debias: apply bias correction, for the start at zero.
      accumulator_dtype: the dtype to keep \(m\) in; by default the measurement's, at least float32.

    Returns:
      A transformation that replaces the updates by the average.

    Raises:
      ValueError: `measure` is not a function, or `decay` is out of range.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.measure_with_ema(lambda updates: gradx.global_norm(updates) > 1.0, decay=0.9)
      >>> state = tx.init(jnp.ones(1))
      >>> for gradient in (0.5, 2.0):
      ...     rate, state = tx.update(jnp.array([gradient]), state)
      >>> rate
      Array(0.5263, dtype=float32)
    """
    average = ema(decay, debias, accumulator_dtype)
    where = core.where()

    def measured(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(gtree.wide(x.dtype)), _arrays(measure(tree)))

    def init(params: Params) -> State:
        return EmptyState(), average.init(measured(params))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise wrong_state(where, f"of type {type(state).__name__} instead of a pair")
        empty, old = state
        mean, new = average.update(measured(updates), old, **extra)
        return mean, (empty, new)

    def described(params: Params, state: State) -> list[Part]:
        some = bool(jax.tree.leaves(params))  # there are none if only the state is looked at
        seen = jax.eval_shape(measured, params) if some else params
        return [Part("", average, seen, state[1])]

    return Transform(init, update, parts=described)


@core.recorded
def monitor(measures: Mapping[str, Contract | Callable[[Updates], Any]]) -> Transform:
    r"""Keeps several measurements of the updates in the state, and passes the updates on.

    .. math:: u = g, \qquad \text{state} = (f_1(g), f_2(g), \ldots)

    Args:
      measures: name to a function of the whole tree of updates, or to a transformation that
        replaces the updates by a measurement (`measure_with_ema`); it is given the parameters and
        the extra arguments of `update`, too.

    Returns:
      A transformation with a `MonitorState`. Before the first update the measurements are zeros, of
      the type that they will have; one that needs extra arguments is missing until then.

    Raises:
      ValueError: a name is not a string, or a measure neither a function nor a transformation.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> measures = {
      ...     "norm": gradx.global_norm,
      ...     "mean_norm": gradx.measure_with_ema(gradx.global_norm, decay=0.5),
      ... }
      >>> tx = gradx.chain(gradx.monitor(measures), gradx.sgd(0.1))
      >>> state = tx.init(jnp.ones(1))
      >>> for gradient in (1.0, 4.0):
      ...     updates, state = tx.update(jnp.array([gradient]), state)
      >>> state[0].measurements
      {'norm': Array(4., dtype=float32), 'mean_norm': Array(3., dtype=float32)}
    """
    if not isinstance(measures, Mapping):
        raise ValueError(
            f"{core.where()}: measures must be a dict {{name: measure}}, got {core.show(measures)}."
        )
    transforms: dict[str, Any] = {}
    for name, measure in measures.items():
        _check_name(name)
        if core.is_transform(measure):
            transforms[name] = core.with_extra_args(measure)
        elif callable(measure):
            transforms[name] = _as_transform(measure)
        else:
            raise ValueError(
                f"{core.where()}: {name!r} must be a function of the updates or a transformation, "
                f"got {core.show(measure)}."
            )
    where = core.where()
    functions = [name for name, measure in measures.items() if not core.is_transform(measure)]

    def at_first(name: str, params: Params, state: State) -> dict[str, Any]:
        try:
            shapes = jax.eval_shape(
                lambda p, s: _arrays(transforms[name].update(p, s, p)[0]), params, state
            )
        except (ValueError, TypeError):
            if name in functions:
                raise
            return {}  # it may need extra arguments; if not, its first update raises
        return {name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)}

    def init(params: Params) -> State:
        measurements: dict[str, Any] = {}
        states = [tx.init(params) for tx in transforms.values()]
        for name, state in zip(transforms, states, strict=True):
            measurements |= at_first(name, params, state)
        return MonitorState(measurements, tuple(states))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(state, MonitorState, where)
        if len(state.measure_states) != len(transforms):
            how = f"of {len(state.measure_states)} measures instead of {list(transforms)}"
            raise wrong_state(where, how)
        measurements: dict[str, Any] = {}
        states: list[State] = []
        for (name, tx), old in zip(transforms.items(), state.measure_states, strict=True):
            measured, new = tx.update(reread(updates), old, params, **extra)
            measurements[name] = _like(measured, state.measurements.get(name))
            states.append(new)
        return updates, type(state)(measurements, tuple(states))

    def described(params: Params, state: State) -> list[Part]:
        pairs = zip(transforms.items(), state.measure_states, strict=True)
        return [Part(name, tx, params, inner) for (name, tx), inner in pairs]

    return Transform(init, update, parts=described)


def _as_transform(measure: Callable[[Updates], Any]) -> Transform:
    return stateless(lambda updates, params: measure(updates))
