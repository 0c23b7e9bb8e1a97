"""A rule for one array, lifted to a transformation of pytrees.

The maths of an optimizer is written once, on one array::

    def update(g, slots, p, h):        # gradient, state arrays, parameter, numbers
        (velocity,) = slots
        velocity = h.decay * velocity + g
        return velocity, (velocity,)   # update, new state arrays

`leafwise` knows the rest: trees, `None` and masked leaves, paths, half precision, live and
scheduled numbers, and the Optax-shaped state (see `passes`, which runs rules).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, State, Transform
from gradx.core import trees as gtree
from gradx.core.calls import checked, kept
from gradx.core.updates import safe_increment
from gradx.lift import mapped
from gradx.lift.passes import (
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
    is_array,
    measured,
    staged,
    widen,
)
from gradx.lift.states import check_state, check_wrapping, closed, opened
from gradx.lowering.siblings import siblings
from gradx.numbers import hyper, sources
from gradx.numbers.live import HyperparamsState
from gradx.numbers.namespace import Static, ask, check_names, joined_names, split
from gradx.numbers.sources import Array

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
    measure_init: Callable[[Array], Mapping[str, Any]] | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    several: Mapping[str, Any] = field(default_factory=dict)
    count: tuple[str, ...] = ("count",)
    whole_tree: Collection[str] | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    axes: mapped.Axes = ()
    needs_params: bool = False
    where: str

    @property
    def kind(self) -> Any:
        """The class of the state, without what live values add to it."""
        return self.state

    @property
    def counts(self) -> list[str]:
        """The fields that count the updates."""
        return [f for f in self.state._fields if f in self.count]

    @property
    def sees_tree(self) -> bool:
        return self.measure is not None

    @property
    def fields(self) -> list[str]:
        """The fields that are trees like the parameters; the others are single numbers."""
        return [f for f in self.state._fields if f not in {*self.count, *self.scalars}]

    def init(self, params: Params) -> State:
        flat = gtree.flatten(params)
        for i, p in enumerate(flat.values):
            if is_array(p):
                check_array(p, flat, i, self.where, "parameter")
        if jax.tree.leaves(params):
            self.hypers.check_paths(gtree.array_paths(flat))
        sums: list[Any] = [None] * len(flat.values)
        if self.measure_init is not None:
            parts = [self.measure_init(widen(p)) if is_array(p) else None for p in flat.values]
            sums = mapped.total_at_init(parts, flat, self.axes, self.where)
        made = self._first_slots(flat, sums)
        pairs = list(zip(flat.values, made, strict=True))
        trees = {
            name: closed(
                self.several.get(name), flat, [p if own is None else own[i] for p, own in pairs]
            )
            for i, name in enumerate(self.fields)
        }
        zero = jnp.zeros((), jnp.int32)
        state = self.state(
            **trees,
            **self._first_scalars(flat, sums),
            **{f: jnp.copy(zero) for f in self.counts},
        )
        return self.wrapped(state, zero, self.hypers.initial())

    @property
    def counted(self) -> bool:
        """Whether there is a count beside the rule's own state, which has none for a schedule."""
        return self.hypers.scheduled and not self.counts

    def wrapped(self, state: State, count: Any, values: Mapping[str, Array]) -> State:
        """The rule's own state with the live values and the count that it needs beside it."""
        if not self.counted and not self.hypers.tunables:
            return state
        live = {name: values[name] for name in self.hypers.tunables}
        return HyperparamsState(count if self.counted else None, live, state)

    def _first_slots(self, flat: gtree.Flat, sums: Sequence[Any]) -> list[Slots | None]:
        pairs = zip(flat.values, sums, strict=True)
        return [self._own_slots(p, own) if is_array(p) else None for p, own in pairs]

    def _own_slots(self, p: Any, sums: Mapping[str, Any] | None = None) -> Slots:
        """The slots of one leaf, in buffers of their own: donating the state must not free `p`."""
        wide = widen(p)
        slots = () if self.slots is None else self.slots(wide, *([] if sums is None else [sums]))
        if not isinstance(slots, tuple) or len(slots) != len(self.fields):
            raise ValueError(
                f"{self.where}: init must return a tuple of {len(self.fields)} slots for the "
                f"fields {self.fields} of {self.state.__name__}, also for one field."
            )
        return jax.tree.map(lambda s: jnp.array(s) if s is wide or s is p else s, slots)

    def _first_scalars(self, flat: gtree.Flat, sums: Sequence[Any]) -> dict[str, Array]:
        """The numbers of the state; those with a fraction in the widest dtype that `init` saw."""
        arrays = [widen(p) for p in flat.values if is_array(p)]
        wide = gtree.wide(*(p.real.dtype for p in arrays))
        parts = [part for part in sums if part is not None]
        of_all = mapped.sum_over(parts, [None] * len(parts)) if parts else {}
        first = {
            name: jnp.asarray(value(of_all) if callable(value) else value)
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
        check_wrapping(state, self.hypers.tunables, self.counted, self.where)
        columns = [
            opened(f, self.several.get(f), leaves.flat, getattr(inner, f), self.where)
            for f in self.fields
        ]
        counts = [getattr(inner, f) for f in self.counts]
        done = counts or [None if outer is None else outer.count]
        live = {} if outer is None else outer.hyperparams
        step = sources.Step(done[-1], live, extra, self.where)
        active = [i for i, u in enumerate(leaves.updates) if is_array(u)]
        group_of, groups = self.hypers.groups(leaves.flat, active)
        old_scalars = {name: getattr(inner, name) for name in self.scalars}
        numbers = [self._numbers(group, step, done[0], old_scalars) for group in groups]
        programs = [split(h, self.where) for h in numbers]
        spans = leaves.spans(self.axes, self.where)

        def call(i: int, static: Static, traced: dict[str, Array]) -> Call:
            return Call(
                self.update,
                (*static, ("span", spans[i], str(spans[i]))),
                traced,
                tuple(column[i] for column in columns),
                self.needs_params,
                leaves.gate,
                self.per_leaf,
            )

        calls = {i: call(i, *programs[group_of[i]]) for i in active}
        new_scalars = dict(old_scalars)
        if self.per_tree is not None and (active or self.measure is None):
            by_path = self.hypers.varies_by_path
            shared = self._shared(step, old_scalars) if by_path else numbers[0]
            decided, changed = ask(self.per_tree, shared, self._sums(leaves, calls, spans))
            further = [joined_names(h, decided, "per_tree", self.where) for h in numbers]
            programs = [split(h, self.where) for h in further]
            calls = {i: call(i, *programs[group_of[i]]) for i in active}
            new_scalars |= {
                name: jnp.asarray(x, old_scalars[name].dtype) for name, x in changed.items()
            }

        mine: dict[int, int] = {}  # leaf -> place of this rule in the leaf's row
        for i in active:
            mine[i] = len(rows[i])
            rows[i].append(calls[i])

        def gated(new: Array, old: Array) -> Array:
            return new if leaves.gate is None else jnp.where(leaves.gate, new, old)

        def finish(results: Results) -> State:
            trees = {
                name: closed(
                    self.several.get(name),
                    leaves.flat,
                    [results[i][mine[i]][k] if i in mine else old for i, old in enumerate(column)],
                )
                for k, (name, column) in enumerate(zip(self.fields, columns, strict=True))
            }

            def further(n: Array) -> Array:
                return gated(safe_increment(n), n)

            single = {name: gated(x, old_scalars[name]) for name, x in new_scalars.items()}
            counted = dict(zip(self.counts, map(further, counts), strict=True))
            new = type(inner)(**trees, **single, **counted) if self.state._fields else inner
            if outer is None:
                return new
            new_count = None if outer.count is None else further(outer.count)
            return HyperparamsState(new_count, outer.hyperparams, new)

        return finish

    def _numbers(
        self,
        group: Mapping[str, sources.Source],
        step: sources.Step,
        count: Array | None,
        scalars: Mapping[str, Array],
    ) -> dict[str, Any]:
        """What a group of leaves is given as `h`, but for what takes the whole tree."""
        h = {**self.flags, **scalars, **hyper.resolve(group, step)}
        if self.per_step is not None:
            t: Any = None if count is None else safe_increment(count)
            h = joined_names(h, ask(self.per_step, h, t), "per_step", self.where)
        return h

    def _shared(self, step: sources.Step, scalars: Mapping[str, Array]) -> dict[str, Any]:
        """What `per_tree` is given where numbers that it does not read go by path."""
        whole = {name: self.hypers.sources[name] for name in self.whole_tree or ()}
        return {**self.flags, **scalars, **hyper.resolve(whole, step)}

    def _sums(
        self, leaves: Leaves, calls: Mapping[int, Call], spans: Sequence[mapped.Span | None]
    ) -> Sums:
        """What `measure` gives, added up over the leaves (and the devices that share them)."""
        if self.measure is None:
            return {}
        parts = []
        updates = [leaves.updates[i] for i in calls]
        updates = updates if self.fields else siblings(updates)  # else the rule's pass sums, too
        for (i, call), g in zip(calls.items(), updates, strict=True):
            check_array(g, leaves.flat, i, self.where, "update")
            p = leaves.params[i] if self.needs_params and leaves.params is not None else None
            check_leaf(leaves.flat, i, self.where, g, p, [call])
            parts.append(measured(self.measure, call.static, g, p, call.traced, call.slots))
        sums: Sums = mapped.sum_over(parts, [spans[i] for i in calls])
        return sums


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
    measure_init: Callable[[Array], Mapping[str, Any]] | None = None,
    scalars: Mapping[str, Any] | None = None,
    count: str | tuple[str, ...] = "count",
    whole_tree: Collection[str] | None = None,
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
        numbers for `update`, and the new values of the scalars that change. Without `measure` it is
        also called in a step in which no leaf has a gradient.
      per_leaf: `(g, slots, p, h) -> numbers`, what is decided once for a leaf, such as its norm:
        further numbers for `update`.
      measure_init: `p -> sums`, numbers of one leaf when the state begins (the norm that the rule
        starts from). `init` is then given them as well, `(p, sums)`.
      scalars: the fields of `state` that are one number for the tree, with what each begins at: a
        number, or a function of the sums of `measure_init` over all leaves. `h` has their old
        values.
      count: the name of the field that counts the updates. Of several, `t` goes by the first and
        schedules by the last; they differ only if a state is made so.
      whole_tree: the hypers that `per_tree` reads, which cannot go by path; by default all.
      several: the fields whose slot is a named tuple of arrays, with its class: such a field is a
        named tuple of trees, which every container of states knows, where a tree of tuples would be
        taken for a deeper tree.
      axis_name: the mapped axis over which the leaves are sharded, inside `shard_map` or `pmap`, or
        several, or `sharded`: sums are then those over all devices. A reduction of one leaf, in
        `update` or `per_leaf`, takes ``h.span`` to `gradx.mapped.total`.
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
    check_names(where, ranges, hypers=hypers, flags=flags, scalars=scalars)
    numbers = hyper.Hypers(hypers or {}, where, ranges)
    if per_tree is not None:
        numbers.check_whole_tree(whole_tree)
    rule = Rule(
        update=update,
        slots=init,
        state=state,
        hypers=numbers,
        per_step=per_step,
        measure=measure,
        per_tree=per_tree,
        per_leaf=per_leaf,
        measure_init=measure_init,
        scalars=scalars or {},
        several=several or {},
        count=(count,) if isinstance(count, str) else count,
        whole_tree=whole_tree,
        flags=kept(dict(flags or {})),
        axes=mapped.axes(axis_name),
        needs_params=needs_params,
        where=where,
    )
    return staged(rule, where)
