"""One pass over the leaves of a tree, in which every leaf has all of its work done at once.

Stages add their calls to a row for each leaf (`stages`); then each row is run in one jitted call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.stages import (
    NO_STATE,
    Call,
    LeafState,
    Leaves,
    Made,
    Numbers,
    PerLeaf,
    Results,
    Row,
    Rows,
    Stage,
    check_form,
)
from gradx.lowering.predicate import predicated
from gradx.lowering.reading import reread
from gradx.lowering.siblings import siblings
from gradx.numbers.namespace import Static, joined_names, namespace, reading, suited
from gradx.numbers.sources import Array

T = TypeVar("T")


def staged(stage: Stage, where: str, parts: Any = None) -> Transform:
    """The transformation that runs a stage."""

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        return run(stage, where, updates, state, params, extra)

    return Transform(stage.init, update, stage=stage, parts=parts)


def run(
    stage: Stage,
    where: str,
    updates: Updates,
    state: State,
    params: Any,
    extra: Mapping[str, Any],
    gate: Array | None = None,
    **how: bool,
) -> tuple[Updates, State]:
    """Collects the calls at each leaf, runs them in one jitted call, rebuilds the trees.

    If there is a gate and it is closed, the updates are zero and the state stays as it is. `how`
    sets other fields of `Leaves`.
    """
    flat = gtree.flatten(updates)
    flat_params = None
    if params is not None:
        found = gtree.flatten_like(flat, params, "the parameters", where)
        flat_params = [gtree.as_number(p) for p in found]
    leaves = Leaves(flat, flat.values, flat_params, gate, **how)

    def begin(leaves: Leaves, rows: Rows) -> Callable[[Results], State]:
        return stage.begin(leaves, state, extra, rows)

    new, new_state = run_leaves(begin, where, leaves)
    return flat.unflatten(new), new_state


def run_leaves(
    begin: Callable[[Leaves, Rows], Callable[[Results], T]],
    where: str,
    leaves: Leaves,
    *,
    last: bool = True,
) -> tuple[list[Any], T]:
    """One pass over the leaves: their new updates, and what `begin` makes of the results.

    With a closed gate the updates of the last pass are zero. Those of earlier ones mean nothing.
    """
    rows: Rows = [[] for _ in leaves.updates]
    finish = begin(leaves, rows)
    if leaves.gate is not None and last and not leaves.lets_pass:
        gate = {"gate": leaves.gate}
        for row, u in zip(rows, leaves.after(rows).updates, strict=True):
            if gtree.is_number(u) and not (len(row) == 1 and getattr(row[0], "gated", False)):
                row.append(Call(_or_zero, (), gate, NO_STATE, False, any_kind=True))
    new, results = list(leaves.updates), [()] * len(rows)
    heads = _heads(rows, leaves.updates)
    for i, row in enumerate(rows):
        if row:
            new[i], results[i] = _run_row(row, heads[i], leaves, i, where)
    return new, finish(results)


def give(row: Row, made: Made) -> None:
    """Puts an update at the head of a row that has no calls yet.

    The end of the row rounds to the dtype of the first one that was put there.
    """
    if any(isinstance(one, Call) for one in row):
        raise AssertionError("a stage that needs finished updates must begin a pass")
    before = row[0].dtype if row and isinstance(row[0], Made) else None
    row[:] = [made if before is None else made._replace(dtype=before)]


def _run_row(
    row: Row, head: Any, leaves: Leaves, i: int, where: str
) -> tuple[Any, tuple[LeafState, ...]]:
    """Runs the calls of a row: the leaf's update, and their new states. A head has no state."""
    made = row[0] if isinstance(row[0], Made) else None
    calls = [call for call in row if isinstance(call, Call)]
    kind = None if made is None else made.dtype
    if not calls:
        return (head if kind is None else jnp.asarray(head, kind)), ((),)
    g, p, flat = head, None if leaves.params is None else leaves.params[i], leaves.flat
    if not all(call.any_kind for call in calls):  # else it is not optimized: an integer stays one
        g = gtree.as_number(g)
        check_array(g, flat, i, where, "update")
    check_leaf(flat, i, where, g, p, calls)
    program = tuple((c.rule, c.static, c.needs_params, c.per_leaf, c.since) for c in calls)
    traced, states = tuple(c.traced for c in calls), tuple(c.state for c in calls)
    gates = tuple(c.gate for c in calls)
    p = p if any(call.needs_params for call in calls) else None
    try:
        u, new = _apply((program, kind), g, p, traced, states, gates)
    except Exception as error:
        error.add_note(f"This was in {where}, at the leaf {flat.paths[i]!r}.")
        if other := [s for s in _shapes(states) if s not in ((), jnp.shape(g))]:
            error.add_note(
                f"The gradient has the shape {jnp.shape(g)} there, and the state has "
                f"{gtree.listed(list(map(str, other)))}. Is it that of other parameters?"
            )
        raise
    if _shapes((u, new)) != _shapes((g, states)):
        raise ValueError(
            f"{where}: at {flat.paths[i]!r} an update of shape {jnp.shape(g)} and state of shapes "
            f"{_shapes(states)} became {_shapes((u, new))}. Is the gradient of the parameter's "
            f"shape, and does the rule keep shapes?"
        )
    return u, new if made is None else ((), *new)


def _heads(rows: Rows, updates: Sequence[Any]) -> list[Any]:
    """The update that each row begins with; small ones may share a kernel (see `siblings`)."""
    heads = [
        row[0].update if row and isinstance(row[0], Made) else u
        for row, u in zip(rows, updates, strict=True)
    ]
    calls = [[call for call in row if isinstance(call, Call)] for row in rows]
    places = [i for i, row in enumerate(calls) if row and not _sums_new_state(row)]
    places = [i for i in places if isinstance(heads[i], jax.Array)]
    found = dict(zip(places, siblings([heads[i] for i in places]), strict=True))
    return [found.get(i, u) for i, u in enumerate(heads)]


def _sums_new_state(row: Sequence[Call]) -> bool:
    """Whether a leaf's norm is of its new state: a kernel of its own can write and sum this."""
    deciding = [k for k, call in enumerate(row) if call.per_leaf is not None]
    return bool(deciding) and any(jax.tree.leaves(call.state) for call in row[: deciding[-1] + 1])


def _or_zero(u: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return jnp.where(h.gate, u, jnp.zeros_like(u)), s


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


@functools.partial(jax.jit, static_argnums=0)
@gtree.mixing
def _apply(
    program: tuple[tuple[tuple[Any, Static, bool, Any, int | None], ...], Any],
    g: Array,
    p: Array | None,
    traced: tuple[dict[str, Array], ...],
    states: tuple[LeafState, ...],
    gates: tuple[Array | None, ...],
) -> tuple[Array, tuple[LeafState, ...]]:
    """The rules of one leaf, one after the other, in float32 or wider.

    A jitted function of its own, so that a thousand leaves of ten shapes are traced and lowered
    ten times.
    """
    u = widen(g)
    calls, kind = program
    made = [u]  # and what each rule made of it
    p = None if p is None else widen(p)
    new_states: list[LeafState] = []
    for part, numbers, old, gate in zip(calls, traced, states, gates, strict=True):
        rule, static, reads, per_leaf, since = part
        numbers = suited(numbers, u)
        compared = {} if since is None else {"before": made[since]}
        h = namespace(static, {**numbers, **compared}, per_leaf or rule)
        wide = jax.tree.map(widen, old)
        if per_leaf is not None:
            bare = u if new_states else widen(reread(g))  # as in `measured`
            with reading(per_leaf, p):
                decided = per_leaf(bare, wide, p, h)
            joined_names(vars(h) | numbers, decided, "per_leaf", core.show(rule))
            h = namespace(static, {**numbers, **compared, **decided}, rule)
        arguments = u, wide, p if reads else None, h
        with reading(rule, arguments[2]):
            u, new = rule(*arguments) if gate is None else predicated(rule, gate, *arguments)
        check_form(rule, new, old)
        new_states.append(jax.tree.map(lambda n, o: n.astype(o.dtype), new, old))
        made.append(u)
    return u.astype(g.dtype if kind is None else kind), tuple(new_states)


@functools.partial(jax.jit, static_argnums=(0, 1))
@gtree.mixing
def measured(
    measure: PerLeaf,
    static: Static,
    g: Array,
    p: Array | None,
    traced: dict[str, Array],
    state: LeafState,
) -> Mapping[str, Any]:
    """What a rule measures at one leaf, also traced once for each distinct shape.

    A rule without state measures the bare gradient, and reads it once more: one in half precision
    is widened for the norm and for the update, and might else be stored in float32. A rule with
    state measures more, and shares it with its update.
    """
    g = widen(g if jax.tree.leaves(state) else reread(g))
    p = None if p is None else widen(p)
    h = namespace(static, suited(traced, g), measure)
    with reading(measure, p):
        return measure(g, jax.tree.map(widen, state), p, h)


def widen(x: Array) -> Array:
    x = jnp.asarray(gtree.as_number(x))
    return x.astype(gtree.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def check_leaf(flat: gtree.Flat, i: int, where: str, g: Any, p: Any, calls: Sequence[Call]) -> None:
    """Raises ValueError, with the path, where calls lack an array or the shapes differ."""
    reads = any(call.needs_params for call in calls)
    kept = jax.tree.leaves([call.state for call in calls], is_leaf=lambda x: x is None)
    lacks = ["parameter"] * (reads and p is None) + ["state"] * any(x is None for x in kept)
    if lacks:
        raise ValueError(
            f"{where}: at {flat.paths[i]!r} there is a gradient, but the {lacks[0]} is None."
        )
    if p is not None and jnp.shape(p) != jnp.shape(g):
        raise ValueError(
            f"{where}: at {flat.paths[i]!r} the update has shape {jnp.shape(g)} and the parameter "
            f"{jnp.shape(p)}."
        )


def check_array(x: Any, flat: gtree.Flat, i: int, where: str, what: str) -> None:
    """Raises ValueError, with the path, for a leaf that cannot be optimized."""
    x = gtree.as_number(x)
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        kind = type(x).__name__ if dtype is None else f"{dtype} array"
        raise ValueError(
            f"{where}: the {what} at {flat.paths[i]!r} is of type {kind}; only real and complex "
            f"floating-point arrays can be optimized. Leave it out: give the optimizer None there "
            f"(Equinox: eqx.filter(model, eqx.is_inexact_array)) or only the trainable part of "
            f"the tree (NNX: wrt=nnx.Param)."
        )
