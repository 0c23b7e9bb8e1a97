"""A transformation that counts only in some steps: what the conditional wrappers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combine import Contract, stage_of
from gradx.core import Params, State, Updates
from gradx.sources import Array
from gradx.stage import Call, Leaves, Numbers, Results, Rows, Slots, Stage, is_array, run


@dataclass(frozen=True, eq=False)
class _Gated:
    """A stage of which nothing remains where the gate is closed."""

    inner: Stage
    gate: Array
    zero: bool  # also the updates

    @property
    def sees_tree(self) -> bool:
        return self.inner.sees_tree

    def init(self, params: Params) -> State:
        return self.inner.init(params)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        finish = self.inner.begin(replace(leaves, gate=self.gate), state, extra, rows)
        for row, u in zip(rows, leaves.updates, strict=True):
            if self.zero and is_array(u):
                row.append(Call(_or_zero, (), {"gate": self.gate}, (), False))
        return finish


def _or_zero(u: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    return jnp.where(h.gate, u, 0), slots


def gated_update(
    tx: Contract,
    where: str,
    gate: Array,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Mapping[str, Any],
    *,
    rejected: Literal["zero", "pass"] = "zero",
) -> tuple[Updates, State]:
    """`tx.update` if the gate is open; else the same state, and zeros or the updates as they came.

    What works leaf by leaf is gated in place (see `gradx.gate`), so the gate costs no memory;
    anything else, which may be expensive, is run under a real conditional.
    """
    stage = stage_of(tx)
    if stage is not None:
        closed = _Gated(stage, gate, zero=rejected == "zero")
        made, new_state = run(closed, where, updates, state, params, extra)
        if rejected == "pass":
            made = jax.tree.map(partial(choose, gate), made, updates)
        return made, new_state
    wrapped = core.with_extra_args(tx)

    def accept() -> tuple[Updates, State]:
        made, new = wrapped.update(updates, state, params, **extra)
        # The two branches must agree in dtypes, and the next step with this one.
        return jax.tree.map(_like, made, updates), jax.tree.map(_like, new, state)

    def reject() -> tuple[Updates, State]:
        return (jax.tree.map(jnp.zeros_like, updates) if rejected == "zero" else updates), state

    outcome: tuple[Updates, State] = jax.lax.cond(gate, accept, reject)
    return outcome


def _like(new: Any, old: Any) -> Array:
    return jnp.asarray(new, jnp.result_type(old))


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def choose(gate: Array, new: Array, old: Array) -> Array:
    """The new array if the gate is open, else the old one; in the old one's dtype."""
    return jnp.where(gate, new.astype(old.dtype), old)
