"""Estimates of the curvature of the loss, for the rules that divide by it."""

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
from gradx.lift.states import check_state
from gradx.lowering.varying import varies_over, vary
from gradx.numbers.sources import Array
from gradx.pieces.preprocessing import as_key, check_key

__all__ = ["HutchinsonState", "hutchinson_estimator_diag_hessian"]


class HutchinsonState(NamedTuple):
    """The state of `hutchinson_estimator_diag_hessian`.

    Attributes:
      key: the random key of the next estimate, raw (2,) or, if a typed one was given, ().
    """

    key: Array


@core.recorded
def hutchinson_estimator_diag_hessian(
    random_seed: Array | int | None = None, *, axis_name: Any = None
) -> Transform:
    r"""Replaces the updates by an estimate of the diagonal of the Hessian.

    .. math:: u = r \odot \nabla^2 L(\theta)\, r, \qquad r_i = \pm 1 \text{ at random}

    It is right on average, and costs about two gradients. `update` needs the parameters and the
    extra argument `obj_fn`, the loss as a function of the parameters alone.

    Args:
      random_seed: a random key, or the seed of one; by default that of seed 0, as in Optax.
      axis_name: the mapped axis over which the estimates are averaged, inside `shard_map` or `pmap`
        with a share of the batch on every device, or several, or `sharded`. Without it the devices'
        parameters would part. In `shard_map` `obj_fn` may also be the average of all devices'
        losses; elsewhere it must be the device's own. The estimates of a parameter that is cut
        along the axis are not averaged.

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
    Algorithm 1, where \(r\) is Gaussian: signs have a lower variance. The same key gives the same
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
        if params is None:
            raise ValueError(f"{where}: needs the parameters: call update(updates, state, params).")
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
            # Else JAX would sum, over the devices, what it derives for parameters that are alike.
            pairs = zip(leaves, alike, strict=True)
            leaves = [vary(jnp.asarray(p), frozenset(typed)) for p, (typed, _) in pairs]
        signs = [
            vary(_signs(_apart(k, names), jnp.shape(p), jnp.result_type(p)), varies_over(p))
            for k, p, names in zip(keys, leaves, cut, strict=True)
        ]
        here = structure.unflatten(leaves)
        _, products = jax.jvp(jax.grad(obj_fn), (here,), (structure.unflatten(signs),))
        made = [_times(h, r) for h, r in zip(jax.tree.leaves(products), signs, strict=True)]
        made = mapped.over_each(jax.lax.pmean, made, alike)
        return structure.unflatten(made), HutchinsonState(key)

    return Transform(init, update)


def _on_axes(
    over: mapped.Axes, params: Params, obj_fn: Callable[[Params], Array], where: str
) -> tuple[list[tuple[Hashable, ...]], list[mapped.Kinds]]:
    """For each parameter the axes that it is cut along, and those to average its estimates over."""
    flat = gtree.flatten(params)
    spans = mapped.spans(over, flat, None, where, plain=False)
    varying = varies_over(jax.eval_shape(obj_fn, params))
    cut, alike = [], []
    for p, span in zip(flat.values, spans, strict=True):
        if p is None:
            continue
        by_type, said = span.of(p)
        # A loss that does not vary over an axis has been averaged over it.
        typed = tuple(name for name in span.typed if name in varying and name not in by_type)
        cut.append((*by_type, *said))
        alike.append((typed, tuple(name for name in span.whole if name not in span.typed)))
    return cut, alike


def _apart(key: Array, names: tuple[Hashable, ...]) -> Array:
    """Another key on each device that has a part of the parameter, for independent signs."""
    for name in names:
        key = jax.random.fold_in(key, jax.lax.axis_index(name))
    return key


@partial(jax.jit, static_argnums=(1, 2))  # one trace per shape and dtype, instead of one per leaf
def _signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, jnp.float32).astype(dtype)


@jax.jit
def _times(h: Array, r: Array) -> Array:
    return h * r
