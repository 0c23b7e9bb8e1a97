"""The numbers of a state, and with its transformation all that the last step used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from gradx import core
from gradx.core import Params, State, Transform
from gradx.core.calls import checked
from gradx.core.ranges import as_float
from gradx.lift.sequence import rules_of
from gradx.lift.states import check_state
from gradx.numbers.live import array_of, is_node, live_places, own_state
from gradx.numbers.paths import REQUIRED, ByPath
from gradx.numbers.sources import Array, FromCall, Scaled, Source, Step

__all__ = ["hyperparams"]


@checked
def hyperparams(state: Any, *, tx: Transform | None = None) -> dict[str, Array]:
    """The live values in a state by name; with `tx`, every number of the chain, to log them.

    Args:
      state: the state of any chain, Optax's or gradx's, alone or inside a larger tree (a whole
        `TrainState`). With `tx` it is that of the chain itself.
      tx: the transformation that has the state. Then constants and schedules are among the numbers,
        a schedule with its value in the last update (before the first one, with its first value).

    Returns:
      Name to value. A name that occurs more than once is preceded by what tells the places apart:
      ``adam/learning_rate``. The numbers of `inject_hyperparams` are among them, those that it
      schedules too. With `tx`, a number by path has a value for each pattern, as in
      ``weight_decay[bias]``. Numbers that `update` is given (`from_call`) are not in the state, and
      those of Optax's transformations are not known.

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
    if tx is None:
        return {name: array_of(value) for name, (_, value, _) in live_places(state).items()}
    if not isinstance(tx, Transform):
        raise ValueError(f"hyperparams: tx must be a transformation of gradx, got {core.show(tx)}.")
    try:
        found = list(_numbers(tx, {}, state, ()))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"hyperparams: the state is not one of {core.show(tx)}: {error}"
        ) from error
    return _named(found)


@dataclass(frozen=True)
class _Number:
    """A number, its value, and the labels of the parts that it is in, from the outside in."""

    name: str
    labels: tuple[str, ...]
    value: Array


def _named(found: list[_Number]) -> dict[str, Array]:
    """By the shortest names that tell the numbers apart, as with live values alone."""
    names = [n.name for n in found]
    keys = ["/".join([*(x for x in n.labels if not x.isdigit()), n.name]) for n in found]
    if len(set(keys)) < len(keys):  # only places in a chain tell them apart
        keys = ["/".join([*n.labels, n.name]) for n in found]
    return {
        n.name if names.count(n.name) == 1 else key: n.value
        for key, n in zip(keys, found, strict=True)
    }


def _numbers(tx: Any, params: Params, state: State, above: tuple[str, ...]) -> Iterator[_Number]:
    if not isinstance(tx, Transform):
        return
    if tx.remake is not None:
        for name, value in state.hyperparams.items():
            yield _Number(name, above, array_of(value))
    elif tx.parts is not None:
        for part in tx.parts(params, state):
            labels = (*above, part.label) if part.label else above
            yield from _numbers(part.transform, part.params, part.state, labels)
    elif rules := rules_of(tx.stage):
        own, live, beside = own_state(state), {}, None
        check_state(own, tx.stage.state_class, tx.stage.where)
        if is_node(state):
            live = {name: array_of(value) for name, value in state.hyperparams.items()}
            beside = state.count
        for rule in rules:
            count = getattr(own, rule.count_fields[-1]) if rule.count_fields else beside
            # The last update saw the count before it.
            seen = None if count is None else jnp.maximum(count - 1, 0)
            step = Step(seen, live, {}, "hyperparams")
            for name, source in rule.hypers.sources.items():
                for suffix, value in _values(source, step):
                    yield _Number(name + suffix, above, value)


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
