"""A rule for one array, lifted to a transformation of pytrees.

The maths of an optimizer is written once, on one array::

    def update(g, slots, p, h):        # gradient, state arrays, parameter, numbers
        (velocity,) = slots
        velocity = h.decay * velocity + g
        return velocity, (velocity,)   # update, new state arrays

`leafwise` knows the rest: trees, `None` and masked leaves, paths, half precision, live and
scheduled numbers, and the Optax-shaped state. Rules that follow each other in a chain are run leaf
by leaf in one pass, and a pass is traced once for each distinct shape, not once for each leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradx import core, hyper, sources
from gradx import tree as gtree
from gradx.core import Params, State, Transform, Updates
from gradx.live import HyperparamsState
from gradx.sources import Array
from gradx.step import safe_increment

__all__ = ["leafwise"]


Slots = tuple[Array, ...]
Numbers = Any  # a namespace: h.b1 is a float where it is constant, else a scalar array


class Call(NamedTuple):
    """One rule at one leaf: which, with which numbers, and the leaf's part of the state."""

    rule: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]]
    static: tuple[tuple[str, Any], ...]  # numbers and flags known now: part of the program
    traced: dict[str, Array]  # numbers known only in the run
    slots: Slots
    needs_params: bool


Rows = list[list[Call]]
Results = list[tuple[Slots, ...]]


@dataclass(frozen=True)
class Leaves:
    """What a step is given: the updates by leaf, and the parameters where there are any."""

    flat: gtree.Flat
    updates: list[Any]  # None or MaskedNode: not for this stage
    params: list[Any] | None
    tree: Updates = None

    def only(self, chosen: Sequence[bool]) -> Leaves:
        kept = [u if c else optax.MaskedNode() for u, c in zip(self.updates, chosen, strict=True)]
        return Leaves(self.flat, kept, self.params, self.tree)


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
        """Adds a call to the row of each leaf it acts on; returns what makes the new state."""
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
    stage: Stage, where: str, updates: Updates, state: State, params: Any, extra: Mapping[str, Any]
) -> tuple[Updates, State]:
    """Collects what is to be done at each leaf, does it in one call a leaf, rebuilds the trees."""
    flat = gtree.flatten(updates)
    flat_params = None
    if params is not None:
        flat_params = gtree.flatten_like(flat, params, f"{where}: params")
    leaves = Leaves(flat, flat.values, flat_params, updates)
    rows: Rows = [[] for _ in flat.values]
    finish = stage.begin(leaves, state, extra, rows)
    if not any(rows):
        return updates, finish([])
    new: list[Any] = list(flat.values)
    results: list[tuple[Slots, ...]] = [()] * len(rows)
    for i, row in enumerate(rows):
        if row:
            g, p = flat.values[i], None if flat_params is None else flat_params[i]
            check_array(g, flat, i, where, "update")
            if p is not None and jnp.shape(p) != jnp.shape(g):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} the update has shape {jnp.shape(g)} and the "
                    f"parameter {jnp.shape(p)}."
                )
            p = p if any(call.needs_params for call in row) else None
            program = tuple((call.rule, call.static) for call in row)
            traced, slots = tuple(c.traced for c in row), tuple(c.slots for c in row)
            try:
                new[i], results[i] = _apply(program, g, p, traced, slots)
            except Exception as error:
                error.add_note(f"This was in {where}, at the leaf {flat.paths[i]!r}.")
                raise
            if _shapes((new[i], results[i])) != _shapes((g, slots)):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} an update of shape {jnp.shape(g)} and state of "
                    f"shapes {_shapes(slots)} became {_shapes((new[i], results[i]))}. Is the "
                    f"gradient of the parameter's shape, and does the rule keep shapes?"
                )
    return flat.unflatten(new), finish(results)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    program: tuple[tuple[Any, tuple[tuple[str, Any], ...]], ...],
    g: Array,
    p: Array | None,
    traced: tuple[dict[str, Array], ...],
    slots: tuple[Slots, ...],
) -> tuple[Array, tuple[Slots, ...]]:
    """The rules of one leaf, one after the other, in float32 or wider.

    A jitted function of its own, so that a thousand leaves of ten shapes are traced and lowered
    ten times. XLA inlines the calls before it fuses.
    """
    u = _widen(g)
    p = None if p is None else _widen(p)
    new_slots = []
    for (rule, static), numbers, old in zip(program, traced, slots, strict=True):
        h = SimpleNamespace(**dict(static), **numbers)
        u, new = rule(u, jax.tree.map(_widen, old), p, h)
        structure: Any = jax.tree.structure(old)
        if jax.tree.structure(new) != structure:
            raise ValueError(
                f"the rule {rule.__qualname__} must return (update, slots) with a tuple of "
                f"{len(old)} slots like the one it was given, also for one slot."
            )
        new_slots.append(jax.tree.map(lambda n, o: n.astype(o.dtype), new, old))
    return u.astype(g.dtype), tuple(new_slots)


def _widen(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(gtree.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def check_array(x: Any, flat: gtree.Flat, i: int, where: str, what: str) -> None:
    """Raises ValueError, with the path, for a leaf that cannot be optimized."""
    dtype = getattr(x, "dtype", None)
    if dtype is None and isinstance(x, float | complex):
        return  # Python numbers are weakly typed arrays to JAX
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        kind = type(x).__name__ if dtype is None else f"{dtype} array"
        raise ValueError(
            f"{where}: the {what} at {flat.paths[i]!r} is of type {kind}; only real and complex "
            f"floating-point arrays can be optimized. Leave it out: give the optimizer None there "
            f"(Equinox: eqx.filter(model, eqx.is_inexact_array)) or only the trainable part of "
            f"the tree (NNX: wrt=nnx.Param)."
        )


# ---------------------------------------------------------------- the lift


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule for one array, and what the lift has to know about it (see `leafwise`)."""

    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]]
    slots: Callable[[Array], Slots] | None
    state: Any
    hypers: hyper.Hypers
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None
    per_tree: Callable[[list[Array], Numbers], Mapping[str, Any]] | None
    flags: Mapping[str, Any]
    needs_params: bool
    where: str

    @property
    def counts(self) -> bool:
        return "count" in self.state._fields

    @property
    def sees_tree(self) -> bool:
        return self.per_tree is not None

    @property
    def fields(self) -> list[str]:
        return [f for f in self.state._fields if f != "count"]

    def init(self, params: Params) -> State:
        flat = gtree.flatten(params)
        for i, p in enumerate(flat.values):
            if is_array(p):
                check_array(p, flat, i, self.where, "parameter")
        if jax.tree.leaves(params):
            self.hypers.check_paths(gtree.array_paths(flat))
        made = [self._own_slots(p) if is_array(p) else None for p in flat.values]
        pairs = list(zip(flat.values, made, strict=True))
        trees = {
            name: flat.unflatten([p if slots is None else slots[i] for p, slots in pairs])
            for i, name in enumerate(self.fields)
        }
        zero = jnp.zeros((), jnp.int32)
        state = self.state(**trees, **({"count": zero} if self.counts else {}))
        own_count = zero if self.hypers.scheduled and not self.counts else None
        if own_count is None and not self.hypers.tunables:
            return state
        return HyperparamsState(own_count, self.hypers.initial(), state)

    def _own_slots(self, p: Any) -> Slots:
        """The slots of one leaf, in buffers of their own: donating the state must not free `p`."""
        wide = _widen(p)
        slots = () if self.slots is None else self.slots(wide)
        if not isinstance(slots, tuple) or len(slots) != len(self.fields):
            raise ValueError(
                f"{self.where}: init must return a tuple of {len(self.fields)} slots for the "
                f"fields {self.fields} of {self.state.__name__}, also for one field."
            )
        return jax.tree.map(lambda s: jnp.array(s) if s is wide or s is p else s, slots)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        if self.needs_params and leaves.params is None:
            raise ValueError(
                f"{self.where}: needs the parameters: call update(updates, state, params)."
            )
        outer = state if isinstance(state, HyperparamsState) else None
        inner = state if outer is None else outer.inner_state
        # By name and fields, not by class: a state of Optax's own class is welcome.
        if _kind(inner) != _kind(self.state):
            raise ValueError(
                f"{self.where}: got a state of type {type(inner).__name__} instead of "
                f"{self.state.__name__}. Was it made by another chain's init?"
            )
        columns = [
            gtree.flatten_like(leaves.flat, getattr(inner, f), f"{self.where}: the state's {f}")
            for f in self.fields
        ]
        count = inner.count if self.counts else None if outer is None else outer.count
        step = sources.Step(count, {} if outer is None else outer.hyperparams, extra, self.where)
        active = [i for i, u in enumerate(leaves.updates) if is_array(u)]
        group_of, groups = self.hypers.groups(leaves.flat, active)
        arrays = [leaves.updates[i] for i in active]
        numbers = [self._numbers(group, step, arrays) for group in groups]

        mine: dict[int, int] = {}  # leaf -> place of this rule in the leaf's row
        for i in active:
            mine[i] = len(rows[i])
            static, traced = numbers[group_of[i]]
            slots = tuple(column[i] for column in columns)
            rows[i].append(Call(self.update, static, traced, slots, self.needs_params))

        def finish(results: Results) -> State:
            trees = {
                name: leaves.flat.unflatten(
                    [results[i][mine[i]][k] if i in mine else old for i, old in enumerate(column)]
                )
                for k, (name, column) in enumerate(zip(self.fields, columns, strict=True))
            }
            new_count = None if count is None else safe_increment(count)
            new = type(inner)(**trees, **({"count": new_count} if self.counts else {}))
            if outer is None:
                return new
            return HyperparamsState(None if self.counts else new_count, outer.hyperparams, new)

        return finish

    def _numbers(
        self, group: Mapping[str, sources.Source], step: sources.Step, arrays: list[Any]
    ) -> tuple[tuple[tuple[str, Any], ...], dict[str, Array]]:
        """All that a group of leaves is given as `h`, split into static and traced."""
        h = dict(self.flags) | hyper.resolve(group, step)
        if self.per_step is not None:
            t = None if step.count is None else safe_increment(step.count)
            h |= self.per_step(SimpleNamespace(**h), t)  # type: ignore[arg-type]
        if self.per_tree is not None:
            h |= self.per_tree(arrays, SimpleNamespace(**h))
        arrays_of = jax.Array | np.ndarray | np.generic
        traced = {k: jnp.asarray(v) for k, v in h.items() if isinstance(v, arrays_of)}
        static = tuple((k, v) for k, v in h.items() if k not in traced)
        for name, value in static:
            if not isinstance(value, Hashable):
                raise ValueError(
                    f"{self.where}: h.{name} is {core.show(value)}; flags and numbers must be "
                    f"hashable (a tuple, not a list) or arrays."
                )
        return static, traced


def _kind(state: Any) -> tuple[str, Any]:
    cls = state if isinstance(state, type) else type(state)
    return cls.__name__, getattr(cls, "_fields", None)


def leafwise(
    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]],
    *,
    init: Callable[[Array], Slots] | None = None,
    state: type[NamedTuple] | Any = optax.EmptyState,
    hypers: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None,
    per_tree: Callable[[list[Array], Numbers], Mapping[str, Any]] | None = None,
    needs_params: bool = False,
) -> Transform:
    """Lifts a rule for one array to a transformation of trees.

    Args:
      update: `(g, slots, p, h) -> (u, slots)`, the rule. `g`, the slots and `p` are arrays of one
        leaf, in float32 or wider whatever they are stored in; `p` is `None` unless
        `needs_params`. `h` has every hyperparameter, flag and per-step number as an attribute.
        Write it as a function of the module, not a closure, so that equal programs share a trace.
      init: `p -> slots`, the state arrays of one leaf, in the order of the fields of `state`. A
        slot may be a tuple of arrays, where their number is an option of the rule.
      state: the named tuple of the public state. A field called `count` is kept by the lift (int32,
        the updates done so far); every other field becomes a tree like the parameters.
      hypers: name to what the user gave (a number or any other source), or to a pair of that and a
        range such as ``"[0, 1)"`` where `hyper.RANGES` has another one for the name.
      flags: hashable options for `update` that are no numbers: bools, strings, axes.
      per_step: `(h, t) -> numbers`, for what depends on the step but not on the leaf, such as a
        bias correction. `t` is 1 in the first update; it is `None` if nothing counts.
      per_tree: `(updates, h) -> numbers`, for what takes all leaves at once, such as a norm.
      needs_params: whether `update` reads `p`.

    Returns:
      The transformation. Its state has the structure, shapes and dtypes that it began with;
      updates come back in the gradients' dtypes.

    Raises:
      ValueError: for a number out of range; at `init` for a leaf that is no floating-point array;
        in `update` for missing parameters and for trees that do not match.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> from typing import Any, NamedTuple
      >>> class HeavyBallState(NamedTuple):
      ...     velocity: Any
      >>> def init(p):
      ...     return (jnp.zeros_like(p),)
      >>> def update(g, slots, p, h):
      ...     velocity = h.decay * slots[0] + g
      ...     return velocity, (velocity,)
      >>> @gradx.recorded
      ... def heavy_ball(decay: gradx.Hyper = 0.9) -> gradx.Transform:
      ...     return gradx.leafwise(
      ...         update, init=init, state=HeavyBallState, hypers={"decay": decay}
      ...     )
      >>> tx = heavy_ball(gradx.tunable(0.5))
      >>> tx
      heavy_ball(decay=tunable(0.5))
      >>> tx.init({"w": jnp.ones(2)}).inner_state
      HeavyBallState(velocity={'w': Array([0., 0.], dtype=float32)})
    """
    where = core.where()
    numbers = hyper.Hypers(hypers or {}, where)
    if per_tree is not None and numbers.varies_by_path:
        raise ValueError(f"{where}: takes one number for the whole tree, not by_path(…).")
    rule = Rule(update, init, state, numbers, per_step, per_tree, flags or {}, needs_params, where)
    return staged(rule, where)
