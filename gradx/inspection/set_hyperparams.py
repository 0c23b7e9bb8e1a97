"""Sets live values: finds them by name, checks the new values, and makes the new state."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import State, Transform, ranges
from gradx.core.suggestions import hint
from gradx.inspection.walk import Innermost, innermost, visited
from gradx.lift.states import check_keys, check_state
from gradx.numbers.live import (
    INNER,
    InjectStatefulHyperparamsState,
    Path,
    array_of,
    is_node,
    live_places,
)
from gradx.numbers.sources import Array

__all__ = ["set_hyperparams"]

WHO = "set_hyperparams"


def set_hyperparams(state: Any, /, *, tx: Transform | None = None, **values: Any) -> Any:
    """Returns the state with other live values, such as a new learning rate.

    Args:
      state: any state with live values (see `tunable`); it is not changed.
      tx: the transformation whose state it is, alone or as the `opt_state` of a larger one (a
        `TrainState`). It knows the range of each number. Without it values need only be finite.
      **values: name to new value; `hyperparams(state)` lists the names. A name with ``*``, which
        stands for any letters (``*/`` also for none), sets all that it matches. Values are scalars,
        or arrays of the shape that the live value has after a `vmap` or on the devices of a `pmap`;
        there a scalar is set for all.

    Returns:
      A state of the same structure and dtypes: a jitted step is not compiled again.

    Raises:
      ValueError: a name that is unknown, ambiguous, given twice, or belongs to a constant or a
        schedule; a value of another shape, or no whole number where the state has one; with `tx`, a
        value out of the range of its rule (or that a factory refuses, where `inject_hyperparams`
        made the state), and a state of another transformation; without it, a value that is not
        finite. Traced values are not checked.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> state = gradx.sgd(gradx.tunable(0.1)).init(jnp.ones(3))
      >>> gradx.set_hyperparams(state, learning_rate=0.01)[1].hyperparams
      {'learning_rate': Array(0.01, dtype=float32)}

      The transformation says which values make sense:

      >>> tx = gradx.clip_by_global_norm(gradx.tunable(1.0))
      >>> state = gradx.set_hyperparams(tx.init(jnp.ones(3)), tx=tx, max_norm=float("inf"))

      A rate that matrices and other leaves share has two places in the state, and is set in both:

      >>> params = {"mlp": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> state = gradx.muon(gradx.tunable(0.1)).init(params)
      >>> state = gradx.set_hyperparams(state, **{"*/learning_rate": 0.01})
      >>> list(gradx.hyperparams(state))
      ['adam/learning_rate', 'muon/learning_rate']
    """
    places = live_places(state)
    checks = None if tx is None else _checks(tx, state, [path for path, *_ in places.values()])
    new: dict[Path, Array] = {}
    wanted = [(name, value) for given, value in values.items() for name in _named(given, places)]
    for name, value in wanted:
        path, old, scheduled = places[name]
        if path in new:
            raise ValueError(f"set_hyperparams: {name} is set twice, by {sorted(values)}.")
        if scheduled:
            raise ValueError(
                f"set_hyperparams: {name} follows a schedule, which the next update asks again. To "
                f"set it, give inject_hyperparams a number, or scaled(schedule, tunable(1.0))."
            )
        new[path] = _converted(name, value, array_of(old))
        if not isinstance(value, jax.core.Tracer):
            for number in np.ravel(new[path]):
                _check(name, number.item(), None if checks is None else checks[path])
    return _renewed(state, new, ())


def _renewed(state: Any, new: Mapping[Path, Any], above: Path) -> Any:
    """The state with the values of `new` at their paths."""

    def renew(path: Path, node: Any) -> Any:
        if not is_node(node):
            return node
        path = (*above, *path)
        live = {k: _like(v, new.get((*path, k))) for k, v in node.hyperparams.items()}
        inner = _renewed(node.inner_state, new, (*path, *INNER))
        return node._replace(hyperparams=live, inner_state=inner)

    return jax.tree_util.tree_map_with_path(renew, state, is_leaf=is_node)


def _like(old: Any, new: Any | None) -> Any:
    return old if new is None else jax.tree.unflatten(jax.tree.structure(old), [new])


def _named(name: str, places: Mapping[str, Any]) -> list[str]:
    pattern = re.escape(name).replace(r"\*/", "(.*/)?").replace(r"\*", ".*")
    matching = [name] if name in places else [n for n in places if re.fullmatch(pattern, n)]
    if not matching:
        raise ValueError(_unknown(name, list(places)))
    return matching


def _unknown(name: str, names: list[str]) -> str:
    ambiguous = [n for n in names if n.endswith(f"/{name}")]
    if ambiguous:
        return (
            f"set_hyperparams: {name!r} is ambiguous: it is one of {ambiguous}. Give the longer "
            f"name, set_hyperparams(state, **{{{ambiguous[0]!r}: …}}), or set all with '*/{name}'."
        )
    return (
        f"set_hyperparams: the state has no live value {name!r}; it has {names or 'none'}."
        f"{hint(name, names)} "
        f"A constant or a scheduled number cannot be set: make it live where the chain is built, "
        f"as in tunable(0.1) or scaled(schedule, tunable(1.0))."
    )


def _converted(name: str, value: Any, old: Array) -> Array:
    is_array = isinstance(value, np.ndarray | jax.Array) and value.size > 0
    if not ranges.is_real(value.ravel()[0] if is_array else value):
        raise ValueError(f"{WHO}: {name} must be a real number, got {core.show(value)}.")
    if jnp.shape(value) not in ((), old.shape):
        raise ValueError(
            f"{WHO}: {name} has shape {old.shape}, got a value of shape {jnp.shape(value)}; give "
            f"one of that shape, or one number for all."
        )
    if isinstance(value, jax.core.Tracer):
        return jnp.broadcast_to(value.astype(old.dtype), old.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.asarray(value).astype(old.dtype)  # 1 - 1e-12 is 1 there, and 1e39 infinite
    if jnp.issubdtype(old.dtype, jnp.integer) and (cast != value).any():
        raise ValueError(f"{WHO}: {name} is a whole number, got {core.show(value)}.")
    return jnp.array(np.broadcast_to(cast, old.shape))  # a copy, which may be donated


# ---------------------------------------------------------------- what may be set

_Check = Callable[[str, float], None]


def _check(name: str, number: float, checks: list[_Check] | None) -> None:
    """Checks a number by the rules that hold it; `checks` is None if these are not known."""
    if checks is None:
        if not np.isfinite(number):
            raise ValueError(
                f"{WHO}: {name} must be finite, got {number!r}. Only the transformation knows "
                f"its range, and whether it may be infinite: give it, too, "
                f"set_hyperparams(state, tx=tx, …)."
            )
        return
    if not checks:
        raise ValueError(
            f"{WHO}: the range of {name} is not known: it is inside a transformation that gradx "
            f"cannot look into (one of Optax's). Leave tx out to set it unchecked."
        )
    for check in checks:
        check(name, number)


@dataclass(frozen=True)
class _Mark:
    """Takes the place of a live value while its rule is looked for."""

    path: Path


def _checks(tx: Transform, state: Any, paths: list[Path]) -> dict[Path, list[_Check]]:
    """The checks of each live value, by walking the transformation together with its state."""

    def visit(marked: State) -> dict[Path, list[_Check]]:
        found: dict[Path, list[_Check]] = {path: [] for path in paths}
        for part in innermost(tx, marked):
            for path, check in _checks_of(part):
                found[path].append(check)
        return found

    return visited(WHO, tx, _renewed(state, {path: _Mark(path) for path in paths}, ()), visit)


def _checks_of(part: Innermost) -> Iterator[tuple[Path, _Check]]:
    tx, state = part.tx, part.state
    if not part.remakes:
        live = part.live if part.rules else {}
        for rule in part.rules:
            for name, intervals in rule.hypers.intervals.items():
                for interval in intervals:
                    check = functools.partial(_in_range, interval, rule.where)
                    yield _path(live[name]), check
        return
    check_state(state, InjectStatefulHyperparamsState, core.show(tx))
    check_keys(state.hyperparams, tx.init({}).hyperparams, core.show(tx))
    inner = tx.remake({})
    for name, mark in state.hyperparams.items():
        if isinstance(inner, Transform):  # what Optax's factories make is not checked by them
            yield _path(mark), functools.partial(_accepted, tx.remake, name)
    for inside in innermost(inner, state.inner_state):
        yield from _checks_of(inside)


def _path(value: Any) -> Path:
    mark: Any = array_of(value)
    path: Path = mark.path
    return path


def _in_range(interval: str, where: str, name: str, number: float) -> None:
    ranges.check_number(number, interval, name, f"{WHO}: {where}")


def _accepted(
    remake: Callable[[Mapping[str, Any]], Any], argument: str, name: str, number: float
) -> None:
    try:
        remake({argument: number})
    except ValueError as error:
        raise ValueError(f"{WHO}: {name}: {error}") from error
