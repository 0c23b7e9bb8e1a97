"""One pass over the leaves of a tree, in which every leaf has all of its work done at once.

A transformation that works leaf by leaf is a `Stage`: for a step it says which calls are to be made
at which leaf. Combinations of stages are stages, so a chain is collected first and then run in one
jitted call a leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift import mapped
from gradx.lowering.predicate import predicated
from gradx.lowering.reading import reread
from gradx.lowering.siblings import siblings
from gradx.numbers.namespace import Static, joined_names, namespace, reading, suited
from gradx.numbers.sources import Array

T = TypeVar("T")

Slots = tuple[Array, ...]
Numbers = Any  # a namespace: h.b1 is a float where it is constant, else a scalar array
PerLeaf = Callable[[Array, Slots, Any, Numbers], Mapping[str, Any]]
Sums = Mapping[str, Array]  # what a rule measures, added up over the leaves
Decided = tuple[Mapping[str, Any], Mapping[str, Any]]  # numbers for `h`; new scalars of the state


class Call(NamedTuple):
    """One rule at one leaf: which, with which numbers, and the leaf's part of the state."""

    rule: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]]
    static: Static  # numbers and flags known now: part of the program
    traced: dict[str, Array]  # numbers known only in the run
    slots: Slots
    needs_params: bool
    gate: Array | None = None  # False: the slots stay as they are, and the update means nothing
    per_leaf: PerLeaf | None = None
    since: int | None = None  # a place in the row: `h.before` is the update before that call
    any_kind: bool = False  # it works on integers and bools as well


Rows = list[list[Call]]
Results = list[tuple[Slots, ...]]


@dataclass(frozen=True)
class Leaves:
    """What a step is given: the updates by leaf, and the parameters where there are any."""

    flat: gtree.Flat
    updates: list[Any]  # None or MaskedNode: not for this stage
    params: list[Any] | None
    gate: Array | None = None  # for the calls and for all else that the state is made of

    @functools.cached_property
    def tree(self) -> Updates:
        """The updates that the stage may see; `MaskedNode` in place of the others."""
        return self.flat.unflatten(self.updates)

    @functools.cached_property
    def visible_params(self) -> Params | None:
        """The parameters with the same leaves left out, if there are any parameters."""
        if self.params is None:
            return None
        pairs = zip(self.updates, self.params, strict=True)
        return self.flat.unflatten([u if isinstance(u, optax.MaskedNode) else p for u, p in pairs])

    def aligned(self, found: Iterable[T]) -> list[T | None]:
        """What was found at each leaf of `tree`, and None for the leaves that are left out."""
        rest = iter(found)
        return [None if isinstance(u, optax.MaskedNode) else next(rest) for u in self.updates]

    def spans(self, axes: mapped.Axes, where: str) -> Sequence[mapped.Span | None]:
        """How each leaf lies on the mapped axes that a rule was told of: its ``h.span``."""
        if not axes:
            return [None] * len(self.updates)
        params = None if self.params is None else gtree.flatten(self.visible_params).values
        return self.aligned(mapped.spans(axes, gtree.flatten(self.tree), params, where))

    def only(self, flags: Sequence[bool]) -> Leaves:
        """With one flag for each leaf of `tree`: hides those that have False."""
        flag = iter(flags)
        hidden = optax.MaskedNode()
        kept = [
            u if not isinstance(u, optax.MaskedNode) and next(flag) else hidden
            for u in self.updates
        ]
        return replace(self, updates=kept)


class Stage(Protocol):
    """A transformation as work on single leaves. Stages next to each other run as one pass.

    Attributes:
      sees_tree: it needs the finished updates of all leaves before it can begin, so a pass that
        contains it starts with it.
    """

    @property
    def sees_tree(self) -> bool: ...

    def init(self, params: Params) -> State: ...

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        """Adds a call to the row of each leaf it acts on; returns what makes the new state.

        With a closed `leaves.gate` that state must be the old one; the calls see to their slots.
        """
        ...


def is_array(x: Any) -> bool:
    return x is not None and not isinstance(x, optax.MaskedNode)


# ---------------------------------------------------------------- one pass over the leaves


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
) -> tuple[Updates, State]:
    """Collects what is to be done at each leaf, does it in one call a leaf, rebuilds the trees.

    If there is a gate and it is closed, the updates are zero and the state stays as it is.
    """
    flat = gtree.flatten(updates)
    given = [gtree.as_number(u) for u in flat.values]
    flat_params = None
    if params is not None:
        found = gtree.flatten_like(flat, params, "the parameters", where)
        flat_params = [gtree.as_number(p) for p in found]
    leaves = Leaves(flat, given, flat_params, gate)
    rows: Rows = [[] for _ in given]
    finish = stage.begin(leaves, state, extra, rows)
    if gate is not None:
        for row, u in zip(rows, given, strict=True):
            if gtree.is_number(u):
                row.append(Call(_or_zero, (), {"gate": gate}, (), False, any_kind=True))
    if not any(rows):
        return updates, finish([])
    new: list[Any] = list(flat.values)
    results: list[tuple[Slots, ...]] = [()] * len(rows)
    given = _joined(rows, given)
    for i, row in enumerate(rows):
        if row:
            g, p = given[i], None if flat_params is None else flat_params[i]
            if all(call.any_kind for call in row):
                g = flat.values[i]  # which nobody optimizes, so that an integer stays one
            else:
                check_array(g, flat, i, where, "update")
            reads = any(call.needs_params for call in row)
            check_leaf(flat, i, where, g, p, row)
            program = tuple((c.rule, c.static, c.needs_params, c.per_leaf, c.since) for c in row)
            traced, slots = tuple(c.traced for c in row), tuple(c.slots for c in row)
            gates = tuple(c.gate for c in row)
            p = p if reads else None
            try:
                new[i], results[i] = _apply(program, g, p, traced, slots, gates)
            except Exception as error:
                error.add_note(f"This was in {where}, at the leaf {flat.paths[i]!r}.")
                if other := [s for s in _shapes(slots) if s not in ((), jnp.shape(g))]:
                    error.add_note(
                        f"The gradient has the shape {jnp.shape(g)} there, and the state has "
                        f"{gtree.listed(list(map(str, other)))}. Is it that of other parameters?"
                    )
                raise
            if _shapes((new[i], results[i])) != _shapes((g, slots)):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} an update of shape {jnp.shape(g)} and state of "
                    f"shapes {_shapes(slots)} became {_shapes((new[i], results[i]))}. Is the "
                    f"gradient of the parameter's shape, and does the rule keep shapes?"
                )
    return flat.unflatten(new), finish(results)


def _joined(rows: Rows, updates: Sequence[Any]) -> list[Any]:
    """The updates, of which small ones can be worked on together."""
    places = [i for i, row in enumerate(rows) if row and not _sums_new_state(row)]
    found = dict(zip(places, siblings([updates[i] for i in places]), strict=True))
    return [found.get(i, u) for i, u in enumerate(updates)]


def _sums_new_state(row: Sequence[Call]) -> bool:
    """Whether a leaf's norm is of its new state: what writes this can sum it up, too, if alone."""
    deciding = [k for k, call in enumerate(row) if call.per_leaf is not None]
    return bool(deciding) and any(call.slots for call in row[: deciding[-1] + 1])


def _or_zero(u: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    return jnp.where(h.gate, u, jnp.zeros_like(u)), slots


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


@functools.partial(jax.jit, static_argnums=0)
@gtree.mixing
def _apply(
    program: tuple[tuple[Any, Static, bool, Any, int | None], ...],
    g: Array,
    p: Array | None,
    traced: tuple[dict[str, Array], ...],
    slots: tuple[Slots, ...],
    gates: tuple[Array | None, ...],
) -> tuple[Array, tuple[Slots, ...]]:
    """The rules of one leaf, one after the other, in float32 or wider.

    A jitted function of its own, so that a thousand leaves of ten shapes are traced and lowered
    ten times.
    """
    u = widen(g)
    made = [u]  # and what each rule made of it
    p = None if p is None else widen(p)
    new_slots: list[Slots] = []
    for part, numbers, old, gate in zip(program, traced, slots, gates, strict=True):
        rule, static, reads, per_leaf, since = part
        numbers = suited(numbers, u)
        compared = {} if since is None else {"before": made[since]}
        h = namespace(static, {**numbers, **compared}, per_leaf or rule)
        wide = jax.tree.map(widen, old)
        if per_leaf is not None:
            bare = u if new_slots else widen(reread(g))  # as in `measured`
            with reading(per_leaf, p):
                decided = per_leaf(bare, wide, p, h)
            joined_names(vars(h) | numbers, decided, "per_leaf", core.show(rule))
            h = namespace(static, {**numbers, **compared, **decided}, rule)
        given = u, wide, p if reads else None, h
        with reading(rule, given[2]):
            u, new = rule(*given) if gate is None else predicated(rule, gate, *given)
        structure: Any = jax.tree.structure(old)
        if jax.tree.structure(new) != structure:
            raise ValueError(
                f"the rule {core.show(rule)} must return (update, slots) with a tuple of "
                f"{len(old)} slots like the one it was given, also for one slot."
            )
        new_slots.append(jax.tree.map(lambda n, o: n.astype(o.dtype), new, old))
        made.append(u)
    return u.astype(g.dtype), tuple(new_slots)


@functools.partial(jax.jit, static_argnums=(0, 1))
@gtree.mixing
def measured(
    measure: Callable[[Array, Slots, Any, Numbers], Mapping[str, Any]],
    static: Static,
    g: Array,
    p: Array | None,
    traced: dict[str, Array],
    slots: Slots,
) -> Mapping[str, Any]:
    """What a rule measures at one leaf, also traced once for each distinct shape.

    What has no state measures the bare gradient, and reads it by itself: in half precision it is
    widened for a norm and for the update, and might be kept in float32. What has state measures
    more, and shares it with its update.
    """
    g = widen(g if slots else reread(g))
    p = None if p is None else widen(p)
    h = namespace(static, suited(traced, g), measure)
    with reading(measure, p):
        return measure(g, jax.tree.map(widen, slots), p, h)


def widen(x: Array) -> Array:
    x = jnp.asarray(gtree.as_number(x))
    return x.astype(gtree.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def check_leaf(flat: gtree.Flat, i: int, where: str, g: Any, p: Any, calls: Sequence[Call]) -> None:
    """Raises ValueError, with the path, where calls lack an array or the shapes differ."""
    reads = any(call.needs_params for call in calls)
    slots = jax.tree.leaves([call.slots for call in calls], is_leaf=lambda x: x is None)
    lacks = ["parameter"] * (reads and p is None) + ["state"] * any(x is None for x in slots)
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
