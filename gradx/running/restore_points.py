"""A snapshot of the parameters and of an inner state, to go back to after several bad steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx.combinators.predicated import with_live_values
from gradx.core import Params, State, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS
from gradx.core.updates import safe_increment
from gradx.lift.states import wrong_state
from gradx.lowering.conditional import in_some_steps
from gradx.lowering.order import known_after
from gradx.numbers.sources import Array

__all__ = ["RestorePoint"]


class RestorePoint(NamedTuple):
    """What a guard with `restore_after` goes back to.

    Attributes:
      age: the good steps since the snapshot, int32 ().
      restores: how often the guard went back so far, int32 ().
      params: the parameters at the snapshot, like the parameters, in their dtypes.
      inner: the inner state at the snapshot, with plain tuples in place of named ones, so that
        nothing that looks for live values or averages finds them twice.
    """

    age: Array
    restores: Array
    params: Params
    inner: Any

    def of(self, inner_state: State) -> RestorePoint:
        """The snapshot with another inner state, in buffers of its own."""
        return self._replace(inner=jax.tree.map(jnp.array, _plain(inner_state)))


@METRICS.of(RestorePoint)
def _restores(state: RestorePoint) -> Mapping[str, Array]:
    return {"restores": state.restores}


@dataclass(frozen=True)
class Restore:
    """Goes back after so many bad steps in a row, to a snapshot of every so many good ones."""

    after: int
    every: int
    where: str

    def init(self, params: Params, inner_state: State) -> RestorePoint:
        zero = jnp.zeros((), jnp.int32)
        kept = jax.tree.map(jnp.array, (_numbers(params), _plain(inner_state)))  # own buffers
        return RestorePoint(zero, jnp.copy(zero), *kept)

    def before(
        self, good: Array, returns: Array, old: RestorePoint, params: Params, inner_state: State
    ) -> tuple[Array, RestorePoint, State]:
        """Takes a snapshot of what a good step begins with, or brings back the inner state.

        Returns:
          `good`, the snapshot and the inner state, for the step to go on with. As it is gated by
          this `good`, it acts afterwards, and needs no copy of what is overwritten.
        """
        point: Any
        states: Any
        kept, point = jax.tree.flatten((old.params, old.inner))
        inner, states = jax.tree.flatten(inner_state)
        now = [*jax.tree.leaves(_numbers(params)), *inner]
        if list(map(jnp.shape, kept)) != list(map(jnp.shape, now)):
            raise wrong_state(self.where, "with a snapshot of other parameters or another state")
        now = [jnp.asarray(x, y.dtype) for x, y in zip(now, kept, strict=True)]
        due = good & (old.age >= self.every)
        taken, good = in_some_steps(_take, due, (kept, good), now)

        back = states.unflatten(taken[len(taken) - len(inner) :])
        told = "with a snapshot of another inner state"
        back = with_live_values(back, inner_state, told, self.where)
        inner_state = in_some_steps(_return, returns, inner_state, back)
        age = jnp.where(due, 1, jnp.where(good, safe_increment(old.age), old.age))
        snapshot = type(old)(
            jnp.where(returns, 0, age),
            jnp.where(returns, safe_increment(old.restores), old.restores),
            *point.unflatten(taken),
        )
        return good, snapshot, inner_state

    def updates(self, returns: Array, point: RestorePoint, params: Params, updates: Updates) -> Any:
        """The updates of a step, or those that lead to the snapshot."""
        flat = gtree.flatten(updates)
        ps = gtree.flatten_like(flat, params, "the parameters", self.where)
        homes = gtree.flatten_like(flat, point.params, "the state's snapshot", self.where)
        triples = zip(flat.values, ps, homes, strict=True)
        return flat.unflatten(
            [u if u is None or x is None else _towards(x, p, u, returns) for u, p, x in triples]
        )


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _towards(home: Array, p: Array, u: Array, returns: Array) -> Array:
    # No conditional: the updates would have to be stored, which are else a part of a sum.
    kind = gtree.wide(home.dtype, u.dtype)
    return jnp.where(returns, home.astype(kind) - jnp.asarray(p, kind), u.astype(kind))


def _take(old: tuple[list[Array], Array], now: list[Array]) -> tuple[list[Array], Array]:
    return now, known_after(old[1])


def _return(old: State, home: State) -> State:
    return home


def _numbers(params: Params) -> Any:
    """The parameters that can be optimized, and None in place of the others."""
    numbers = jax.tree.map(gtree.as_number, params)
    return jax.tree.map(lambda p: p if gtree.is_inexact(p) else None, numbers)


def _plain(state: State) -> Any:
    """A state with plain tuples in place of named ones."""
    structure: Any
    parts, structure = jax.tree.flatten(state, is_leaf=_is_named)
    return structure.unflatten([tuple(map(_plain, x)) if _is_named(x) else x for x in parts])


def _is_named(x: Any) -> bool:
    return hasattr(x, "_fields")
