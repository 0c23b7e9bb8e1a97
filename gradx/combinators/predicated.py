"""A gate, by which a transformation acts only in some steps: the base of conditional wrappers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.core import Params, Part, State, Updates
from gradx.core import trees as gtree
from gradx.lift.mapped import Axes
from gradx.lift.passes import run
from gradx.lift.replicas import Combining
from gradx.lift.sequence import Opaque, stage_of
from gradx.lift.states import wrong_state
from gradx.lowering import sums
from gradx.lowering.conditional import choose, choose_tree
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

    A transformation that works leaf by leaf is gated in place (`gradx.lowering.predicate`), so the
    gate costs no memory. Any other may be expensive, and runs under a real conditional.
    `conditional` overrules this: give False where the devices of a mapped axis may disagree and
    `tx` talks between them.
    """
    updates = jax.tree.map(gtree.as_number, updates)
    stage = Opaque(tx, where) if conditional else stage_of(tx, where)
    passes, opaque = rejected == "pass", isinstance(stage, Opaque)
    options = {"conditional": conditional is not False, "lets_pass": passes and opaque}
    new, new_state = run(stage, where, updates, state, params, extra, gate, **options)
    if passes and not opaque:
        new = gtree.map_numbers(functools.partial(choose, gate), new, updates)
    return new, new_state


# ---------------------------------------------------------------- shared by the wrappers


def check_inner(inner: Any, where: str, name: str = "inner") -> None:
    """Raises ValueError for anything but a transformation."""
    if not core.is_transform(inner):
        raise ValueError(f"{where}: {name} must be a transformation, got {core.show(inner)}.")


def check_agreement(inner: Any, over: Axes, where: str, remedy: str | None = None) -> None:
    """For a gate that looks at the gradients, and is alike on all devices of these axes only.

    Raises:
      ValueError: `inner` combines gradients over another axis, on which devices may decide
        differently: those with an open gate would wait for the others for ever.
    """
    known = [axis.name for axis in over]
    for part in core.within(inner):
        if not isinstance(part, Combining):
            continue
        names = known + [axis.name for axis in part.over if axis.name not in known]
        if names != known:
            axes = repr(tuple(names) if known or names[1:] else names[0])
            raise ValueError(
                f"{where}: gradients may differ by device before {core.show(part)}, and devices "
                f"would decide differently: {remedy or f'give axis_name={axes}'}, or put "
                f"{core.show(part)} before this."
            )


@dataclass(frozen=True)
class AsGiven:
    """The one part of a wrapper that gives it the updates as they are, such as a guard.

    It is what the wrapper is described by. `watch` looks through such wrappers.

    Attributes:
      inner: the transformation inside.
      field: that of the wrapper's state in which its state is.
    """

    inner: Contract
    field: str = "inner_state"

    def __call__(self, params: Params, state: State) -> list[Part]:
        return [Part("", self.inner, params, getattr(state, self.field))]


def afresh(tx: Contract, params: Params, state: State, where: str, *, when: Array) -> State:
    """The state, or where `when` is True the one that `tx` begins with; live values stay.

    Raises:
      ValueError: the state is not one of `tx`.
    """
    told = f"in which {core.show(tx)} cannot find its own"
    return choose_tree(when, with_live_values(tx.init(params), state, told, where), state)


def with_live_values(state: State, now: State, told: str, where: str) -> State:
    """A state with the live values of another one of the same transformation, and in its classes.

    Raises:
      ValueError: they are not of the same transformation, which `told` says.
    """
    # Compared by path, not by class: a state of Optax's own class is accepted.
    structure: Any
    (others, _), (nodes, structure) = (
        jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node) for tree in (state, now)
    )
    layouts = [[(path, is_node(x)) for path, x in leaves] for leaves in (others, nodes)]
    if layouts[0] != layouts[1]:
        raise wrong_state(where, told)
    made = []
    for (_, other), (_, node) in zip(others, nodes, strict=True):
        if is_node(node):
            fields = {name: getattr(other, name) for name in node._fields if name != "hyperparams"}
            olds = {name: getattr(node, name) for name in fields}
            other = node._replace(**with_live_values(fields, olds, told, where))
        made.append(other)
    return structure.unflatten(made)


def as_gate(answer: Any, what: str) -> Array:
    """A condition's answer as one bool.

    Raises:
      ValueError: it is not one bool.
    """
    gate = jnp.asarray(answer)
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
