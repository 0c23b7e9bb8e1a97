"""The momentum of an optimizer: an average of gradients, and perhaps a slow one beside it.

The slow one is AdEMAMix's. It goes over thousands of steps, and is so small that it needs a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from gradx import core
from gradx.core import Transform, Updates
from gradx.lift.averages import average, storage, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers, Update
from gradx.numbers.sources import Array, Hyper

__all__ = ["Averages"]


class Averages(NamedTuple):
    """Two averages in the place of one, in the state of an optimizer that has `b3`.

    Attributes:
      fast: the average of gradients, like the parameters.
      slow: the average over thousands of steps, like the parameters.
    """

    fast: Updates
    slow: Updates


def slow_average(b3: Hyper | None, alpha: Hyper | None) -> Mapping[str, Hyper]:
    """The numbers of the slow average; none, if it has no decay.

    Raises:
      ValueError: there is a weight for it, and no decay.
    """
    if b3 is not None:
        return {"b3": b3, "alpha": 5.0 if alpha is None else alpha}
    if alpha is not None:
        raise ValueError(
            f"{core.where()}: alpha is the weight of the slow average, whose decay is b3; got "
            f"{core.show(alpha)} and no b3. Give it, such as b3=0.9999, or leave alpha out."
        )
    return {}


def kept(mu_dtype: Any, slow: Mapping[str, Hyper]) -> Any:
    """The dtype of the average in the state, or those of both."""
    dtype = storage("mu_dtype", mu_dtype)
    return Averages(dtype, dtype) if slow else dtype


def averaging(
    rule: Update,
    state: Any,
    number: Mapping[str, Hyper],
    b3: Hyper | None,
    alpha: Hyper | None,
    mu_dtype: Any,
    per_step: Callable[[Numbers, Array], Mapping[str, Any]],
    flags: Mapping[str, Any] | None = None,
) -> Transform:
    """A rule whose state is the averages; `per_step` makes `b1` of the rule's one number."""
    slow = slow_average(b3, alpha)
    first = partial(zeros, dtype=storage("mu_dtype", mu_dtype))
    return leafwise(
        rule,
        init={"mu": Averages(first, first) if slow else first},
        state=state,
        hypers={**number, **slow},
        per_step=per_step,
        flags=flags,
    )


def remembered(mu: Any, g: Array, h: Numbers) -> Any:
    """The average, or both of them, after one more gradient."""
    if not isinstance(mu, Averages):
        return average(mu, g, h.b1)
    return Averages(average(mu.fast, g, h.b1), average(mu.slow, g, h.b3))


def momentum_of(mu: Any, h: Numbers, correct: Any = 1.0) -> Array:
    """The momentum that they make; `correct` is the bias correction, of the fast one alone."""
    if not isinstance(mu, Averages):
        return correct * mu
    return correct * mu.fast + h.alpha * mu.slow
