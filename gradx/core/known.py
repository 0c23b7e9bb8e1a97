"""States that a tool looks for in larger states, by their class, wherever they are.

A module that defines a state adds its class to `METRICS`, if it has numbers for a logger, or to
`AVERAGES`, if it has an average of the parameters. `metrics` and `eval_params` then find it in any
chain, also in Optax's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from gradx.core.trees import key_name

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Found(NamedTuple, Generic[T]):
    """A known state inside a larger one.

    Attributes:
      steps: the way to it: the names of fields, keys and positions, as strings.
      state: the state.
      known: what its class is known for.
    """

    steps: tuple[str, ...]
    state: Any
    known: T


class Known(Generic[T]):
    """Classes of states, and what each of them is known for.

    A class is recognised by its name and its fields. So one of Optax's is found, too, and one in
    which Flax NNX keeps the arrays in variables.
    """

    def __init__(self) -> None:
        self._classes: dict[tuple[str, tuple[str, ...]], T] = {}

    def add(self, state_class: Any, known: T) -> None:
        self._classes[state_class.__name__, state_class._fields] = known

    def of(self, state_class: Any) -> Callable[[F], F]:
        """`add` as a decorator, where a class is known for a function."""

        def decorate(function: F) -> F:
            known: Any = function
            self.add(state_class, known)
            return function

        return decorate

    def get(self, state: Any) -> T | None:
        fields = getattr(state, "_fields", None)
        return None if fields is None else self._classes.get((type(state).__name__, fields))

    def find(self, state: Any) -> list[Found[T]]:
        """All known states, in order; one that is around another one comes before it."""
        return list(self._find(state, ()))

    def _find(self, state: Any, steps: tuple[str, ...]) -> Iterator[Found[T]]:
        found, _ = jax.tree_util.tree_flatten_with_path(
            state, is_leaf=lambda x: self.get(x) is not None
        )
        for path, x in found:
            known = self.get(x)
            if known is None:
                continue
            here = (*steps, *map(key_name, path))
            yield Found(here, type(x)(*map(_bare, x)), known)
            for name in x._fields:
                yield from self._find(getattr(x, name), (*here, name))


def _bare(x: Any) -> Any:
    """The array of a variable of Flax NNX, which cannot be calculated with; all else stays."""
    leaves = jax.tree.leaves(x)
    return leaves[0] if len(leaves) == 1 and hasattr(x, "get_raw_value") else x


class Measured(NamedTuple):
    """What a function of the user measured: of any shape, and scalars among it are metrics."""

    tree: Any


METRICS: Known[Callable[[Any], Mapping[str, Any]]] = Known()
"""What a state tells, by name: a function of the state (see `metrics`). Each is a scalar, but what
is `Measured` may be any tree."""


class Averaged(NamedTuple):
    """What a state with an average of the parameters is known for.

    Attributes:
      name: what the user calls it: that of the transformation.
      trees: `state -> trees`, the parts of it that are like the parameters.
      at: `(p, arrays, state) -> x`, one parameter as it is evaluated; `arrays` are those of `trees`
        that belong to it.
      first: it tells where the parameters really are, before all averages.
    """

    name: str
    trees: Callable[[Any], Sequence[Any]]
    at: Callable[[Any, Sequence[Any], Any], Any]
    first: bool = False


AVERAGES: Known[Averaged] = Known()
"""Which parameters to evaluate, for states that know it (see `eval_params`)."""
