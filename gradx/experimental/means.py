"""Updates from per-example gradients: a step before, their mean, and an optimizer after.

The names are those of `optax.experimental.aggregating`. Optax may still change them, so they are
not in gradx's flat namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.tree_utils import tree_get

from gradx import core
from gradx.combinators.chain import Contract, chain, identity
from gradx.combinators.predicated import check_inner, gated_update
from gradx.core import Count, Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.lift.averages import zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.sequence import has_no_opaque, stage_of
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = [
    "AccumulateAvgUpdatesState",
    "Aggregator",
    "accumulate_avg_updates",
    "average_incrementally_updates",
    "average_per_element_updates",
    "process",
]


class Aggregator(Transform):
    """A transformation that is given the gradient of every example, with an axis over them.

    `jax.vmap(jax.grad(loss), (None, 0))(params, batch)` makes such gradients. The updates that it
    returns have the shapes of the parameters. Otherwise it is like any other `Transform`.
    """


# ---------------------------------------------------------------- before, between, after


@core.recorded
def process(
    preprocessor: Contract,
    aggregator: Contract,
    postprocessor: Contract,
    aggregator_has_aux: bool = False,
) -> Transform:
    r"""Prepares per-example gradients, aggregates them, and gives the result to an optimizer.

    .. math:: u = P(A(E(g_1, \ldots, g_B)))

    Args:
      preprocessor: \(E\), given the gradients with their axis over the examples. One that works
        leaf by leaf, such as `clip`, is not given the parameters, which have no such axis.
      aggregator: \(A\), which makes one update of them. If its state has a field `ready`, the
        postprocessor acts only in calls after which this is true; in the others the updates are 0.
      postprocessor: \(P\), an optimizer.
      aggregator_has_aux: whether the aggregator gives a pair of updates and a dictionary; the
        dictionary's entries are further arguments of the postprocessor's `update`.

    Returns:
      An `Aggregator` if the second part is one, else a `Transform`. Its state is the three states.

    Raises:
      ValueError: a part is not a transformation.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.process(
      ...     gradx.clip(1.0), aggregating.average_per_element_updates(), gradx.sgd(1.0)
      ... )
      >>> tx.update({"w": jnp.array([0.5, 7.0])}, tx.init({"w": 0.0}))[0]  # two examples
      {'w': Array(-0.75, dtype=float32)}
    """
    where = core.where()
    named = {"preprocessor": preprocessor, "aggregator": aggregator, "postprocessor": postprocessor}
    for name, part in named.items():
        check_inner(part, where, name)
    before, between, after = map(core.with_extra_args, named.values())
    by_leaf = has_no_opaque(stage_of(preprocessor))

    def init(params: Params) -> State:
        return before.init(params), between.init(params), after.init(params)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Any, State]:
        first, second, third = state
        # A rule for one array expects a parameter of its gradient's shape.
        updates, first = before.update(updates, first, None if by_leaf else params, **extra)
        new, second = between.update(updates, second, params, **extra)
        if aggregator_has_aux:
            new, aux = new
            extra = {**extra, **aux}
        ready = tree_get(second, "ready", None)
        if ready is None:
            new, third = after.update(new, third, params, **extra)
        else:
            new, third = gated_update(postprocessor, where, ready, new, third, params, extra)
        return new, (first, second, third)

    def parts(params: Params, state: State) -> list[Part]:
        return [Part(n, tx, params, s) for (n, tx), s in zip(named.items(), state, strict=True)]

    takes_examples = type(aggregator).__name__ == "Aggregator"  # Optax's too
    return (Aggregator if takes_examples else Transform)(init, update, parts=parts)


# ---------------------------------------------------------------- means


def as_axes(per_elt_axis: int | Sequence[int]) -> tuple[int, ...]:
    """The axes over the examples."""
    return (per_elt_axis,) if isinstance(per_elt_axis, int) else tuple(per_elt_axis)


def mean(g: Array, axes: tuple[int, ...]) -> Array:
    """The mean over the examples, in float32 or wider."""
    return jnp.mean(g, axes, dtype=gtree.wide(g.dtype))


def as_given(means: Updates, gradients: Updates) -> Updates:
    """The means in the gradients' dtypes."""
    return jax.tree.map(lambda m, g: m.astype(g.dtype), means, gradients)


@core.recorded
def average_per_element_updates(per_elt_axis: int | Sequence[int] = 0) -> Aggregator:
    r"""Averages per-example gradients over the examples.

    .. math:: u = \frac{1}{B} \sum_{b=1}^{B} g_b

    Args:
      per_elt_axis: the axis over the examples, or several.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.average_per_element_updates()
      >>> tx.update(jnp.array([1.0, 3.0]), tx.init(0.0))[0]
      Array(2., dtype=float32)
    """
    axes = as_axes(per_elt_axis)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        return as_given(jax.tree.map(lambda g: mean(g, axes), updates), updates), state

    return Aggregator(lambda params: optax.EmptyState(), update)


class AccumulateAvgUpdatesState(NamedTuple):
    """The state of `accumulate_avg_updates`.

    Attributes:
      micro_step: the calls since the last mean was given, int32 ().
      ready: whether the last call gave one, bool ().
      avg_grad: the mean of the updates so far, like the parameters; 0 after it was given.
    """

    micro_step: Count
    ready: Array
    avg_grad: Updates


@core.recorded
def accumulate_avg_updates(accumulation_steps: int) -> Transform:
    r"""Gives the mean of the updates of k calls in every k-th call, and 0 in the others.

    .. math:: u = \frac{1}{k} \sum_{j=1}^{k} g_j

    Use it as a part of `process`; around a whole optimizer use `MultiSteps`.

    Args:
      accumulation_steps: how many calls, \(k\), a whole number in [1, inf); 1 is `identity`.

    Raises:
      ValueError: \(k\) is not a whole number, or less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.accumulate_avg_updates(2)
      >>> state = tx.init(jnp.zeros(1))
      >>> for g in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates, state.ready)
      [0.] False
      [2.] True
    """
    k = steps("accumulation_steps", accumulation_steps, 1)
    if k == 1:
        return identity()
    return leafwise(
        _gather,
        init={"avg_grad": zeros},
        state=AccumulateAvgUpdatesState,
        flags={"k": k},
        per_tree=_place,
        scalars={"micro_step": np.int32(0), "ready": np.bool_(False)},
        count="",  # `micro_step` starts again, so it is not one that the lift keeps
    )


def _place(h: Numbers, sums: Sums) -> Decided:
    step = h.micro_step + 1
    last = step == h.k
    return {"share": 1.0 / step, "last": last}, {
        "micro_step": jnp.where(last, 0, step),
        "ready": last,
    }


def _gather(
    g: Array, s: AccumulateAvgUpdatesState, p: None, h: Numbers
) -> tuple[Array, AccumulateAvgUpdatesState]:
    mean = s.avg_grad + (g - s.avg_grad) * h.share
    return jnp.where(h.last, mean, 0.0), s._replace(avg_grad=jnp.where(h.last, 0.0, mean))


@core.recorded
def average_incrementally_updates(
    per_elt_axis: int | Sequence[int] | None, accumulation_steps: int
) -> Transform:
    r"""Gives the mean over the examples of k calls in every k-th call, and 0 in the others.

    .. math:: u = \frac{1}{k B} \sum_{j=1}^{k} \sum_{b=1}^{B} g_{j,b}

    Args:
      per_elt_axis: the axis over the examples, or several; `None` where the gradients are means
        already.
      accumulation_steps: how many calls, \(k\), a whole number in [1, inf).

    Returns:
      An `Aggregator` if there is an axis, else `accumulate_avg_updates`.

    Raises:
      ValueError: \(k\) is not a whole number, or less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.average_incrementally_updates(0, 2)
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.array(0.0)))
      >>> tx.update(jnp.array([5.0, 7.0]), state)[0]
      Array(4., dtype=float32)
    """
    if per_elt_axis is None:
        return accumulate_avg_updates(accumulation_steps)
    both = chain(
        average_per_element_updates(per_elt_axis), accumulate_avg_updates(accumulation_steps)
    )
    return Aggregator(both.init, both.update, parts=both.parts)
