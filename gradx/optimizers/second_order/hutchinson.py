"""Hutchinson's estimate of the Hessian's diagonal, for rules that divide by the curvature."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.suggestions import MissingArgument
from gradx.lift import mapped
from gradx.lift.states import check_state, need_params
from gradx.lowering.varying import varies_over, vary
from gradx.numbers.sources import Array
from gradx.pieces.preprocessing import as_key, check_key

__all__ = ["HutchinsonState", "hutchinson_estimator_diag_hessian"]


class HutchinsonState(NamedTuple):
    """The state of `hutchinson_estimator_diag_hessian`.

    Attributes:
      key: the random key of the next estimate, a raw key (2,), or a typed key ().
    """

    key: Array


@core.recorded
def hutchinson_estimator_diag_hessian(
    random_seed: Array | int | None = None, *, axis_name: Any = None
) -> Transform:
    r"""Replaces the updates by an unbiased estimate of the Hessian's diagonal, for Sophia.

    .. math:: u = r \odot \nabla^2 L(\theta)\, r, \qquad r_i = \pm 1 \text{ at random}

    An estimate costs about two gradients. `update` needs the parameters and the extra argument
    `obj_fn`, the loss as a function of the parameters alone.

    Args:
      random_seed: a random key, or the seed of one; by default seed 0, as in Optax.
      axis_name: the mapped axis over which the estimates are averaged, inside `shard_map` or `pmap`
        with a share of the batch on every device, or several, or `sharded`. Without it the
        parameters of the devices would diverge. In `shard_map` `obj_fn` may also be the average of
        all devices' losses; elsewhere it must be the device's own loss. The estimates of a
        parameter that is cut along the axis are not averaged.

    Raises:
      ValueError: `update` is called without the parameters or without `obj_fn`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.hutchinson_estimator_diag_hessian()
      >>> p = jnp.array([1.0, 2.0])
      >>> tx.update(p, tx.init(p), p, obj_fn=lambda p: jnp.sum(p**3))[0]
      Array([ 6., 12.], dtype=float32)

    Reference: Hutchinson, *A stochastic estimator of the trace of the influence matrix for
    Laplacian smoothing splines*, 1989; Liu et al., *Sophia*, https://arxiv.org/abs/2305.14342,
    Algorithm 1. There \(r\) is Gaussian; signs have a lower variance. The same key gives the same
    signs as in Optax.
    """
    where = core.where()
    start: Any = 0 if random_seed is None else random_seed
    check_key("random_seed", start)
    over = mapped.axes(axis_name)

    def init(params: Params) -> HutchinsonState:
        return HutchinsonState(as_key(start))

    def update(
        updates: Updates,
        state: State,
        params: Params | None = None,
        *,
        obj_fn: Callable[[Params], Array] | None = None,
        **extra: Any,
    ) -> tuple[Updates, HutchinsonState]:
        need_params(params, where)
        if not callable(obj_fn):
            raise MissingArgument(
                f"{where}: needs the extra argument 'obj_fn', the loss as a function of the "
                f"parameters alone: call update(updates, state, params, obj_fn=…), got "
                f"{core.show(obj_fn)}."
            )
        check_state(state, HutchinsonState, where)
        # Keys are split as by Optax, so that the same key gives the same signs.
        key, now = jax.random.split(state.key)
        leaves: list[Any] = jax.tree.leaves(params)
        structure: Any = jax.tree.structure(params)
        keys: Any = jax.random.split(now, len(leaves)) if leaves else []
        cut: list[Any] = [()] * len(leaves)
        alike: list[mapped.Kinds] = [((), ())] * len(leaves)
        if over:
            cut, alike = _on_axes(over, params, obj_fn, where)
            # Otherwise JAX would sum the derivatives of replicated parameters over the devices.
            pairs = zip(leaves, alike, strict=True)
            leaves = [vary(jnp.asarray(p), frozenset(typed)) for p, (typed, _) in pairs]
        signs = [
            vary(_signs(_apart(k, names), jnp.shape(p), jnp.result_type(p)), varies_over(p))
            for k, p, names in zip(keys, leaves, cut, strict=True)
        ]
        point = structure.unflatten(leaves)
        _, products = jax.jvp(jax.grad(obj_fn), (point,), (structure.unflatten(signs),))
        estimates = [_times(h, r) for h, r in zip(jax.tree.leaves(products), signs, strict=True)]
        estimates = mapped.over_each(jax.lax.pmean, estimates, alike)
        return structure.unflatten(estimates), HutchinsonState(key)

    return Transform(init, update)


def _on_axes(
    over: mapped.Axes, params: Params, obj_fn: Callable[[Params], Array], where: str
) -> tuple[list[tuple[Hashable, ...]], list[mapped.Kinds]]:
    """For each parameter: the axes that cut it, and the axes to average its estimates over."""
    flat = gtree.flatten(params)
    spans = mapped.spans(over, flat, None, where, plain=False)
    varying = varies_over(jax.eval_shape(obj_fn, params))
    cut, alike = [], []
    for p, span in zip(flat.values, spans, strict=True):
        if p is None:
            continue
        by_type, by_user = span.of(p)
        # A loss that does not vary over an axis is an average over it already.
        typed = tuple(name for name in span.typed if name in varying and name not in by_type)
        cut.append((*by_type, *by_user))
        alike.append((typed, tuple(name for name in span.whole if name not in span.typed)))
    return cut, alike


def _apart(key: Array, names: tuple[Hashable, ...]) -> Array:
    """A different key on each device that has a part of the parameter, for independent signs."""
    for name in names:
        key = jax.random.fold_in(key, jax.lax.axis_index(name))
    return key


@partial(jax.jit, static_argnums=(1, 2))  # one trace per shape and dtype, instead of one per leaf
def _signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, jnp.float32).astype(dtype)


@jax.jit
def _times(h: Array, r: Array) -> Array:
    return h * r
