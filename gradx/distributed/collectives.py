"""Updates combined over the devices of a mapped axis."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradx import core
from gradx import tree as gtree
from gradx.core import Params, State, Transform, Updates

__all__ = ["pmean"]


@core.recorded
def pmean(axis_name: Any) -> Transform:
    r"""Averages the updates over a mapped axis: data-parallel training in one chain element.

    .. math:: u \leftarrow \frac{1}{n} \sum_{d=1}^{n} u^{(d)}

    Place it first, so that whatever follows sees the gradient of the whole batch and keeps the same
    state on every device. Under `jit` with sharded arrays it is not needed.

    Args:
      axis_name: the name that `pmap`, `shard_map` or `vmap` gives the axis, or a tuple of names.

    Raises:
      ValueError: in `update`, outside a mapping with such an axis.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.pmean("batch"), gradx.sgd(1.0))
      >>> update = lambda g: tx.update(g, tx.init(g))[0]
      >>> jax.vmap(update, axis_name="batch")(jnp.array([1.0, 3.0]))
      Array([-2., -2.], dtype=float32)
    """
    where = core.where()

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        with gtree.mapped(axis_name, where):
            return jax.lax.pmean(updates, axis_name), state

    return Transform(lambda params: optax.EmptyState(), update)
