"""Lifted rules in sequence that are one rule to their user: their states are one named tuple."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradx import core
from gradx.core import Params, State, Transform
from gradx.core import trees as gtree
from gradx.lift.leafwise import Rule
from gradx.lift.passes import Leaves, Results, Rows, run, staged, widen
from gradx.lift.states import check_state, check_wrapping
from gradx.numbers.live import HyperparamsState, own_state


@dataclass(frozen=True, eq=False)
class Joined:
    """Rules of which each has a named tuple with some of the fields of `kind`.

    Live numbers of all of them stand in one wrapping. What the rules hand on is in float32 or
    wider, also where a pass ends.
    """

    kind: Any
    rules: Sequence[Rule]
    where: str
    sees_tree = True

    def init(self, params: Params) -> State:
        return self._closed([rule.init(params) for rule in self.rules], self.kind)

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        own = own_state(state)
        check_state(own, self.kind, self.where)
        live = {name for rule in self.rules for name in rule.hypers.tunables}
        check_wrapping(state, live, any(rule.counted for rule in self.rules), self.where)
        leaves = replace(
            leaves, updates=[widen(u) if gtree.is_inexact(u) else u for u in leaves.updates]
        )
        # The last rule that must see finished updates begins the pass that others may share.
        last = max(i for i, rule in enumerate(self.rules) if i == 0 or rule.sees_tree)
        done: list[State] = []
        for rule in self.rules[:last]:
            made, after = run(
                rule,
                self.where,
                leaves.tree,
                self._opened(rule, state),
                leaves.visible_params,
                extra,
                leaves.gate,
            )
            done.append(after)
            updates = gtree.flatten_like(leaves.flat, made, "the inner updates", self.where)
            leaves = replace(leaves, updates=updates)
        ends = [
            rule.begin(leaves, self._opened(rule, state), extra, rows) for rule in self.rules[last:]
        ]
        return lambda results: self._closed([*done, *(end(results) for end in ends)], type(own))

    def _opened(self, rule: Rule, state: State) -> State:
        own = own_state(state)
        return rule.wrapped(
            rule.state(*(getattr(own, field) for field in rule.state._fields)),
            getattr(state, "count", None),
            getattr(state, "hyperparams", {}),
        )

    def _closed(self, states: Sequence[State], kind: Any) -> State:
        fields = {k: v for state in states for k, v in own_state(state)._asdict().items()}
        live = [state for state in states if isinstance(state, HyperparamsState)]
        own = kind(**fields)
        if not live:
            return own
        counts = [state.count for state in live if state.count is not None]
        numbers = {k: v for state in live for k, v in state.hyperparams.items()}
        return HyperparamsState(counts[0] if counts else None, numbers, own)


def joined(kind: Any, *parts: Transform) -> Transform:
    """Lifted rules one after the other, with a state of the named tuple `kind`."""
    where = core.where()
    return staged(Joined(kind, [part.stage for part in parts], where), where)


def rules_of(stage: Any) -> Sequence[Rule]:
    """The lifted rules that a stage consists of; none if it is another kind of stage."""
    return stage.rules if isinstance(stage, Joined) else [stage] * isinstance(stage, Rule)
