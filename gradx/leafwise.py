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

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradx import core, hyper, sources
from gradx import tree as gtree
from gradx.calls import checked
from gradx.core import Params, State, Transform
from gradx.live import HyperparamsState
from gradx.sources import Array
from gradx.stage import (
    Call,
    Decided,
    Leaves,
    Numbers,
    PerLeaf,
    Results,
    Rows,
    Slots,
    Sums,
    check_array,
    check_leaf,
    check_state,
    is_array,
    measured,
    staged,
    widen,
)
from gradx.step import safe_increment

__all__ = ["leafwise"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """A rule for one array, and what the lift has to know about it (see `leafwise`)."""

    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]]
    slots: Callable[[Array], Slots] | None = None
    state: Any = optax.EmptyState
    hypers: hyper.Hypers
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None
    measure: Callable[[Array, Slots, Any, Numbers], Mapping[str, Any]] | None = None
    per_tree: Callable[[Numbers, Sums], Decided] | None = None
    per_leaf: PerLeaf | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    several: Mapping[str, Any] = field(default_factory=dict)
    count: str = "count"
    flags: Mapping[str, Any] = field(default_factory=dict)
    axis_name: Any = None
    needs_params: bool = False
    where: str

    @property
    def kind(self) -> Any:
        """The class of the state, without what live values add to it."""
        return self.state

    @property
    def counts(self) -> bool:
        return self.count in self.state._fields

    @property
    def sees_tree(self) -> bool:
        return self.measure is not None

    @property
    def fields(self) -> list[str]:
        """The fields that are trees like the parameters; the others are single numbers."""
        return [f for f in self.state._fields if f != self.count and f not in self.scalars]

    def init(self, params: Params) -> State:
        flat = gtree.flatten(params)
        for i, p in enumerate(flat.values):
            if is_array(p):
                check_array(p, flat, i, self.where, "parameter")
        if jax.tree.leaves(params):
            self.hypers.check_paths(gtree.array_paths(flat))
        made = self._first_slots(flat)
        pairs = list(zip(flat.values, made, strict=True))
        trees = {
            name: self._closed(name, flat, [p if slots is None else slots[i] for p, slots in pairs])
            for i, name in enumerate(self.fields)
        }
        zero = jnp.zeros((), jnp.int32)
        state = self.state(
            **trees, **self._first_scalars(flat), **({self.count: zero} if self.counts else {})
        )
        return self.wrapped(state, zero, self.hypers.initial())

    def wrapped(self, state: State, count: Any, values: Mapping[str, Array]) -> State:
        """The rule's own state with the live values and the count that it needs beside it."""
        count = count if self.hypers.scheduled and not self.counts else None
        if count is None and not self.hypers.tunables:
            return state
        return HyperparamsState(count, {name: values[name] for name in self.hypers.tunables}, state)

    def _first_slots(self, flat: gtree.Flat) -> list[Slots | None]:
        return [self._own_slots(p) if is_array(p) else None for p in flat.values]

    def _own_slots(self, p: Any) -> Slots:
        """The slots of one leaf, in buffers of their own: donating the state must not free `p`."""
        wide = widen(p)
        slots = () if self.slots is None else self.slots(wide)
        if not isinstance(slots, tuple) or len(slots) != len(self.fields):
            raise ValueError(
                f"{self.where}: init must return a tuple of {len(self.fields)} slots for the "
                f"fields {self.fields} of {self.state.__name__}, also for one field."
            )
        return jax.tree.map(lambda s: jnp.array(s) if s is wide or s is p else s, slots)

    def _first_scalars(self, flat: gtree.Flat) -> dict[str, Array]:
        """The numbers of the state; those with a fraction in the widest dtype that `init` saw."""
        arrays = [widen(p) for p in flat.values if is_array(p)]
        wide = jnp.result_type(jnp.float32, *(p.real.dtype for p in arrays))
        first = {
            name: jnp.asarray(value(arrays) if callable(value) else value)
            for name, value in self.scalars.items()
        }
        return {
            name: jnp.array(x, wide if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)
            for name, x in first.items()
        }

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        if self.needs_params and leaves.params is None:
            raise ValueError(
                f"{self.where}: needs the parameters: call update(updates, state, params)."
            )
        outer = state if isinstance(state, HyperparamsState) else None
        inner = state if outer is None else outer.inner_state
        check_state(inner, self.state, self.where)
        columns = [self._opened(f, leaves.flat, getattr(inner, f)) for f in self.fields]
        count = getattr(inner, self.count) if self.counts else None
        count = outer.count if count is None and outer is not None else count
        step = sources.Step(count, {} if outer is None else outer.hyperparams, extra, self.where)
        active = [i for i, u in enumerate(leaves.updates) if is_array(u)]
        group_of, groups = self.hypers.groups(leaves.flat, active)
        old_scalars = {name: getattr(inner, name) for name in self.scalars}
        numbers = [self._numbers(group, step, old_scalars) for group in groups]
        programs = [self._split(h) for h in numbers]
        calls = {
            i: Call(
                self.update,
                *programs[group_of[i]],
                tuple(column[i] for column in columns),
                self.needs_params,
                leaves.gate,
                self.per_leaf,
            )
            for i in active
        }
        new_scalars = dict(old_scalars)
        if self.per_tree is not None and active:
            (shared,) = numbers
            decided, changed = self.per_tree(SimpleNamespace(**shared), self._sums(leaves, calls))
            static, traced = self._split({**shared, **decided})
            calls = {i: call._replace(static=static, traced=traced) for i, call in calls.items()}
            new_scalars |= {
                name: jnp.asarray(x, old_scalars[name].dtype) for name, x in changed.items()
            }

        mine: dict[int, int] = {}  # leaf -> place of this rule in the leaf's row
        for i, call in calls.items():
            mine[i] = len(rows[i])
            rows[i].append(call)

        def gated(new: Array, old: Array) -> Array:
            return new if leaves.gate is None else jnp.where(leaves.gate, new, old)

        def finish(results: Results) -> State:
            trees = {
                name: self._closed(
                    name,
                    leaves.flat,
                    [results[i][mine[i]][k] if i in mine else old for i, old in enumerate(column)],
                )
                for k, (name, column) in enumerate(zip(self.fields, columns, strict=True))
            }
            new_count = None if count is None else gated(safe_increment(count), count)
            single = {name: gated(x, old_scalars[name]) for name, x in new_scalars.items()}
            new = type(inner)(**trees, **single, **({self.count: new_count} if self.counts else {}))
            if outer is None:
                return new
            return HyperparamsState(None if self.counts else new_count, outer.hyperparams, new)

        return finish

    def _opened(self, name: str, flat: gtree.Flat, value: Any) -> list[Any]:
        """The slots of all leaves that a field of the state holds."""
        what = f"{self.where}: the state's {name}"
        if name not in self.several:
            return gtree.flatten_like(flat, value, what)
        kind = self.several[name]
        if not isinstance(value, kind):
            raise ValueError(
                f"{what} must be {kind.__name__}, got {type(value).__name__}. Was it made with "
                f"other arguments?"
            )
        trees = [(f"{what}.{k}", getattr(value, k)) for k in kind._fields]
        columns = [gtree.flatten_like(flat, tree, what) for what, tree in trees]
        return [kind(*slots) for slots in zip(*columns, strict=True)]

    def _closed(self, name: str, flat: gtree.Flat, column: list[Any]) -> Any:
        """The field of the state that holds these slots."""
        if name not in self.several:
            return flat.unflatten(column)
        kind = self.several[name]
        slots = [x if isinstance(x, kind) else kind(*[x] * len(kind._fields)) for x in column]
        trees = [flat.unflatten([getattr(x, k) for x in slots]) for k in kind._fields]
        return kind(*trees)

    def _numbers(
        self, group: Mapping[str, sources.Source], step: sources.Step, scalars: Mapping[str, Array]
    ) -> dict[str, Any]:
        """What a group of leaves is given as `h`, but for what takes the whole tree."""
        h = {**self.flags, **scalars, **hyper.resolve(group, step)}
        if self.per_step is not None:
            t: Any = None if step.count is None else safe_increment(step.count)
            h |= self.per_step(SimpleNamespace(**h), t)
        return h

    def _split(
        self, h: Mapping[str, Any]
    ) -> tuple[tuple[tuple[str, Any, str], ...], dict[str, Array]]:
        """What is known now and becomes part of the program, and what is known only in the run."""
        arrays_of = jax.Array | np.ndarray | np.generic
        traced = {k: jnp.asarray(v) for k, v in h.items() if isinstance(v, arrays_of)}
        # Equal values of different kinds (True and 1.0, 0.0 and -0.0) are different programs.
        static = tuple((k, v, f"{type(v)}{v}") for k, v in h.items() if k not in traced)
        for name, value, _ in static:
            if not isinstance(value, Hashable):
                raise ValueError(
                    f"{self.where}: h.{name} is {core.show(value)}; flags and numbers must be "
                    f"hashable (a tuple, not a list) or arrays."
                )
        return static, traced

    def _sums(self, leaves: Leaves, calls: Mapping[int, Call]) -> Mapping[str, Array]:
        """What `measure` gives, added up over the leaves (and the devices that share them)."""
        if self.measure is None:
            return {}
        parts = []
        for i, call in calls.items():
            g = leaves.updates[i]
            check_array(g, leaves.flat, i, self.where, "update")
            p = leaves.params[i] if self.needs_params and leaves.params is not None else None
            check_leaf(leaves.flat, i, self.where, g, p, [call])
            parts.append(measured(self.measure, call.static, g, p, call.traced, call.slots))
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        if self.axis_name is None:
            return sums
        with gtree.mapped(self.axis_name, self.where):
            return jax.lax.psum(sums, self.axis_name)


@checked
def leafwise(
    update: Callable[[Array, Slots, Any, Numbers], tuple[Array, Slots]],
    *,
    init: Callable[[Array], Slots] | None = None,
    state: type[NamedTuple] | Any = optax.EmptyState,
    hypers: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None,
    measure: Callable[[Array, Slots, Any, Numbers], Mapping[str, Any]] | None = None,
    per_tree: Callable[[Numbers, Sums], Decided] | None = None,
    per_leaf: PerLeaf | None = None,
    scalars: Mapping[str, Any] | None = None,
    count: str = "count",
    several: Mapping[str, Any] | None = None,
    axis_name: Any = None,
    needs_params: bool = False,
) -> Transform:
    """Lifts a rule for one array to a transformation of trees.

    Args:
      update: `(g, slots, p, h) -> (u, slots)`, the rule. `g`, the slots and `p` are arrays of one
        leaf, in float32 or wider whatever they are stored in; `p` is `None` unless
        `needs_params`. `h` has every hyperparameter, flag and per-step number as an attribute.
        Write it as a function of the module, not a closure, so that equal programs share a trace.
      init: `p -> slots`, the state arrays of one leaf, in the order of the fields of `state`. A
        slot may be a tuple of arrays, where their number depends on the leaf.
      state: the named tuple of the public state. The field `count` is kept by the lift (int32, the
        updates done so far), those in `scalars` are single numbers that `per_tree` changes; every
        other field becomes a tree like the parameters.
      hypers: name to what the user gave, a number or any other source.
      ranges: name to range, such as ``"[0, 1)"``, where `hyper.RANGES` has none or another one for
        the name.
      flags: hashable options for `update` that are no numbers: bools, strings, axes.
      per_step: `(h, t) -> numbers`, for what depends on the step but not on the leaf, such as a
        bias correction. `t` is 1 in the first update; it is `None` if nothing counts.
      measure: `(g, slots, p, h) -> sums`, numbers of one leaf (its squared norm, say), which are
        added up over all leaves before any is updated. `h` is without what `per_tree` makes.
      per_tree: `(h, sums) -> (numbers, scalars)`, what is decided once for the whole tree: further
        numbers for `update`, and the new values of the scalars that change.
      per_leaf: `(g, slots, p, h) -> numbers`, what is decided once for a leaf, such as its norm:
        further numbers for `update`. `g`, `slots` and `p` are functions here; each call gives the
        arrays anew, for one reduction, since an array that has to be kept for several would cost
        more than to calculate it twice.
      scalars: the fields of `state` that are one number for the tree, with what each begins at: a
        number, or a function of the list of the parameters' arrays. `h` has their old values.
      count: the name of the field that counts the updates.
      several: the fields whose slot is a named tuple of arrays, with its class: such a field is a
        named tuple of trees, which every container of states knows, where a tree of tuples would be
        taken for a deeper tree.
      axis_name: the mapped axis over which the leaves are sharded, inside `shard_map` or `pmap`:
        the sums are then those over all shards.
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
    numbers = hyper.Hypers(hypers or {}, where, ranges)
    if per_tree is not None and numbers.varies_by_path:
        raise ValueError(f"{where}: takes one number for the whole tree, not by_path(…).")
    rule = Rule(
        update=update,
        slots=init,
        state=state,
        hypers=numbers,
        per_step=per_step,
        measure=measure,
        per_tree=per_tree,
        per_leaf=per_leaf,
        scalars=scalars or {},
        several=several or {},
        count=count,
        flags=flags or {},
        axis_name=axis_name,
        needs_params=needs_params,
        where=where,
    )
    return staged(rule, where)
