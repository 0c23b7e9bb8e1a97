"""A transformation that counts only in some steps: what the conditional wrappers are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Params, Part, State, Updates
from gradx.core import trees as gtree
from gradx.lift.passes import run
from gradx.lift.sequence import Opaque, stage_of
from gradx.lift.states import wrong_state
from gradx.lowering import sums
from gradx.lowering.conditional import choose
from gradx.numbers.live import is_node
from gradx.numbers.sources import Array


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
    conditional: bool | None = None,
) -> tuple[Updates, State]:
    """`tx.update` if the gate is open; else the same state, and zeros or the updates as they came.

    What works leaf by leaf is gated in place (`gradx.lowering.predicate`), so the gate costs no
    memory; anything else, which may be expensive, is run under a real conditional. `conditional`
    overrules: False also where the devices of a mapped axis may disagree, and `tx` talks between
    them.
    """
    updates = jax.tree.map(gtree.as_number, updates)
    stage = Opaque(tx, where) if conditional else stage_of(tx, where)
    passes, opaque = rejected == "pass", isinstance(stage, Opaque)
    how = {"conditional": conditional is not False, "passes": passes and opaque}
    made, new_state = run(stage, where, updates, state, params, extra, gate, **how)
    if passes and not opaque:
        made = gtree.map_numbers(functools.partial(choose, gate), made, updates)
    return made, new_state


# ---------------------------------------------------------------- what such wrappers share


def check_inner(inner: Any, where: str, name: str = "inner") -> None:
    """Raises ValueError for what is no transformation."""
    if not core.is_transform(inner):
        raise ValueError(f"{where}: {name} must be a transformation, got {core.show(inner)}.")


def parts_of(inner: Contract, field: str) -> Callable[[Params, State], list[Part]]:
    """The one part of a wrapper, for `describe`: its state stands in this field."""
    return lambda params, state: [Part("", inner, params, getattr(state, field))]


def afresh(tx: Contract, params: Params, state: State, where: str, *, when: Array) -> State:
    """The state, or where `when` says so the one that `tx` begins with; live values stay.

    Raises:
      ValueError: the state is none of `tx`.
    """

    def chosen(first: Any, now: Any) -> Any:
        if not is_node(now):
            return choose(when, first, now)
        rest = [field for field in now._fields if field != "hyperparams"]
        return now._replace(
            **chosen_tree(*({field: getattr(x, field) for field in rest} for x in (first, now)))
        )

    def chosen_tree(first: Any, now: Any) -> Any:
        # By path, not by class: a state of Optax's own class is welcome.
        structure: Any
        (begun, _), (old, structure) = (
            jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node) for tree in (first, now)
        )
        kinds = [[(path, is_node(x)) for path, x in leaves] for leaves in (begun, old)]
        if kinds[0] != kinds[1]:
            raise wrong_state(where, f"in which {core.show(tx)} cannot find its own")
        return structure.unflatten(
            [chosen(x, y) for (_, x), (_, y) in zip(begun, old, strict=True)]
        )

    return chosen_tree(tx.init(params), state)


def as_gate(given: Any, what: str) -> Array:
    """A condition's answer as one bool.

    Raises:
      ValueError: it is none.
    """
    gate = jnp.asarray(given)
    if gate.dtype != bool or gate.shape != ():
        raise ValueError(f"{what} must give one bool, got {core.show(gate)}.")
    return gate


def all_finite(updates: Updates) -> Array:
    """Whether no element of a tree is infinite or NaN, bool ()."""
    return sums.all_finite(list(filter(gtree.is_inexact, jax.tree.leaves(updates))))


def count_not_finite(updates: Updates) -> Array:
    """How many elements of a tree are infinite or NaN, int32 ()."""
    counts = [_not_finite(x) for x in jax.tree.leaves(updates) if gtree.is_inexact(x)]
    return sum(counts, start=jnp.zeros((), jnp.int32))


@jax.jit
def _not_finite(x: Array) -> Array:
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)
