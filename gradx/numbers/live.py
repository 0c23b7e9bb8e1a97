"""Live values: numbers that are leaves of the state, to be read and set without recompiling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gradx import core
from gradx.core import ranges
from gradx.core import trees as gtree
from gradx.core.annotations import signature
from gradx.numbers import paths, sources
from gradx.numbers.sources import Array

__all__ = [
    "HyperparamsState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "tunable",
]


class HyperparamsState(NamedTuple):
    """The state of a rule with live values, or with a schedule where its own state has no count.

    Attributes:
      count: the updates done so far, int32 (); `None` where nothing is scheduled, or where
        `inner_state` has a count itself.
      hyperparams: the live values by name, float32 ().
      inner_state: the state that the rule has with constants.
    """

    count: core.Count
    hyperparams: dict[str, Array]
    inner_state: Any


def own_state(state: Any) -> Any:
    """A rule's own state, without the `HyperparamsState` around it if there is one."""
    return state.inner_state if isinstance(state, HyperparamsState) else state


def with_own(state: Any, own: Any) -> Any:
    """`state` with `own` as the rule's own state, in the `HyperparamsState` if there is one."""
    return state._replace(inner_state=own) if isinstance(state, HyperparamsState) else own


class InjectStatefulHyperparamsState(NamedTuple):
    """The state of `inject_hyperparams`.

    Attributes:
      count: the updates done so far, int32 ().
      hyperparams: every number by name, as the last update used it (as the first one will).
      hyperparams_states: the state of each schedule by name; these numbers cannot be set.
      inner_state: the state of the transformation that has the numbers.
    """

    count: core.Count
    hyperparams: dict[str, Any]
    hyperparams_states: dict[str, Any]
    inner_state: Any


class InjectHyperparamsState(NamedTuple):
    """The state of `inject_hyperparams` in Optax before 0.1.9; here to read old checkpoints.

    Attributes:
      count: the updates done so far, int32 ().
      hyperparams: every number by name.
      inner_state: the state of the transformation that has the numbers.
    """

    count: core.Count
    hyperparams: dict[str, Any]
    inner_state: Any


@core.recorded
def tunable(value: Any, name: str | None = None) -> Any:
    """Makes a number live: it is kept in the state, where it can be read, set and vmapped over.

    Args:
      value: the initial number; or a whole transformation, whose constant numbers all become live
        (schedules, and whatever Optax closed over, stay as they are).
      name: the key in `hyperparams(state)`; by default the name of the argument that it is given
        for, such as ``learning_rate``.

    Returns:
      A source to give where a number is asked for; or the transformation, made again.

    Raises:
      ValueError: the value is neither a number nor a transformation of gradx.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adam(gradx.tunable(1e-3))
      >>> state = tx.init(jnp.ones(3))
      >>> gradx.hyperparams(state)
      {'learning_rate': Array(0.001, dtype=float32)}
      >>> state = gradx.set_hyperparams(state, learning_rate=1e-4)

      A sweep is one `vmap` over states, and compiles once:

      >>> import jax
      >>> rates = jnp.array([1e-4, 1e-3])
      >>> states = jax.vmap(lambda r: gradx.set_hyperparams(state, learning_rate=r))(rates)

      Every number of a finished chain:

      >>> sorted(gradx.hyperparams(gradx.tunable(gradx.sgd(0.1, 0.9)).init(jnp.ones(3))))
      ['decay', 'learning_rate']
    """
    if isinstance(value, core.Transform):
        if name is not None:
            raise ValueError("tunable: the numbers of a transformation keep their own names.")
        return _live_transform(value)
    if not ranges.is_real(value):
        raise ValueError(
            f"tunable: value must be a number or a transformation of gradx, got "
            f"{core.show(value)}. To tune a schedule, scale it: scaled(schedule, tunable(1.0))."
        )
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"tunable: name must be a non-empty string, got {name!r}.")
    return sources.Tunable(value, name)


def _live_transform(tx: core.Transform) -> core.Transform:
    if tx.spec is None:
        raise ValueError(f"tunable: {tx!r} was not made by a recorded factory.")
    arguments = dict(tx.spec.arguments)
    for name, parameter in signature(tx.spec.factory).parameters.items():
        value = arguments.get(name, parameter.default)
        if value is parameter.empty:
            continue
        annotation = parameter.annotation
        if sources.takes_number(annotation) or sources.takes_numbers(annotation):
            arguments[name] = _live_number(value)
        elif name in arguments:
            arguments[name] = _live_parts(value)
    made: core.Transform = tx.spec.call(arguments)
    return made


def _live_number(value: Any) -> Any:
    match value:
        case paths.ByPath():
            default = value.default
            return paths.by_path(
                {pattern: _live_number(v) for pattern, v in value.rules.items()},
                default if default is paths.REQUIRED else _live_number(default),
                optional=value.optional,
            )
        case sources.Scaled():
            return sources.scaled(*(_live_number(f) for f in value.factors))
        case list() | tuple():
            return tuple(map(_live_number, value))
        case dict():  # that of `**numbers`
            return {name: _live_number(v) for name, v in value.items()}
    return tunable(value) if ranges.is_real(value) else value


def _live_parts(value: Any) -> Any:
    match value:
        case core.Transform():
            return _live_transform(value)
        case Mapping():
            return {k: _live_parts(v) for k, v in value.items()}
        case list() | tuple() if type(value) in (list, tuple):
            return type(value)(_live_parts(v) for v in value)
    return value


# ---------------------------------------------------------------- reading and setting


def array_of(value: Any) -> Array:
    """A live value, also if Flax NNX keeps it in a variable."""
    array: Array = jax.tree.leaves(value)[0]
    return array


Path = tuple[Any, ...]
PLUMBING = {"inner_state", "inner_states", "inner_opt_state", "opt_state", "hyperparams"}
INNER = (jax.tree_util.GetAttrKey("inner_state"),)
_NODES = (HyperparamsState, InjectStatefulHyperparamsState, InjectHyperparamsState)
_KINDS = {(node.__name__, node._fields) for node in _NODES}


def is_node(x: Any) -> bool:
    """Whether this part of a state has live values."""
    # By name and fields, not by class: a state of Optax's own class is welcome.
    return (type(x).__name__, getattr(x, "_fields", None)) in _KINDS


def live_nodes(state: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every node with live values, those inside others too, with its path."""
    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_node)[0]:
        if is_node(node):
            yield (*above, *path), node
            yield from live_nodes(node.inner_state, (*above, *path, *INNER))


def live_values(state: Any) -> Iterator[tuple[list[str], Path, Any, bool]]:
    """Of each live value: what tells its place and its name, its path, how the state keeps it, and
    whether it is scheduled."""
    for path, node in live_nodes(state):
        steps = [s for s in (gtree.key_name(k) for k in path) if s not in PLUMBING]
        scheduled = getattr(node, "hyperparams_states", {})
        for key, value in node.hyperparams.items():
            yield [*steps, key], (*path, key), value, key in scheduled


def live_places(state: Any) -> dict[str, tuple[Path, Any, bool]]:
    """Name to (the path of the live value, the value as the state keeps it, is it scheduled)."""
    found = list(live_values(state))
    names = shortest_names([steps for steps, *_ in found])
    return {name: (path, x, s) for name, (_, path, x, s) in zip(names, found, strict=True)}


def shortest_names(steps: Sequence[Sequence[str]]) -> list[str]:
    """The shortest names that tell numbers apart; the steps to a number end with its name."""
    names = ["/".join(s for s in one if not s.isdigit()) for one in steps]
    if len(set(names)) < len(names):  # only positions in a chain tell them apart
        names = ["/".join(one) for one in steps]
    last = [one[-1] for one in steps]
    return [end if last.count(end) == 1 else name for end, name in zip(last, names, strict=True)]
