"""Gradients combined over the devices of a mapped axis."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradx import core
from gradx.core import Params, State, Transform, Updates
from gradx.lift import mapped
from gradx.lift.replicas import AVERAGE, Combining, combined

__all__ = ["pmean", "psum"]


@core.recorded
def pmean(axis_name: Any, *, already_reduced: bool = False) -> Transform:
    r"""Averages the updates over a mapped axis: data-parallel training in one chain element.

    .. math:: u \leftarrow \frac{1}{n} \sum_{d=1}^{n} u^{(d)}

    Place it first, so that whatever follows sees the gradient of the whole batch and keeps the same
    state on every device. Under `jit` with sharded arrays it is not needed.

    In `shard_map` the types of the arrays decide, leaf by leaf. A gradient that varies over the
    axis is averaged if its parameter does not vary. A parameter that varies is one device's part of
    a sharded one, and its gradient passes. Where neither varies, JAX has already summed the
    gradient: a mean changes nothing, and steps would be \(n\) times too large. There are two ways
    out:

    * average the loss, ``jax.lax.pmean(loss, axis)``, and say ``already_reduced=True``;
    * differentiate with respect to ``jax.lax.pcast(params, axis, to="varying")``. Then gradients
      vary. Give `update` the original parameters: the cast ones would pass for sharded ones.

    In `pmap`, `vmap` and ``shard_map(check_vma=False)`` all gradients are averaged, except those
    of the leaves that `sharded` names.

    Args:
      axis_name: the name that `pmap`, `shard_map` or `vmap` gives the axis, `sharded`, or a tuple
        of these.
      already_reduced: pass on gradients whose type says that all devices have the same.

    Raises:
      ValueError: in `update`, outside a mapping with such an axis; in `shard_map`, for a gradient
        that is already summed, or for one that varies if the parameters are missing.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.pmean("batch"), gradx.sgd(1.0))
      >>> update = lambda g: tx.update(g, tx.init(g))[0]
      >>> jax.vmap(update, axis_name="batch")(jnp.array([1.0, 3.0]))
      Array([-2., -2.], dtype=float32)
    """
    return _combining(jax.lax.pmean, axis_name, already_reduced, AVERAGE)


@core.recorded
def psum(axis_name: Any, *, already_reduced: bool = False) -> Transform:
    r"""Sums the updates over a mapped axis, for losses that are sums over examples.

    .. math:: u \leftarrow \sum_{d=1}^{n} u^{(d)}

    Losses that each device has divided by the number of all examples need it, too. Place it first.
    It treats leaves as `pmean` does; the two differ in a factor of \(n\). In `shard_map` the
    gradient of a parameter that is the same on all devices is this sum already, so it is rarely
    needed there.

    Args:
      axis_name: the name that `pmap`, `shard_map` or `vmap` gives the axis, `sharded`, or a tuple
        of these.
      already_reduced: pass on gradients whose type says that all devices have the same.

    Raises:
      ValueError: in `update`, outside a mapping with such an axis; in `shard_map`, for a gradient
        that is already summed, or for one that varies if the parameters are missing.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.psum("batch"), gradx.sgd(1.0))
      >>> update = lambda g: tx.update(g, tx.init(g))[0]
      >>> jax.vmap(update, axis_name="batch")(jnp.array([1.0, 3.0]))
      Array([-4., -4.], dtype=float32)
    """
    return _combining(jax.lax.psum, axis_name, already_reduced, _IS_THE_SUM)


_IS_THE_SUM = (
    "Another sum would count every device's share n times. Leave psum out, or say "
    "already_reduced=True, which lets such gradients pass."
)


def _combining(reduce: Any, axis_name: Any, already_reduced: bool, remedy: str) -> Transform:
    where = core.where()
    over = mapped.some_axes(axis_name)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        new = combined(
            reduce, updates, params, over, where, already_reduced=already_reduced, remedy=remedy
        )
        return new, state

    return Combining(lambda params: optax.EmptyState(), update, over)
