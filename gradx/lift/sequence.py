"""Stages one after the other, and a stage around a transformation that has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Params, State, Transform
from gradx.core import trees as gtree
from gradx.lift.passes import give, run_leaves, staged, widen
from gradx.lift.rule import Rule
from gradx.lift.stages import Leaves, Made, Results, Rows, Stage, structure
from gradx.lift.states import check_state, check_wrapping, need_params
from gradx.lowering.conditional import choose_tree, either
from gradx.lowering.varying import varies_over
from gradx.numbers.live import HyperparamsState, own_state

NO_OLD_STATE: Any = object()  # in place of an old state, where there is none yet

Pack = Callable[[Sequence[State], State], State]  # the parts' states, and the old state of all


@dataclass(frozen=True, eq=False)
class InSequence:
    """Stages one after the other at each leaf, in as few passes as they need.

    Attributes:
      stages: the parts.
      pack, unpack: make the state from the parts' states, and split it again.
      where: who asks, for errors.
      rounds: the updates end in the dtype that they began with, whatever a part makes of them.
      wide: the same, and they are in float32 or wider from the first stage to the last, also
        between passes.
      state_class: the class of the state, if the parts are rules whose states are joined in it.
      check: called by `init` with the parameters; raises for wrong ones.
      needs_params: whether `update` must be given the parameters.
      side_by_side: every stage is given the updates that the first one is given, not what that made
        of them, so that none waits for another.
    """

    stages: Sequence[Stage]
    pack: Pack
    unpack: Callable[[State], Sequence[State]]
    where: str
    rounds: bool = False
    wide: bool = False
    state_class: Any = None
    check: Callable[[Params], None] | None = None
    needs_params: bool = False
    side_by_side: bool = False
    sees_tree: bool = field(init=False)
    no_opaque: bool = field(init=False)

    def __post_init__(self) -> None:
        # Stored: a property would recurse through all chains in a chain that grew in a loop.
        sees = any(stage.sees_tree for stage in self.stages)
        object.__setattr__(self, "sees_tree", sees or (self.wide and len(self.stages) > 1))
        object.__setattr__(self, "no_opaque", all(map(has_no_opaque, self.stages)))

    def init(self, params: Params) -> State:
        if self.check is not None:
            self.check(params)
        return self.pack([stage.init(params) for stage in self.stages], NO_OLD_STATE)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        if self.needs_params:
            need_params(leaves.params, self.where)
        states = list(self.unpack(state))
        if self.wide or self.rounds:
            for row, u in zip(rows, leaves.updates, strict=True):
                if gtree.is_inexact(u):
                    number = gtree.as_number(u)
                    first = widen(number) if self.wide else number
                    give(row, Made(first, dtype=jnp.result_type(number)))
            leaves = leaves.after(rows)
        # The last one that must see finished updates begins the pass that others may share.
        seeing = [i for i, stage in enumerate(self.stages) if i and stage.sees_tree]
        seeing = [] if self.side_by_side else seeing
        done: list[State] = []
        for start, stop in zip([0, *seeing], seeing, strict=False):
            one_pass = partial(_one_pass, self.stages[start:stop], states[start:stop], extra)
            updates, new = run_leaves(one_pass, self.where, leaves, last=False)
            done += new
            leaves = replace(leaves, updates=updates)
        if seeing:
            for row, u in zip(rows, leaves.updates, strict=True):
                if not isinstance(u, optax.MaskedNode):
                    give(row, Made(u))
        last = seeing[-1] if seeing else 0
        follow = not self.side_by_side
        ends = _begin(self.stages[last:], states[last:], extra, leaves, rows, follow)
        return lambda results: self.pack([*done, *(end(results) for end in ends)], state)


def _begin(
    stages: Sequence[Stage],
    states: Sequence[State],
    extra: Mapping[str, Any],
    leaves: Leaves,
    rows: Rows,
    follow: bool = True,
) -> list[Callable[[Results], State]]:
    """The stages of one pass.

    If they follow each other, each sees the whole trees that those before it have made.
    """
    ends = []
    for stage, state in zip(stages, states, strict=True):
        ends.append(stage.begin(leaves, state, extra, rows))
        if follow and stage.sees_tree:
            leaves = leaves.after(rows)
    return ends


def _one_pass(*given: Any) -> Callable[[Results], list[State]]:
    ends = _begin(*given)
    return lambda results: [end(results) for end in ends]


# ---------------------------------------------------------------- transformations without a stage


@dataclass(frozen=True, eq=False)
class Opaque:
    """A transformation that works on whole trees. Its result begins a pass."""

    tx: optax.GradientTransformation
    where: str
    sees_tree = True

    def init(self, params: Params) -> State:
        return self.tx.init(params)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        updates, params = leaves.tree, leaves.visible_params
        if leaves.gate is None:
            made, new = core.with_extra_args(self.tx).update(updates, state, params, **extra)
        else:
            made, new = self._gated(leaves.gate, leaves, updates, state, params, extra)
        what = f"the updates of {core.show(self.tx)}"
        found = gtree.flatten_like(leaves.flat, made, what, self.where)
        for row, u, old in zip(rows, found, leaves.updates, strict=True):
            if isinstance(old, optax.MaskedNode):
                continue
            gated = leaves.gate is not None
            rounded = jnp.result_type(old) if gated and gtree.is_inexact(old) else None
            give(row, Made(u, rounded, gated))
        return lambda _: new

    def _gated(
        self,
        gate: Any,
        leaves: Leaves,
        updates: Any,
        state: State,
        params: Params | None,
        extra: Mapping[str, Any],
    ) -> tuple[Any, State]:
        """Under a real conditional, as it may be expensive.

        If the gate is closed, `leaves.lets_pass` says whether the updates pass or become zero.
        """

        shapes: list[Any] = []  # of the numbers, as soon as `accept` has been traced

        def accept() -> tuple[list[Any], State]:
            wrapped = core.with_extra_args(self.tx)
            made, new = wrapped.update(updates, state, params, **extra)
            if structure(made) != structure(updates):
                raise ValueError(
                    f"{self.where}: the inner transformation {core.show(self.tx)} must give a tree "
                    f"like that of the updates, not one of its own ({type(made).__name__})."
                )
            pairs = zip(jax.tree.leaves(made), jax.tree.leaves(updates), strict=True)
            numbers = [jnp.asarray(new) for new, old in pairs if gtree.is_number(old)]
            shapes[:] = [(x.shape, x.dtype, varies_over(x)) for x in numbers]
            return numbers, jax.tree.map(_like, new, state)  # as the next step expects it

        def reject() -> tuple[list[Any], State]:
            # The two branches must agree in dtypes; what follows in the chain rounds them.
            if not shapes:
                jax.eval_shape(accept)
            pairs = zip(map(jnp.asarray, given), shapes, strict=True)
            return [_rejected(old, shape, leaves.lets_pass) for old, shape in pairs], state

        # What is no number (a random key, a `float0` gradient) stays.
        given, with_numbers = gtree.picked(updates, gtree.is_number)
        if leaves.conditional:
            outcome = either(gate, accept, reject, (given, state, params, dict(extra)))
        else:
            outcome = choose_tree(gate, accept(), reject())
        numbers, new_state = outcome
        return with_numbers(numbers), new_state


def _like(new: Any, old: Any) -> Any:
    return jnp.asarray(new, jnp.result_type(old))


def _rejected(old: Any, made: tuple[Any, Any, frozenset[Any]], passes: bool) -> Any:
    """The update with a closed gate, in the shape and dtype of an update with an open one."""
    shape, dtype, varying = made
    if old.shape != shape:  # gradients of single examples, which cannot pass
        return jnp.zeros(shape, dtype)
    if not (passes or varies_over(old) <= varying):  # those of single devices, which are averaged
        return jnp.zeros(shape, dtype)
    return (old if passes else _zero(old)).astype(dtype)


def _zero(x: Any) -> Any:
    return jnp.where(jnp.zeros_like(x, bool), x, 0)  # keeps the sharding, as zeros_like(x) may not


def stage_of(tx: optax.GradientTransformation, where: str | None = None) -> Stage:
    """The transformation as a stage. One without a stage becomes an `Opaque` one."""
    stage = getattr(tx, "stage", None)
    return Opaque(tx, core.where() if where is None else where) if stage is None else stage


def has_no_opaque(stage: Stage) -> bool:
    """Whether it contains no `Opaque` stage."""
    inner = getattr(stage, "inner", None)
    no_opaque = getattr(stage, "no_opaque", not isinstance(stage, Opaque))
    return no_opaque and (inner is None or has_no_opaque(inner))


# ---------------------------------------------------------------- rules with one state


def joined(state_class: Any, *parts: Transform) -> Transform:
    """Lifted rules one after the other, with one state, a named tuple of all their fields."""
    where = core.where()
    rules: list[Rule] = [part.stage for part in parts]
    live = {name for rule in rules for name in rule.hypers.tunables}

    def unpack(state: State) -> list[State]:
        own = own_state(state)
        check_state(own, state_class, where)
        check_wrapping(state, live, any(rule.needs_count for rule in rules), where)
        count, values = getattr(state, "count", None), getattr(state, "hyperparams", {})
        return [
            rule.wrapped(
                rule.state_class(*(getattr(own, name) for name in rule.state_class._fields)),
                count if isinstance(state, HyperparamsState) else None,
                values if isinstance(state, HyperparamsState) else {},
            )
            for rule in rules
        ]

    def pack(states: Sequence[State], old: State) -> State:
        fields = {k: v for state in states for k, v in own_state(state)._asdict().items()}
        own = (state_class if old is NO_OLD_STATE else type(own_state(old)))(**fields)
        wrapped = [state for state in states if isinstance(state, HyperparamsState)]
        if not wrapped:
            return own
        counts = [state.count for state in wrapped if state.count is not None]
        numbers = {k: v for state in wrapped for k, v in state.hyperparams.items()}
        return HyperparamsState(counts[0] if counts else None, numbers, own)

    return staged(InSequence(rules, pack, unpack, where, wide=True, state_class=state_class), where)


def rules_of(stage: Any) -> Sequence[Rule]:
    """The lifted rules that a stage consists of; none if it is another kind of stage."""
    if isinstance(stage, InSequence) and stage.state_class is not None:
        return [rule for rule in stage.stages if isinstance(rule, Rule)]
    return [stage] * isinstance(stage, Rule)
