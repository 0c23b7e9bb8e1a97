"""What the lift does with a rule: its state, its numbers, its calls at the leaves.

`leafwise` and `matrixwise` make a `Rule`, which is a stage of a pass (see `passes`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, State
from gradx.core import trees as gtree
from gradx.core.updates import safe_increment
from gradx.lift import mapped
from gradx.lift.passes import check_array, check_leaf, measured, widen
from gradx.lift.stages import (
    Call,
    Decided,
    Leaves,
    Numbers,
    PerLeaf,
    Results,
    Rows,
    Sums,
    Update,
    is_array,
    leaf_state,
)
from gradx.lift.states import (
    as_stored,
    as_tuple,
    check_state,
    check_wrapping,
    closed,
    counted,
    need_params,
    opened,
)
from gradx.lowering.siblings import siblings
from gradx.lowering.varying import varies_over, vary
from gradx.numbers import hyper, sources
from gradx.numbers.live import HyperparamsState
from gradx.numbers.namespace import Static, ask, joined_names, split
from gradx.numbers.sources import Array

# (leaves, extra) -> facts about each leaf, or None for a leaf that the rule leaves alone.
Facts = Callable[[gtree.Flat, Mapping[str, Any] | None], Sequence[Mapping[str, Any] | None]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """The stage of one rule: the rule for one array, with all that the lift needs (`leafwise`)."""

    update: Update
    first: Callable[..., Mapping[str, Any]] | Mapping[str, Any] | None = None
    state_class: Any = optax.EmptyState  # of the rule's own state, without live values around it
    hypers: hyper.Hypers
    facts: Facts | None = None
    per_step: Callable[[Numbers, Array], Mapping[str, Any]] | None = None
    measure: PerLeaf | None = None
    per_tree: Callable[[Numbers, Sums], Decided] | None = None
    per_leaf: PerLeaf | None = None
    measure_init: Callable[[Array], Mapping[str, Any]] | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    count: tuple[str, ...] = ("count",)
    whole_tree: Collection[str] | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    axes: mapped.Axes = ()
    needs_params: bool = False
    any_kind: bool = False  # it acts on integers and bools, too, and skips what is no number
    where: str

    @property
    def count_fields(self) -> list[str]:
        """The fields that count the updates."""
        return [f for f in self.state_class._fields if f in self.count]

    @functools.cached_property
    def several(self) -> Mapping[str, Any]:
        """The fields that are several trees, with the class of the named tuple that has them."""
        first = self.first.items() if isinstance(self.first, Mapping) else ()
        return {name: type(one) for name, one in first if hasattr(one, "_fields")}

    @property
    def sees_tree(self) -> bool:
        return self.measure is not None

    @property
    def fields(self) -> list[str]:
        """The fields that are trees like the parameters; the others are single numbers."""
        return [f for f in self.state_class._fields if f not in {*self.count, *self.scalars}]

    def init(self, params: Params) -> State:
        flat = gtree.flatten(params)
        facts = self._facts_of(flat, None)
        for i, p in enumerate(flat.values):
            if is_array(p) and facts[i] is not None and not self.any_kind:
                check_array(p, flat, i, self.where, "parameter")
        if jax.tree.leaves(params):
            self.hypers.check_paths(gtree.array_paths(flat))
        sums: list[Any] = [None] * len(flat.values)
        if self.measure_init is not None:
            parts = [self.measure_init(widen(p)) if is_array(p) else None for p in flat.values]
            sums = mapped.total_at_init(parts, flat, self.axes, self.where)
        own_states = self._first_states(flat, facts if self.facts is not None else sums)
        others = [None if is_array(p) else p for p in flat.values]
        pairs = list(zip(others, own_states, strict=True))
        trees = {
            name: closed(
                self.several.get(name),
                flat,
                [p if own is None else own[name] for p, own in pairs],
            )
            for name in self.fields
        }
        zero = jnp.zeros((), jnp.int32)
        state = self.state_class(
            **trees,
            **self._first_scalars(flat, sums),
            **{f: jnp.copy(zero) for f in self.count_fields},
        )
        return self.wrapped(state, zero, self.hypers.initial())

    @property
    def needs_count(self) -> bool:
        """Whether a schedule needs a count beside the rule's own state, which has none."""
        return self.hypers.scheduled and not self.count_fields

    def wrapped(self, state: State, count: Any, values: Mapping[str, Array]) -> State:
        """The rule's own state with the live values and the count that it needs beside it."""
        if not self.needs_count and not self.hypers.tunables:
            return state
        live = {name: values[name] for name in self.hypers.tunables}
        return HyperparamsState(count if self.needs_count else None, live, state)

    def _first_states(
        self, flat: gtree.Flat, beside: Sequence[Any]
    ) -> list[Mapping[str, Any] | None]:
        """`beside` is what `init` is given beside a leaf: facts, or what was measured, or None."""
        if self.first is None and not self.fields:
            return [None] * len(flat.values)
        every = self.facts is None
        return [
            self._own_state(p, x) if is_array(p) and (every or x is not None) else None
            for p, x in zip(flat.values, beside, strict=True)
        ]

    def _facts_of(self, flat: gtree.Flat, extra: Mapping[str, Any] | None) -> Sequence[Any]:
        """What `facts` says of each leaf."""
        if self.facts is None:
            return [{}] * len(flat.values)
        facts = self.facts(flat, extra)
        if len(facts) != len(flat.values):
            raise ValueError(
                f"{self.where}: facts must give a dictionary for each of the "
                f"{len(flat.values)} leaves, or None, and gives {len(facts)} answers."
            )
        return facts

    def _own_state(self, p: Any, sums: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """The arrays of one leaf, in buffers of their own: donating the state must not free `p`."""
        wide = widen(p)
        given = (wide,) if sums is None else (wide, sums)
        first = self.first_arrays(self.fields, *given)
        return jax.tree.map(lambda x: jnp.array(x) if x is wide or x is p else x, first)

    def first_arrays(self, fields: Sequence[str], *given: Any) -> dict[str, Any]:
        """What `init` makes, by the names of these fields."""
        if isinstance(self.first, Mapping):
            made: Any = {name: _made(one, given) for name, one in self.first.items()}
        else:
            made = {} if self.first is None else self.first(*given)
        if not isinstance(made, Mapping) or set(made) != set(fields):
            found = sorted(made) if isinstance(made, Mapping) else core.show(made)
            raise ValueError(
                f"{self.where}: init must give the arrays of one leaf by the names of the fields "
                f"{list(fields)} of {self.state_class.__name__}, as a function p -> {{name: array}}"
                f" or a function for each name, and gives {found}."
            )
        return dict(made)

    def _first_scalars(self, flat: gtree.Flat, sums: Sequence[Any]) -> dict[str, Array]:
        """The scalars of a new state; floating-point ones in the widest dtype of the parameters."""
        if not self.scalars:
            return {}
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
        if self.needs_params:
            need_params(leaves.params, self.where)
        outer = state if isinstance(state, HyperparamsState) else None
        inner = state if outer is None else outer.inner_state
        check_state(inner, self.state_class, self.where)
        check_wrapping(state, self.hypers.tunables, self.needs_count, self.where)
        columns = {
            f: opened(f, self.several.get(f), leaves.flat, getattr(inner, f), self.where)
            for f in self.fields
        }
        old_counts = [getattr(inner, f) for f in self.count_fields]
        # Where there are several, bias corrections go by the first and schedules by the last.
        known = old_counts or [None if outer is None else outer.count]
        live = {} if outer is None else outer.hyperparams
        step = sources.Step(known[-1], live, extra, self.where)
        facts: Sequence[Any] = leaves.aligned(self._facts_of(gtree.flatten(leaves.tree), extra))
        is_ours = gtree.is_number if self.any_kind else is_array
        active = [i for i, u in enumerate(leaves.updates) if is_ours(u) and facts[i] is not None]
        group_of, groups = self.hypers.groups(leaves.flat, active)
        old_scalars = {name: getattr(inner, name) for name in self.scalars}
        numbers = [self._numbers(group, step, known[0], old_scalars) for group in groups]
        spans = leaves.spans(self.axes, self.where)

        def call(i: int, static: Static, traced: dict[str, Array]) -> Call:
            own = {name: as_tuple(column[i]) for name, column in columns.items()}
            static_facts, array_facts = split(facts[i], self.where)
            if facts[i]:
                joined_names({n: None for n, *_ in static} | traced, facts[i], "facts", self.where)
            return Call(
                self.update,
                (*static, *static_facts, ("span", spans[i], str(spans[i]))),
                # One object for the numbers of one group, unless a leaf has its own.
                {**traced, **array_facts} if array_facts else traced,
                leaf_state(self.state_class, own),
                self.needs_params,
                leaves.gate,
                self.per_leaf,
                any_kind=self.any_kind,
            )

        def calls_with(numbers: Sequence[Mapping[str, Any]]) -> dict[int, Call]:
            programs = [split(h, self.where) for h in numbers]
            return {i: call(i, *programs[group_of[i]]) for i in active}

        calls = calls_with(numbers)
        new_scalars = dict(old_scalars)
        if self.per_tree is not None and (active or self.measure is None):
            by_path = self.hypers.varies_by_path
            shared = self._shared(step, old_scalars) if by_path else numbers[0]
            decided, changed = ask(self.per_tree, shared, self._sums(leaves, calls, spans))
            calls = calls_with([joined_names(h, decided, "per_tree", self.where) for h in numbers])
            new_scalars |= {name: _like(x, old_scalars[name]) for name, x in changed.items()}

        place: dict[int, int] = {}  # of this rule in the row of each leaf
        for i in active:
            place[i] = len(rows[i])
            rows[i].append(calls[i])

        def gated(new: Array, old: Array) -> Array:
            return new if leaves.gate is None else jnp.where(leaves.gate, new, old)

        def finish(results: Results) -> State:
            trees = {
                name: closed(
                    self.several.get(name),
                    leaves.flat,
                    [
                        as_stored(getattr(results[i][place[i]], name), old) if i in place else old
                        for i, old in enumerate(column)
                    ],
                )
                for name, column in columns.items()
            }

            scalars = {name: gated(x, old_scalars[name]) for name, x in new_scalars.items()}
            new_counts = [counted(n, leaves.gate) for n in old_counts]
            counts = dict(zip(self.count_fields, new_counts, strict=True))
            new = type(inner)(**trees, **scalars, **counts) if self.state_class._fields else inner
            if outer is None:
                return new
            new_count = None if outer.count is None else counted(outer.count, leaves.gate)
            return HyperparamsState(new_count, outer.hyperparams, new)

        return finish

    def _numbers(
        self,
        group: Mapping[str, sources.Source],
        step: sources.Step,
        count: Array | None,
        scalars: Mapping[str, Array],
    ) -> dict[str, Any]:
        """The `h` of a group of leaves, before `per_tree` adds to it."""
        h = {**self.flags, **scalars, **hyper.resolve(group, step)}
        if self.per_step is not None:
            t: Any = None if count is None else safe_increment(count)
            h = joined_names(h, ask(self.per_step, h, t), "per_step", self.where)
        return h

    def _shared(self, step: sources.Step, scalars: Mapping[str, Array]) -> dict[str, Any]:
        """The `h` of `per_tree`, where numbers that it does not read are by path."""
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
            parts.append(measured(self.measure, call.static, g, p, call.traced, call.state))
        sums: Sums = mapped.sum_over(parts, [spans[i] for i in calls])
        return sums


def _like(new: Any, old: Array) -> Array:
    """In the old dtype, and varying over the mapped axes that the old one varied over."""
    return vary(jnp.asarray(new, old.dtype), varies_over(new) | varies_over(old))


def _made(first: Any, given: tuple[Any, ...]) -> Any:
    """What a field begins with: an array, or a tuple of them, which may have names."""
    if isinstance(first, tuple):
        arrays = [one(*given) for one in first]
        return type(first)(*arrays) if hasattr(first, "_fields") else tuple(arrays)
    return first(*given)
