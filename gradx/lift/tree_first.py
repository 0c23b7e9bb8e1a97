"""Work on the whole tree, then one call for each leaf, which shares a pass with what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradx.core import Params, State
from gradx.lift.stages import Call, Leaves, Results, Rows

# (leaves, state, extra) -> the call at each leaf, or None for none, and the new state
Prepare = Callable[[Leaves, State, Mapping[str, Any]], tuple[Sequence[Call | None], State]]


@dataclass(frozen=True, eq=False)
class TreeFirst:
    """A part that sees all leaves at once and keeps a state for them all, as L-BFGS and GaLore do.

    Attributes:
      init: what the state begins with.
      prepare: does the work. It obeys `leaves.gate` itself; the calls it gives have no state.
      sees_tree: it needs the finished updates. One that looks at the parameters only does not.
    """

    init: Callable[[Params], State]
    prepare: Prepare
    sees_tree: bool = True

    def begin(
        self, leaves: Leaves, state: State, extra: Mapping[str, Any], rows: Rows
    ) -> Callable[[Results], State]:
        calls, new = self.prepare(leaves, state, extra)
        for row, call in zip(rows, calls, strict=True):
            if call is not None:
                row.append(call)
        return lambda _: new
