"""A transformation and its state, taken apart together: the rules, and the arrays of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gradx import core
from gradx.core import Params, State, Transform
from gradx.lift.rule import Rule
from gradx.lift.sequence import rules_of
from gradx.lift.states import check_state
from gradx.numbers.live import is_node, own_state

T = TypeVar("T")


@dataclass(frozen=True)
class Innermost:
    """A transformation that is not made of others, with its state.

    Attributes:
      labels: those of the parts around it, from the outside in.
      tx: gradx's, or one that does not tell its rules, such as Optax's.
    """

    labels: tuple[str, ...]
    tx: Any
    state: State

    @property
    def rules(self) -> Sequence[Rule]:
        return rules_of(self.tx.stage) if isinstance(self.tx, Transform) else ()

    @property
    def remakes(self) -> bool:
        """Whether it has its numbers in the state, and can be made again with others."""
        return isinstance(self.tx, Transform) and self.tx.remake is not None

    @property
    def live(self) -> Mapping[str, Any]:
        """The live values in the state, as it keeps them.

        Raises:
          ValueError: it is the state of another rule, or has other live values.
        """
        where = self.tx.stage.where
        check_state(own_state(self.state), self.tx.stage.state_class, where)
        live: Mapping[str, Any] = self.state.hyperparams if is_node(self.state) else {}
        names = sorted({name for rule in self.rules for name in rule.hypers.tunables})
        if sorted(live) != names:
            raise ValueError(f"{where}: live are {names}; the state has {sorted(live)}.")
        return live


def innermost(
    tx: Any, state: State, params: Params | None = None, labels: tuple[str, ...] = ()
) -> Iterator[Innermost]:
    """The innermost transformations; one of `inject_hyperparams` is not taken apart."""
    if isinstance(tx, Transform) and tx.remake is None and tx.parts is not None:
        for part in tx.parts({} if params is None else params, state):
            below = (*labels, part.label) if part.label else labels
            yield from innermost(part.transform, part.state, part.params, below)
    else:
        yield Innermost(labels, tx, state)


def candidates(state: Any) -> Sequence[State]:
    """The state, and the `opt_state` in it if it is a larger one (a `TrainState`)."""
    holder = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    return [state, holder["opt_state"]] if "opt_state" in holder else [state]


def visited(who: str, tx: Any, state: Any, visit: Callable[[State], T]) -> T:
    """What `visit` makes of the state of `tx`, which may be the `opt_state` of a larger one.

    Raises:
      ValueError: there is no state of `tx`.
    """
    if not isinstance(tx, Transform):
        raise ValueError(f"{who}: tx must be a transformation of gradx, got {core.show(tx)}.")
    first: Exception | None = None
    for candidate in candidates(state):
        try:
            return visit(candidate)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            first = first or error
    raise ValueError(f"{who}: the state is not one of {core.show(tx)}: {first}") from first
