"""The numbers of a state, and with its transformation all that the last step used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from gradx.core import State, Transform
from gradx.core.calls import checked
from gradx.core.ranges import as_float
from gradx.inspection.walk import Innermost, innermost, visited
from gradx.numbers.live import array_of, is_node, live_values, own_state, shortest_names
from gradx.numbers.paths import REQUIRED, ByPath
from gradx.numbers.sources import Array, FromCall, Scaled, Source, Step

__all__ = ["hyperparams"]


@checked
def hyperparams(state: Any, *, tx: Transform | None = None) -> dict[str, Array]:
    """The live values in a state by name; with `tx`, every number of the chain, to log them.

    Args:
      state: the state of any chain, Optax's or gradx's, alone or inside a larger tree (a whole
        `TrainState`).
      tx: the transformation that has the state. Then constants and schedules are among the numbers,
        a schedule with its value in the last update (before the first one, with its first value).

    Returns:
      Name to value. A name that occurs more than once is preceded by what tells the places apart:
      ``adam/learning_rate``. The numbers of `inject_hyperparams` are among them, those that it
      schedules too. With `tx`, a number by path has a value for each pattern, as in
      ``weight_decay[bias]``. Numbers that `update` is given (`from_call`) are not in the state, and
      of those of Optax's transformations only the live ones are known.

    Raises:
      ValueError: the state is not that of `tx`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.partition(
      ...     {"a": gradx.sgd(gradx.tunable(0.1)), "b": gradx.sgd(gradx.tunable(0.2))},
      ...     gradx.by_path({"w": "a"}, default="b"),
      ... )
      >>> list(gradx.hyperparams(tx.init({"w": jnp.ones(2), "v": jnp.ones(2)})))
      ['a/learning_rate', 'b/learning_rate']

      The learning rate of a schedule, beside the constants:

      >>> tx = gradx.sgd(gradx.linear_schedule(1.0, 0.0, 4), momentum=0.5)
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     _, state = tx.update(jnp.ones(1), state)
      >>> {name: float(x) for name, x in gradx.hyperparams(state, tx=tx).items()}
      {'decay': 0.5, 'learning_rate': 0.5}
    """
    found = numbers(state, tx)
    names = shortest_names([steps for steps, _ in found])
    return dict(zip(names, (value for _, value in found), strict=True))


def numbers(state: Any, tx: Transform | None) -> list[tuple[list[str], Array]]:
    """What `hyperparams` tells: what tells the place of each number and its name, and its value."""
    if tx is None:
        return [(steps, array_of(value)) for steps, _, value, _ in live_values(state)]

    def visit(state: State) -> list[tuple[list[str], Array]]:
        return [found for part in innermost(tx, state) for found in _numbers(part)]

    return visited("hyperparams", tx, state, visit)


def _numbers(part: Innermost) -> Iterator[tuple[list[str], Array]]:
    if part.remakes:
        for name, value in part.state.hyperparams.items():
            yield [*part.labels, name], array_of(value)
        return
    if not part.rules:  # it tells only what is live
        for steps, _, value, _ in live_values(part.state):
            yield [*part.labels, *steps], array_of(value)
        return
    own, live = own_state(part.state), {name: array_of(v) for name, v in part.live.items()}
    beside = part.state.count if is_node(part.state) else None
    for rule in part.rules:
        count = getattr(own, rule.count_fields[-1]) if rule.count_fields else beside
        # The last update saw the count before it.
        seen = None if count is None else jnp.maximum(count - 1, 0)
        step = Step(seen, live, {}, "hyperparams")
        for name, source in rule.hypers.sources.items():
            for suffix, value in _values(source, step):
                yield [*part.labels, name + suffix], value


def _values(source: Source, step: Step) -> Iterator[tuple[str, Array]]:
    """The value of a source, or one for each of its patterns; none if only the call knows it."""
    match source:
        case ByPath():
            for pattern, value in (*source.rules.items(), ("default", source.default)):
                if value is not REQUIRED:
                    for suffix, number in _values(value, step):
                        yield f"[{pattern}]{suffix}", number
        case Scaled():
            for factors in itertools.product(*(list(_values(f, step)) for f in source.factors)):
                suffix = "".join(suffix for suffix, _ in factors)
                yield suffix, as_float(math.prod(number for _, number in factors))
        case FromCall():
            return
        case _:
            yield "", as_float(source.value(step))
