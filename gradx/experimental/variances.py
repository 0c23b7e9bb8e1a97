"""The mean and the variance of per-example gradients, tracked over steps.

The names are those of `optax.experimental.aggregating`. Optax may still change them, so they are
not in gradx's flat namespace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.tree_utils import tree_get

from gradx import core
from gradx.combinators.chain import Contract, chain, identity
from gradx.core import Count, Params, State, Transform, Updates, ranges
from gradx.core import trees as gtree
from gradx.core.updates import safe_increment
from gradx.experimental.means import Aggregator, as_axes, as_given, mean, process
from gradx.lift.states import check_state
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = [
    "PerElementMeanAndSumSqDiffGradsState",
    "PerElementMeanAndVarianceEMAState",
    "add_mean_variance_to_opt",
    "get_batch_size_from_per_elt_updates",
    "get_per_element_mean_and_sum_sq_diff_grads",
    "get_unbiased_mean_and_variance_ema",
    "track_per_element_mean_and_variance_with_ema",
]


def get_batch_size_from_per_elt_updates(
    per_elt_updates: Updates, per_elt_axis: int | Sequence[int]
) -> int:
    """Counts the examples in per-example gradients.

    Args:
      per_elt_updates: a tree of gradients with axes over the examples.
      per_elt_axis: the axis over the examples, or several.

    Raises:
      ValueError: two leaves have different numbers, or there is no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> aggregating.get_batch_size_from_per_elt_updates({"w": jnp.ones((8, 3))}, 0)
      8
    """
    axes = as_axes(per_elt_axis)
    flat = gtree.flatten(per_elt_updates)
    sizes = {
        path: math.prod(g.shape[axis] for axis in axes)
        for path, g in zip(flat.paths, flat.values, strict=True)
        if g is not None
    }
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "get_batch_size_from_per_elt_updates: every leaf must have the same number of examples "
            f"along per_elt_axis={per_elt_axis!r}, got {sizes}."
        )
    return next(iter(sizes.values()))


class PerElementMeanAndSumSqDiffGradsState(NamedTuple):
    """The state of `get_per_element_mean_and_sum_sq_diff_grads` over several calls.

    Attributes:
      micro_step: the calls since the last mean was given, int32 ().
      ready: whether the last call gave one, bool ().
      mean_grads: the mean of the gradients so far, like the parameters.
      sum_sq_diff_grads: the sum of their squared distances from it, like the parameters.
    """

    micro_step: Count
    ready: Array
    mean_grads: Updates
    sum_sq_diff_grads: Updates


@core.recorded
def get_per_element_mean_and_sum_sq_diff_grads(
    per_elt_axis: int | Sequence[int] = 0, accumulation_steps: int = 1
) -> Aggregator:
    r"""Gives the mean over the examples, and their squared distances from it, for `process`.

    .. math:: u = \frac{1}{n} \sum_{i=1}^{n} g_i, \qquad s = \sum_{i=1}^{n} |g_i - u|^2

    Its `update` gives `(u, {"sum_sq_diff_grads": s, "sample_size": n})`, as `aggregator_has_aux`
    wants it; in calls that only accumulate, zeros. Sums of calls are merged by their means, so
    nothing large cancels.

    Args:
      per_elt_axis: the axis over the examples, or several.
      accumulation_steps: how many calls to accumulate, k, a whole number in [1, inf).

    Raises:
      ValueError: k is not a whole number, or less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.get_per_element_mean_and_sum_sq_diff_grads()
      >>> tx.update(jnp.array([1.0, 3.0]), tx.init(0.0))[0]
      (Array(2., dtype=float32), {'sample_size': 2, 'sum_sq_diff_grads': Array(2., dtype=float32)})
    """
    where, axes = core.where(), as_axes(per_elt_axis)
    k = steps("accumulation_steps", accumulation_steps, 1)

    def init(params: Params) -> State:
        if k == 1:
            return optax.EmptyState()
        return PerElementMeanAndSumSqDiffGradsState(
            jnp.zeros((), jnp.int32), jnp.zeros((), bool), *_zeros(params)
        )

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Any, State]:
        size = get_batch_size_from_per_elt_updates(updates, axes)
        center = jax.tree.map(lambda g: mean(g, axes), updates)
        squares = jax.tree.map(lambda g, m: _squares(g, m, axes), updates, center)
        if k == 1:
            return (as_given(center, updates), _aux(size, squares)), state
        check_state(state, PerElementMeanAndSumSqDiffGradsState, where)
        step = state.micro_step + 1
        apart = jax.tree.map(jnp.subtract, center, state.mean_grads)
        center = jax.tree.map(lambda m, d: m + d / step, state.mean_grads, apart)
        between = state.micro_step * size / step  # the harmonic weight of the two means' distance
        squares = jax.tree.map(
            lambda old, new, d: old + new + between * gtree.abs_sq(d),
            *(state.sum_sq_diff_grads, squares, apart),
        )
        ready = step == k
        result = as_given(center, updates), _aux(size * step, squares)
        new = PerElementMeanAndSumSqDiffGradsState(step, ready, center, squares)
        return _if(ready, result), _if(~ready, new)._replace(ready=ready)

    return Aggregator(init, update)


class PerElementMeanAndVarianceEMAState(NamedTuple):
    """The state of `track_per_element_mean_and_variance_with_ema`.

    Attributes:
      count: the updates done so far, int32 ().
      ema_decay: how much of the averages is kept each step, float32 ().
      mean_grads_ema: the average of the updates, like the parameters; begins at 0.
      variance_grads_ema: the average of the examples' variances, likewise.
    """

    count: Count
    ema_decay: Array
    mean_grads_ema: Updates
    variance_grads_ema: Updates


@core.recorded
def track_per_element_mean_and_variance_with_ema(ema_decay: float | Array = 0.9) -> Transform:
    r"""Tracks exponential moving averages of the updates and of the examples' variances.

    .. math:: \bar u \leftarrow d\, \bar u + (1 - d)\, u, \qquad
              \bar v \leftarrow d\, \bar v + (1 - d)\, \frac{s}{n - 1}

    The updates pass unchanged. `update` needs `sum_sq_diff_grads`, \(s\), and `sample_size`, \(n\),
    which `process` hands on from `get_per_element_mean_and_sum_sq_diff_grads`.
    `get_unbiased_mean_and_variance_ema` reads the averages.

    Args:
      ema_decay: how much of the averages is kept each step, \(d\) in [0, 1).

    Raises:
      ValueError: `ema_decay` is out of its range; in `update`, there is no \(s\) or \(n\).

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.track_per_element_mean_and_variance_with_ema(0.5)
      >>> found = {"sum_sq_diff_grads": jnp.array(6.0), "sample_size": 4}
      >>> _, state = tx.update(jnp.array(2.0), tx.init(jnp.array(0.0)), **found)
      >>> aggregating.get_unbiased_mean_and_variance_ema(state)
      (Array(2., dtype=float32), Array(2., dtype=float32))
    """
    where = core.where()
    if isinstance(ema_decay, int | float):
        ranges.check_number(ema_decay, "[0, 1)", "ema_decay", where)

    def init(params: Params) -> State:
        decay = jnp.asarray(ema_decay, jnp.float32)
        return PerElementMeanAndVarianceEMAState(jnp.zeros((), jnp.int32), decay, *_zeros(params))

    def update(
        updates: Updates,
        state: State,
        params: Params | None = None,
        *,
        sum_sq_diff_grads: Any = None,
        sample_size: Any = None,
        **extra: Any,
    ) -> tuple[Updates, State]:
        check_state(state, PerElementMeanAndVarianceEMAState, where)
        if sum_sq_diff_grads is None or sample_size is None:
            raise ValueError(
                f"{where}: update needs sum_sq_diff_grads=… and sample_size=…; in process(…, "
                "aggregator_has_aux=True), get_per_element_mean_and_sum_sq_diff_grads gives both."
            )

        def mix(new: Array, old: Array) -> Array:
            return (1.0 - ema_decay) * new + ema_decay * old

        variance = jax.tree.map(lambda s: s / (sample_size - 1), sum_sq_diff_grads)
        return updates, state._replace(
            count=safe_increment(state.count),
            mean_grads_ema=jax.tree.map(mix, updates, state.mean_grads_ema),
            variance_grads_ema=jax.tree.map(mix, variance, state.variance_grads_ema),
        )

    return Transform(init, update)


def get_unbiased_mean_and_variance_ema(state: State) -> tuple[Updates, Updates]:
    """The averages of `track_per_element_mean_and_variance_with_ema`, with bias correction.

    Args:
      state: the state of an optimizer that has it as a part, after its first update.

    Raises:
      ValueError: there is no such part.
      KeyError: there are several.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.track_per_element_mean_and_variance_with_ema(0.9)
      >>> found = {"sum_sq_diff_grads": jnp.array(6.0), "sample_size": 4}
      >>> _, state = tx.update(jnp.array(2.0), tx.init(jnp.array(0.0)), **found)
      >>> aggregating.get_unbiased_mean_and_variance_ema((state,))
      (Array(2., dtype=float32), Array(2., dtype=float32))
    """
    found = tree_get(state, "PerElementMeanAndVarianceEMAState", None)
    if found is None:
        raise ValueError(
            "get_unbiased_mean_and_variance_ema: the state must be one of an optimizer with "
            "track_per_element_mean_and_variance_with_ema; add_mean_variance_to_opt makes one."
        )
    weight = -jnp.expm1(found.count * jnp.log(found.ema_decay))  # 1 - d^t
    averages = found.mean_grads_ema, found.variance_grads_ema
    unbiased: tuple[Updates, Updates] = jax.tree.map(lambda x: x / weight, averages)
    return unbiased


@core.recorded
def add_mean_variance_to_opt(
    opt: Contract,
    ema_decay: float | Array = 0.9,
    per_elt_axis: int | Sequence[int] = 0,
    accumulation_steps: int = 1,
) -> Transform:
    r"""Wraps an optimizer, so that it takes per-example gradients and tracks their variance.

    .. math:: u = T\Big(\frac{1}{n} \sum_{i=1}^{n} g_i\Big)

    Args:
      opt: \(T\), given the mean over the examples.
      ema_decay: how much of the averages is kept each step, in [0, 1).
      per_elt_axis: the axis over the examples, or several.
      accumulation_steps: how many calls make one step, a whole number in [1, inf).

    Raises:
      ValueError: an argument is out of its range, or `opt` is not a transformation.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> from gradx.experimental import aggregating
      >>> tx = aggregating.add_mean_variance_to_opt(gradx.sgd(1.0))
      >>> updates, state = tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.array(0.0)))
      >>> updates, aggregating.get_unbiased_mean_and_variance_ema(state)
      (Array(-2., dtype=float32), (Array(2., dtype=float32), Array(2., dtype=float32)))
    """
    return process(
        identity(),
        get_per_element_mean_and_sum_sq_diff_grads(per_elt_axis, accumulation_steps),
        chain(track_per_element_mean_and_variance_with_ema(ema_decay), opt),
        aggregator_has_aux=True,
    )


# ---------------------------------------------------------------- on arrays and trees


def _aux(size: Any, squares: Updates) -> dict[str, Any]:
    return {"sample_size": size, "sum_sq_diff_grads": squares}


def _squares(g: Array, center: Array, axes: tuple[int, ...]) -> Array:
    """The sum of the squared distances from a center, real, in float32 or wider."""
    return jnp.sum(gtree.abs_sq(g - jnp.expand_dims(center, axes)), axes)


def _zeros(params: Params) -> tuple[Updates, Updates]:
    """A mean and a variance of zero, in float32 or wider."""
    mean = jax.tree.map(lambda p: jnp.zeros_like(p, gtree.wide(jnp.result_type(p))), params)
    return mean, jax.tree.map(lambda m: jnp.zeros_like(m.real), mean)


def _if(condition: Array, tree: Any) -> Any:
    """The tree where the condition holds, else zeros."""
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)
