"""Differential privacy: bounds the gradients of single examples, sums them up, and adds noise."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain, identity
from gradx.core import Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.calls import renamed
from gradx.core.meaning import Number
from gradx.lift import mapped
from gradx.lift.passes import check_array
from gradx.lift.replicas import Combining
from gradx.lift.states import check_state
from gradx.lowering.varying import varies_over
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.moments import trace
from gradx.pieces.per_example import examples, factors, weighted_sum
from gradx.pieces.preprocessing import as_key, key_or_zero
from gradx.pieces.scaling import descend

__all__ = [
    "DifferentiallyPrivateAggregateState",
    "differentially_private_aggregate",
    "dpsgd",
]


class DifferentiallyPrivateAggregateState(NamedTuple):
    """The state of `differentially_private_aggregate`.

    Attributes:
      rng_key: the random key of the next update, raw (2,) or, if a typed one was given, ().
    """

    rng_key: Array


@core.recorded
@renamed(seed="key")
def differentially_private_aggregate(
    l2_norm_clip: Annotated[float, Number("(0, inf]", "c")],
    noise_multiplier: Annotated[float, Number("[0, inf)", r"\sigma")],
    key: Array | int | None = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Turns gradients of single examples into one gradient that tells little about any of them.

    .. math:: u = \frac{1}{B} \left(\sum_{b=1}^{B} g_b \min(1, c / \lVert g_b \rVert)
              + \mathcal N(0, \sigma^2 c^2)\right)

    Place it first in a chain. It takes updates with a first axis over the examples, as
    `jax.vmap(jax.grad(loss), (None, 0))` makes them, and returns updates like the parameters.
    Averaging gradients before it, as in an accumulation over steps, takes the privacy away.

    Args:
      l2_norm_clip: the bound of each example's norm over all leaves.
      noise_multiplier: the noise's standard deviation in units of the bound.
      key: See `add_noise`. Without it the seed is 0, with a warning, since noise that anybody can
        subtract gives no privacy.
      axis_name: the mapped axis over which the examples are sharded, inside `shard_map` or `pmap`.
        \(B\) is then their number on all devices, and the noise is added once. Every device has to
        have the same key. In `shard_map` with its types, differentiate with respect to
        ``jax.lax.pcast(params, axis, to="varying")``; otherwise JAX adds up examples before they
        are bounded.

    Raises:
      ValueError: there is noise without a bound; in `update`, the gradients have no first axis,
        different ones, or not the parameters' shapes after it.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> loss = lambda params, x: (params["w"] - x) ** 2
      >>> params = {"w": jnp.array(1.0)}
      >>> grads = jax.vmap(jax.grad(loss), (None, 0))(params, jnp.array([0.0, 0.5]))
      >>> tx = gradx.differentially_private_aggregate(1.5, 0.0, key=0)
      >>> tx.update(grads, tx.init(params), params)[0]
      {'w': Array(1.25, dtype=float32)}

    Reference: Abadi et al., *Deep learning with differential privacy*,
    https://arxiv.org/abs/1607.00133, Algorithm 1. Like Optax it divides by the number of examples
    that are there, not by the expected number of a random sample. The same key gives the same
    noise as in Optax, except for complex numbers: there each part of Optax's noise has half the
    variance that it needs.
    """
    where = core.where()
    first_key = key_or_zero(key)
    over = mapped.axes(axis_name)
    if any(axis.said is not None for axis in over):
        raise ValueError(
            f"{where}: axis_name must be the name of the mapped axis that the examples are sharded "
            f"over, or a tuple of names, got {core.show(axis_name)}; no leaf may be cut along it."
        )
    # Without noise no deviation is calculated: 0 times an infinite bound would be NaN.
    silent = isinstance(noise_multiplier, float) and noise_multiplier == 0.0
    deviation = 0.0 if silent else l2_norm_clip * noise_multiplier
    if isinstance(deviation, float) and math.isinf(deviation):
        raise ValueError(
            f"{where}: l2_norm_clip must be finite if there is noise, since the deviation of noise "
            f"is l2_norm_clip * noise_multiplier, got {core.show(l2_norm_clip)}."
        )

    def init(params: Params) -> DifferentiallyPrivateAggregateState:
        return DifferentiallyPrivateAggregateState(as_key(first_key))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DifferentiallyPrivateAggregateState]:
        check_state(state, DifferentiallyPrivateAggregateState, where)
        flat, size = examples(updates, where)
        present = [i for i, g in enumerate(flat.values) if g is not None]
        _check_shapes(flat, present, params, where)
        # Split as Optax does, so that the same key gives the same noise.
        rng_key, *keys = jax.random.split(state.rng_key, len(present) + 1)
        if not present:
            return updates, DifferentiallyPrivateAggregateState(rng_key)
        weights = factors([flat.values[i] for i in present], l2_norm_clip)
        sums = {i: weighted_sum(weights, flat.values[i]) for i in present}
        count: Any = size
        if over:
            axes = _devices(over, flat, params, where)
            sums, count = mapped.over_all(jax.lax.psum, (sums, size), axes)
        new: list[Any] = list(flat.values)
        for i, noise_key in zip(present, keys, strict=True):
            noise = None if silent else (deviation, noise_key)
            new[i] = _mean(sums[i], noise, 1 / count).astype(flat.values[i].dtype)
        return flat.unflatten(new), DifferentiallyPrivateAggregateState(rng_key)

    return Combining(init, update, over)


def _check_shapes(flat: gtree.Flat, present: list[int], params: Params | None, where: str) -> None:
    values = [None] * len(flat.values)
    if params is not None:
        values = gtree.flatten_like(flat, params, "the parameters", where)
    for i in present:
        g, p = flat.values[i], values[i]
        check_array(g, flat, i, where, "gradient")
        if p is not None and jnp.shape(p) != g.shape[1:]:
            raise ValueError(
                f"{where}: at {flat.paths[i]!r} the gradient has shape {g.shape} and the parameter "
                f"{jnp.shape(p)}; it must be {('examples', *jnp.shape(p))}: one gradient for each "
                f"example, as jax.vmap(jax.grad(loss), (None, 0)) makes them."
            )


def _devices(
    over: mapped.Axes, flat: gtree.Flat, params: Params | None, where: str
) -> mapped.Kinds:
    """The axes to add up over. Checks that each device has gradients of its own examples."""
    values: Any = [None] * len(flat.values)
    if params is not None:
        values = gtree.flatten_like(flat, params, "the parameters", where)
    spans = mapped.spans(over, flat, None, where)
    for i, g in enumerate(flat.values):
        for name in () if g is None else spans[i].typed:
            if name not in varies_over(g):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} the gradients do not vary over the mapped axis "
                    f"{name!r}: inside shard_map, JAX has already added up those of examples on "
                    f"different devices, before they were bounded. Differentiate with respect to "
                    f"jax.lax.pcast(params, {name!r}, to='varying')."
                )
            if values[i] is not None and name in varies_over(values[i]):
                raise ValueError(
                    f"{where}: at {flat.paths[i]!r} the parameter varies over the mapped axis "
                    f"{name!r}, so a device has only a part of each example's gradient. Shard only "
                    f"the examples over it, and give update the parameters as they were before "
                    f"jax.lax.pcast."
                )
    typed = spans[0].typed
    return typed, tuple(axis.name for axis in over if axis.name not in typed)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _mean(total: Array, noise: tuple[Any, Array] | None, share: Any) -> Array:
    if noise is not None:
        deviation, key = noise
        if jnp.iscomplexobj(total):  # each part has half the variance
            deviation = deviation * math.sqrt(2)
        total = total + deviation * jax.random.normal(key, total.shape, total.dtype)
    return total * share


@core.recorded
@renamed(seed="key")
def dpsgd(
    learning_rate: Hyper,
    l2_norm_clip: Annotated[float, Number("(0, inf]", "c")],
    noise_multiplier: Annotated[float, Number("[0, inf)", r"\sigma")],
    key: Array | int,
    momentum: Annotated[Hyper | None, Number("[-1, 1]", r"\mu")] = None,
    nesterov: bool = False,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Stochastic gradient descent with differential privacy.

    .. math::
        g &= \frac{1}{B} \left(\sum_{b=1}^{B} g_b \min(1, c / \lVert g_b \rVert)
              + \mathcal N(0, \sigma^2 c^2)\right) \\
        u &= -\eta\, m, \qquad m \leftarrow \mu m + g

    It takes gradients with a first axis over the examples (see
    `differentially_private_aggregate`).

    Args:
      l2_norm_clip: the bound of each example's norm over all leaves.
      noise_multiplier: the noise's standard deviation in units of the bound.
      momentum: how much of the sum of gradients is kept each step. Without it \(m = g\).
      nesterov: Only with momentum.
      axis_name: the mapped axis over which the examples are sharded.

    Raises:
      ValueError: nesterov is given without a momentum; there is noise without a bound; in `update`,
        the gradients have no first axis over the examples.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.dpsgd(0.1, l2_norm_clip=1.0, noise_multiplier=0.0, key=0)
      >>> params = jnp.zeros(2)
      >>> grads = jnp.array([[3.0, 4.0], [0.0, 0.0]])
      >>> tx.update(grads, tx.init(params), params)[0]
      Array([-0.03, -0.04], dtype=float32)

    Reference: Abadi et al., *Deep learning with differential privacy*,
    https://arxiv.org/abs/1607.00133.
    """
    if momentum is None and nesterov:
        raise ValueError(f"{core.where()}: nesterov needs a momentum.")
    return chain(
        differentially_private_aggregate(l2_norm_clip, noise_multiplier, key, axis_name=axis_name),
        identity() if momentum is None else trace(momentum, nesterov),
        descend(learning_rate),
    )
