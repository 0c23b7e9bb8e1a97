"""What a pass is made of: the calls at each leaf, and the stages that add them.

A transformation that works leaf by leaf is a `Stage`: for a step it says which calls are to be made
at which leaf. Combinations of stages are stages, so a chain is collected first and then run in one
jitted call a leaf (`passes`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import optax

from gradx import core
from gradx.core import Params, State, Updates
from gradx.core import trees as gtree
from gradx.lift import mapped
from gradx.numbers.namespace import Static
from gradx.numbers.sources import Array

T = TypeVar("T")

LeafState = Any  # the algorithm's state class with the arrays of one leaf: s.mu, s.nu
Numbers = Any  # a namespace: h.b1 is a float where it is constant, else a scalar array
Update = Callable[[Array, Any, Any, Numbers], tuple[Array, Any]]  # (g, s, p, h) -> (u, s)
PerLeaf = Callable[[Array, LeafState, Any, Numbers], Mapping[str, Any]]
Sums = Mapping[str, Array]  # what a rule measures, added up over the leaves
Decided = tuple[Mapping[str, Any], Mapping[str, Any]]  # numbers for `h`; new scalars of the state


class Call(NamedTuple):
    """One rule at one leaf: which, with which numbers, and the leaf's part of the state."""

    rule: Update
    static: Static  # numbers and flags known now: part of the program
    traced: dict[str, Array]  # numbers known only in the run
    state: LeafState
    needs_params: bool
    gate: Array | None = None  # False: the state stays as it is, and the update means nothing
    per_leaf: PerLeaf | None = None
    since: int | None = None  # the index of a call: `h.before` is the update that it was given
    any_kind: bool = False  # it works on integers and bools as well


class Made(NamedTuple):
    """At the head of a row: the update that the calls after it begin with.

    Attributes:
      update: an array, or any leaf that is not optimized.
      dtype: the dtype that the end of the row rounds to; None for that of `update`.
      gated: the update already obeys the gate.
    """

    update: Any
    dtype: Any = None
    gated: bool = False


Row = list[Call | Made]
Rows = list[Row]
Results = list[tuple[LeafState, ...]]


@dataclass(frozen=True)
class Leaves:
    """What a step is given: the updates by leaf, and the parameters where there are any."""

    flat: gtree.Flat
    updates: list[Any]  # None or MaskedNode: not for this stage
    params: list[Any] | None
    gate: Array | None = None  # for the calls and for all else in the state
    conditional: bool = True  # what cannot be gated in place may run under `lax.cond`
    lets_pass: bool = False  # with a closed gate updates pass as they are, instead of becoming zero

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

    def after(self, rows: Rows) -> Leaves:
        """The leaves with the updates that are made already, for the stages that come next."""
        if not any(row and isinstance(row[0], Made) for row in rows):
            return self
        made = [
            row[0].update
            if row and isinstance(row[0], Made) and not isinstance(u, optax.MaskedNode)
            else u
            for row, u in zip(rows, self.updates, strict=True)
        ]
        return replace(self, updates=made)

    def aligned(self, found: Iterable[T]) -> list[T | None]:
        """The results for each leaf of `tree`, and None for the leaves that are left out."""
        rest = iter(found)
        return [None if isinstance(u, optax.MaskedNode) else next(rest) for u in self.updates]

    def spans(self, axes: mapped.Axes, where: str) -> Sequence[mapped.Span | None]:
        """How each leaf lies on the mapped axes that a rule was told of: its ``h.span``."""
        if not axes:
            return [None] * len(self.updates)
        params = None if self.params is None else gtree.flatten(self.visible_params).values
        numbers = self.flat.unflatten([gtree.as_number(u) for u in self.updates])
        return self.aligned(mapped.spans(axes, gtree.flatten(numbers), params, where))

    def only(self, flags: Sequence[bool]) -> Leaves:
        """Hides the leaves whose flag is False; there is one for each leaf of `tree`."""
        flag = iter(flags)
        hidden = optax.MaskedNode()
        kept = [
            u if not isinstance(u, optax.MaskedNode) and next(flag) else hidden
            for u in self.updates
        ]
        return replace(self, updates=kept)


class Stage(Protocol):
    """A transformation as a pass sees it. Stages next to each other share a pass.

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
        """Adds to the row of each leaf it acts on; returns a function that makes the new state.

        Most add a `Call`. A stage that has already calculated the update (`Opaque`, `MatrixRule`)
        puts it at the head of the row, as `Made`.

        With a closed `leaves.gate` the new state must be the old one; calls do this for their leaf.
        """
        ...


def is_array(x: Any) -> bool:
    return x is not None and not isinstance(x, optax.MaskedNode)


# ---------------------------------------------------------------- the state of one leaf


def leaf_state(kind: Any, arrays: Mapping[str, Any]) -> LeafState:
    """The state of one leaf, with these arrays. Other fields, such as a count, are ()."""
    return kind(**{**dict.fromkeys(kind._fields, ()), **arrays})


NO_STATE = optax.EmptyState()

FORM = "def update(g, s, p, h): …; return u, s._replace(mu=mu)"


def check_old_form(where: str, *functions: Any) -> None:
    """Raises ValueError for functions that want the state as a tuple, as rules once did."""
    for function in functions:
        bare = getattr(function, "func", function)  # of a partial
        code = getattr(bare, "__code__", None)
        if code is not None and "slots" in code.co_varnames[: code.co_argcount]:
            raise ValueError(
                f"{where}: the function {core.show(function)} of a rule takes slots; now it is "
                f"given its state by name and gives it back by name: {FORM}."
            )


def check_form(rule: Any, new: LeafState, old: LeafState) -> None:
    """Raises ValueError for a new state of a leaf that is not like the old one."""
    if structure(new) != structure(old):
        fields = [name for name, x in old._asdict().items() if jax.tree.leaves(x)]
        raise ValueError(
            f"the function {core.show(rule)} of a rule must give back a {type(old).__name__} like "
            f"the one it was given, with arrays for {fields}, got {core.show(new)}. A rule gets "
            f"its state by name and gives it back by name: {FORM}."
        )


def structure(tree: Any) -> Any:
    """`jax.tree.structure`, typed so that two of them can be compared."""
    return jax.tree.structure(tree)
