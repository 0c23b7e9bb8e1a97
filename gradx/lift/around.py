"""A stage around an inner stage: hides leaves from it, or compares its input with its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradx.core import Params, State
from gradx.core import trees as gtree
from gradx.lift.stages import Call, Leaves, Made, Results, Rows, Stage

Given = tuple[Leaves, State, Mapping[str, Any]]


def _as_it_is(leaves: Leaves, state: State, extra: Mapping[str, Any]) -> Given:
    return leaves, state, extra


def _new(new: State, old: State) -> State:
    return new


@dataclass(frozen=True, eq=False)
class Around:
    """Another stage, given something else, or followed by a call that compares.

    Attributes:
      inner: the stage inside.
      init: `params -> state`.
      enter: `(leaves, state, extra)` of this stage to those of the stage inside.
      leave: `(new state of the stage inside, old state) -> new state`.
      judge: a call after those of the stage inside; ``h.before`` is the update before these.
    """

    inner: Stage
    init: Callable[[Params], State]
    enter: Callable[..., Given] = _as_it_is
    leave: Callable[[State, State], State] = _new
    judge: Call | None = None

    @property
    def sees_tree(self) -> bool:
        return self.inner.sees_tree

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        starts = [sum(isinstance(one, Call) for one in row) for row in rows]
        end = self.inner.begin(*self.enter(leaves, state, extra), rows)
        if self.judge is not None:
            for row, start, u in zip(rows, starts, leaves.updates, strict=True):
                if not gtree.is_inexact(u):
                    continue
                # Then the row begins with what the stage inside has made, not with `u`.
                if self.sees_tree and row and isinstance(row[0], Made):
                    before = {**self.judge.traced, "before": gtree.as_number(u)}
                    row.append(self.judge._replace(traced=before))
                else:
                    row.append(self.judge._replace(since=start))
        return lambda results: self.leave(end(results), state)
